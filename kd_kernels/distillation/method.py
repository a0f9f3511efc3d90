"""The methods of `kd-kernels distill`: which options each has, and what they are if nobody says."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        defaults: of the options it has.
        optional: options it has that may stay away.
        cross_tokenizer: whether teacher and student read the text in tokens of their own.
    """

    defaults: dict[str, Any]
    optional: frozenset[str] = frozenset()
    cross_tokenizer: bool = False

    @property
    def options(self) -> frozenset[str]:
        return self.optional | frozenset(self.defaults)


FORMS = ("batch", "sequence", "sample")  # of SinKD

_KIND = frozenset({"beta", "alpha", "mu", "scale_t2"})
_SINKHORN = {"eps": 0.1, "iterations": 20}

# Weights and parameters are those of the papers. SinKD's published scripts minimise alpha KL + (1 - alpha)
# cross-entropy + 0.8 · 0.001 transport, alpha from 0.8 on.
METHODS = {
    "divergence": Method(
        {"kind": "forward_kl", "temperature": 1.0, "ce_weight": 0.0},
        _KIND | {"chunk_tokens", "memory_budget", "teacher_cache", "tail"},
    ),
    "sinkd": Method(
        {"kind": "forward_kl", "temperature": 2.0, "ce_weight": 0.2, "ot_weight": 0.0008, "form": "batch", **_SINKHORN},
        _KIND,
    ),
    "multilevel_ot": Method(
        {"ot_weight": 0.15, "top_k": 50, "beta": 0.1, "gamma": 0.1, "temperature": 2.0, **_SINKHORN},
        cross_tokenizer=True,
    ),
    "uld": Method({"temperature": 1.0, "ot_weight": 1.5}, frozenset({"top_k"}), cross_tokenizer=True),
}
