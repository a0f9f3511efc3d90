"""Bugs of the CUDA kernels of L1 costs: every barrier, bound and mask, and slips in the maths."""

import torch
from bugs import CudaBug
from comparisons import guarded_memory

from kd_kernels.backends import reference

NAN = float("nan")
SEEDS = 3


def near(actual, expected, what, relative):
    size = expected.abs().amax().item()
    error = (actual.double() - expected).abs()
    assert (error <= relative * size).all(), f"{what}: error {error.max():.1e} of {size:.1e}"


def compare(
    cuda, student, teacher, student_mask=None, teacher_mask=None, columns=None, softmax=True, rates=(0.5, 1.4),
    constants=None, relative=3e-5,
):  # fmt: skip
    """Costs and gradient, under several orders of threads, against the reference in float64."""
    rates = rates if softmax else (1.0, 1.0)
    spec = (student_mask, teacher_mask, list(rates), columns or student.shape[2], softmax)
    leaf = student.double().requires_grad_()
    expected = reference.l1_cost(leaf, teacher.double(), *spec, torch.float64)
    upstream = torch.randn(expected.shape)
    (gradient,) = torch.autograd.grad((expected * upstream).sum(), leaf)
    for seed in range(SEEDS):
        options = {"seed": seed, "constants": constants}
        with guarded_memory():
            cost, statistics = cuda.l1_cost(student, teacher, *spec, **options)
            found = cuda.l1_cost_backward(upstream, statistics, student, teacher, *spec, **options)
        near(cost, expected.detach(), "cost", 3e-5)
        near(found, gradient, "gradient", relative)


def masked_rows(cuda):
    """More rows than a tile has on both sides, columns of two ranges; NaN where nothing is read."""
    student, teacher = torch.randn(2, 35, 600) * 3, torch.randn(2, 41, 590) * 3
    student_mask, teacher_mask = torch.rand(2, 35) < 0.9, torch.rand(2, 41) < 0.9
    student_mask[0, 3] = student_mask[1, 33] = teacher_mask[0, 5] = teacher_mask[1, 40] = False
    student_mask[1, :32] = False  # a tile of none
    student[~student_mask] = teacher[~teacher_mask] = student[:, :, 587:] = teacher[:, :, 587:] = NAN
    compare(cuda, student, teacher, student_mask, teacher_mask, 587)


def long_rows(cuda):
    """Sums of several chains in a range, tiles of the gradient in several groups."""
    compare(cuda, torch.randn(2, 3, 2100) * 3, torch.randn(2, 4, 2100) * 3,
            constants={"l1_cost._THREADS": 64, "l1_cost._GAINS": 2100 * 32})  # fmt: skip


def sixteen_bits(cuda):
    """Rows that begin where no vector does, and rows that do."""
    for dtype in (torch.bfloat16, torch.float16):
        student, teacher = (torch.randn(1, k, 77).to(dtype) for k in (3, 18))
        compare(cuda, student, teacher, relative=4e-3)
    compare(cuda, torch.randn(1, 3, 80).bfloat16(), torch.randn(1, 5, 80).bfloat16(), relative=4e-3)


def many_ranges(cuda):
    """More ranges than a block of the last sums has warps."""
    compare(cuda, torch.randn(1, 3, 4700) * 3, torch.randn(1, 4, 4700) * 3)


def deep_rows(cuda):
    """Logits far below 0."""
    compare(cuda, torch.randn(1, 3, 77) - 300, torch.randn(1, 5, 77) - 300)


def forbidden_entries(cuda):
    """-inf in all that some threads read."""
    student, teacher = torch.randn(1, 3, 90), torch.randn(1, 4, 90)
    student[:, :, 8:24] = teacher[:, 1, 40:] = -float("inf")
    compare(cuda, student, teacher)


def large_tiles(cuda):
    compare(cuda, torch.randn(1, 101, 40) * 3, torch.randn(1, 110, 40) * 3)


def vectors(cuda):
    """Equal entries among them."""
    student, teacher = (torch.randint(-2, 3, (2, k, 30)) / 2 for k in (5, 20))
    compare(cuda, student, teacher, columns=27, softmax=False)


UNITS = ("l1_cost",)
KERNEL, GRADIENT, ROWS, STATISTICS = (
    f"cuda/l1_{name}.h" for name in ("cost_kernel", "gradient_kernel", "rows", "statistics_kernel")
)


def bug(file, original, mutated, check, why):
    return CudaBug(file, original, mutated, check, UNITS, why)


BUGS = [
    bug(
        KERNEL,
        "    // it.\n    __syncthreads();\n",
        "    // it.\n",
        masked_rows,
        "probabilities read before they are there",
    ),
    bug(KERNEL, "buffer ^= 1", "buffer ^= 0", masked_rows, "one buffer where two are needed"),
    bug(
        KERNEL,
        "some[threadIdx.x] = 0;\n  __syncthreads();",
        "some[threadIdx.x] = 0;",
        masked_rows,
        "flags cleared after they were set",
    ),
    bug(KERNEL, "some[1] = 1;\n  __syncthreads();", "some[1] = 1;", masked_rows, "flags read before they are set"),
    bug(
        KERNEL,
        "shared[threadIdx.x] = sum;\n  __syncthreads();",
        "shared[threadIdx.x] = sum;",
        masked_rows,
        "sums of other warps read before they are there",
    ),
    bug(KERNEL, "row.entries && k < count ? q", "k < count ? q", masked_rows, "rows that do not count as logits of 0"),
    bug(KERNEL, "row.entries && k < count ? q", "row.entries ? q", masked_rows, "logits of 0 beyond the last column"),
    bug(KERNEL, "first ? of_chain", "true ? of_chain", long_rows, "only the last chain of a range"),
    bug(KERNEL, "      of_chain = 0.0f;\n", "", long_rows, "chains that go on"),
    bug(
        KERNEL,
        "v % kL1Chain != kL1Chain - Steps::kColumns && v + Steps::kColumns < length",
        "v % kL1Chain != kL1Chain - Steps::kColumns",
        long_rows,
        "the last columns left out",
    ),
    bug(KERNEL, "  if (counts) {\n", "  {\n", masked_rows, "costs of rows that do not count"),
    bug(KERNEL, "|| row >= of.student.rows ||", "||", masked_rows, "costs written beyond the last row"),
    bug(KERNEL, "|| column >= of.teacher.rows)", ")", masked_rows, "costs written beyond the last column"),
    bug(KERNEL, "range += kWarps", "range += 2 * kWarps", many_ranges, "ranges left out"),
    bug(KERNEL, "other < kWarps", "other < kWarps - 1", many_ranges, "a warp's sums left out"),
    bug(KERNEL, "i / 4 * kSquare + along * 4", "i / 4 * 4 + along * 4", large_tiles, "squares of pairs that overlap"),
    bug(
        KERNEL,
        "problem % of.problems, static_cast<int>(line",
        "0, static_cast<int>(line",
        masked_rows,
        "all problems are the first",
    ),
    bug(
        STATISTICS,
        "shared[threadIdx.x / 32] = x;\n  __syncthreads();",
        "shared[threadIdx.x / 32] = x;",
        masked_rows,
        "numbers of other warps read before they are there",
    ),
    bug(
        STATISTICS,
        "x = operation(x, shared[warp]);\n  __syncthreads();",
        "x = operation(x, shared[warp]);",
        masked_rows,
        "numbers of warps overwritten before all have read them",
    ),
    bug(
        STATISTICS,
        "larger = k < count ? fmaxf(larger, x[k]) : larger;",
        "larger = fmaxf(larger, x[k]);",
        deep_rows,
        "a maximum of 0 beyond the last column",
    ),
    bug(
        STATISTICS,
        "sum += k < count ? exp2_fast((x[k] - shift) * side.rate) : 0.0f;",
        "sum += exp2_fast((x[k] - shift) * side.rate);",
        masked_rows,
        "exponentials beyond the last column",
    ),
    bug(
        STATISTICS,
        "        sum *= exp2_fast((top - larger) * side.rate);  // at first 0 times 0\n",
        "",
        long_rows,
        "sums relative to different maxima",
    ),
    bug(STATISTICS, "top == -INFINITY ? 0.0f : top", "top", forbidden_entries, "-inf minus -inf"),
    bug(STATISTICS, "over_block(sum * scale,", "over_block(sum,", masked_rows, "sums of different maxima"),
    bug(STATISTICS, "counts ? row_top : 0.0f", "row_top", masked_rows, "-inf as the maximum of rows that do not count"),
    bug(
        ROWS,
        "return row < side.rows && (!side.mask || side.mask[problem * side.rows + row] != 0);",
        "return row < side.rows;",
        masked_rows,
        "masks ignored",
    ),
    bug(ROWS, "side.mask[problem * side.rows + row]", "side.mask[row]", masked_rows, "the first problem's masks"),
    bug(ROWS, "(student ? 0 : of.student.rows) + row", "row", masked_rows, "the student's statistics for both"),
    bug(
        ROWS,
        "count >= kCount && reinterpret_cast<uintptr_t>(p) % kAligned == 0) {\n      if constexpr (kWords == 2) {"
        "\n        const uint2",
        "count >= kCount) {\n      if constexpr (kWords == 2) {\n        const uint2",
        sixteen_bits,
        "vectors read where there are none",
    ),
    bug(
        ROWS,
        "2 * k + 1 < count ? entries[2 * k + 1] : 0",
        "entries[2 * k + 1]",
        sixteen_bits,
        "entries read beyond the last column",
    ),
    bug(ROWS, "if (k >= count) continue;", "", sixteen_bits, "entries written beyond the last column"),
    bug(
        ROWS,
        "from_half(static_cast<uint16_t>(words[k / 2] >> (k % 2 * 16)))",
        "from_half(static_cast<uint16_t>(words[k / 2]))",
        sixteen_bits,
        "every other entry read twice",
    ),
    bug(GRADIENT, "    // it.\n    __syncthreads();\n", "    // it.\n", masked_rows, "rows read before they are there"),
    bug(GRADIENT, "buffer ^= 1", "buffer ^= 0", masked_rows, "one buffer where two are needed"),
    bug(
        GRADIENT,
        "to the loop.\n  __syncthreads();\n",
        "to the loop.\n",
        masked_rows,
        "the last rows overwritten before all have read them",
    ),
    bug(
        GRADIENT,
        "sums[thread / 32 * 8 + i] = sum;\n  }\n  __syncthreads();",
        "sums[thread / 32 * 8 + i] = sum;\n  }",
        masked_rows,
        "sums read before they are there",
    ),
    bug(GRADIENT, "sums[pair] + sums[pair + 8]", "sums[pair]", masked_rows, "half of a row's columns in sum q G"),
    bug(
        GRADIENT,
        "const bool counts = weighed && row_counts(of.teacher, problem, j);",
        "const bool counts = weighed && j < m;",
        masked_rows,
        "rows that do not count in the gradient",
    ),
    bug(
        GRADIENT,
        "const bool counts = weighed && row_counts",
        "const bool counts = row_counts",
        masked_rows,
        "upstream read beyond the last row",
    ),
    bug(
        GRADIENT,
        "row.entries && column + k < columns) sum",
        "column + k < columns) sum",
        masked_rows,
        "probabilities of rows that do not count",
    ),
    bug(GRADIENT, "gain[i][k] -= w[i]", "gain[i][k] -= 0.0f", vectors, "a derivative without its negative half"),
    bug(
        GRADIENT,
        "if (!kSoftmax && q[i][k] < b[k])",
        "if (!kSoftmax && q[i][k] <= b[k])",
        vectors,
        "equal entries as if the one were larger",
    ),
    bug(
        GRADIENT,
        "gain[i][k] = column + k < columns ? gain[i][k] : 0.0f;",
        "",
        vectors,
        "a derivative beyond the last column",
    ),
    bug(
        GRADIENT,
        "if (row >= n || column >= span) continue;",
        "if (column >= span) continue;",
        vectors,
        "gradients of rows beyond the last",
    ),
    bug(GRADIENT, "= 2.0f * gain[i][k]", "= gain[i][k]", masked_rows, "half of the derivative"),
    bug(GRADIENT, "(tile + first_tile) / tiles", "tile / tiles", long_rows, "the first group's problems"),
    bug(GRADIENT, "  if (row >= n) return;\n", "", masked_rows, "gradients of rows beyond the last"),
    bug(
        GRADIENT,
        "k < blocks; k += kL1RowThreads",
        "k < 1; k += kL1RowThreads",
        long_rows,
        "sum q G of the first columns",
    ),
    bug(
        GRADIENT,
        "student.entries && column + k < columns) {",
        "column + k < columns) {",
        masked_rows,
        "a gradient of rows that do not count",
    ),
    bug(GRADIENT, " * backward.inverse_temperature;", ";", masked_rows, "a gradient without 1 / T"),
]
