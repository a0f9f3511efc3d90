"""Measures a case: every provider is checked, then its memory and its time are taken."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kd_kernels.benchmark.case import Call, Case, Problem, Provider
from kd_kernels.benchmark.memory import RESOLUTION, extra_peak_bytes
from kd_kernels.benchmark.timing import Spread, clock_for, interleave

Status = Literal["ok", "wrong", "failed", "skipped", "missing"]


@dataclass(frozen=True)
class Outcome:
    """What became of a provider. Only one that is ok has a time."""

    provider: str
    ours: bool
    status: Status
    reason: str | None = None
    first_call_seconds: float | None = None  # with compilation, where there is one
    extra_bytes: int | None = None
    time: Spread | None = None


@dataclass(frozen=True)
class Measurement:
    """A case, its outcomes, and the time of the case's floor meanwhile, where it has one."""

    case: Case
    outcomes: tuple[Outcome, ...]
    floor: Spread | None = None

    def times_floor(self, outcome: Outcome) -> float | None:
        return None if self.floor is None else outcome.time.median / self.floor.median

    def rate(self, outcome: Outcome) -> float:
        """Work of the case per second."""
        return self.case.work / outcome.time.median

    def speedup(self, outcome: Outcome, over: str) -> float | None:
        baseline = next((o for o in self.outcomes if o.provider == over and o.time), None)
        return None if baseline is None else baseline.time.median / outcome.time.median

    def memory_ratio(self, outcome: Outcome) -> float | None:
        """Extra peak memory over the case's unit of memory."""
        return None if outcome.extra_bytes is None else outcome.extra_bytes / self.case.unit_bytes

    @property
    def failed(self) -> bool:
        """Whether a result was wrong, or this library gave none."""
        return any(o.status == "wrong" or (o.ours and o.status != "ok") for o in self.outcomes)


def measure(case: Case, providers: Sequence[Provider], seconds: float) -> Measurement:
    """Checks and measures the providers; `seconds` is for the timing of all of them together."""
    problem = case.make()
    outcomes: dict[str, Outcome] = {}
    calls: dict[str, Call] = {}
    for provider in providers:
        outcome, call = check(case, problem, provider)
        problem.clear()
        if call:
            outcome = replace(outcome, extra_bytes=_extra_bytes(case, call))
            calls[provider.name] = call
            problem.clear()
        outcomes[provider.name] = outcome

    timed = [*calls.values()] + ([] if problem.floor is None else [problem.floor.call])
    spreads: list[Spread] = []
    if timed:
        samples = interleave(timed, seconds=seconds, clock=clock_for(case.device), between=problem.clear)
        spreads = [Spread.of(of_one) for of_one in samples]
    for name, spread in zip(calls, spreads, strict=False):
        outcomes[name] = replace(outcomes[name], time=spread)
    floor = None if problem.floor is None else spreads[-1].times(problem.floor.times)
    return Measurement(case, tuple(outcomes.values()), floor)


def check(case: Case, problem: Problem, provider: Provider) -> tuple[Outcome, Call | None]:
    """The first call, which compiles what has to be compiled, and the verdict on its result."""

    def outcome(status: Status, reason: str | None = None, seconds: float | None = None) -> Outcome:
        return Outcome(provider.name, provider.ours, status, reason, seconds)

    if provider.missing is not None:
        return outcome("missing", provider.missing), None
    if provider.skip is not None:
        return outcome("skipped", provider.skip), None
    try:
        start = time.perf_counter()
        call = Call(provider.build(), problem.inputs, case.backward)
        loss = call()
        seconds = time.perf_counter() - start
        complaint = problem.complaint(loss)
    except Exception as error:  # a peer may fail in any way, such as for lack of memory; the others are measured still
        return outcome("failed", f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"), None
    if complaint is not None:
        return outcome("wrong", complaint), None
    return outcome("ok", seconds=seconds), call


def _extra_bytes(case: Case, call: Call) -> int | None:
    # Of tensors of few pages the pages would be measured.
    return extra_peak_bytes(call, case.device) if case.unit_bytes >= 8 * RESOLUTION else None
