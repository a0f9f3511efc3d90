"""The losses whose kernels are looked at on a GPU: forward and backward, of small shapes."""

from collections.abc import Iterator

import torch
from torch import Tensor

import kd_kernels as kd
from kd_kernels.backends import select

N, V, H, K = 24, 1000, 32, 16


def logits(*shape: int, device: str) -> Tensor:
    return torch.randn(*shape, device=device) * 3


# Losses of a tensor that requires a gradient, from what else they need: by name, shapes of both, and the loss.
LOSSES = {
    "rows": ((N, V), (N, V), lambda x, y, backend: kd.divergence(x, y, "jsd", backend=backend)),
    "rows_akl": ((N, V), (N, V), lambda x, y, backend: kd.divergence(x, y, "akl", backend=backend)),
    "rows_none": (
        (N, V), (N, V), lambda x, y, backend: kd.divergence(x, y, reduction="none", backend=backend).square().sum()
    ),
    "l1_cost": ((2, 12, V), (2, 20, V), lambda x, y, backend: kd.l1_cost(x, y, backend=backend).sin().sum()),
    "sinkhorn": (
        (4, 40, 24), (4, 40), lambda x, a, backend: kd.sinkhorn(
            x.abs(), a.abs() + 0.5, "uniform", iterations=10, backend=backend
        ).value.sum(),
    ),
    "sinkhorn_large": (
        (2, 160, 200), (2, 160), lambda x, a, backend: kd.sinkhorn(
            x.abs(), a.abs() + 0.5, "uniform", iterations=5, tol=1e-3, backend=backend
        ).value.sum(),
    ),
    "sorted_l1": ((N, V), (N, V), lambda x, y, backend: kd.sorted_l1(x, y, backend=backend)),
    "heads": (
        (N, H), (V, H), lambda x, w, backend: kd.divergence(
            kd.Head(x, w), kd.Head(x.detach() + 0.1, w), "jsd", backend=backend
        ),
    ),
    "heads_in_slices": (
        (N, H), (V, H), lambda x, w, backend: kd.divergence(
            kd.Head(x, w), kd.Head(x.detach() + 0.1, w), "tvd", memory_budget=120_000, backend=backend
        ),
    ),
    "top_k": (
        (N, V), (N, V), lambda x, y, backend: kd.divergence(
            x, kd.TopK(*reversed(y.log_softmax(-1).topk(K))), "forward_kl", backend=backend
        ),
    ),
}  # fmt: skip
GROUPS = {"l1_cost": ("l1_cost",), "sorted_l1": ("sorted_l1",), "top_k": select.SPARSE_TEACHER} | dict.fromkeys(
    ("sinkhorn", "sinkhorn_large"), ("sinkhorn",)
) | dict.fromkeys(("heads", "heads_in_slices"), select.HEADS)  # fmt: skip


def cases() -> Iterator[tuple[str, str]]:
    """Losses, and backends that compute them here."""
    for name in LOSSES:
        groups = GROUPS.get(name, ("rows",))
        named = [b for b in ("cuda", "triton") if set(groups) <= select.SUPPORT[b].groups]
        for backend in ["auto", *named]:
            if select.unavailable(backend) is None:
                yield name, backend


def problem(name: str, device: str = "cuda"):
    """-> a leaf, what else the loss needs, and the loss of both and a backend."""
    shape, other, loss = LOSSES[name]
    return logits(*shape, device=device).requires_grad_(), logits(*other, device=device), loss


def step(loss, x: Tensor, y: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """-> the loss and its gradient."""
    value = loss(x, y, backend)
    return value, torch.autograd.grad(value, x)[0]
