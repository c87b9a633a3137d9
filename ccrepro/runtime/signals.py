"""SIGTERM and Ctrl-C in the middle of a run: finish the step, save, then stop."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable

from ccrepro.errors import Stopped, StoppedByUser


class StopSignal:
    """Within the block, the first SIGTERM or SIGINT is only noted; the second acts as usual.

    Nothing is noted if ``active`` is False, nor outside the main thread, which alone receives signals. ``then`` is
    called with the number of the first signal.
    """

    def __init__(self, active: bool = True, then: Callable[[int], None] = lambda number: None):
        active = active and threading.current_thread() is threading.main_thread()
        self.numbers, self.then = (signal.SIGTERM, signal.SIGINT) if active else (), then
        self.signal = 0  # the number of the first

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
        """The error to raise at the end, with exit code 143 or 130. ``saved`` is a sentence on what was saved."""
        kind = Stopped if self.signal == signal.SIGTERM else StoppedByUser
        return kind(f"Stopped by {signal.Signals(self.signal).name} in {where}. {saved}The same command goes on.")


def end_with_parent() -> None:
    """In a worker process: exit when the parent does. Otherwise a worker would wait forever for a killed parent."""
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
