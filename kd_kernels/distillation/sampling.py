"""Text that a model writes: the beginnings of blocks, carried on token by token."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kd_kernels import Head
from kd_kernels.distillation.text import PADDING
from kd_kernels.language_models import hidden_states


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        prompt: tokens at the beginning of a block that are given.
        temperature: of the softmax.
        top_k: only the k likeliest are drawn.
        top_p: of those only the likeliest that together have this probability.
    """

    prompt: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """One token a row, by the inverse of the cumulative distribution.

        What a row gets depends on the row and its number alone, not on the rows beside it.

        Args:
            logits: `[B, V]`.
            uniform: `[B]`, in [0, 1).

        Returns:
            `[B]` int64.
        """
        scaled = logits.double() / self.temperature
        ids = None
        if self.top_k is not None:
            scaled, ids = scaled.topk(min(self.top_k, scaled.shape[-1]))
        elif self.top_p is not None:
            scaled, ids = scaled.sort(descending=True)
        mass = scaled.softmax(-1).cumsum(-1)
        last = torch.full_like(uniform, mass.shape[-1] - 1, dtype=torch.int64)
        if self.top_p is not None:
            last = torch.minimum(last, (mass < self.top_p).sum(-1))
        total = mass.gather(-1, last[:, None])
        place = torch.searchsorted(mass, uniform[:, None].to(mass) * total, right=True)
        place = torch.minimum(place, last[:, None])
        return (place if ids is None else ids.gather(-1, place))[:, 0]


@dataclass(frozen=True)
class Writer:
    """How a model writes.

    Attributes:
        sampling: how tokens are drawn.
        tokens: entries of the vocabulary that the tokenizer knows; only these are drawn.
        end: the token that ends a text.
        whole_logits: take the model's own logits; otherwise those of its LM head, for one position.
        bf16: in bfloat16 autocast.
    """

    sampling: Sampling
    tokens: int
    end: int
    whole_logits: bool = False
    bf16: bool = False

    @torch.no_grad()
    def carry_on(self, model: nn.Module, blocks: Tensor, uniform: Tensor) -> Tensor:
        """Blocks whose tokens after the prompt are the model's.

        Args:
            model: a causal language model; trains on as it did.
            blocks: `[B, L + 1]` int64.
            uniform: `[B, L + 1 - prompt]`, as for `Sampling.draw`.

        Returns:
            Blocks of the same shape, padded after the end of a text and where the prompt is not whole.
        """
        prompt = self.sampling.prompt
        written = blocks.clone()
        done = (blocks[:, :prompt] == PADDING).any(1)
        given, cache = blocks[:, :prompt].clamp(min=0), None
        training = model.training
        model.eval()
        try:
            for i in range(uniform.shape[1]):
                logits, cache = self._predict(model, given, cache)
                token = self.sampling.draw(logits[:, : self.tokens], uniform[:, i])
                written[:, prompt + i] = token.masked_fill(done, PADDING)
                done = done | (token == self.end)
                if done.all():
                    written[:, prompt + i + 1 :] = PADDING
                    break
                # A model that keeps no cache reads all of it again.
                given = token[:, None] if cache is not None else torch.cat([given, token[:, None]], 1)
        finally:
            model.train(training)
        return written

    def _predict(self, model: nn.Module, given: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits of the next token `[B, V]`, and the keys and values of those before it."""
        arguments = {"input_ids": given, "past_key_values": cache, "use_cache": True}
        with torch.autocast(given.device.type, torch.bfloat16, enabled=self.bf16):
            if self.whole_logits:
                output = model(**arguments)
                return output.logits[:, -1], getattr(output, "past_key_values", None)
            with hidden_states(model):
                output = model(**arguments)
            head = Head.from_model(model, output.logits[:, -1])
            bias = None if head.bias is None else head.bias[: self.tokens]
            head = dataclasses.replace(head, weight=head.weight[: self.tokens], bias=bias)
            return head.logits(), getattr(output, "past_key_values", None)


def uniform(columns: int, seeds: Sequence[int], device: str | torch.device) -> Tensor:
    """Numbers in [0, 1), `[len(seeds), columns]` float64: each row those of its seed."""
    generators = (torch.Generator().manual_seed(seed) for seed in seeds)
    return torch.stack([torch.rand(columns, generator=g, dtype=torch.float64) for g in generators]).to(device)
