"""Checks of what users hand over: the one place. Nothing below it checks again.

Messages name the argument, what it must be and what came. ValueError for shape, range and device, TypeError for dtype
and kind.
"""

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from kd_kernels.head import Head
from kd_kernels.top_k import TAILS, TopK

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REDUCTIONS = ("mean", "sum", "none")

# Reciprocals and exponents stay finite in float32 well beyond any use.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-4, 1e6


Side = Tensor | Head | TopK


def logits_pair(student: Tensor, teacher: Tensor) -> None:
    """Checks that student and teacher are logits of the same rows on the same device."""
    _logits("student", student)
    _logits("teacher", teacher)
    _same_rows(student, teacher)
    same_precision(student, teacher)


def sides(student: Tensor | Head, teacher: Side) -> None:
    """Checks a pair of which at least one is not logits."""
    for name, side in (("student", student), ("teacher", teacher)):
        if isinstance(side, TopK) and name == "teacher":
            _top_k(side)
        else:
            dense_side(name, side)
    _same_rows(rows_of(student), rows_of(teacher))
    if isinstance(teacher, TopK):
        _entries_of(teacher, vocabularies(student, teacher)[0])
    else:
        same_precision(rows_of(student), rows_of(teacher))


def dense_side(name: str, side: Tensor | Head) -> None:
    """Checks a side by itself."""
    if isinstance(side, Head):
        _head(name, side)
    else:
        _logits(name, side)


def rows_of(side: Side) -> Tensor:
    """The tensor `[..., X]` that has the rows of a side."""
    return side.hidden if isinstance(side, Head) else side.logprobs if isinstance(side, TopK) else side


def vocabularies(student: Tensor | Head, teacher: Side) -> tuple[int, int]:
    """Sizes of the vocabularies; the entries of a sparse teacher are those of the student's."""
    sizes = [
        side.weight.shape[0] if isinstance(side, Head) else side.shape[-1]
        for side in (student, teacher)
        if not isinstance(side, TopK)
    ]
    return sizes[0], sizes[-1]


def chunks(chunk_tokens: int | None, memory_budget: int | None) -> None:
    for name, value in (("chunk_tokens", chunk_tokens), ("memory_budget", memory_budget)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if chunk_tokens is not None and memory_budget is not None:
        raise ValueError("chunk_tokens and memory_budget both decide the size of chunks: pass one of them")


def _logits(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        also = "" if name == "student" else ", a Head or a TopK"
        raise TypeError(f"{name} must be a tensor of logits{also or ' or a Head'}, got {type(x).__name__}")
    real_dense(name, x)
    if not x.shape or x.shape[-1] == 0:
        raise ValueError(f"{name} must have shape [..., V] with V >= 1, got {list(x.shape)}")


def _head(name: str, head: Head) -> None:
    for part, x in (("hidden", head.hidden), ("weight", head.weight), ("bias", head.bias)):
        if part == "bias" and x is None:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{part} of the {name}'s head must be a tensor, got {type(x).__name__}")
        real_dense(f"{part} of the {name}'s head", x)
    hidden, weight, bias = head.hidden, head.weight, head.bias
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"weight of the {name}'s head must have shape [V, H], got {list(weight.shape)}")
    if not hidden.shape or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden of the {name}'s head must have shape [..., {weight.shape[1]}], as wide as its weight, got "
            f"{list(hidden.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias of the {name}'s head must have shape [{weight.shape[0]}], got {list(bias.shape)}")
    for part, x in (("weight", weight), ("bias", bias)):
        if x is not None and x.device != hidden.device:
            raise ValueError(
                f"{part} of the {name}'s head must be on the device of hidden {hidden.device}, got {x.device}"
            )
        if x is not None and (x.dtype == torch.float64) != (hidden.dtype == torch.float64):
            raise TypeError(
                f"hidden and {part} of the {name}'s head must both be float64, or neither; "
                f"got {name_of(hidden.dtype)} and {name_of(x.dtype)}"
            )
    for part, value in (("scale", head.scale), ("softcap", head.softcap)):
        if part == "softcap" and value is None:
            continue
        if not is_number(value):
            raise TypeError(f"{part} of the {name}'s head must be a number, got {type(value).__name__}")
        if not MIN_TEMPERATURE <= value <= MAX_TEMPERATURE:
            raise ValueError(
                f"{part} of the {name}'s head must be between {MIN_TEMPERATURE:g} and {MAX_TEMPERATURE:g}, got {value}"
            )


def _top_k(teacher: TopK) -> None:
    for part, x in (("ids", teacher.ids), ("logprobs", teacher.logprobs)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{part} of the teacher must be a tensor, got {type(x).__name__}")
    if teacher.ids.is_floating_point() or teacher.ids.is_complex() or teacher.ids.dtype == torch.bool:
        raise TypeError(f"ids of the teacher must be integers, got {name_of(teacher.ids.dtype)}")
    real_dense("logprobs of the teacher", teacher.logprobs)
    if not teacher.ids.shape or teacher.ids.shape != teacher.logprobs.shape:
        raise ValueError(
            "ids and logprobs of the teacher must have the same shape [..., K], got "
            f"{list(teacher.ids.shape)} and {list(teacher.logprobs.shape)}"
        )
    if teacher.ids.device != teacher.logprobs.device:
        raise ValueError(f"ids must be on the device of logprobs {teacher.logprobs.device}, got {teacher.ids.device}")
    if teacher.tail not in TAILS:
        raise ValueError(f"tail must be one of {', '.join(TAILS)}, got {teacher.tail!r}")


def _entries_of(teacher: TopK, size: int) -> None:
    largest = _largest(teacher.ids)
    if largest >= size:
        raise ValueError(f"ids of the teacher must be below the student's vocabulary of {size} entries, got {largest}")


def _largest(ids: Tensor) -> int:
    """-1 where nobody may look: that would wait for a device, or break a graph."""
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or not ids.numel():
        return -1
    return int(ids.max())


def real_dense(name: str, x: Tensor) -> None:
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {name_of(x.dtype)}")
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {name_of(x.layout)}")


def _same_rows(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape and student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            f"student and teacher must have the same rows, got shapes {list(student.shape)} and {list(teacher.shape)}"
        )
    if student.device != teacher.device:
        raise ValueError(f"teacher must be on the student's device {student.device}, got {teacher.device}")


def same_precision(x: Tensor, y: Tensor, names: tuple[str, str] = ("student", "teacher")) -> None:
    if x.dtype != y.dtype and torch.float64 in (x.dtype, y.dtype):
        raise TypeError(
            f"{names[0]} and {names[1]} must both be float64, or neither; got {name_of(x.dtype)} and {name_of(y.dtype)}"
        )


def vocabulary(vocab: str | int, student_size: int, teacher_size: int) -> int:
    """The number of columns that count, from the first."""
    if vocab == "strict":
        if student_size != teacher_size:
            raise ValueError(
                f"student and teacher have vocabularies of {student_size} and {teacher_size} entries. If the extra "
                "entries are padding of the same tokenizer, pass vocab='common' to compare the first "
                f"{min(student_size, teacher_size)} entries, or the tokenizer's size as vocab=n"
            )
        return student_size
    if vocab == "common":
        return min(student_size, teacher_size)
    if isinstance(vocab, int) and not isinstance(vocab, bool):
        if not 1 <= vocab <= min(student_size, teacher_size):
            raise ValueError(f"vocab must be between 1 and {min(student_size, teacher_size)}, got {vocab}")
        return vocab
    raise ValueError(f"vocab must be 'strict', 'common' or a number of columns, got {vocab!r}")


def temperatures(temperature: float | tuple[float, float]) -> tuple[float, float]:
    """(student's, teacher's)."""
    if type(temperature) is float and MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        return temperature, temperature
    pair = temperature if isinstance(temperature, (tuple, list)) else (temperature, temperature)
    if len(pair) != 2 or not all(is_number(t) for t in pair):
        raise TypeError(f"temperature must be a number or a pair (student, teacher), got {temperature!r}")
    if not all(MIN_TEMPERATURE <= t <= MAX_TEMPERATURE for t in pair):
        raise ValueError(
            f"temperature must be between {MIN_TEMPERATURE:g} and {MAX_TEMPERATURE:g}, got {temperature!r}"
        )
    return float(pair[0]), float(pair[1])


def row_weights(
    mask: Tensor | None, labels: Tensor | None, ignore_index: int, student: Tensor, real: torch.dtype
) -> Tensor | None:
    """Weight of each row [N], 0 where it does not count; None where all count alike."""
    weight = None
    if mask is not None:
        like_rows("mask", mask, student)
        if mask.is_complex():
            raise TypeError(f"mask must be bool, integer or real, got {name_of(mask.dtype)}")
        weight = mask.detach().reshape(-1).to(real)
    if labels is not None:
        like_rows("labels", labels, student)
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(f"labels must be integers, got {name_of(labels.dtype)}")
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, Integral):
            raise TypeError(f"ignore_index must be an integer, got {ignore_index!r}")
        counted = (labels != ignore_index).reshape(-1)
        weight = counted.to(real) if weight is None else torch.where(counted, weight, 0)
    return weight


def reduction(reduction: str) -> str:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    return reduction


def normalizer(normalizer: float | Tensor | None, reduction: str, student: Tensor) -> float | Tensor | None:
    """A positive number, a 0-d tensor on the student's device, or None."""
    if normalizer is None:
        return None
    if reduction != "mean":
        raise ValueError(f"normalizer divides the sum of reduction='mean'; got reduction={reduction!r}")
    if isinstance(normalizer, Tensor):
        if normalizer.numel() != 1:
            raise ValueError(f"normalizer must be a number or a 0-d tensor, got shape {list(normalizer.shape)}")
        if normalizer.is_complex():
            raise TypeError(f"normalizer must be real, got {name_of(normalizer.dtype)}")
        return normalizer.detach().reshape(()).to(student.device)
    if not is_number(normalizer):
        raise TypeError(f"normalizer must be a number or a 0-d tensor, got {type(normalizer).__name__}")
    if not 0 < normalizer < math.inf:
        raise ValueError(f"normalizer must be positive and finite, got {normalizer}")
    return float(normalizer)


def entries(name: str, ids: Tensor, student: Tensor, columns: int) -> None:
    """Checks that there is an entry of the vocabulary, or a negative number, for each row."""
    like_rows(name, ids, student)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {name_of(ids.dtype)}")
    largest = _largest(ids)
    if largest >= columns:
        raise ValueError(f"{name} must be below the vocabulary of {columns} entries, got {largest}")


def like_rows(name: str, x: Tensor, student: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.shape != student.shape[:-1]:
        raise ValueError(f"{name} must have the shape of the rows {list(student.shape[:-1])}, got {list(x.shape)}")
    if x.device != student.device:
        raise ValueError(f"{name} must be on the student's device {student.device}, got {x.device}")


def is_number(x: object) -> bool:
    return isinstance(x, Real) and not isinstance(x, bool)


def name_of(property: torch.dtype | torch.layout) -> str:
    return str(property).removeprefix("torch.")
