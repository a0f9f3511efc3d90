"""The methods of `kd-kernels distill`: which options each has, and what they are if nobody says."""

from dataclasses import dataclass
from typing import Any

# Of text that models write.
SAMPLING = frozenset({"prompt_len", "sample_temperature", "sample_top_k", "sample_top_p"})


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        summary: what is minimised, in a line.
        defaults: of the options it has.
        optional: options it has that may stay away.
        cross_tokenizer: whether teacher and student read the text in tokens of their own.
        whole_logits: whether it needs logits whole.
        samples: whether models write the tokens of its losses, whatever its options.
        variants: what `--variant` may be.
        backends: whether there is a choice of backends.
    """

    summary: str
    defaults: dict[str, Any]
    optional: frozenset[str] = frozenset()
    cross_tokenizer: bool = False
    whole_logits: bool = False
    samples: bool = False
    variants: tuple[str, ...] = ()
    backends: bool = True

    @property
    def options(self) -> frozenset[str]:
        return self.optional | frozenset(self.defaults)


FORMS = ("batch", "sequence", "sample")  # of SinKD

_CHUNKS = frozenset({"chunk_tokens", "memory_budget"})
_CACHE = frozenset({"teacher_cache", "tail"})
_ON_POLICY = {"on_policy": 0.0, "sample_temperature": 1.0}
_ANY_TEXT = _CHUNKS | _CACHE | SAMPLING | {"scale_t2"}
_KIND = frozenset({"beta", "alpha", "mu", "scale_t2"})
_SINKHORN = {"eps": 0.1, "iterations": 20}
_TAID = {"t_start": 0.4, "t_end": 1.0, "alpha": 5e-4, "beta": 0.99}

# Weights and parameters are those of the papers. SinKD's published scripts minimise alpha KL + (1 - alpha)
# cross-entropy + 0.8 · 0.001 transport, alpha from 0.8 on.
METHODS = {
    "divergence": Method(
        "a divergence of next tokens, any kind",
        {"kind": "forward_kl", "temperature": 1.0, "ce_weight": 0.0, **_ON_POLICY},
        _KIND | _CHUNKS | _CACHE | SAMPLING,
    ),
    "f_distill": Method(
        "f-divergences step by step, on text of the teacher, of the student, or half of each",
        {"variant": "js", "temperature": 1.0, "sample_temperature": 1.0},
        _CHUNKS | SAMPLING | {"beta", "scale_t2"},
        samples=True,
        variants=("kl", "rkl", "js", "tvd", "seqkd", "engine"),
    ),
    "todi": Method(
        "forward or reverse KL entry by entry, and cross-entropy",
        {"beta": 1.0, "temperature": 2.0, "ce_weight": 0.5, **_ON_POLICY},
        _ANY_TEXT,
    ),
    "gkd": Method(
        "generalised JSD, half of the steps on the student's own text",
        {"beta": 0.5, "temperature": 1.0, "ce_weight": 0.0, "on_policy": 0.5, "sample_temperature": 0.9},
        _ANY_TEXT,
    ),
    "distillm": Method(
        "skewed KL",
        {"variant": "srkl", "alpha": 0.1, "temperature": 1.0, "ce_weight": 0.0, **_ON_POLICY},
        _ANY_TEXT,
        variants=("skl", "srkl"),
    ),
    "distillm2": Method(
        "skewed forward KL on the teacher's text, skewed reverse KL on the student's",
        {"alpha": 0.1, "beta": 1.0, "temperature": 1.0, "sample_temperature": 1.0},
        _CHUNKS | SAMPLING | {"detached"},
        samples=True,
    ),
    "akl": Method(
        "forward and reverse KL, weighed row by row",
        {"mu": 0.5, "temperature": 1.0, "ce_weight": 0.0, **_ON_POLICY},
        _ANY_TEXT,
    ),
    "taid": Method(
        "cross-entropy with a mixture of student and teacher that becomes the teacher",
        {"temperature": 1.0, "ce_weight": 0.0, **_TAID, **_ON_POLICY},
        SAMPLING | {"chunk_tokens"},
    ),
    "bild": Method(
        "differences among the likeliest logits of the teacher, and of the student",
        {"top_k": 8, "temperature": 3.0, "ce_weight": 0.0, **_ON_POLICY},
        SAMPLING,
    ),
    "dpkd": Method(
        "preference for the teacher's likeliest token, and cross-entropy",
        {"beta": 0.1, "ce_weight": 0.5, **_ON_POLICY},
        SAMPLING,
        backends=False,
    ),
    "sparse_logit_sampling": Method(
        "forward KL from entries drawn from the teacher",
        {"draws": 50, "temperature": 1.0, "ce_weight": 0.0, **_ON_POLICY},
        SAMPLING | _CHUNKS,
    ),
    "kdrl": Method(
        "estimates of the reverse KL from the tokens that the student wrote",
        {"variant": "k2", "temperature": 1.0, "sample_temperature": 1.0},
        SAMPLING | _CHUNKS,
        samples=True,
        variants=("k1", "k2", "k3"),
    ),
    "atkd": Method(
        "forward KL in two parts, with and without the target, weighed by how hard a token is",
        {"hard_share": 0.5, "easy_weight": 0.2, "temperature": 1.0},
        frozenset({"chunk_tokens"}),
    ),
    "sinkd": Method(
        "divergence, cross-entropy, and optimal transport between tokens",
        {"kind": "forward_kl", "temperature": 2.0, "ce_weight": 0.2, "ot_weight": 0.0008, "form": "batch", **_SINKHORN},
        _KIND,
        whole_logits=True,
    ),
    "multilevel_ot": Method(
        "cross-entropy and optimal transport, across tokenizers",
        {"ot_weight": 0.15, "top_k": 50, "beta": 0.1, "gamma": 0.1, "temperature": 2.0, **_SINKHORN},
        cross_tokenizer=True,
        whole_logits=True,
    ),
    "uld": Method(
        "cross-entropy and distance of sorted probabilities, across tokenizers",
        {"temperature": 1.0, "ot_weight": 1.5},
        frozenset({"top_k"}),
        cross_tokenizer=True,
        whole_logits=True,
    ),
}
