"""Several jobs at once, each in its own process, and on its own GPU where there are GPUs."""

import itertools
import multiprocessing
import os
import signal
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
    """Call the function with the arguments of each job, ``at_once`` at a time. Later jobs reuse the processes.

    ``done`` is called with the number of finished jobs. After the first error no further job starts, and those that
    run are awaited. A signal is passed on to all processes. Raises what the function raises.
    """
    spawn = multiprocessing.get_context("spawn")
    free = spawn.Queue()
    for number in range(at_once):
        free.put(gpus[number % len(gpus)] if gpus else None)
    with ProcessPoolExecutor(at_once, spawn, _begin, (free,)) as pool, StopSignal(then=_pass_on) as stop:
        waiting, number = iter(jobs), itertools.count(1)
        running = {pool.submit(function, *job) for job in itertools.islice(waiting, at_once)}
        try:
            while running:  # submit no more than can run: the pool would start the others even after an error
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    done(next(number))
                running |= {pool.submit(function, *job) for job in itertools.islice(waiting, len(finished))}
        except BaseException as error:
            pool.shutdown()
            if stop.signal:
                raise stop.error("reproduce", "Runs that had begun are saved. ") from error
            if isinstance(error, BrokenProcessPool):
                raise CcreproError("A process was killed, perhaps because memory was full. Run it again.") from error
            raise


def _begin(free: Any) -> None:
    """Prepare a worker: Ctrl-C reaches it from its parent only, not from the terminal too, and it sees one GPU."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # outside a training it ends, as by SIGTERM, without a traceback
    end_with_parent()
    gpu = free.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def _pass_on(number: int) -> None:
    """Send a signal to the workers: a training finishes its step and saves, anything else ends."""
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, number)
