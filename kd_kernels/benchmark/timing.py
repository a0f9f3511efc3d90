"""Time samples of several calls, interleaved so that what else the machine does falls on all of them alike."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Clock = Callable[[Callable[[], object]], float]  # runs a call, returns its seconds

MIN_ROUNDS = 5
_WARM_UP = 0.1  # of the time budget
_MIN_SAMPLE = 1e-3  # seconds


@dataclass(frozen=True)
class Spread:
    """Quantiles of samples in seconds."""

    p20: float
    median: float
    p80: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        p20, _, _, p80 = statistics.quantiles(samples, n=5, method="inclusive")
        return cls(p20, statistics.median(samples), p80, len(samples))

    def times(self, factor: float) -> "Spread":
        return Spread(self.p20 * factor, self.median * factor, self.p80 * factor, self.samples)


def interleave(
    calls: Sequence[Callable[[], object]],
    *,
    seconds: float,
    clock: Clock,
    between: Callable[[], None],
    min_rounds: int = MIN_ROUNDS,
) -> list[list[float]]:
    """Samples of each call: rounds of one sample each until `seconds` have passed, after rounds that do not count.

    A sample of a call shorter than a millisecond is the mean of as many calls in a row as fill one: what a call costs,
    and not what it costs to come after another.

    Args:
        between: runs before each call, outside its time.
    """
    repeats = [1] * len(calls)

    def sample(i: int) -> float:
        total = 0.0
        for _ in range(repeats[i]):
            between()
            total += clock(calls[i])
        return total / repeats[i]

    def rounds(seconds: float, at_least: int) -> list[list[float]]:
        samples: list[list[float]] = [[] for _ in calls]
        end = time.perf_counter() + seconds
        while (done := len(samples[0])) < at_least or time.perf_counter() < end:
            for i in order(len(calls), done):
                samples[i].append(sample(i))
            gc.collect(0)  # the cycles of this round, which may hold tensors
        between()
        return samples

    with _no_collection():
        warm = rounds(_WARM_UP * seconds, 1)
        repeats[:] = [math.ceil(_MIN_SAMPLE / max(min(times), 1e-2 * _MIN_SAMPLE)) for times in warm]
        return rounds(seconds, min_rounds)


def order(n: int, round_: int) -> list[int]:
    """Order of n calls in a round: rotated, and reversed every other time lest one always runs after the same other."""
    rotated = [(i + round_ // 2) % n for i in range(n)]
    return rotated[::-1] if round_ % 2 else rotated


def clock_for(device: str) -> Clock:
    return _DeviceClock(device) if torch.device(device).type == "cuda" else host_clock


def host_clock(call: Callable[[], object]) -> float:
    """Wall time of the call, including the release of what it returns."""
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) * 1e-9


class _DeviceClock:
    """Time between two events on the GPU, with none of the inputs in its L2 cache."""

    def __init__(self, device: str) -> None:
        l2 = torch.cuda.get_device_properties(device).L2_cache_size
        self._evict = torch.empty(2 * l2, dtype=torch.uint8, device=device)

    def __call__(self, call: Callable[[], object]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        stream = torch.cuda.current_stream(self._evict.device)
        self._evict.zero_()  # also keeps the device busy while the host launches what follows
        start.record(stream)
        call()
        end.record(stream)
        end.synchronize()
        return start.elapsed_time(end) * 1e-3


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
