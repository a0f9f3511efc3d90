"""Each kind as one writes it in PyTorch by hand: from the logits, in fp32, the vocabulary at once.

What the library is measured against, eager and under torch.compile, hence written for speed where two forms are equally
natural: one sum over everything and a mixture by logsumexp compile to faster code than sums of rows and logaddexp.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kd_kernels.divergences import AKL, JSD, Divergence, JSStudent, JSTeacher, SkewForwardKL, SkewReverseKL, ToDi

# Extra memory at the peak, with the gradient, in float32 tensors [N, V], as measured; two of them are for logits that
# are not float32, or are not there yet.
PEAK_TENSORS = {
    "forward_kl": 7, "reverse_kl": 7, "jeffreys": 10, "jsd": 15, "js_teacher": 14, "js_student": 15, "tvd": 7,
    "skew_forward_kl": 14, "skew_reverse_kl": 15, "todi": 12, "akl": 15,
}  # fmt: skip
COMPILED_PEAK_TENSORS = 8  # the most of any kind


def peak_bytes(kind: str, rows: int, vocab: int) -> tuple[int, int]:
    """Extra memory at the peak: of the forms below as they are, and compiled."""
    tensor = 4 * rows * vocab
    return PEAK_TENSORS[kind] * tensor, COMPILED_PEAK_TENSORS * tensor


def loss(kind: Divergence, student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the rows of logits [N, V] -> 0-d."""
    return terms(kind, student, teacher).sum() / student.shape[0]


def terms(kind: Divergence, student: Tensor, teacher: Tensor) -> Tensor:
    """What every vocabulary entry contributes to the loss of its row, [N, V]."""
    return _FORMS[kind.name](kind, _single(student), _single(teacher))


def _single(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _log_probabilities(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    return F.log_softmax(teacher, dim=-1), F.log_softmax(student, dim=-1)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return F.kl_div(log_b, log_a, reduction="none", log_target=True)


def _log_mixture(log_a: Tensor, log_b: Tensor, weight: float) -> Tensor:
    """log((1 - weight) a + weight b)"""
    return torch.logsumexp(torch.stack([log_a + math.log(1 - weight), log_b + math.log(weight)]), dim=0)


def _forward_kl(kind: Divergence, student: Tensor, teacher: Tensor) -> Tensor:
    log_p, log_q = _log_probabilities(teacher, student)
    return _kl(log_p, log_q)


def _reverse_kl(kind: Divergence, student: Tensor, teacher: Tensor) -> Tensor:
    log_p, log_q = _log_probabilities(teacher, student)
    return _kl(log_q, log_p)


def _jeffreys(kind: Divergence, student: Tensor, teacher: Tensor) -> Tensor:
    log_p, log_q = _log_probabilities(teacher, student)
    return _kl(log_p, log_q) + _kl(log_q, log_p)


def _jsd(kind: JSD, student: Tensor, teacher: Tensor) -> Tensor:
    log_p, log_q = _log_probabilities(teacher, student)
    log_m = _log_mixture(log_q, log_p, kind.beta)
    return kind.beta * _kl(log_p, log_m) + (1 - kind.beta) * _kl(log_q, log_m)


def _js_teacher(kind: JSTeacher, student: Tensor, teacher: Tensor) -> Tensor:
    log_p, log_q = _log_probabilities(teacher, student)
    return _kl(log_p, _log_mixture(log_p, log_q, kind.beta))


def _js_student(kind: JSStudent, student: Tensor, teacher: Tensor) -> Tensor:
    log_p, log_q = _log_probabilities(teacher, student)
    return _kl(log_q, _log_mixture(log_p, log_q, kind.beta))


def _tvd(kind: Divergence, student: Tensor, teacher: Tensor) -> Tensor:
    return 0.5 * (F.softmax(teacher, dim=-1) - F.softmax(student, dim=-1)).abs()


def _skew_forward_kl(kind: SkewForwardKL, student: Tensor, teacher: Tensor) -> Tensor:
    log_p, log_q = _log_probabilities(teacher, student)
    return _kl(log_p, _log_mixture(log_q, log_p, kind.alpha))


def _skew_reverse_kl(kind: SkewReverseKL, student: Tensor, teacher: Tensor) -> Tensor:
    log_p, log_q = _log_probabilities(teacher, student)
    return _kl(log_q, _log_mixture(log_p, log_q, kind.alpha))


def _todi(kind: ToDi, student: Tensor, teacher: Tensor) -> Tensor:
    log_p, log_q = _log_probabilities(teacher, student)
    w = torch.sigmoid(kind.beta * (log_p - log_q)).detach()
    return w * _kl(log_p, log_q) + (1 - w) * _kl(log_q, log_p)


def _akl(kind: AKL, student: Tensor, teacher: Tensor) -> Tensor:
    log_p, log_q = _log_probabilities(teacher, student)
    with torch.no_grad():
        p, order = log_p.exp().sort(dim=-1, descending=True, stable=True)
        tail = p.cumsum(-1) > kind.mu
        tail[:, 0] = False
        gap = (p - log_q.exp().gather(-1, order)).abs()
        head_share = (gap * ~tail).sum(-1, keepdim=True) / gap.sum(-1, keepdim=True)
    return head_share * _kl(log_p, log_q) + (1 - head_share) * _kl(log_q, log_p)


_FORMS: dict[str, Callable[..., Tensor]] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jeffreys": _jeffreys,
    "jsd": _jsd,
    "js_teacher": _js_teacher,
    "js_student": _js_student,
    "tvd": _tvd,
    "skew_forward_kl": _skew_forward_kl,
    "skew_reverse_kl": _skew_reverse_kl,
    "todi": _todi,
    "akl": _akl,
}
