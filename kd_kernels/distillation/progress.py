"""Progress on the console."""

import sys
from typing import Any

from tqdm import tqdm

LINES = 10


class Progress:
    """A bar on a terminal; elsewhere a line now and then."""

    def __init__(self, label: str, start: int, steps: int) -> None:
        self._label, self._steps = label, steps
        self._bar = tqdm(desc=label, initial=start, total=steps, unit="step", disable=None, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, record: dict[str, Any]) -> None:
        """Shows the record of a step that is done."""
        loss, speed, step = record["loss"], record["tokens_per_s"], record["step"]
        if not self._bar.disable:
            self._bar.set_postfix_str(f"loss {loss:.3f}, {speed:.0f} tok/s", refresh=False)
            self._bar.update()
        elif step * LINES // self._steps > (step - 1) * LINES // self._steps:
            print(f"{self._label}: step {step}/{self._steps}  loss {loss:.3f}  {speed:.0f} tok/s", file=sys.stderr)
