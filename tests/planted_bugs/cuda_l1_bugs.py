"""Bugs of the CUDA kernels of L1 costs: every barrier, bound and mask. The maths is for tests/cuda."""

import torch
from bugs import Change, CudaBug
from comparisons import guarded_memory

from kd_kernels.backends import reference

NAN = float("nan")
SEEDS = 2


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


def unaligned_rows(cuda):
    """Rows that begin where no vector does."""
    compare(cuda, torch.randn(1, 3, 77), torch.randn(1, 18, 77))


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


def vectors(cuda):
    """One row that counts on a side, and not the first; entries that are equal."""
    student, teacher = (torch.randint(-2, 3, (6, k, 30)) / 2 for k in (5, 20))
    student_mask, teacher_mask = torch.ones(6, 5) == 0, torch.ones(6, 20) == 0
    student_mask[:3, 3] = student_mask[3:, 1:] = teacher_mask[:3, 5:18] = teacher_mask[3:, 2] = True
    compare(cuda, student, teacher, student_mask, teacher_mask, columns=27, softmax=False)


KERNELS = ("l1_cost",)
KERNEL, GRADIENT, ROWS, STATISTICS = (
    f"cuda/l1_{name}.h" for name in ("cost_kernel", "gradient_kernel", "rows", "statistics_kernel")
)


# Entries of 32 bits alone; what those of 16 bits have of their own is a few lines, which tests/cuda shows at once.
LEFT_OUT = [Change("cuda/l1_cost.cu", "f(std::integral_constant<int, 2>());", "throw dtype;")]


def bug(file, original, mutated, check, why):
    return CudaBug(file, original, mutated, check, KERNELS, why)


BUGS = [
    bug(
        KERNEL,
        "    // it.\n    __syncthreads();\n",
        "    // it.\n",
        unaligned_rows,
        "probabilities read before they are there",
    ),
    bug(
        KERNEL,
        "some[threadIdx.x] = 0;\n  __syncthreads();",
        "some[threadIdx.x] = 0;",
        vectors,
        "flags cleared after they were set",
    ),
    bug(KERNEL, "some[1] = 1;\n  __syncthreads();", "some[1] = 1;", vectors, "flags read before they are set"),
    bug(
        KERNEL,
        "shared[threadIdx.x] = sum;\n  __syncthreads();",
        "shared[threadIdx.x] = sum;",
        many_ranges,
        "sums of other warps read before they are there",
    ),
    bug(KERNEL, "k < count ? q", "true ? q", unaligned_rows, "logits of 0 beyond the last column"),
    bug(KERNEL, "first ? of_chain", "true ? of_chain", long_rows, "only the last chain of a range"),
    bug(
        KERNEL,
        "v % kL1Chain != kL1Chain - Steps::kColumns && v + Steps::kColumns < length",
        "v % kL1Chain != kL1Chain - Steps::kColumns",
        long_rows,
        "the last columns left out",
    ),
    bug(KERNEL, "  if (counts) {\n", "  {\n", masked_rows, "costs of rows that do not count"),
    bug(KERNEL, "|| row >= of.student.rows ||", "||", unaligned_rows, "costs written beyond the last row"),
    bug(KERNEL, "|| column >= of.teacher.rows)", ")", unaligned_rows, "costs written beyond the last column"),
    bug(
        STATISTICS,
        "shared[threadIdx.x / 32] = x;\n  __syncthreads();",
        "shared[threadIdx.x / 32] = x;",
        long_rows,
        "numbers of other warps read before they are there",
    ),
    bug(
        STATISTICS,
        "x = operation(x, shared[warp]);\n  __syncthreads();",
        "x = operation(x, shared[warp]);",
        long_rows,
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
        unaligned_rows,
        "exponentials beyond the last column",
    ),
    bug(STATISTICS, "top == -INFINITY ? 0.0f : top", "top", forbidden_entries, "-inf minus -inf"),
    bug(
        ROWS,
        "return row < side.rows && (!side.mask || side.mask[problem * side.rows + row] != 0);",
        "return row < side.rows;",
        masked_rows,
        "masks ignored",
    ),
    bug(
        ROWS,
        "count >= kCount && reinterpret_cast<uintptr_t>(p) % kAligned == 0) {\n      if constexpr (kWords == 2) {"
        "\n        const uint2",
        "count >= kCount) {\n      if constexpr (kWords == 2) {\n        const uint2",
        unaligned_rows,
        "vectors read where there are none",
    ),
    bug(ROWS, "if (k >= count) continue;", "", unaligned_rows, "entries written beyond the last column"),
    bug(
        GRADIENT,
        "    // it.\n    __syncthreads();\n",
        "    // it.\n",
        unaligned_rows,
        "rows read before they are there",
    ),
    bug(
        GRADIENT,
        "to the loop.\n  __syncthreads();\n",
        "to the loop.\n",
        long_rows,
        "the last rows overwritten before all have read them",
    ),
    bug(
        GRADIENT,
        "sums[thread / 32 * 8 + i] = sum;\n  }\n  __syncthreads();",
        "sums[thread / 32 * 8 + i] = sum;\n  }",
        long_rows,
        "sums read before they are there",
    ),
    bug(
        GRADIENT,
        "const bool counts = weighed && row_counts(of.teacher, problem, j);",
        "const bool counts = weighed && j < m;",
        vectors,
        "the teacher's rows that do not count in the gradient",
    ),
    bug(
        GRADIENT,
        "const bool counts = weighed && row_counts",
        "const bool counts = row_counts",
        vectors,
        "gradients of rows that do not count",
    ),
    bug(
        GRADIENT,
        "if (row >= n || column >= span) continue;",
        "if (column >= span) continue;",
        vectors,
        "gradients written beyond the last row",
    ),
    bug(
        GRADIENT, "  if (row >= n) return;\n", "", unaligned_rows, "gradients with softmax written beyond the last row"
    ),
    bug(
        GRADIENT,
        "      if (column + k < columns) gains[",
        "      gains[",
        unaligned_rows,
        "derivatives written beyond the last column",
    ),
]
