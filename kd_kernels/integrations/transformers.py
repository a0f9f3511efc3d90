"""A loss for `transformers.Trainer`: distillation as its `compute_loss_func`.

>>> loss = DistillationLoss(student, teacher, "reverse_kl", temperature=2.0)
>>> trainer = Trainer(student, arguments, train_dataset=texts, compute_loss_func=loss)
>>> trainer.train()

and without logits:

>>> with kd_kernels.hidden_states(student):
...     trainer.train()
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import kd_kernels as kd
from kd_kernels.divergences import Divergence
from kd_kernels.language_models import gives_hidden_states

# Inputs of a model that are about its own loss.
LOSS_INPUTS = ("labels", "num_items_in_batch", "shift_labels")


class DistillationLoss:
    """Divergence of the next tokens' distributions, over the tokens whose labels count.

    A `compute_loss_func` gets no inputs, which the teacher needs: those of the student's last forward pass are kept for
    it by a hook. Logits at one place are held against the label at the next, as in the model's own loss. The sum over
    the labels that count is divided by the number of those in all micro-batches, so that accumulated gradients are
    those of the whole batch. Where `kd_kernels.hidden_states(student)` is open, the loss is computed from hidden states
    and LM heads of both models.

    Args:
        student: the model that is given to the trainer.
        teacher: a causal language model with the same vocabulary, on the student's device; it is put into evaluation
            mode.
        kind, temperature, scale_t2, vocab, **params: as for `kd_kernels.divergence`.
        ignore_index: label of tokens that do not count.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        kind: str | Divergence = "forward_kl",
        *,
        temperature: float | tuple[float, float] = 1.0,
        scale_t2: bool = False,
        vocab: str | int = "strict",
        ignore_index: int = -100,
        **params: float,
    ):
        self.student, self.teacher = student, teacher.eval().requires_grad_(False)
        self.ignore_index = ignore_index
        self._options = {"temperature": temperature, "scale_t2": scale_t2, "vocab": vocab, **params}
        self._kind = kind
        self._inputs: tuple[tuple, dict[str, Any]] | None = None
        self._hook = student.register_forward_pre_hook(self._keep, with_kwargs=True)

    def remove(self) -> None:
        """Takes the hook off the student."""
        self._hook.remove()

    def __call__(self, outputs: Any, labels: Tensor | None, num_items_in_batch: int | Tensor | None = None) -> Tensor:
        """Of the student's outputs and labels `[batch, tokens]`, as the trainer gives them.

        Raises:
            ValueError: there are no labels.
            RuntimeError: the student has made no forward pass since the last call.
        """
        if labels is None:
            raise ValueError("labels must say which tokens count, got None")
        if self._inputs is None:
            raise RuntimeError("the student has made no forward pass since the last loss")
        (args, kwargs), self._inputs = self._inputs, None
        student, teacher = outputs.logits, self._of_teacher(args, kwargs)
        if gives_hidden_states(self.student):
            student, teacher = kd.Head.from_model(self.student, student), kd.Head.from_model(self.teacher, teacher)
        # Shifted are the labels, which costs nothing; the last place has none.
        labels = F.pad(labels[..., 1:], (0, 1), value=self.ignore_index)
        if num_items_in_batch is not None:
            num_items_in_batch = torch.as_tensor(num_items_in_batch).clamp(min=1)
        return kd.divergence(
            student, teacher, self._kind, labels=labels, ignore_index=self.ignore_index,
            normalizer=num_items_in_batch, **self._options,
        )  # fmt: skip

    def _keep(self, student: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._inputs = args, {k: v for k, v in kwargs.items() if k not in LOSS_INPUTS}

    @torch.no_grad()
    def _of_teacher(self, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        if not gives_hidden_states(self.student):
            return self.teacher(*args, **kwargs).logits
        with kd.hidden_states(self.teacher):
            return self.teacher(*args, **kwargs).logits
