"""`kd-kernels selftest`: every loss on every backend of this machine against float64, value and gradient, in seconds.

The truth is the reference backend in float64. That one is held against numbers which were worked out without it.
"""

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from kd_kernels.backends import select
from kd_kernels.cli import info
from kd_kernels.divergences import KINDS
from kd_kernels.testing.budget import allowed_error, assert_within_budget
from kd_kernels.testing.inputs import far_pair, near_pair
from kd_kernels.testing.truth import TRANSPORT, Result, eager, evaluate, truth

# Loss and its gradient in the student's logits, per loss at its default parameters, to 8 decimals.
TEACHER = [2.0, 1.0, 0.5, -1.0, -3.0]
STUDENT = [0.5, 1.5, -0.5, 0.0, -2.0]
TEACHERS = [[2.0, 0.0, -1.0], [0.0, 1.0, 0.5], [-1.0, 0.0, 2.0]]  # for a loss between rows
STUDENTS = [[1.0, 0.5, -1.0], [0.0, 0.2, 1.5], [0.0, 1.0, 0.0]]
GOLDEN = {
    "forward_kl": (0.46399701, [-0.39753365, 0.34600941, -0.05838635, 0.09680893, 0.01310166]),
    "reverse_kl": (0.47360511, [-0.32204067, 0.26320325, -0.07994893, 0.12224261, 0.01654374]),
    "jeffreys": (0.93760212, [-0.71957432, 0.60921266, -0.13833528, 0.21905154, 0.02964540]),
    "jsd": (0.11183220, [-0.08149552, 0.07154759, -0.01664910, 0.02342659, 0.00317044]),
    "js_teacher": (0.11276945, [-0.07341719, 0.06330259, -0.01883606, 0.02549966, 0.00345100]),
    "js_student": (0.11089495, [-0.08957385, 0.07979259, -0.01446215, 0.02135352, 0.00288989]),
    "tvd": (0.45592000, [-0.14943519, 0.16309330, -0.05497414, 0.03639104, 0.00492499]),
    "skew_forward_kl": (0.36533606, [-0.28742541, 0.25275632, -0.05013925, 0.07469894, 0.01010940]),
    "skew_reverse_kl": (0.36909207, [-0.25518306, 0.21970791, -0.05891289, 0.08313671, 0.01125133]),
    "todi": (0.93760212, [-0.55461954, 0.45712405, -0.11090245, 0.18355629, 0.02484164]),
    "akl": (0.46941628, [-0.35495324, 0.29930414, -0.07054832, 0.11115432, 0.01504310]),
    "sinkhorn": (
        0.72849429,
        [
            [-0.28829308, 0.19414763, 0.09414545],
            [0.14045907, 0.15047503, -0.29093409],
            [0.09231211, 0.12314053, -0.21545264],
        ],
    ),
    "sorted_l1": (0.11985789, [-0.03947317, -0.10729920, 0.13957146, -0.02394169, 0.03114260]),
}
GOLDEN_ERROR = 1e-8

# Functions of a backend that a loss calls, where they are not those of rows.
GROUPS = {"sinkhorn": ("l1_cost", "sinkhorn"), "sorted_l1": ("sorted_l1",)}

# Rows and columns: several blocks of any kernel, and rows enough to share among threads. The interpreter gets less.
SIZE, INTERPRETED_SIZE = (32, 4500), (4, 257)

LEGEND = """\
value/gradient: the largest error as a share of what is allowed, which is twice the error of plain PyTorch in the same
dtype, plus rounding; in float64, the last digit of numbers worked out by other means."""


class Column(NamedTuple):
    """A backend in one of the ways it can run here."""

    name: str
    backend: str
    device: str
    size: tuple[int, int] = SIZE
    setting: Callable[[], AbstractContextManager] = nullcontext


class Problem(NamedTuple):
    """Logits `[N, V]`, options for them, what the result is, and what plain PyTorch makes of them in their dtype."""

    what: str
    student: Tensor
    teacher: Tensor
    options: dict[str, Tensor]
    truth: Result
    eager: Result


class Check(NamedTuple):
    """Share of the allowed error; infinite where there is a complaint."""

    part: str  # of Result
    share: float
    complaint: str | None = None


def add_arguments(parser: ArgumentParser) -> None:
    """It has none."""


def run(args: Namespace) -> int:
    """Tests and prints the table; 1 where anything is wrong."""
    complaints = []
    for backend in select.SUPPORT:
        if (reason := info.reason(backend)) is None:
            continue
        print(f"{backend} is not tested: {reason}")
        # The kernels made for a device that is here must be there.
        complaints += [f"{backend}: {reason}" for d in info.devices_here() if backend in select.KERNELS_FOR[d][-1:]]
    columns = list(_columns())
    print(_line("loss", (column.name for column in columns)))
    for kind in (*KINDS, *TRANSPORT):
        results = {column.name: check(kind, column) for column in columns}
        print(_line(kind, (_cell(checks) for checks in results.values())), flush=True)
        complaints += [
            f"{kind}, {name}: {c.complaint}" for name, checks in results.items() for c in checks if c.complaint
        ]
    print(LEGEND, *(f"FAILED {text}" for text in complaints), sep="\n")
    print(f"{len(complaints)} failed" if complaints else "all passed")
    return int(bool(complaints))


def check(kind: str, column: Column) -> list[Check]:
    """All checks of a loss, at its default parameters; none where the backend does not have it."""
    if not select.SUPPORT[column.backend].groups.issuperset(GROUPS.get(kind, ("rows",))):
        return []
    try:
        with column.setting():
            return [*_golden(kind, column), *_within_budget(kind, column)]
    except Exception as error:  # whatever a broken installation raises is a finding
        return [Check("losses", math.inf, f"{type(error).__name__}: {error}")]


def _golden(kind: str, column: Column) -> Iterator[Check]:
    if not select.supports(column.backend, torch.device(column.device), (torch.float64, torch.float64)):
        return
    sides = (STUDENTS, TEACHERS) if kind == "sinkhorn" else ([STUDENT], [TEACHER])
    student, teacher = (torch.tensor(z, dtype=torch.float64).to(column.device) for z in sides)
    actual = evaluate(student, teacher, kind, backend=column.backend)
    for part, number, expected in zip(Result._fields, actual, GOLDEN[kind], strict=True):
        error = (number.cpu() - torch.tensor(expected, dtype=torch.float64)).abs().max().item()
        right = error <= GOLDEN_ERROR  # not so for NaN
        complaint = None if right else f"float64, fixed numbers, {part}: error {error:.3e} exceeds {GOLDEN_ERROR:.0e}"
        yield Check(part, error / GOLDEN_ERROR if right else math.inf, complaint)


def _within_budget(kind: str, column: Column) -> Iterator[Check]:
    if column.backend == "reference":  # in these dtypes it is the yardstick
        return
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        if not select.supports(column.backend, torch.device(column.device), (dtype, dtype)):
            continue
        for problem in _problems(kind, dtype, *column.size):
            student, teacher = (x.to(column.device) for x in (problem.student, problem.teacher))
            options = {name: x.to(column.device) for name, x in problem.options.items()}
            actual = evaluate(student, teacher, kind, backend=column.backend, **options)
            for part, number, expected, plain in zip(Result._fields, actual, problem.truth, problem.eager, strict=True):
                what = f"{str(dtype).removeprefix('torch.')}, {problem.what}, {part}"
                yield _compare(part, number.cpu(), expected, plain, what)


def _compare(part: str, actual: Tensor, expected: Tensor, plain: Tensor, what: str) -> Check:
    try:
        assert_within_budget(actual, expected, plain, what)
    except AssertionError as error:
        return Check(part, math.inf, str(error))
    allowed = allowed_error(expected, plain)
    worst = (actual.double() - expected.double()).abs().max().item()
    return Check(part, worst / allowed if allowed else 0.0)


@lru_cache(maxsize=6)  # all columns of a kind share them
def _problems(kind: str, dtype: torch.dtype, rows: int, vocab: int) -> list[Problem]:
    def problem(what: str, student: Tensor, teacher: Tensor, **options: Tensor) -> Problem:
        return Problem(
            what, student, teacher, options,
            truth(student, teacher, kind, **options), eager(student, teacher, kind, **options),
        )  # fmt: skip

    student, teacher = far_pair(rows, vocab, dtype)
    student[0], teacher[0] = math.nan, math.nan  # a row that does not count may hold anything
    student[1, ::3], teacher[1, ::3] = -math.inf, -math.inf  # entries that both sides forbid
    problems = [problem("far apart", student, teacher, mask=torch.arange(rows) > 0)]
    if kind not in TRANSPORT:  # whose derivatives jump where probabilities are equal, as rounding may make them
        problems.append(problem("near convergence", *near_pair(rows, vocab, dtype, distance=0.02)))
    return problems


def _columns() -> Iterator[Column]:
    for backend in reversed(select.SUPPORT):  # the reference first
        devices = info.devices(backend)
        if backend == "reference":
            yield Column(backend, backend, "cpu")
        elif backend == "cpu" and devices:
            from kd_kernels import _core

            levels = sorted(_core.Simd.__members__.values(), key=int)
            for level in levels[: int(_core.best_simd()) + 1]:
                yield Column(f"cpu {level.name}", backend, "cpu", setting=partial(_simd_limit, level))
        else:
            interpreted = "cpu" in devices  # a GPU backend on the CPU
            for device in devices:
                yield Column(f"{backend} {device}", backend, device, INTERPRETED_SIZE if interpreted else SIZE)


@contextmanager
def _simd_limit(level: object) -> Iterator[None]:
    from kd_kernels import _core

    before = _core.simd()
    _core.limit_simd(level)
    try:
        yield
    finally:
        _core.limit_simd(before)


def _cell(checks: list[Check]) -> str:
    if any(c.complaint for c in checks):
        return "FAILED"
    if not checks:
        return ""
    return "/".join(f"{max(c.share for c in checks if c.part == part):.2f}" for part in Result._fields)


def _line(kind: str, cells: Iterator[str]) -> str:
    return f"{kind:<16}" + "".join(f"{cell:>13}" for cell in cells)
