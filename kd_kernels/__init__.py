"""Kernels for the losses of LLM knowledge distillation.

>>> loss = kd_kernels.divergence(student_logits, teacher_logits, "reverse_kl", temperature=2.0, mask=mask)
>>> loss.backward()
"""

from kd_kernels.divergences import (
    AKL,
    JSD,
    KINDS,
    TVD,
    Divergence,
    ForwardKL,
    Jeffreys,
    JSStudent,
    JSTeacher,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    ToDi,
)
from kd_kernels.head import Head
from kd_kernels.language_models import hidden_states
from kd_kernels.log_probabilities import logprobs
from kd_kernels.losses import divergence
from kd_kernels.memory import release_memory
from kd_kernels.stats import Stats
from kd_kernels.top_k import TopK
from kd_kernels.transport import Transport, l1_cost, sinkhorn, sinkhorn_divergence, sorted_l1


def __getattr__(name: str):
    # Methods use the names of this module, which cannot import them first.
    if name == "methods":
        import importlib

        return importlib.import_module("kd_kernels.methods")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.1.0"

__all__ = [
    "AKL",
    "JSD",
    "KINDS",
    "TVD",
    "Divergence",
    "ForwardKL",
    "Head",
    "JSStudent",
    "JSTeacher",
    "Jeffreys",
    "ReverseKL",
    "SkewForwardKL",
    "SkewReverseKL",
    "Stats",
    "ToDi",
    "TopK",
    "Transport",
    "divergence",
    "hidden_states",
    "l1_cost",
    "logprobs",
    "release_memory",
    "sinkhorn",
    "sinkhorn_divergence",
    "sorted_l1",
]
