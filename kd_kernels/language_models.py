"""Hidden states and LM heads of causal language models of Hugging Face, so that logits need not be made.

    with hidden_states(model):
        hidden = model(input_ids).logits  # [B, L, H], what the LM head was given
    weight, bias, scale, softcap = head_parameters(model)

The model's logits would have been x = (hidden @ weight.T + bias) scale, then c tanh(x / c) for a softcap c. Models are
recognised by what they have, not by their class; nothing of transformers or PEFT is imported.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Keys of a model's configuration. Where two apply, as in Muse, the softcap comes last.
FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")  # Cohere, Muse, Falcon-H1
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma, RecurrentGemma, xLSTM
# By model type, the power of `logits_scaling` in the scale; elsewhere it divides, as in Granite.
# MiniCPM3 divides by it what it hands to the head.
POWERS = {"hyperclovax": 1, "minicpm3": 0}

# Logits times scale of the probe that `hidden_states` sends through a model: small enough to meet no softcap, and so
# large that every softcap in use shows.
PROBE = (1.0, -30.0, 300.0)
# Eight roundings to bfloat16, or a factor that is not in the configuration by a hair.
TOLERANCE = 2.0**-5


def head_parameters(model: Any) -> tuple[Tensor, Tensor | None, float, float | None]:
    """(weight `[V, H]`, bias `[V]`, scale, softcap) of the LM head, for the input that the head itself gets.

    Raises:
        ValueError: the model has no LM head, or one whose weight is not a plain matrix: wrapped by PEFT, quantised,
            offloaded or sharded.
    """
    head, config = _head(model), _text_config(model)
    weight, bias = head.weight, getattr(head, "bias", None)
    size = getattr(config, "unpadded_vocab_size", None)
    if size is not None and size < len(weight):  # Inkling drops the logits of the padding
        weight, bias = weight[:size], None if bias is None else bias[:size]
    return weight, bias, _scale(config), _softcap(config)


@contextmanager
def hidden_states(model: Any) -> Iterator[None]:
    """While it is open, `model(...).logits` is the input of the LM head, `[B, L, H]`, and no logits are computed.

    Gradients flow to the hidden states as to logits. What the model does to logits after the head is tried on a few
    numbers in each forward pass: a model that does anything else than `head_parameters` says is refused.

    Contexts nest, also on one model, and leave the model as they found it. A forward pass may use activation
    checkpointing inside the model, not around it: the head is replaced only while the context is open. A model that
    `torch.compile` has compiled is compiled once more for it; enter the context outside of compiled functions.

    Raises:
        ValueError: on entry what `head_parameters` raises, or another model that uses the same head has a context
            open; in a forward pass, labels, an output that has no `logits`, or logits that are not what the head and
            the configuration make of them.
    """
    _, _, scale, softcap = head_parameters(model)
    head = _head(model)
    owner = getattr(head, "gives_hidden_states_of", None)
    if owner == id(model):
        yield
        return
    if owner is not None:
        raise ValueError(f"the LM head of {type(model).__name__} gives another model's hidden states at the moment")
    probe = torch.tensor(PROBE, dtype=torch.float64) / scale
    expected = torch.tensor(PROBE, dtype=torch.float64)
    if softcap is not None:
        expected = softcap * torch.tanh(expected / softcap)
    seen: list[Tensor] = []

    def stash(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.append(hidden)
        return probe.to(hidden).repeat(*hidden.shape[:-1], 1)

    def before(_: nn.Module, __: tuple, kwargs: dict[str, Any]) -> None:
        seen.clear()
        if kwargs.get("labels") is not None:
            raise ValueError(
                "under hidden_states there are no logits to compute the model's own loss of: pass no labels"
            )

    def after(module: nn.Module, _: tuple, output: Any) -> Any:
        logits = getattr(output, "logits", None)
        if logits is None:
            raise ValueError(
                f"the output of {type(module).__name__} has no logits; with return_dict=False it never has"
            )
        if len(seen) != 1:
            raise ValueError(
                f"{type(module).__name__} must call its LM head once in a forward pass, not {len(seen)} times"
            )
        _check(module, logits, expected)
        output.logits = seen.pop()
        return output

    before_patch = head.__dict__.get("forward")  # accelerate leaves one there
    hooks = (
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after),
    )
    head.forward, head.gives_hidden_states_of = stash, id(model)
    try:
        yield
    finally:
        del head.forward, head.gives_hidden_states_of
        if before_patch is not None:
            head.forward = before_patch
        for hook in hooks:
            hook.remove()


def gives_hidden_states(model: Any) -> bool:
    """Whether a context `hidden_states(model)` is open."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return getattr(head, "gives_hidden_states_of", None) == id(model)


def _check(model: nn.Module, logits: Tensor, expected: Tensor) -> None:
    """Checks that a model made of the probe what its configuration says."""
    if logits.shape[-1:] == expected.shape:
        found = logits.detach().reshape(-1, len(expected))[:1].double().cpu()
        if torch.allclose(found, expected, rtol=TOLERANCE, atol=0):
            return
    raise ValueError(
        f"{type(model).__name__} does more to its logits than a scale and a softcap that its configuration names; "
        "use its logits"
    )


def _head(model: Any) -> nn.Module:
    """The LM head, checked to be a plain linear layer."""
    name = type(model).__name__
    if not hasattr(model, "get_output_embeddings") or not hasattr(model, "config"):
        hint = ": pass the model that it wraps, its `module`" if hasattr(model, "module") else ""
        raise ValueError(f"{name} is not a causal language model of Hugging Face{hint}")
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError(f"{name} learns a prompt, whose virtual tokens shift the logits; use its logits")
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"{name} has no LM head: get_output_embeddings() returns None")
    if hasattr(head, "base_layer") or hasattr(head, "modules_to_save"):
        raise ValueError(
            f"the LM head of {name} is wrapped by PEFT: leave it out of target_modules and modules_to_save, or call "
            "merge_and_unload() first"
        )
    _check_weight(name, head)
    return head


def _check_weight(name: str, head: nn.Module) -> None:
    weight = getattr(head, "weight", None)
    if hasattr(weight, "ds_id") and weight.numel() == 0:
        raise ValueError(
            f"the weight of {name}'s LM head is sharded by ZeRO-3: gather it with deepspeed.zero.GatheredParameters "
            "around forward and backward"
        )
    if hasattr(weight, "full_tensor"):
        raise ValueError(
            f"the weight of {name}'s LM head is a DTensor: call kd_kernels.Head with weight.full_tensor() and the "
            "other parameters of the head"
        )
    quantised = type(weight) not in (Tensor, nn.Parameter) or weight.dtype not in DTYPES or hasattr(weight, "SCB")
    if quantised:
        kind = f"{type(head).__name__} with {'no weight' if weight is None else _describe(weight)}"
        raise ValueError(
            f"the LM head of {name} is quantised ({kind}): keep it in floating point, in transformers with "
            "llm_int8_skip_modules=['lm_head'] or its like"
        )
    if weight.dim() != 2 or weight.numel() == 0 or weight.is_meta:
        raise ValueError(
            f"the weight of {name}'s LM head is not here whole (shape {list(weight.shape)}, {weight.device}): it is "
            "sharded or offloaded; gather it first"
        )


def _describe(weight: Any) -> str:
    return f"{type(weight).__name__} of {str(weight.dtype).removeprefix('torch.')}"


def _text_config(model: Any) -> Any:
    config = model.config
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def _scale(config: Any) -> float:
    kind = getattr(config, "model_type", "")
    if kind == "mpt":  # its logit_scale is read nowhere
        return 1.0
    scale = 1.0
    for name in FACTORS:
        factor = getattr(config, name, None)
        scale *= 1.0 if factor is None else factor
    scaling = getattr(config, "logits_scaling", None)
    return scale * (1.0 if scaling is None else float(scaling) ** POWERS.get(kind, -1))


def _softcap(config: Any) -> float | None:
    found = (getattr(config, name, None) for name in SOFTCAPS)
    return next((float(cap) for cap in found if cap is not None), None)
