"""The kinds of divergence, by name and as objects."""

from kd_kernels.divergences.akl import AKL
from kd_kernels.divergences.base import Divergence, Kernel
from kd_kernels.divergences.jsd import JSD
from kd_kernels.divergences.kl import ForwardKL, Jeffreys, ReverseKL
from kd_kernels.divergences.mixture_kl import JSStudent, JSTeacher, SkewForwardKL, SkewReverseKL
from kd_kernels.divergences.todi import ToDi
from kd_kernels.divergences.tvd import TVD

KINDS: dict[str, type[Divergence]] = {
    c.name: c
    for c in (
        ForwardKL, ReverseKL, Jeffreys, JSD, JSTeacher, JSStudent, TVD, SkewForwardKL, SkewReverseKL, ToDi, AKL,
    )
}  # fmt: skip


def resolve(kind: str | Divergence, params: dict[str, float]) -> Divergence:
    """The divergence object for a name with keyword parameters, or the object itself."""
    if isinstance(kind, Divergence):
        if params:
            raise TypeError(f"{kind!r} carries its own parameters; got also {', '.join(params)}")
        return kind
    if not isinstance(kind, str):
        raise TypeError(f"kind must be a name or a Divergence, got {type(kind).__name__}")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    cls = KINDS[kind]
    takes = [field for field in cls.__dataclass_fields__ if field != "name"]
    unknown = [name for name in params if name not in takes]
    if unknown:
        raise TypeError(f"{kind} takes {', '.join(takes) or 'no parameters'}; got {', '.join(unknown)}")
    return cls(**params)


def formula(kernel: Kernel) -> Divergence:
    """The divergence that a kernel computes: the inverse of `Divergence.kernel`, up to names for the same formula."""
    a, b = kernel.params
    if kernel.family == "kl":
        return {(1, 0): ForwardKL(), (0, 1): ReverseKL(), (1, 1): Jeffreys()}[a, b]
    cls = {"jsd": JSD, "teacher_mixture": JSTeacher, "student_mixture": JSStudent, "todi": ToDi, "akl": AKL}
    return TVD() if kernel.family == "tvd" else cls[kernel.family](a)


__all__ = [
    "AKL", "JSD", "KINDS", "TVD", "Divergence", "ForwardKL", "JSStudent", "JSTeacher", "Jeffreys", "Kernel",
    "ReverseKL", "SkewForwardKL", "SkewReverseKL", "ToDi", "formula", "resolve",
]  # fmt: skip
