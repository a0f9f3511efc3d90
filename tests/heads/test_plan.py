"""The planner: pure functions of sizes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_kernels.chunks.plan import (
    Problem,
    Side,
    choose,
    default_rows,
    equal_parts,
    token_chunks,
    vocabulary_chunks,
)

MIB = 1 << 20


def problem(rows=1024, columns=151_936, hidden=128, itemsize=4, **changes) -> Problem:
    side = Side(hidden, itemsize)
    sizes = Problem(
        rows, columns, side, side, gradients=(True, True, False), vocabulary=columns, weight_itemsize=itemsize,
        gathered=False, kept_bytes=32 * MIB, selects=False, widened=(True, False),
    )  # fmt: skip
    return replace(sizes, **changes)


problems = st.builds(
    problem,
    rows=st.integers(0, 20_000),
    columns=st.integers(1, 300_000),
    hidden=st.integers(1, 8192),
    itemsize=st.sampled_from([2, 4, 8]),
    softcap=st.booleans(),
    gathered=st.booleans(),
    widened=st.tuples(st.booleans(), st.booleans()),
    gradients=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)


def test_default_chunks_are_as_large_as_products_need():
    assert choose(problem(), None, None)[:2] == ("tokens", 342)
    assert choose(problem(hidden=2048, rows=8192), None, None)[:2] == ("tokens", 2048)
    assert choose(problem(hidden=16_384, rows=8192), None, None)[:2] == ("tokens", 4096)


def test_few_rows_are_one_chunk():
    assert choose(problem(rows=200), None, None)[:2] == ("tokens", 200)
    assert choose(problem(rows=50_000, columns=300), None, None).size == 50_000


def test_chunks_are_equal():
    assert default_rows(problem(rows=385)) == 193
    assert equal_parts(0, 5) == 1
    assert [equal_parts(n, 4) for n in (1, 4, 5, 8, 9)] == [1, 4, 3, 4, 3]


def test_a_given_size_is_taken():
    assert choose(problem(), 100, None)[:2] == ("tokens", 100)
    assert choose(problem(rows=50), 100, None)[:2] == ("tokens", 50)


def test_a_single_chunk_needs_no_accumulator():
    in_half = problem(rows=64, itemsize=2)
    assert token_chunks(in_half, 63).peak_bytes - token_chunks(in_half, 64).peak_bytes > 2 * 151_936 * 128 - MIB


def test_gradients_that_are_not_wanted_take_nothing():
    frozen = problem(gradients=(True, False, False))
    assert token_chunks(problem(), 256).peak_bytes - token_chunks(frozen, 256).peak_bytes == 4 * 151_936 * 128


def test_a_tight_budget_cuts_the_vocabulary():
    plan = choose(problem(rows=64), None, 100 * MIB)
    assert plan.name == "vocabulary"
    assert plan.peak_bytes <= 100 * MIB


def test_a_loose_budget_changes_nothing():
    assert choose(problem(), None, 10**12) == choose(problem(), None, None)


def test_an_impossible_budget_says_what_would_do():
    with pytest.raises(ValueError, match=r"memory_budget must be at least (\d+) bytes for these shapes, got 1000") as e:
        choose(problem(), None, 1000)
    least = int(str(e.value).split("least ")[1].split()[0])
    assert choose(problem(), None, least).peak_bytes <= least
    with pytest.raises(ValueError, match="memory_budget"):
        choose(problem(), None, least - 1)


@given(problems, st.integers(20, 40))
def test_every_plan_fits_its_budget(sizes, log2_budget):
    budget = 1 << log2_budget
    try:
        plan = choose(sizes, None, budget)
    except ValueError:
        assert token_chunks(sizes, 1).peak_bytes > budget
        assert vocabulary_chunks(sizes, 1).peak_bytes > budget
    else:
        assert plan.peak_bytes <= budget
        assert 1 <= plan.size <= max(1, sizes.rows if plan.name == "tokens" else sizes.columns)


@given(problems)
def test_more_memory_is_never_predicted_for_smaller_chunks_of_a_plan(sizes):
    for plan, most in ((token_chunks, sizes.rows), (vocabulary_chunks, sizes.columns)):
        # The whole needs no accumulator, and may take less than its parts.
        peaks = [plan(sizes, size).peak_bytes for size in range(1, most, max(1, most // 7))]
        assert peaks == sorted(peaks)
