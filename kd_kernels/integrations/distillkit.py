"""Losses of DistillKit, by its names and arguments: forward KL, JSD and TVD from logits or from its sparse signals.

>>> distillkit.lossfuncs.ALL_LOSS_CLASSES[:3] = [KLDLoss, JSDLoss, TVDLoss]

Signals are recognised by what they have, so that nothing of DistillKit is imported.
"""

import math
from typing import Any

import torch
from torch import Tensor

import kd_kernels as kd

MISSING = ("zero", "symmetric_uniform")


class _Loss:
    """The divergence `_kind` times T^2, summed over the tokens that count by their number.

    Args:
        temperature: T, of both sides.
        missing_probability_handling: what becomes of the mass that a sparse signal does not list: "zero", the listed
            entries have all of it, or "symmetric_uniform", it is one more entry on both sides; as a string, or as
            DistillKit's enumeration.
        sparse_chunk_length: accepted; there is nothing of the size of the logits to be cut.
    """

    _name: str
    _kind: kd.Divergence

    def __init__(
        self, temperature: float, missing_probability_handling: Any = "zero", sparse_chunk_length: int | None = None
    ):
        missing = getattr(missing_probability_handling, "value", missing_probability_handling)
        if missing not in MISSING:
            raise ValueError(f"missing_probability_handling must be one of {', '.join(MISSING)}, got {missing!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature, self.missing, self.chunk_length = temperature, missing, sparse_chunk_length

    @classmethod
    def name(cls) -> str:
        return cls._name

    def requires_hidden_states(self) -> bool:
        return False

    def __call__(
        self,
        student_outputs: Any,
        signal: Any,
        mask: Tensor | None = None,
        hidden_state_mapping: Any = None,
        num_items_in_batch: int | Tensor | None = None,
    ) -> Tensor:
        """Of `student_outputs.logits` `[batch, tokens, V]` and a signal; mask `[batch, tokens]`, or with a 1 more."""
        logits = student_outputs.logits
        if mask is not None and mask.dim() == 3:
            mask = mask.squeeze(-1)
        if num_items_in_batch is None:
            count = logits[..., 0].numel() if mask is None else mask.float().sum()
            num_items_in_batch = torch.where(count == 0, 1, count) if isinstance(count, Tensor) else max(count, 1)
        return kd.divergence(
            logits, self._teacher(signal), self._kind, temperature=self.temperature, scale_t2=True, mask=mask,
            normalizer=num_items_in_batch,
        )  # fmt: skip

    def _teacher(self, signal: Any) -> Tensor | kd.TopK:
        if hasattr(signal, "logits"):
            return signal.logits
        if not signal.log_values and self.missing != "zero":
            raise ValueError(
                "a sparse signal of logits does not tell what it misses: missing_probability_handling must be 'zero'"
            )
        log_p = _tempered(signal, self.temperature, self.missing)
        # With all mass on the listed entries their sum alone is the KL; the other kinds need the rest of the student's.
        truncated = self.missing == "zero" and self._kind == kd.ForwardKL()
        return kd.TopK(signal.sparse_ids, log_p, tail="truncate" if truncated else "bucket")


def _tempered(signal: Any, temperature: float, missing: str) -> Tensor:
    """Log-probabilities of the listed entries at T, of values at another temperature: `[batch, tokens, K]`.

    With p their probabilities at that temperature and the exponent e = (that temperature) / T: p^e over the sum of
    them, to which for "symmetric_uniform" the unlisted mass, as one entry, adds its own power.
    """
    values = signal.sparse_values.detach().float()
    power = signal.generation_temperature / temperature
    if math.isclose(power, 1.0):
        power = 1.0
        if missing == "symmetric_uniform":
            return values
    total = (power * values).logsumexp(-1, keepdim=True)
    if missing == "symmetric_uniform":
        rest = (1 - values.exp().sum(-1, keepdim=True)).clamp(0, 1)
        total = torch.logaddexp(total, power * rest.log())
    return power * values - total


class KLDLoss(_Loss):
    """KL(p, q)."""

    _name, _kind = "kl", kd.ForwardKL()


class JSDLoss(_Loss):
    """(KL(p, m) + KL(q, m)) / 2, m = (p + q) / 2."""

    _name, _kind = "jsd", kd.JSD(0.5)


class TVDLoss(_Loss):
    """sum |p - q| / 2."""

    _name, _kind = "tvd", kd.TVD()
