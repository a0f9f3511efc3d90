"""Losses and gradients by closed form, in the 80-bit floats of numpy: the truth for float64, and a second, independent
derivation of everything the kernels compute. p teacher, q student; h = q dL/dq; dL/dz = (h - q sum h) / T."""

import numpy as np
import torch

import kd_kernels as kd

REAL = np.longdouble


def log_softmax(z: torch.Tensor, temperature: float) -> np.ndarray:
    x = z.double().numpy().astype(REAL) / REAL(temperature)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def terms(kind: kd.Divergence, lp: np.ndarray, lq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """value and h of every entry; all logits finite."""
    p, q = np.exp(lp), np.exp(lq)
    one = REAL(1)
    match kind:
        case kd.ForwardKL() | kd.JSD(beta=0) | kd.JSTeacher(beta=1) | kd.SkewForwardKL(alpha=0):
            return p * (lp - lq), q - p
        case kd.ReverseKL() | kd.JSD(beta=1) | kd.JSStudent(beta=0) | kd.SkewReverseKL(alpha=0):
            return q * (lq - lp), q * (lq - lp)
        case kd.Jeffreys():
            return (p - q) * (lp - lq), (q - p) + q * (lq - lp)
        case kd.JSD(beta=beta):
            b = REAL(beta)
            lm = np.log(b * p + (one - b) * q)
            return b * p * (lp - lm) + (one - b) * q * (lq - lm), (one - b) * q * (lq - lm)
        case kd.JSTeacher(beta=beta):
            return _of_teacher(p, q, lp, REAL(beta))
        case kd.SkewForwardKL(alpha=alpha):
            return _of_teacher(p, q, lp, REAL(1 - alpha))
        case kd.JSStudent(beta=beta):
            return _of_student(p, q, lq, REAL(beta))
        case kd.SkewReverseKL(alpha=alpha):
            return _of_student(p, q, lq, REAL(alpha))
        case kd.TVD():
            return np.abs(p - q) / 2, q * np.sign(q - p) / 2
        case kd.ToDi(beta=beta):
            w = one / (one + np.exp(-REAL(beta) * (lp - lq)))
            value = w * p * (lp - lq) + (one - w) * q * (lq - lp)
            return value, -w * p + (one - w) * q * (lq - lp + one)
        case kd.AKL(mu=mu):
            order = np.argsort(-p, axis=-1, kind="stable")
            tail = np.cumsum(np.take_along_axis(p, order, -1), -1) > mu
            tail[..., 0] = False
            gap = np.abs(np.take_along_axis(p - q, order, -1))
            total = gap.sum(-1, keepdims=True)
            head = np.where(
                total > 0, np.where(tail, 0, gap).sum(-1, keepdims=True) / np.where(total > 0, total, 1), 0.5
            )
            value = head * p * (lp - lq) + (one - head) * q * (lq - lp)
            return value, head * (q - p) + (one - head) * q * (lq - lp)
    raise NotImplementedError(kind)


def _of_teacher(p, q, lp, b):
    m = (1 - b) * p + b * q
    return p * (lp - np.log(m)), -b * p * q / m


def _of_student(p, q, lq, b):
    m = (1 - b) * p + b * q
    return q * (lq - np.log(m)), q * (lq - np.log(m) + 1 - b * q / m)


def evaluate(kind, student, teacher, temperature=(1.0, 1.0), scale_t2=False) -> tuple[np.ndarray, np.ndarray]:
    """Losses [N] and the gradient of their sum [N, V]."""
    lq, lp = log_softmax(student, temperature[0]), log_softmax(teacher, temperature[1])
    value, h = terms(kind, lp, lq)
    scale = REAL(temperature[0] * temperature[1] if scale_t2 else 1.0)
    gradient = scale * (h - np.exp(lq) * h.sum(-1, keepdims=True)) / REAL(temperature[0])
    return scale * value.sum(-1), gradient
