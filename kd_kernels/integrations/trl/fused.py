"""GKDTrainer and GOLDTrainer from hidden states: their logits are never made."""

import torch

import kd_kernels as kd
from kd_kernels.language_models import head_parameters


class FusedLossMixin:
    """Put before GKDTrainer or GOLDTrainer, computes their generalised JSD from hidden states and LM heads.

        class Trainer(FusedLossMixin, GKDTrainer): ...

    Losses, gradients and logs are those of the trainer. Scale and softcap of the logits come from the configurations of
    the models. GOLD's ULD loss, and predictions that want logits, are computed by the trainer as without it.

    Raises:
        ValueError: on construction, where the LM head of a model is quantised, wrapped by PEFT or sharded; in a forward
            pass, where a model does more to its logits than its configuration says.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self._from_hidden_states():
            for model in (self.model, self.teacher_model):
                head_parameters(self.accelerator.unwrap_model(model))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if return_outputs or not self._from_hidden_states():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        gold = hasattr(self, "use_uld_loss")
        batch = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        if gold:  # images and their like
            batch |= self._get_model_forward_kwargs(inputs)
        student = self._head(model, batch)
        self.teacher_model.eval()
        with torch.no_grad():
            teacher = self._head(self.teacher_model, batch)
        with self.accelerator.autocast():  # which the models' forward passes have left
            return kd.divergence(
                student,
                teacher,
                "jsd",
                beta=self.beta,
                temperature=self.temperature if gold else 1.0,  # GKDTrainer's is for sampling alone
                labels=inputs["labels"][:, 1:],
                normalizer=num_items_in_batch,
            )

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        if not prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss.detach(), None, None

    def _from_hidden_states(self) -> bool:
        """Whether the loss is a JSD: GOLD has another one across tokenizers."""
        return not (getattr(self, "use_uld_loss", False) and self.teacher_tokenizer is not None)

    def _head(self, model, batch) -> kd.Head:
        """Of the tokens that predict another one; through the model's wrappers, if it has any."""
        unwrapped = self.accelerator.unwrap_model(model)
        with kd.hidden_states(unwrapped):
            hidden = model(**batch).logits
        return kd.Head.from_model(unwrapped, hidden[:, :-1])
