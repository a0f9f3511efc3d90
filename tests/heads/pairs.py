"""Problems of every pair of sides, with their truth and what plain PyTorch makes of them."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import kd_kernels as kd
from kd_kernels.chunks import plan
from kd_kernels.testing.budget import assert_within_budget

PAIRS = (
    ("head", "head"), ("head", "logits"), ("logits", "head"), ("head", "bucket"), ("head", "renormalize"),
    ("head", "truncate"), ("logits", "bucket"), ("logits", "renormalize"), ("logits", "truncate"),
)  # fmt: skip
PLANS = ("tokens", "vocabulary")


@dataclass(frozen=True)
class Pair:
    """Student and teacher, and a tensor for each gradient."""

    student: kd.Head | Tensor
    teacher: kd.Head | kd.TopK | Tensor

    @property
    def leaves(self) -> dict[str, Tensor]:
        if isinstance(self.student, Tensor):
            return {"logits": self.student}
        parts = {"hidden": self.student.hidden, "weight": self.student.weight, "bias": self.student.bias}
        return {name: x for name, x in parts.items() if x is not None}

    @property
    def leaves_dtype(self) -> torch.dtype:
        return next(iter(self.leaves.values())).dtype

    def permuted(self, seed: int) -> "Pair":
        """The same problem with the hidden states in another order."""

        def permute(side):
            if not isinstance(side, kd.Head):
                return side
            order = torch.randperm(side.hidden.shape[-1], generator=torch.Generator().manual_seed(seed))
            return replace(side, hidden=side.hidden[..., order], weight=side.weight[:, order])

        return Pair(permute(self.student), permute(self.teacher))

    def to(self, dtype: torch.dtype) -> "Pair":
        """The very same numbers in another dtype, as new leaves."""

        def cast(side, leaf: bool):
            def tensor(x):
                return x if x is None else x.detach().to(dtype).clone().requires_grad_(leaf)

            if isinstance(side, kd.Head):
                return replace(side, hidden=tensor(side.hidden), weight=tensor(side.weight), bias=tensor(side.bias))
            if isinstance(side, kd.TopK):
                return replace(
                    side, logprobs=side.logprobs.to(torch.float64 if dtype == torch.float64 else torch.float32)
                )
            return tensor(side)

        return Pair(cast(self.student, True), cast(self.teacher, False))


def make(
    student: str, teacher: str, dtype: torch.dtype = torch.float32, *, rows=61, vocab=203, hidden=16, k=9, bias=True,
    scale=1.0, softcap=None, temperature=1.0, seed=0,
) -> Pair:  # fmt: skip
    """A pair of unrelated sides. Sparse teachers have padding, duplicates and a row without entries."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def head(width, with_bias):
        weight = randn(vocab, width) * (3 / math.sqrt(width))
        parts = (randn(rows, width), weight, randn(vocab) if with_bias else None)
        return kd.Head(*(x if x is None else x.to(dtype) for x in parts), scale=scale, softcap=softcap)

    first = head(hidden, bias) if student == "head" else (3 * randn(rows, vocab)).to(dtype)
    if teacher == "head":
        second = head(hidden + 3, not bias)
    elif teacher == "logits":
        second = (3 * randn(rows, vocab)).to(dtype)
    else:
        logprobs, ids = (3 * randn(rows, vocab) / temperature).log_softmax(-1).topk(k)
        logprobs = logprobs.float()
        if k > 4:
            ids[:, 3] = ids[:, 4]
            ids[1, 5:], logprobs[2, 5:] = -1, -math.inf
            ids[3] = -1
        second = kd.TopK(ids, logprobs, teacher)
    return Pair(first, second).to(dtype)


def evaluate(
    pair: Pair, kind, *, leaves: dict[str, Tensor] | None = None, reduction="sum", upstream=None, **options
) -> dict[str, Tensor]:
    """The loss, or losses, and the gradient of each leaf."""
    leaves = pair.leaves if leaves is None else leaves
    for x in leaves.values():
        x.grad = None
    loss = kd.divergence(pair.student, pair.teacher, kind, reduction=reduction, **options)
    (loss if upstream is None else loss * upstream.to(loss.dtype)).sum().backward()
    return {"loss": loss.detach(), **{name: x.grad for name, x in leaves.items()}}


def assert_right(pair: Pair, kind, *, backend="auto", **options) -> None:
    """The loss and every gradient are within the budget of the truth in float64."""
    actual = evaluate(pair, kind, backend=backend, **options)
    options = {name: x for name, x in options.items() if name not in ("chunk_tokens", "memory_budget")}
    truth = evaluate(pair.to(torch.float64), kind, backend="reference", **options)
    if pair.leaves_dtype == torch.float64:  # eager code in float64 is the truth itself
        for name, value in truth.items():
            torch.testing.assert_close(actual[name], value, rtol=1e-11, atol=1e-12)
        return
    # Most of the error is that of one product of a hidden state and a weight, whichever rounds worst: its size differs
    # from run to run of eager code, with the order of the sum.
    runs = [
        evaluate(pair.permuted(seed), kind, leaves=pair.leaves, backend="reference", **options) for seed in range(4)
    ]
    for name, value in truth.items():
        eager = max((run[name] for run in runs), key=lambda x: (x.double() - value).abs().nan_to_num().max())
        assert actual[name].dtype == eager.dtype
        assert_within_budget(actual[name], value, eager, f"{kind} {name}")


def follow(monkeypatch, name: str, size: int) -> None:
    """Makes every loss follow the plan of this name, with chunks of this size."""
    make_plan = {"tokens": plan.token_chunks, "vocabulary": plan.vocabulary_chunks}[name]
    monkeypatch.setattr(plan, "choose", lambda problem, chunk_tokens, memory_budget: make_plan(problem, size))
