"""The distillation loss of NeMo Automodel, by its name and arguments.

In a configuration:

    kd_loss_fn:
      _target_: kd_kernels.integrations.automodel.KDLoss
      temperature: 1.0
"""

from typing import Any

from torch import Tensor, nn

import kd_kernels as kd


class KDLoss(nn.Module):
    """Forward KL times T^2, the mean over the tokens that count.

    Args:
        ignore_index: label of tokens that do not count.
        temperature: T, of both sides.
        fp32_upcast: accepted; sums are accumulated in float32 without a copy of the logits.
        tp_group: must be None: logits are those of the whole vocabulary.
        chunk_size: accepted; there is nothing of the size of the logits to be cut.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        temperature: float = 1.0,
        fp32_upcast: bool = True,
        tp_group: Any = None,
        chunk_size: int = 0,
    ):
        super().__init__()
        if tp_group is not None:
            raise ValueError(
                "tp_group must be None: logits whose vocabulary is spread over ranks are a matter of NeMo's own KDLoss"
            )
        self.ignore_index, self.temperature = ignore_index, temperature
        self.fp32_upcast, self.tp_group, self.chunk_size = fp32_upcast, tp_group, chunk_size

    def forward(
        self,
        student_logits: Tensor,  # (..., V)
        teacher_logits: Tensor,  # (..., V)
        labels: Tensor,  # (...)
        num_batch_labels: int | Tensor | None = None,
    ) -> Tensor:
        """The sum over the tokens that count, by `num_batch_labels` or by their number."""
        for name, x in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
            if hasattr(x, "full_tensor"):
                raise ValueError(f"{name} must not be a DTensor: pass full_tensor(), or use NeMo's own KDLoss")
        return kd.divergence(
            student_logits, teacher_logits, "forward_kl", temperature=self.temperature, scale_t2=True, labels=labels,
            ignore_index=self.ignore_index, normalizer=num_batch_labels,
        )  # fmt: skip
