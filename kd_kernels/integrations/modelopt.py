"""The distillation loss of logits of NVIDIA's Model Optimizer, by its name and arguments.

>>> trainer._kd_criterion = LogitsDistillationLoss(temperature=2.0, reduction="none")
"""

from torch import Tensor, nn

import kd_kernels as kd

REDUCTIONS = ("mean", "batchmean", "sum", "none")


class LogitsDistillationLoss(nn.Module):
    """Forward KL times T^2.

    Args:
        temperature: T, of both sides.
        reduction: "mean" over all entries of the logits, "batchmean" over the first dimension, "sum", or "none", the
            losses of rows.
    """

    def __init__(self, temperature: float = 1.0, reduction: str = "mean"):
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
        self._temperature, self._reduction = temperature, reduction

    def forward(self, logits_s: Tensor, logits_t: Tensor) -> Tensor:
        """Logits `[..., V]` of student and teacher -> 0-d, or `[...]` for "none"."""
        options = {"temperature": self._temperature, "scale_t2": True}
        if self._reduction in ("sum", "none"):
            return kd.divergence(logits_s, logits_t, "forward_kl", reduction=self._reduction, **options)
        divisor = logits_s.numel() if self._reduction == "mean" else len(logits_s)
        return kd.divergence(logits_s, logits_t, "forward_kl", normalizer=divisor, **options)
