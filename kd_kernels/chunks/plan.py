"""Which plan a loss over chunks follows, and the memory that takes: pure functions of sizes.

Token chunks do no work twice: the default. Vocabulary chunks project every slice of the vocabulary once for each sweep
over the rows, and hold no more than a slice of the logits at a time; what that saves counts only where the rows are few
or the memory is tight.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch

from kd_kernels.chunks.head_tail import SELECTED
from kd_kernels.chunks.products import WIDENED

# A chunk of this many rows keeps the matrix products at the speed of large ones, and a weight gradient from being read
# and written more often than its products take.
_FAST_ROWS = 384
_FAST_BYTES = 64 << 20
_LARGEST_ROWS = 4096
# Below this many rows reading the weights takes longer than the products.
_SLOW_ROWS = 32
_FAST_COLUMNS, _FEWEST_COLUMNS = 8192, 256
# What is known of a row while its slices go by: numbers of eight slices, twice, and of their merge.
_STATISTICS_BYTES = 3 * 8 * 12 * 8
_SELECTION_BYTES = 60  # of an entry that AKL's selection looks at
_LISTED_BYTES = 80  # of an entry that a sparse teacher lists


class Plan(NamedTuple):
    """name: "tokens" or "vocabulary"; size: rows, or columns, in a chunk; peak_bytes: extra memory at the peak."""

    name: str
    size: int
    peak_bytes: int


@dataclass(frozen=True)
class Side:
    """Sizes of one side. `hidden`: width of its hidden states, 0 for logits; `itemsize`: of its logits and products."""

    hidden: int
    itemsize: int
    buffered: bool = True  # a chunk of it needs memory
    width: int = 0  # entries of a row, where they are not the columns that count


@dataclass(frozen=True)
class Problem:
    """What decides the memory of a loss over chunks, in entries and bytes."""

    rows: int
    columns: int
    student: Side
    teacher: Side | None  # None: sparse
    gradients: tuple[bool, bool, bool]  # wanted: of hidden states or logits, weight, bias
    vocabulary: int  # rows of the student's weight
    weight_itemsize: int  # of the student's weight as given
    gathered: bool  # rows that count were picked out of more
    kept_bytes: int | None  # from which size on the memory of chunks is kept when they are gone
    selects: bool  # AKL, which splits the vocabulary by the teacher
    widened: tuple[bool, bool]  # no product for the gradients of hidden states, weight, that adds up in float32
    listed: int = 0  # entries that a sparse teacher lists for a row
    softcap: bool = False  # of the student
    cast_bytes: int = 0  # of weights in the dtype of the products, where that is another

    @classmethod
    def of(cls, family: str, dtype: torch.dtype, device: str, backend: ModuleType, **sizes: Any) -> "Problem":
        """From the sizes and what runs: the family of kernels, dtype of the student's products, type of device."""
        on_gpu = device == "cuda"
        return cls(
            **sizes,
            kept_bytes=backend.KEPT_BYTES,
            selects=family == "akl" and sizes["teacher"] is not None,
            widened=(not on_gpu, not on_gpu and dtype not in backend.OUTER_PRODUCT_DTYPES),
        )

    @property
    def sum_itemsize(self) -> int:
        return max(4, self.student.itemsize)


def choose(problem: Problem, chunk_tokens: int | None, memory_budget: int | None) -> Plan:
    """The plan for a problem.

    Args:
        problem: the sizes.
        chunk_tokens: rows in a token chunk.
        memory_budget: bytes of extra memory, gradients included, that the plan may take.

    Raises:
        ValueError: no plan fits the budget; the message says what the smallest needs.
    """
    if chunk_tokens is not None:
        return token_chunks(problem, chunk_tokens)
    preferred = token_chunks(problem, default_rows(problem))
    if memory_budget is None or preferred.peak_bytes <= memory_budget:
        return preferred
    fewer = _largest(lambda rows: token_chunks(problem, equal_parts(problem.rows, rows)), preferred.size, memory_budget)
    if fewer is not None and fewer.size >= _SLOW_ROWS:
        return fewer
    narrow = _largest(lambda columns: vocabulary_chunks(problem, columns), _FAST_COLUMNS, memory_budget)
    plan = narrow if narrow is not None and (fewer is None or narrow.size >= _FEWEST_COLUMNS) else fewer
    if plan is None:
        least = min(token_chunks(problem, 1).peak_bytes, vocabulary_chunks(problem, 1).peak_bytes)
        raise ValueError(f"memory_budget must be at least {least} bytes for these shapes, got {memory_budget}")
    return plan


def default_rows(problem: Problem) -> int:
    """Rows of a token chunk where nothing was asked for: as many as keep the products fast, in equal chunks."""
    fast = min(max(_FAST_ROWS, problem.student.hidden), _LARGEST_ROWS)
    small = _FAST_BYTES // (problem.columns * problem.student.itemsize)
    return equal_parts(problem.rows, max(fast, small))


def equal_parts(n: int, size: int) -> int:
    """The size, at most `size`, that cuts n into as few parts, nearly equal."""
    return -(-n // -(-n // size)) if n else 1


def token_chunks(problem: Problem, rows: int) -> Plan:
    rows = max(1, min(rows, problem.rows))
    single = rows >= problem.rows
    return Plan("tokens", rows, _peak(problem, rows, problem.columns, rows_cut=not single, columns_cut=False))


def vocabulary_chunks(problem: Problem, columns: int) -> Plan:
    columns = max(1, min(columns, problem.columns))
    single = columns >= problem.columns
    return Plan("vocabulary", columns, _peak(problem, problem.rows, columns, rows_cut=False, columns_cut=not single))


def _largest(plan: Callable[[int], Plan], most: int, memory_budget: int) -> Plan | None:
    """The plan of the largest size up to `most` that fits; memory grows with the size."""
    fits, too_large = 0, most + 1
    while too_large - fits > 1:
        size = (fits + too_large) // 2
        if plan(size).peak_bytes <= memory_budget:
            fits = size
        else:
            too_large = size
    return plan(fits) if fits else None


def _peak(problem: Problem, rows: int, columns: int, *, rows_cut: bool, columns_cut: bool) -> int:
    student, teacher = problem.student, problem.teacher
    wide = problem.sum_itemsize
    wanted = any(problem.gradients)

    fixed, rounded, working, chunks = problem.cast_bytes, 0, _LISTED_BYTES * problem.rows * problem.listed, 0
    # Gradients that chunks add to have an accumulator, and are rounded at the end, when the chunks are gone.
    if student.hidden:
        for is_wanted, entries, itemsize, cut in (
            (problem.gradients[0], problem.rows * student.hidden, student.itemsize, columns_cut),
            (problem.gradients[1], problem.vocabulary * student.hidden, problem.weight_itemsize, rows_cut),
        ):
            if is_wanted:
                direct = not cut and itemsize == student.itemsize
                fixed += entries * (itemsize if direct else wide)
                rounded += 0 if direct or itemsize == wide else entries * itemsize
        if problem.gathered:
            rounded += problem.rows * student.hidden * student.itemsize if problem.gradients[0] else 0
    elif problem.gradients[0]:
        fixed += problem.rows * student.width * student.itemsize
    for side in (student, teacher):
        if side is None:
            continue
        if problem.gathered:
            fixed += problem.rows * side.hidden * side.itemsize
        if side.buffered:
            width = columns if side.hidden or columns_cut else side.width
            chunks += rows * width * side.itemsize
            if side is student and wanted and problem.softcap:
                working += rows * width * side.itemsize
    if student.hidden and student.itemsize < wide:  # factors that are widened for their product
        part = min(WIDENED, rows * columns)
        of_hidden = columns_cut and problem.gradients[0] and problem.widened[0]
        of_weight = rows_cut and problem.gradients[1] and problem.widened[1]
        other = columns if of_hidden else rows if of_weight else 0
        # The product packs its factor once more.
        working += wide * (2 * part + other * student.hidden) if other else 0
    if columns_cut and teacher is not None:
        working += _STATISTICS_BYTES * rows
        working += _SELECTION_BYTES * min(SELECTED, rows * columns) if problem.selects else 0
    if problem.kept_bytes is not None and chunks >= problem.kept_bytes:
        return fixed + chunks + max(working, rounded)
    return fixed + max(chunks + working, rounded)
