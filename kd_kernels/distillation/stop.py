"""Stopping between two steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """The run was asked to stop and has saved its state."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of letting them end the process. A second one acts at once."""
    received: list[int] = []
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    def note(signum: int, _: FrameType | None) -> None:
        received.append(signum)
        restore()

    for signum in before:
        signal.signal(signum, note)
    try:
        yield received
    finally:
        restore()
