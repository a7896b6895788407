"""Ctrl-C that waits for the update in hand, so that what is saved is whole."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from types import FrameType


class Interrupted(Exception):
    """A run was asked to stop and has saved its state; the message says how to go on.

    Args:
        run: The run's folder.
        where: How far the run got, for the message.
        is_told_elsewhere: Whether another process prints the same.
    """

    def __init__(self, run: Path, where: str, is_told_elsewhere: bool = False) -> None:
        super().__init__(f"Stopped {where}. Go on with: cvt train --resume {quote(str(run))}")
        self.run = run
        self.is_told_elsewhere = is_told_elsewhere


class StopRequest:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.is_set = False

    def set(self, signum: int = 0, frame: FrameType | None = None) -> None:
        """Notes the first request; a second one ends the process's current work at once."""
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True


@contextmanager
def stop_requests() -> Generator[StopRequest]:
    """Turns Ctrl-C and a termination signal into a `StopRequest` inside the block.

    Python lets only the main thread handle signals; elsewhere the request is never set.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {each: signal.signal(each, stop.set) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
