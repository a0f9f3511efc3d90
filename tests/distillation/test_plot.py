"""The picture of a run."""

import pytest
from matplotlib import image


@pytest.fixture(autouse=True)
def _no_picture() -> None:
    """Here it is rendered."""


def test_a_run_leaves_a_picture_of_three_curves(run, tmp_path):
    assert run(eval_every=4) == 0
    path = tmp_path / "run" / "plot.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    pixels = (255 * image.imread(path)[..., :3]).round().astype(int)
    blue, orange, green, red = (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40)
    for colour in (blue, orange, green, red):
        assert (abs(pixels - colour).max(axis=-1) < 60).sum() > 20  # a line between two pixels is paler
