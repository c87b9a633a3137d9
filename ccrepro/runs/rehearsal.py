"""Steps that are undone: they find a mode of compiling that works here, and how many epochs fit into some minutes."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch

from ccrepro import batches, train
from ccrepro.config import Config
from ccrepro.data import ImageSet
from ccrepro.errors import ConfigError
from ccrepro.evaluate import evaluate
from ccrepro.runs.evolution import PICTURED, SCORED, cosine_histograms
from ccrepro.runs.weights import reason
from ccrepro.runtime.device import threads
from ccrepro.train import State

MODES = ("reduce-overhead", "default", "off")  # of `torch.compile`, each simpler than the one before
TRIED = 3  # steps: one compiles, one records CUDA graphs, one replays them
TIMED = 50  # steps at most, within
TIMING = 5.0  # seconds or so
SPARE = 0.1  # of the time, for what is not measured


def settle(state: State, data: ImageSet) -> None:
    """Find a mode of `torch.compile` that works here: where one fails, or its numbers are not finite, say so and try
    the next simpler one. Takes some steps and undoes them; ``state`` must come fresh from `ccrepro.train.start`."""
    while state.config.compile != "off":
        try:
            _steps(state, data, TRIED)
            return
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler may fail in any way
            mode = state.config.compile
            simpler = MODES[MODES.index(mode) + 1]
            said = f"{type(error).__name__}: {reason(error)}"
            print(f"warning: compile={mode} fails here ({said}): {simpler}", flush=True)
            state.config = state.config.replace(compile=simpler)


def _steps(state: State, data: ImageSet, n: int) -> tuple[float, float]:
    """Take n steps and undo them; returns the seconds in which an epoch is drawn, and the seconds of a step. Raises
    `NumericalError` where a number of theirs is not finite."""
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    parts, config, began = batches.passes(state.config, data), state.config, time.perf_counter()
    every = itertools.chain.from_iterable(batches.epoch_pairs(parts, config, epoch) for epoch in itertools.count())
    first = next(every)
    drawn = time.perf_counter()
    try:
        for views in itertools.islice(itertools.chain([first], every), n):
            state.steps.append(train.step(state, *views))
        train.check_finite(state)  # waits for a GPU
        return drawn - began, (time.perf_counter() - drawn) / n
    finally:  # a compiler may fail in any of the steps
        state.model.load_state_dict(before)
        state.optimizer.state.clear()
        state.steps.clear()


def epochs_within(config: Config, data: ImageSet, minutes: float, began: float) -> int:
    """How many epochs, with all scoring, fit into ``minutes`` from ``began`` (`time.monotonic`). Raises `ConfigError`
    where not even one does, and for a variant that is not trained."""
    if config.baseline or not config.epochs:
        raise ConfigError(f"Variant {config.variant} is not trained. Leave --max-minutes out.")
    print(f"Measuring how many epochs fit into {minutes:g} minutes.", flush=True)
    with threads(config.threads):
        state = train.start(train.resolve(config), data)
        compiling = _seconds(settle, state, data)
        per_epoch = sum(part.steps(config) for part in batches.passes(config, data))
        _, rough = _steps(state, data, TRIED)
        drawing, step = _steps(state, data, max(TRIED, min(TIMED, int(TIMING / rough))))
        seconds = drawing + per_epoch * step + _seconds(cosine_histograms, config, data, state.model)
        scoring = (SCORED + len(PICTURED)) * _seconds(evaluate, config, data, state.model)
    left = (1 - SPARE) * 60 * minutes - (time.monotonic() - began) - compiling - scoring  # training compiles again
    if left < seconds:
        raise ConfigError(f"--max-minutes is {minutes:g}, too few for an epoch of {seconds:.0f} s. Give more.")
    epochs = int(left / seconds)
    print(f"{seconds:.2f} s an epoch: {epochs} epochs in {minutes:g} minutes", flush=True)
    return epochs


def _seconds(call: Callable[..., Any], *arguments: Any) -> float:
    began = time.monotonic()
    call(*arguments)
    return time.monotonic() - began
