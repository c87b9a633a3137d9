"""Steps that do not count: which way of compiling works on this machine, and how many epochs fit into some minutes."""

import itertools
import time

import torch

from ccrepro import batches, train
from ccrepro.config import Config
from ccrepro.data import ImageSet
from ccrepro.errors import ConfigError
from ccrepro.evaluate import evaluate
from ccrepro.runs.evolution import PICTURED, SCORED, cosine_histograms
from ccrepro.train import State

MODES = ("reduce-overhead", "default", "off")  # of `torch.compile`, each simpler than the one before
TRIED = 3  # steps: one compiles, one records CUDA graphs, one replays them
TIMED = 50  # steps at most, and
TIMING = 5.0  # seconds or so
SPARE = 0.1  # of the time, for what is not measured: the scores and the record


def settle(state: State, data: ImageSet) -> None:
    """Find a mode of `torch.compile` that works here: where one fails, say so and try the next simpler one.

    Takes some steps and undoes them. ``state`` is one that `ccrepro.train.start` has just made.
    """
    while state.config.compile != "off":
        try:
            _steps(state, data, TRIED)
            return
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler may fail in any way
            mode = state.config.compile
            simpler = MODES[MODES.index(mode) + 1]
            reason = " ".join(str(error).split())[:200]
            print(f"warning: compile={mode} fails here ({type(error).__name__}: {reason}): {simpler}", flush=True)
            state.config = state.config.replace(compile=simpler)


def _steps(state: State, data: ImageSet, n: int) -> tuple[float, float]:
    """Take n steps and undo them; returns the seconds before the first, in which an epoch is drawn, and of each."""
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    parts, config = batches.passes(state.config, data), state.config
    epochs = (batches.epoch_pairs(parts, config, epoch) for epoch in itertools.count())
    every = itertools.chain.from_iterable(epochs)
    began = time.perf_counter()
    first = next(every)
    drawn = time.perf_counter()
    try:
        for views in itertools.islice(itertools.chain([first], every), n):
            numbers = train.step(state, *views)
        numbers.tolist()  # waits for a GPU
        return drawn - began, (time.perf_counter() - drawn) / n
    finally:  # a compiler may fail in any of the steps
        state.model.load_state_dict(before)
        state.optimizer.state.clear()


def epochs_within(config: Config, data: ImageSet, minutes: float, began: float) -> int:
    """How many epochs, scored on their way and at their end, fit into ``minutes`` from ``began`` (`time.monotonic`).

    Raises `ConfigError` where not one does, and for a variant that is not trained.
    """
    if config.baseline or not config.epochs:
        raise ConfigError(f"Variant {config.variant} is not trained. Leave --max-minutes out.")
    torch.set_num_threads(config.threads)
    started = time.monotonic()
    state = train.start(train.resolve(config), data)
    settle(state, data)
    compiling = time.monotonic() - started  # which training has to do again
    per_epoch = sum(part.steps(config) for part in batches.passes(config, data))
    _, rough = _steps(state, data, TRIED)
    drawing, step = _steps(state, data, max(TRIED, min(TIMED, int(TIMING / rough))))
    seconds = drawing + per_epoch * step
    started = time.monotonic()
    cosine_histograms(config, data, state.model)
    seconds += time.monotonic() - started
    started = time.monotonic()
    evaluate(config, data, state.model)
    scored = (SCORED + len(PICTURED)) * (time.monotonic() - started)
    left = (1 - SPARE) * 60 * minutes - (time.monotonic() - began) - compiling - scored
    if left < seconds:
        raise ConfigError(f"--max-minutes is {minutes:g}, too few for an epoch of {seconds:.0f} s. Give more.")
    epochs = int(left / seconds)
    print(f"{seconds:.2f} s an epoch: {epochs} epochs in {minutes:g} minutes", flush=True)
    return epochs
