"""SIGTERM and Ctrl-C in the middle of a run: finish the step, save, then stop."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable

from ccrepro.errors import Stopped, StoppedByUser


class StopSignal:
    """While the block lasts, the first SIGTERM or SIGINT is only noted; a second one acts as it would have.

    Nothing is noted where ``active`` is False, or outside the main thread, to which signals belong. ``then`` is called
    with the first one's number.
    """

    def __init__(self, active: bool = True, then: Callable[[int], None] = lambda number: None):
        active = active and threading.current_thread() is threading.main_thread()
        self.numbers, self.then = (signal.SIGTERM, signal.SIGINT) if active else (), then
        self.signal = 0  # the first one's number

    def __enter__(self) -> "StopSignal":
        self.before = {number: signal.signal(number, self._note) for number in self.numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.signal = number
        self.__exit__()
        self.then(number)

    def error(self, where: str, saved: str) -> Stopped:
        """The error to raise once all is ``saved``, which says what; its exit code is 143 or 130."""
        kind = Stopped if self.signal == signal.SIGTERM else StoppedByUser
        return kind(f"Stopped by {signal.Signals(self.signal).name} in {where}. {saved}The same command goes on.")


def end_with_parent() -> None:
    """For a worker process: end with its parent. Else it would wait for ever for work of a parent that was killed."""
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
