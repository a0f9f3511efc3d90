"""A side of a loss that is not projected yet: hidden states and the LM head that would turn them into logits."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kd_kernels import language_models


@dataclass(frozen=True, eq=False)
class Head:
    """Logits that are never held whole: x = (hidden @ weight.T + bias) scale, then c tanh(x / c) for a softcap c.

    Attributes:
        hidden: `[..., H]`, the input of the LM head.
        weight: `[V, H]`. Products run in the dtype of `hidden`, under autocast in autocast's.
        bias: `[V]`.
        scale: positive factor of the logits (Cohere's `logit_scale`, the inverse of Granite's `logits_scaling`).
        softcap: positive bound of the logits (Gemma 2).
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def from_model(cls, model: Any, hidden: Tensor) -> "Head":
        """The head of a causal language model of Hugging Face, on hidden states that `hidden_states` gave.

        Raises:
            ValueError: the head is missing, quantised, or wrapped by PEFT.
        """
        return cls(hidden, *language_models.head_parameters(model))

    def logits(self) -> Tensor:
        """The logits `[..., V]` themselves, differentiable: what this type is there to avoid."""
        bias = None if self.bias is None else self.bias.to(self.hidden.dtype)
        x = F.linear(self.hidden, self.weight.to(self.hidden.dtype), bias)
        if self.scale != 1:
            x = x * self.scale
        return x if self.softcap is None else (x / self.softcap).tanh() * self.softcap
