"""Checks of what users hand over to methods, beside those of the functions that methods call."""

from torch import Tensor

from kd_kernels.arguments import is_number, real_dense, same_precision


def logits(student_logits: Tensor, teacher_logits: Tensor, shape: str) -> None:
    """Checks a pair of logits of shape "[..., V]", "[..., L, V]" or "[B, L, V]"."""
    names = "student_logits", "teacher_logits"
    dims = shape.count(",") + 1
    for name, x in zip(names, (student_logits, teacher_logits), strict=True):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        real_dense(name, x)
        fits = x.dim() >= dims - 1 if "..." in shape else x.dim() == dims
        if not fits or x.shape[-1] == 0:
            raise ValueError(f"{name} must have shape {shape} with V >= 1, got {list(x.shape)}")
    if student_logits.device != teacher_logits.device:
        raise ValueError(
            f"teacher_logits must be on the device of student_logits {student_logits.device}, got "
            f"{teacher_logits.device}"
        )
    same_precision(student_logits, teacher_logits, names)


def same_batch(student_logits: Tensor, teacher_logits: Tensor, trailing: int) -> None:
    """Checks that all but the last `trailing` dimensions are equal."""
    if student_logits.shape[:-trailing] != teacher_logits.shape[:-trailing]:
        raise ValueError(
            "student_logits and teacher_logits must have the same batch, got shapes "
            f"{list(student_logits.shape)} and {list(teacher_logits.shape)}"
        )


def factor(name: str, value: float) -> None:
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be finite and not negative, got {value}")


def flag(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def between(name: str, value: float, least: float, most: float) -> None:
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be between {least:g} and {most:g}, got {value}")


def share(name: str, value: float) -> None:
    between(name, value, 0, 1)
