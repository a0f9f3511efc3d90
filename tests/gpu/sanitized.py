"""A run of every CUDA kernel on small shapes, for compute-sanitizer:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python tests/gpu/sanitized.py
    compute-sanitizer --tool racecheck python tests/gpu/sanitized.py few

Memory is not cached, so that what lies behind a tensor is nobody's. Says what it did, and fails on a wrong number.
"""

import itertools
import sys

import torch
from losses import cases, problem, step
from torch.nn.functional import pad

import kd_kernels as kd
from kd_kernels.testing.inputs import far_pair, near_pair
from kd_kernels.testing.truth import evaluate

ROWS = 3
ALL = ((1, 7, 1000, 32_003), (torch.bfloat16, torch.float16, torch.float32), (0, 1))
FEW = ((1000, 32_003), (torch.bfloat16,), (1,))


def rows(widths, dtypes, offsets) -> int:
    """Every kind, far and near, rows that begin so many entries off a vector; how many problems."""
    count = 0
    for cls, width, dtype, offset, pair in itertools.product(
        kd.KINDS.values(), widths, dtypes, offsets, (far_pair, near_pair)
    ):
        sides = pair(ROWS, width, dtype)
        expected = evaluate(*sides, cls(), backend="cpu")
        shifted = [pad(x.cuda(), (offset, 2 * offset))[:, offset : offset + width] for x in sides]
        actual = evaluate(*shifted, cls(), backend="cuda")
        assert torch.allclose(actual.losses.cpu(), expected.losses, rtol=1e-3, atol=1e-6), (cls, width, dtype)
        count += 1
    return count


if __name__ == "__main__":
    print(f"{rows(*(FEW if 'few' in sys.argv else ALL))} problems of rows")
    for name, backend in cases():
        if backend == "cuda":
            x, y, loss = problem(name)
            assert all(part.isfinite().all() for part in step(loss, x, y, backend)), name
            print(name)
