"""Bugs of the CUDA kernels of row divergences: every barrier, wait, bound and mask, and slips in the maths."""

import torch
from bugs import CudaBug

import kd_kernels as kd
from kd_kernels.testing.inputs import far_pair, near_pair
from kd_kernels.testing.truth import truth

# Few kernels are compiled again with every bug: those of one family, for bfloat16, in a unit that takes the place of
# the sources' own.
FAMILIES = {
    "planted_reverse": "KlRows<false, true>", "planted_jsd": "JsdRows", "planted_akl": "AklRows",
    "planted_tvd": "TvdRows",
}  # fmt: skip
UNITS = {
    stem: f"""#include "row_kernel.h"
namespace kd {{
template <> RowKernels row_kernels<{family}>(int) {{
  return {{row_kernel_on_chip<{family}, 2>, row_kernel_streamed<{family}, 2>}};
}}
}}
"""
    for stem, family in FAMILIES.items()
}
NAN, INF = float("nan"), float("inf")


def rows(cuda, student, teacher, kind, gradient=None, **options):
    """Losses, gradient and entropies. The gradient lies among numbers that must stay."""
    n, width = student.shape
    kernel = kind.kernel
    memory = torch.full((n * width + 64,), 7.0, dtype=student.dtype)
    if gradient is None:
        gradient = memory[24 : 24 + n * width].view(n, width).fill_(NAN)
    weight = options.pop("weight", None)
    losses, (gradient, entropy) = cuda.row_losses(
        student, teacher, weight, None, None, kernel.family, list(kernel.params), [1.0, 1.0], 1.0,
        options.pop("columns", width), gradient, torch.full((2, n), NAN), written=(10, 11), **options,
    )  # fmt: skip
    around = torch.tensor([], dtype=student.dtype).set_(gradient.untyped_storage())
    if around.numel() == memory.numel():
        assert (around[:24] == 7).all(), "memory before the gradient was written"
        assert (around[24 + n * width :] == 7).all(), "memory behind the gradient was written"
    return losses, gradient, entropy


def near(actual, expected, tolerance, what):
    size = expected.abs().max().item()
    assert ((actual.double() - expected.double()).abs() <= tolerance * size).all(), what


def shifted(x, entries):
    memory = torch.full((x.numel() + 16,), NAN, dtype=x.dtype)
    view = memory[entries : entries + x.numel()].view(x.shape)
    return view.copy_(x)


def compare(cuda, kind, layouts=(2, 0), width=2101):
    """Far and near rows, wherever they begin, under several orders of threads. A block has two warps and more."""
    student, teacher = far_pair(3, width, torch.bfloat16)
    student[2:], teacher[2:] = near_pair(1, width, torch.bfloat16, distance=0.06)
    weight = torch.tensor([1.0, 0.5, 1.0])
    expected = truth(student, teacher, kind)
    for blocks in layouts:
        first = None
        for seed in range(4):
            sides = (student, teacher) if seed % 2 else (shifted(student, 3), shifted(teacher, 6))
            actual = rows(cuda, *sides, kind, blocks=blocks, seed=seed, weight=weight)
            near(actual[0] / weight, expected.losses, 1e-4, "losses")
            near(actual[1].float() / weight[:, None], expected.gradient, 0.02, "gradient")
            first = first or actual
            assert all(map(torch.equal, actual, first)), "bits depend on the order of threads or on addresses"


def reverse_kl(cuda):
    compare(cuda, kd.ReverseKL())


def jsd(cuda):
    compare(cuda, kd.JSD(), layouts=(4, 2, 0))


def akl(cuda):
    compare(cuda, kd.AKL())
    student, teacher = far_pair(6, 500, torch.bfloat16, seed=2)
    teacher = (teacher / 3).round() * 2
    for mu in (0.0, 0.4, 0.8):
        expected = truth(student, teacher, kd.AKL(mu))
        for blocks in (4, 0):
            near(rows(cuda, student, teacher, kd.AKL(mu), blocks=blocks)[0], expected.losses, 1e-4, "losses")


def tvd(cuda):
    compare(cuda, kd.TVD())


def converged(cuda):
    """Rows so near that only the exact form has any digits."""
    teacher = far_pair(3, 500, torch.bfloat16)[0]
    student = teacher.clone()
    student[:, ::7] *= 1.01
    kind = kd.ReverseKL()
    expected = truth(student, teacher, kind)
    assert expected.losses.max() < 1e-3
    for blocks in (2, 0):
        near(rows(cuda, student, teacher, kind, blocks=blocks)[0] / expected.losses, torch.ones(3), 1e-3, "losses")


def hostile(cuda):
    """Rows that do not count, entries that are forbidden, a top that comes late, columns that do not count."""
    student, teacher = far_pair(4, 4100, torch.bfloat16)
    student[0, 4000] += 200
    teacher[0, 3000] += 190
    student[1, 5:80] = teacher[1, 5:80] = -INF
    kind = kd.ReverseKL()
    expected = truth(student, teacher, kind)
    student[2], teacher[2] = NAN, INF
    student[3, 9] = NAN
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0])
    for blocks in (2, 0):
        losses, gradient, entropy = rows(cuda, student, teacher, kind, blocks=blocks, weight=weight)
        near(losses[:2], expected.losses[:2], 1e-4, "losses")
        near(gradient[:2], expected.gradient[:2], 0.02, "gradient")
        assert losses[2] == 0
        assert (gradient[2] == 0).all()
        assert (entropy[:, 2] == 0).all()
        assert losses[3].isnan()
        assert gradient[3].isnan().all()
        narrow = rows(cuda, student[:2], teacher[:2], kind, blocks=blocks, columns=4001)[1]
        assert (narrow[:, 4001:] == 0).all()
        assert not narrow.isnan().any()


def no_softmax(cuda):
    student, teacher = far_pair(4, 300, torch.bfloat16)
    student[1, 7] = NAN
    teacher[2] = -INF
    student[3, 5] = INF
    for blocks in (2, 0):
        losses, gradient, _ = rows(cuda, student, teacher, kd.TVD(), blocks=blocks)
        assert losses.isnan().tolist() == [False, True, True, True]
        assert gradient[1:].isnan().all()
        assert gradient[0].isfinite().all()


REVERSE, OF_JSD, OF_AKL, OF_TVD = (("rows", stem) for stem in FAMILIES)
TEAM, SLICE, KERNEL, AKL = (f"cuda/row_{name}.h" for name in ("team", "slice", "kernel", "akl"))

BUGS = [
    # sums of a team
    CudaBug(TEAM, "of_warp[warp][k] = v[k];\n    }\n    __syncthreads();", "of_warp[warp][k] = v[k];\n    }",
            reverse_kl, REVERSE, "warps' sums are read before they are written"),
    CudaBug(TEAM, "by here twice, and so have all who read it.\n    sync();",
            "by here twice, and so have all who read it.", reverse_kl, REVERSE, "no barrier between blocks"),
    CudaBug(TEAM, "operation(v[k], of_block[other][k]);\n    }\n    turn_ ^= 1;",
            "operation(v[k], of_block[other][k]);\n    }", reverse_kl, REVERSE,
            "the next sums overwrite those another block has not read"),
    CudaBug(TEAM, "lane < warps ? memory_->of_warp[lane][k] : Operation::kNeutral", "memory_->of_warp[lane % 8][k]",
            reverse_kl, REVERSE, "sums of warps that there are not"),
    CudaBug(TEAM, "for (unsigned other = 1; other < size(); ++other) {\n#pragma unroll",
            "for (unsigned other = 0; other < size(); ++other) {\n#pragma unroll", reverse_kl, REVERSE,
            "the first block counted twice"),
    CudaBug(TEAM, "memory_->of_warp[warp][0] = upto;\n    __syncthreads();", "memory_->of_warp[warp][0] = upto;", akl,
            OF_AKL, "warps' counts are read before they are written"),
    CudaBug(TEAM, "[rank()][0] = all;\n    sync();", "[rank()][0] = all;", akl, OF_AKL,
            "blocks' counts are read before they are written"),
    # slices
    CudaBug(SLICE, "    barrier_wait(arrived_, parity_);\n", "", reverse_kl, REVERSE, "the row is not waited for"),
    CudaBug(SLICE, "    parity_ ^= 1;\n", "", reverse_kl, REVERSE, "the second row is not waited for"),
    CudaBug(SLICE, "    __syncthreads();  // for the entries that threads have copied\n", "", reverse_kl, REVERSE,
            "the row's ends are not waited for"),
    CudaBug(SLICE, "teacher.phase > 0) __syncthreads();", "teacher.phase > 0) __syncwarp();", reverse_kl, REVERSE,
            "rows are swept while they are moved"),
    CudaBug(SLICE, "      __syncthreads();\n      if (v < vectors_) moved.store(side + v);",
            "      if (v < vectors_) moved.store(side + v);", reverse_kl, REVERSE,
            "vectors are overwritten before they have moved"),
    CudaBug(SLICE, "what bulk loads will\n    __syncthreads();", "what bulk loads will", jsd, OF_JSD,
            "the next row comes while this one is read"),
    CudaBug(SLICE, "    if (phase == 0 && end == last) return;\n    __syncthreads();",
            "    if (phase == 0 && end == last) return;", reverse_kl, REVERSE,
            "a gradient is copied out before it is all there"),
    CudaBug(SLICE, "    if (!row.has_all(entry)) {\n#pragma unroll", "    if (false) {\n#pragma unroll", reverse_kl,
            REVERSE, "entries beyond the row's end count"),
    CudaBug(SLICE, "if (entry >= first && entry + kEntries <= end) {", "if (entry >= first) {", reverse_kl, REVERSE,
            "a gradient's last vector is written whole"),
    CudaBug(SLICE, "if (entry + k >= first && entry + k < end)", "if (entry + k < end)", jsd, OF_JSD,
            "a gradient's first vector is written whole"),
    CudaBug(SLICE, "copy_wait<kRing - 1>();", "", reverse_kl, REVERSE, "streamed vectors are not waited for"),
    CudaBug(SLICE, "(turn + kRing - 1) % kRing", "turn", hostile, REVERSE, "a vector comes where another is in use"),
    CudaBug(SLICE, "if (phase_of(side) == 0 && row.has_all(entry)) {", "if (row.has_all(entry)) {", reverse_kl, REVERSE,
            "16 bytes at once from any address"),
    # rows
    CudaBug(KERNEL, "  team.sync();  // also: no block writes to another that has not started\n", "", reverse_kl,
            REVERSE, "blocks write to those that have not started"),
    CudaBug(KERNEL, "counts ? of.columns : 0, of.width", "of.columns, of.width", hostile, REVERSE,
            "gradients of rows of weight 0 are not cleared"),
    CudaBug(KERNEL, "counts ? of.columns : 0, of.width", "0, counts ? 0 : of.width", hostile, REVERSE,
            "entries beyond the columns are not cleared"),
    CudaBug(KERNEL, "      looked_at = all;\n", "      break;\n", hostile, REVERSE,
            "no second sweep of a row that rises late"),
    CudaBug(KERNEL, "if (Family::kReverse && e.student > 0.0f)", "if (Family::kReverse)", hostile, REVERSE,
            "0 times infinity"),
    CudaBug(KERNEL, "poison = 0.0f * (r_.inverse_student + r_.inverse_teacher)", "poison = 0.0f", no_softmax, OF_TVD,
            "a row without a softmax has a gradient"),
    CudaBug(KERNEL, "kFarRow = 1.0f / 64", "kFarRow = 1e-9f", converged, REVERSE,
            "the far form where it has no digits left"),
    CudaBug(KERNEL, "minus_sum = -h_sum * r_.inverse_student;", "minus_sum = -h_sum;", jsd, OF_JSD,
            "sum h times an exponential that is not normalised"),
    CudaBug(KERNEL, "x[k] = fma(q, -h_sum, Family::far_h(of.d, q)) * factor;",
            "x[k] = Family::far_h(of.d, q) * factor;", tvd, OF_TVD, "a gradient without sum h"),
    CudaBug("cuda/row_entries.h", "uint64_t(w[k + 1]) << 32 | w[k]", "uint64_t(w[k]) << 32 | w[k + 1]", reverse_kl,
            REVERSE, "halves of a shifted word exchanged"),
    # AKL's split
    CudaBug(AKL, "(tie && rank < room)", "tie", akl, OF_AKL, "all ties in the head"),
    CudaBug(AKL, "above == 0.0f ? 1.0f : 0.0f", "0.0f", akl, OF_AKL, "a head without the first entry"),
    CudaBug(AKL, "over[part] * r_.inverse_teacher > of_.a", "over[part] * r_.inverse_teacher >= of_.a", akl, OF_AKL,
            "a head that takes what just reaches mu"),
]  # fmt: skip
