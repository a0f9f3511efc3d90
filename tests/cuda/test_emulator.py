"""The emulated machine: what it must catch, and what it must let pass."""

import shutil
import subprocess

import emulated_build
import pytest

SEEDS = 20
WRONG = None  # a wrong result
# What is said of a kernel that lacks something.
CASES = {
    "barrier_behind_writes": WRONG,
    "barrier_behind_reads": WRONG,
    "barrier_of_a_warp": WRONG,
    "barrier_of_all": "others of the block wait at line",
    "threads_of_a_named_barrier": "deadlock",
    "mask_of_lanes_that_come": "deadlock",
    "source_within_the_mask": "is not in the mask",
    "initial_value": WRONG,
    "bound_of_shared_memory": "heap-buffer-overflow",
    "bound_of_global_memory": "heap-buffer-overflow",
    "alignment": "misaligned address",
    "fence_of_a_new_barrier": "not fenced after its initialisation",
    "wait_for_a_bulk_load": WRONG,
    "bytes_of_a_bulk_load": "deadlock",
    "barrier_before_a_bulk_load": WRONG,
    "fence_of_a_bulk_store": "without a fence",
    "wait_for_a_bulk_store": WRONG,
    "barrier_before_a_bulk_store": WRONG,
    "wait_for_a_copy": WRONG,
    "barrier_before_the_cluster_reads": WRONG,
    "barrier_before_a_block_ends": "use-after-poison",
    "barrier_before_the_cluster_writes": "use-after-poison",
}


@pytest.fixture(scope="module")
def run():
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    program = emulated_build.program(emulated_build.HERE / "cases" / "machine_cases.cpp")

    def run(*arguments):
        return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize("case", CASES)
def test_a_kernel_that_lacks_nothing(case, run):
    done = run(case, "right", SEEDS)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", CASES)
def test_what_is_missing_is_noticed(case, run):
    done = run(case, "missing", SEEDS)
    if CASES[case] is WRONG:
        # What is missing may also be met by a check of the machine.
        assert done.returncode == 1 or "emulation:" in done.stderr, done.stderr
    else:
        assert CASES[case] in done.stderr
