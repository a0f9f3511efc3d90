"""The product of bfloat16 factors with a float32 sum, against float64."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from kd_kernels.backends import cpu
from kd_kernels.testing.budget import assert_within_budget
from kd_kernels.testing.inputs import generator

pytestmark = pytest.mark.skipif(
    torch.bfloat16 not in cpu.OUTER_PRODUCT_DTYPES, reason="needs a processor with AVX512-BF16"
)

# Rows go by in pairs, in blocks of 512; columns in tiles of 4, in blocks of 128; the width in registers of 16, in
# panels of 64.
ROWS = [1, 2, 3, 511, 513, 1025]
COLUMNS = [1, 3, 5, 17, 127, 130]
WIDTHS = [1, 15, 17, 33, 63, 65, 130]


def factors(rows: int, columns: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    return tuple(torch.randn(rows, n, generator=g).to(torch.bfloat16) for n in (columns, width))


def check(gradient: Tensor, hidden: Tensor, gain: float = 1.0, add: bool = False, out: Tensor | None = None) -> Tensor:
    """The product in `out`, or in new memory. What it overwrites is NaN."""
    shape = gradient.shape[1], hidden.shape[1]
    if out is None:
        out = torch.empty(shape)
    start = torch.randn(shape, generator=generator(1)) if add else torch.zeros(shape)
    out.copy_(start if add else torch.full(shape, math.nan))
    cpu.outer_product(out, gradient, hidden, gain, add)
    truth = start.double() + gain * (gradient.double().T @ hidden.double())
    eager = start + gain * (gradient.float().T @ hidden.float())
    # Terms of both signs: their sum is as exact as the sum of their sizes.
    size = (
        (start.abs() + abs(gain) * (gradient.float().abs().T @ hidden.float().abs())).amax().item()
        if out.numel()
        else 0
    )
    assert_within_budget(out, truth, eager, "product", size)
    return out


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_sizes(rows, columns):
    for width in WIDTHS:
        check(*factors(rows, columns, width))


def test_one_entry():
    for a, b in itertools.product((0.0, 1.0, -3.0, 2.0**60, 2.0**-60), repeat=2):
        gradient, hidden = (torch.tensor([[x]], dtype=torch.bfloat16) for x in (a, b))
        assert check(gradient, hidden).item() == a * b


@pytest.mark.parametrize("gain", [1.0, 0.3, -4.0, 0.0])
@pytest.mark.parametrize("add", [False, True])
def test_gain_and_add(gain, add):
    for rows, columns, width in ((7, 9, 70), (515, 131, 40), (1027, 6, 17)):
        check(*factors(rows, columns, width), gain, add)


@pytest.mark.parametrize("add", [False, True])
def test_no_rows(add):
    """Nothing is added; what is not added to is 0."""
    assert (check(*factors(0, 9, 20), add=False) == 0).all()
    check(*factors(0, 9, 20), add=add)


def test_nothing_to_write():
    for columns, width in ((0, 20), (9, 0), (0, 0)):
        check(*factors(5, columns, width))


@pytest.mark.parametrize("add", [False, True])
def test_layouts(add):
    """Padded rows, transposed hidden states: the same bits, and nothing beside the product is written."""
    gradient, hidden = factors(517, 131, 77)
    expected = check(gradient, hidden, 0.7, add)
    wide = [torch.full((517, n + 13), math.nan, dtype=torch.bfloat16) for n in (131, 77)]
    padded = [x[:, 3:-10].copy_(y) for x, y in zip(wide, (gradient, hidden), strict=True)]
    for right in (hidden, padded[1], hidden.t().contiguous().t()):
        memory = torch.full((133, 90), 7.0)
        assert torch.equal(check(padded[0], right, 0.7, add, memory[1:132, 5:82]), expected)
        memory[1:132, 5:82] = 7
        assert (memory == 7).all()


def test_rows_that_cancel():
    """Sums stay in float32 all along: pairs of large opposite products leave the small ones as they are."""
    gradient, hidden = factors(1024, 20, 40)
    large = torch.full((1, 20), 2.0**7, dtype=torch.bfloat16)
    ones = torch.ones(1, 40, dtype=torch.bfloat16)
    check(torch.cat([large, gradient, -large]), torch.cat([ones, hidden, ones]))


@pytest.mark.parametrize("at", [0, 512, 514])
def test_nan_and_infinity_stay_visible(at):
    gradient, hidden = factors(515, 9, 20)
    gradient[at, 2], hidden[at, 17] = math.nan, math.inf
    out = torch.empty(9, 20)
    cpu.outer_product(out, gradient, hidden, 1.0, False)
    expected = torch.zeros(9, 20, dtype=torch.bool)
    expected[2] = expected[:, 17] = True
    assert torch.equal(~out.isfinite(), expected)


def test_same_bits_whatever_the_threads():
    gradient, hidden = factors(1031, 700, 200)
    start = torch.randn(700, 200)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        out = start.clone()
        cpu.outer_product(out, gradient, hidden, 0.3, True)
        torch.set_num_threads(threads)
        results.append(out)
    assert all(torch.equal(x, results[0]) for x in results)


def test_columns_alone_and_in_a_block():
    """A block of the gradient's columns gives the same bits as the whole."""
    gradient, hidden = factors(600, 300, 50)
    whole, part = torch.empty(300, 50), torch.empty(100, 50)
    cpu.outer_product(whole, gradient, hidden, 1.0, False)
    cpu.outer_product(part, gradient[:, 150:250], hidden, 1.0, False)
    assert torch.equal(part, whole[150:250])
