"""What the product of bfloat16 factors with a float32 sum shows; the kind of divergence plays no part."""

import torch

from kd_kernels.backends.select import implementation


def compare(rows, columns, width, backend, *, gain=1.0, add=False):
    gradient, hidden = (torch.randn(rows, n + 3).to(torch.bfloat16)[:, :n] for n in (columns, width))
    memory = torch.full((columns + 1, width + 20), 7.0)
    out = memory[:columns, :width].copy_(
        torch.randn(columns, width) if add else torch.full((columns, width), torch.nan)
    )
    expected = gain * (gradient.double().T @ hidden.double()) + (out.double() if add else 0)
    size = 1 + abs(gain) * (gradient.double().abs().T @ hidden.double().abs()).max().item()
    implementation(backend).outer_product(out, gradient, hidden, gain, add)
    error = (out.double() - expected).abs().max().item()
    assert error <= 2e-6 * size, f"error of the product {error:.1e}"
    out.fill_(7)
    assert (memory == 7).all(), "memory beside the product was written"


def few_rows(kind, backend):
    for rows in (1, 2, 7):
        compare(rows, 5, 70, backend)


def blocks_of_rows(kind, backend):
    compare(515, 130, 33, backend)


def gain_and_add(kind, backend):
    compare(9, 6, 20, backend, gain=0.3)
    compare(9, 6, 20, backend, gain=-2.0, add=True)


def no_rows(kind, backend):
    compare(0, 6, 20, backend)


PRODUCT_SITUATIONS = [few_rows, blocks_of_rows, gain_and_add, no_rows]
