import gc
import time

import pytest

from kd_kernels.benchmark.timing import Spread, host_clock, interleave, order


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_every_call_runs_once_a_round_and_everywhere_as_often(n):
    rounds = [order(n, r) for r in range(2 * n)]
    assert all(sorted(r) == list(range(n)) for r in rounds)
    for position in range(n):
        assert sorted(r[position] for r in rounds) == sorted(2 * list(range(n)))


def test_no_call_always_follows_the_same_other():
    rounds = [order(4, r) for r in range(8)]
    for i in range(4):
        assert len({r[r.index(i) - 1] for r in rounds if r.index(i) > 0}) > 1


def test_samples_are_interleaved_and_belong_to_their_call():
    seconds = {"a": 1.0, "b": 2.0, "c": 3.0}
    ran = []

    def clock(call):
        ran.append(call())
        return seconds[ran[-1]]

    samples = interleave([lambda n=n: n for n in seconds], seconds=0, clock=clock, between=lambda: None, min_rounds=4)
    assert samples == [[1.0] * 4, [2.0] * 4, [3.0] * 4]
    rounds = [ran[i : i + 3] for i in range(0, len(ran), 3)]  # the first is the warm-up
    assert rounds == [["abc"[i] for i in order(3, r)] for r in (0, 0, 1, 2, 3)]


def test_between_runs_before_each_call_and_outside_its_time():
    log = []

    def clock(call):
        log.append("start")
        call()
        log.append("stop")
        return 1.0

    interleave(
        [lambda: log.append("call")], seconds=0, clock=clock, between=lambda: log.append("between"), min_rounds=3
    )
    sample = ["between", "start", "call", "stop"]
    assert log == [*sample, "between", *sample * 3, "between"]


def test_a_sample_of_a_short_call_is_the_mean_of_several():
    times = iter([2e-4, *[1e-4, 3e-4, 2e-4, 2e-4, 5e-4] * 3])  # the first says that five fill a millisecond
    ran = []
    [samples] = interleave([lambda: ran.append(1)], seconds=0, clock=lambda call: (call(), next(times))[1],
                           between=lambda: None, min_rounds=3)  # fmt: skip
    assert samples == pytest.approx([2.6e-4] * 3)
    assert len(ran) == 16


def test_rounds_go_on_until_the_time_is_over():
    start = time.perf_counter()
    [samples] = interleave([lambda: time.sleep(0.01)], seconds=0.2, clock=host_clock, between=lambda: None)
    assert 0.2 < time.perf_counter() - start < 2
    assert len(samples) >= 5
    assert min(samples) >= 0.01


def test_no_garbage_is_collected_within_a_sample_and_all_of_it_is_again_afterwards():
    seen = []

    def call():
        seen.append(gc.isenabled())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interleave([call], seconds=0, clock=host_clock, between=lambda: None)
    assert seen == [False]
    assert gc.isenabled()


def test_quantiles():
    spread = Spread.of([5.0, 1.0, 3.0, 2.0, 4.0, 6.0])
    assert (spread.p20, spread.median, spread.p80, spread.samples) == (2.0, 3.5, 5.0, 6)
    assert spread.times(2) == Spread(4.0, 7.0, 10.0, 6)
