import math
import time
from unittest import mock

import pytest
import torch

from ccrepro import train
from ccrepro.cli import main
from ccrepro.errors import ConfigError
from ccrepro.recipes import recipe
from ccrepro.runs import rehearsal


def broken(*modes):
    """In place of what compiles the losses: fails in these modes, and in the others leaves them as they are."""
    fails = mock.Mock(side_effect=RuntimeError("no compiler here\nin two lines"))
    return lambda mode: fails if mode in modes else train.losses


@pytest.mark.parametrize(
    ("modes", "left"),
    [((), "reduce-overhead"), (("reduce-overhead",), "default"), (("reduce-overhead", "default"), "off")],
)
def test_a_mode_that_fails_gives_way_to_the_next_simpler_one(patterns, tiny, monkeypatch, capsys, modes, left):
    monkeypatch.setattr(train, "_compiled_losses", broken(*modes))
    monkeypatch.setattr("ccrepro.augmentations._compiled_jitter", lambda: lambda *a: pytest.fail("not here"))
    state = train.start(tiny.replace(views="none"), patterns)
    state.config = state.config.replace(compile="reduce-overhead")
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    rehearsal.settle(state, patterns)
    assert state.config.compile == left
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" fails here ")[0] for line in said] == [f"warning: compile={mode}" for mode in modes]
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.model.state_dict().items())  # undone
    assert not state.optimizer.state
    assert not state.steps


@pytest.mark.parametrize("second", [RuntimeError("no graph here"), torch.full((len(train.METRIC_NAMES),), math.nan)])
def test_a_mode_that_fails_in_a_later_step_leaves_no_trace(patterns, tiny, monkeypatch, second):
    """As where CUDA graphs are recorded, in the second step or the third, or where a gradient is miscompiled."""
    step = mock.Mock(wraps=train.step, side_effect=[mock.DEFAULT, second, mock.DEFAULT])
    monkeypatch.setattr(train, "_compiled_losses", broken())
    monkeypatch.setattr(train, "step", step)
    state = train.start(tiny.replace(views="none"), patterns)
    state.config = state.config.replace(compile="default")
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    rehearsal.settle(state, patterns)
    assert state.config.compile == "off"
    assert step.call_count == (2 if isinstance(second, Exception) else 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.model.state_dict().items())
    assert not state.optimizer.state
    assert not state.steps


def test_a_full_gpu_is_no_reason_to_compile_otherwise(patterns, tiny, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(train, "step", full)
    state = train.start(tiny.replace(views="none"), patterns)
    state.config = state.config.replace(compile="default")
    with pytest.raises(torch.OutOfMemoryError):
        rehearsal.settle(state, patterns)


def test_epochs_fill_the_time_that_is_left(patterns, tiny, monkeypatch):
    monkeypatch.setattr(rehearsal, "TIMED", 9)
    began = time.monotonic()
    epochs = rehearsal.epochs_within(tiny, patterns, 0.2, began)
    state = train.start(tiny.replace(epochs=epochs), patterns)
    assert epochs > 5
    for _ in train.train(state, patterns):
        pass
    assert time.monotonic() - began < 12 * 1.5  # seconds, on a machine that may be busy
    with pytest.raises(ConfigError, match="too few for an epoch"):
        rehearsal.epochs_within(tiny, patterns, 0.2, began - 12)
    with pytest.raises(ConfigError, match="kmeans-pixels is not trained"):
        rehearsal.epochs_within(recipe("digits", "demo", "kmeans-pixels"), patterns, 1, began)


def test_epochs_and_minutes_are_not_both_given(root, capsys):
    assert main(["train", "digits", "--epochs", "3", "--max-minutes", "1"]) == 2
    assert "Give one of them" in capsys.readouterr().err
