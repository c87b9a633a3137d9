"""SIGTERM and Ctrl-C in the middle of a run: finish the step, save, then stop."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from ccrepro.errors import Stopped, StoppedByUser


class StopSignal:
    """While the block lasts, the first SIGTERM or SIGINT is only noted; a second one acts as it would have.

    Nothing is noted where ``active`` is False, or outside the main thread, to which signals belong. ``then`` is called
    with the first one's number.
    """

    def __init__(self, active: bool = True, then: Callable[[int], None] = lambda number: None):
        self.then = then
        self.active = active and threading.current_thread() is threading.main_thread()
        self.signal = 0  # the first one's number

    def __enter__(self) -> Self:
        if self.active:
            self.before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.active:
            self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()
        self.then(number)

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def error(self, where: str, saved: str) -> Stopped:
        """The error to raise once all is ``saved``, which says what; its exit code is 143 or 130."""
        kind = Stopped if self.signal == signal.SIGTERM else StoppedByUser
        what = f"stopped by {signal.Signals(self.signal).name}"
        return kind(what, where, saved, "The same command goes on")
