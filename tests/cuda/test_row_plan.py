"""How rows are laid over a device, and what memory traffic follows."""

from types import SimpleNamespace

import pytest
import torch

VECTOR = 16
KIB = 1024
KL, JSD, TODI = ("kl", "jsd", "todi")


@pytest.fixture(scope="module")
def plan(emulated):
    """Plans of rows of so many columns: (columns, dtype, family, capability = 90, blocks = None)."""

    def of(columns, dtype=torch.bfloat16, family=KL, capability=90, blocks=None):
        return SimpleNamespace(**emulated.row_plan(columns, dtype, family, capability, blocks=blocks))

    return of


@pytest.mark.parametrize(
    ("columns", "dtype", "family", "capability", "blocks"),
    [
        (1000, torch.bfloat16, KL, 90, 1), (32_000, torch.bfloat16, KL, 90, 2), (32_000, torch.bfloat16, JSD, 90, 2),
        (128_256, torch.bfloat16, KL, 90, 8), (151_936, torch.bfloat16, KL, 90, 8),
        (151_936, torch.float16, TODI, 90, 8), (151_936, torch.bfloat16, JSD, 100, 8),
        (151_936, torch.float32, KL, 90, 8), (262_144, torch.bfloat16, JSD, 90, 8), (262_144, torch.float32, KL, 90, 0),
        (151_936, torch.bfloat16, KL, 120, 8), (151_936, torch.float32, KL, 120, 0),
        (1000, torch.bfloat16, KL, 80, 0), (151_936, torch.bfloat16, JSD, 80, 0),
    ],
)  # fmt: skip
def test_blocks_to_a_row(plan, columns, dtype, family, capability, blocks):
    assert plan(columns, dtype, family, capability).blocks == blocks


def test_two_blocks_of_the_common_vocabularies_share_a_multiprocessor(plan):
    """That is what hides the time a block waits for its row; 1 KiB of each block is the system's."""
    for columns in (32_000, 50_257, 128_256, 151_936, 152_064):
        for family in (KL, JSD):
            assert 2 * (plan(columns, family=family).shared_bytes + KIB) <= 228 * KIB


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("family", [KL, JSD])
def test_a_row_is_read_once_and_all_of_it(plan, dtype, family):
    """On chip the blocks' slices cover the vectors of a row without overlap: two reads and one write of every entry,
    whatever the sweeps. A slice has room for a vector more, which a row that begins within one needs."""
    entries = VECTOR // dtype.itemsize
    for columns in (1, 7, 8, 9, 1000, 32_003, 151_936):
        for capability, blocks in ((90, None), (90, 8), (100, None), (120, None)):
            of = plan(columns, dtype, family, capability, blocks)
            if of.blocks == 0:
                continue
            vectors = -(-columns // entries)
            assert of.slice == -(-vectors // of.blocks)
            sides, beside = 2 * (of.slice + 1), of.slice if of.keeps and dtype.itemsize == 2 else 0
            assert 0 <= of.shared_bytes - VECTOR * (sides + beside) <= KIB
            assert of.shared_bytes <= (99 if capability == 120 else 227) * KIB


def test_threads(plan):
    for columns in (1, 1000, 5000, 151_936, 10_000_000):
        for blocks in (None, 0):
            of = plan(columns, blocks=blocks)
            assert of.threads % 32 == 0
            assert 32 <= of.threads <= 256


def test_h_is_kept_where_there_is_room(plan):
    assert plan(151_936, family=JSD).keeps
    assert not plan(151_936, family=KL).keeps
    assert not plan(151_936, family=JSD, capability=120).keeps
    assert plan(151_936, torch.float32, JSD).keeps
