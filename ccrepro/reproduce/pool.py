"""Several jobs at once, each in a process of its own, and on a GPU of its own where there are some."""

import contextlib
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ccrepro.errors import CcreproError
from ccrepro.runtime.signals import StopSignal, end_with_parent


def run_all(
    function: Callable[..., Any],
    jobs: Iterable[Sequence[Any]],
    at_once: int,
    gpus: Sequence[str] = (),
    done: Callable[[int], None] = lambda number: None,
) -> None:
    """Call the function with the arguments of each job, ``at_once`` at a time. The processes stay for the next jobs.

    ``done`` is called with how many are through. The first error ends all once the others under way are through; a
    signal is passed on to all. Raises what the function does.
    """
    spawn = multiprocessing.get_context("spawn")
    free = spawn.Queue()
    for number in range(at_once):
        free.put(gpus[number % len(gpus)] if gpus else None)
    with (
        ProcessPoolExecutor(at_once, spawn, _begin, (free,)) as pool,
        StopSignal(then=lambda number: pass_on(number, "multiprocessing")) as stop,
    ):
        waiting = iter(jobs)
        running = {pool.submit(function, *job) for job in itertools.islice(waiting, at_once)}
        number = itertools.count(1)
        try:
            while running:  # no more are handed over than can run: what the pool has taken it would not give back
                through, running = wait(running, return_when=FIRST_COMPLETED)
                for future in through:
                    future.result()
                    done(next(number))
                running |= {pool.submit(function, *job) for job in itertools.islice(waiting, len(through))}
        except BaseException as error:
            pool.shutdown()
            if stop.signal:
                raise stop.error("reproduce", "What was under way is saved. ") from error
            if isinstance(error, BrokenProcessPool):
                raise CcreproError("A process was killed, perhaps for want of memory. Run it again.") from error
            raise


def _begin(free: Any) -> None:
    """A worker: out of the terminal's reach, so that Ctrl-C comes once, from the parent; on a GPU of its own."""
    os.setsid()
    end_with_parent()
    gpu = free.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def pass_on(number: int, whom: str) -> None:
    """Tell the processes that we started of a signal: training finishes its step and saves, anything else ends."""
    import psutil

    for child in psutil.Process().children(recursive=whom == "ipykernel"):
        with contextlib.suppress(psutil.Error):
            if any(whom in argument for argument in child.cmdline()):
                child.send_signal(number)
