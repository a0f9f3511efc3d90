"""How much error is allowed: twice that of an independent eager run in the same dtype, plus rounding. Nothing is tuned
by hand."""

import torch
from torch import Tensor


def allowed_error(truth: Tensor, eager: Tensor, size: float = 0.0) -> float:
    """2 (max |eager - truth| + eps max(|truth|, size)), eps of eager's dtype, over the finite entries.

    `size`: of the terms whose difference the result is. A gradient h - q sum h is of terms as large as the loss, and
    where the student is certain of an entry they cancel.
    """
    finite = truth.isfinite() & eager.isfinite()
    if not finite.any():
        return 0.0
    t, e = truth[finite].double(), eager[finite].double()
    return 2 * ((e - t).abs().max().item() + torch.finfo(eager.dtype).eps * max(t.abs().max().item(), size))


def assert_within_budget(actual: Tensor, truth: Tensor, eager: Tensor, what: str, size: float = 0.0) -> None:
    """`actual` is infinite where `truth` is, nowhere NaN, and within the allowed error elsewhere."""
    if actual.shape != truth.shape:
        raise AssertionError(f"{what}: shape {list(actual.shape)}, expected {list(truth.shape)}")
    if actual.isnan().any():
        raise AssertionError(f"{what}: {int(actual.isnan().sum())} of {actual.numel()} entries are NaN")
    if not torch.equal(actual.isinf(), truth.isinf()):
        raise AssertionError(f"{what}: infinite in other places than the truth")
    finite = truth.isfinite()
    if not finite.any():
        return
    error = (actual[finite].double() - truth[finite].double()).abs()
    budget = allowed_error(truth, eager, size)
    worst = error.max().item()
    if worst > budget:
        at = int(error.argmax())
        raise AssertionError(
            f"{what}: error {worst:.3e} exceeds {budget:.3e}; got {actual[finite][at].item():.9e}, "
            f"truth {truth[finite][at].item():.9e}, eager {eager[finite][at].item():.9e}"
        )
