"""The picture of a run."""

from pathlib import Path

import pytest
from matplotlib import image

from kd_kernels.distillation import plot

BLUE, ORANGE, GREEN, RED = (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40)


@pytest.fixture(autouse=True)
def _no_picture() -> None:
    """Here it is rendered."""


def pixels(path: Path, colour: tuple[int, int, int]) -> int:
    """How many have about this colour."""
    found = (255 * image.imread(path)[..., :3]).round().astype(int)
    return (abs(found - colour).max(axis=-1) < 60).sum()  # a line between two pixels is paler


def test_a_run_leaves_a_picture_of_three_curves(run, tmp_path):
    assert run(eval_every=4) == 0
    path = tmp_path / "run" / "plot.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert all(pixels(path, colour) > 20 for colour in (BLUE, ORANGE, GREEN, RED))


def test_a_curve_that_hardly_moves_lies_below_the_frame(tmp_path):
    path = tmp_path / "plot.png"
    steps = [
        {"step": i, "loss": 3.0, "tokens_per_s": 900.0, "peak_rss_mb": 2000.0 if i < 5 else 2000.1} for i in range(1, 9)
    ]
    plot.draw([{"step": 0, "eval": {"cross_entropy": 3.0}}, *steps], "title", path)
    assert all(pixels(path, colour) > 200 for colour in (GREEN, RED))
