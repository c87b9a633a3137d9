"""A run that was stopped anywhere goes on as if nothing had been: bit for bit, on the CPU."""

import dataclasses
import json
import os
import signal
import time

import pytest
import torch

from ccrepro import train
from ccrepro.errors import CheckpointError, NumericalError, Stopped
from ccrepro.model import build
from ccrepro.recipes import recipe
from ccrepro.runs.checkpoints import Checkpoints
from ccrepro.runs.record import Run
from ccrepro.runs.resume import fit

EPOCHS, STEPS = 3, 3  # of `config` on the 96 patterns

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background ignores it


class Killed(BaseException):
    """Stands for a death without warning."""


def die(*args):
    raise Killed


@pytest.fixture
def config(tiny):
    return tiny.replace(epochs=EPOCHS)


@pytest.fixture
def fit_with(monkeypatch):
    """Fit, with ``act(state, view_a, view_b)`` called before one step, counted from 0, and an error expected."""

    def fit_with(number, act, error, *args, says=None, **more):
        real, count = train.step, iter(range(10_000))

        def step(*args):
            if next(count) == number:
                act(*args[:3])
            return real(*args)

        with monkeypatch.context() as patched:
            patched.setattr(train, "step", step)
            with pytest.raises(error, match=says) as caught:
                fit(*args, **more)
        return caught.value

    return fit_with


def untimed(history):
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in history]


def same(one, other):
    """Whether two fits end with equal histories and weights, bit for bit."""
    weights = [fitted[0].state_dict() for fitted in (one, other)]
    return untimed(one[1]) == untimed(other[1]) and all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())


OTHER = {"optimizer": "sgd", "normalize": True, "warmup": 0.5}


@pytest.mark.parametrize(("number", "settings"), [*((number, {}) for number in range(EPOCHS * STEPS)), (5, OTHER)])
def test_a_run_killed_before_any_step_ends_as_if_it_had_not_been(
    tmp_path, patterns, config, fit_with, number, settings
):
    config, checkpoints = config.replace(**settings), Checkpoints(tmp_path, 0)
    fit_with(number, die, Killed, config, patterns, checkpoints=Checkpoints(tmp_path, 0))
    assert same(fit(config, patterns, checkpoints=checkpoints), fit(config, patterns))
    assert checkpoints.resumed == (number > 0)


def test_two_passes_of_an_epoch_resume_within_either(tmp_path, patterns, fit_with):
    config = recipe("stl10", "paper", backbone="small", image_size=8, batch_size=32, epochs=1, jitter=0, grayscale=0)
    data = dataclasses.replace(patterns, unlabeled=patterns.images.repeat(2, 0))
    whole = fit(config, data)
    for number in (4, 7):
        folder = tmp_path / str(number)
        fit_with(number, die, Killed, config, data, checkpoints=Checkpoints(folder, 0))
        assert same(fit(config, data, checkpoints=Checkpoints(folder, 0)), whole)


@pytest.mark.parametrize("saves", [True, False])
def test_a_resumed_run_says_so_in_its_record_and_has_each_epoch_once_in_its_log(
    root, patterns, config, fit_with, saves
):
    with Run(config, patterns) as first:
        first.checkpoints.every = 0 if saves else 1e9
        fit_with(7, die, Killed, config, patterns, first.report, first.checkpoints)
    with first.log.path.open("a") as file:
        file.write('{"epoch": 3, "lo')  # a line that was cut off
    with Run(config, patterns) as this:
        record = this.finish(*fit(config, patterns, this.report, this.checkpoints))
    assert [json.loads(line)["epoch"] for line in this.log.path.read_text().splitlines()] == [1, 2, 3]
    assert record["resumed"] == saves
    assert not this.checkpoints.newest()
    with Run(config, patterns, "whole") as whole:
        expected = whole.finish(*fit(config, patterns, whole.report))
    for name in ("scores", "evolution", "tsne", "contingency"):
        assert record[name] == expected[name]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [5, 6, 9], ids=["within an epoch", "at its end", "at the end of all"])
def test_one_signal_saves_the_step_and_stops(tmp_path, patterns, config, fit_with, number, step):
    def send(*args):
        os.kill(os.getpid(), number)

    def report(epoch, model):
        reported.append(epoch["epoch"])

    reported, checkpoints = [], Checkpoints(tmp_path, 1e6)  # only the signal makes it save
    where = f"epoch {step // STEPS + 1}, step 2" if step % STEPS else f"epoch {step // STEPS}, its last step"
    says = rf"^Stopped by {number.name} in {where}\. The step is saved in {tmp_path}\. "
    error = fit_with(step - 1, send, Stopped, config, patterns, report, checkpoints, says=says)
    assert error.exit_code == 128 + number
    assert reported == list(range(step // STEPS + 1))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert checkpoints.newest().name == f"checkpoint-{step // STEPS:06d}-{step % STEPS:06d}.safetensors"
    assert same(fit(config, patterns, checkpoints=Checkpoints(tmp_path, 1e6)), fit(config, patterns))


def test_without_checkpoints_ctrl_c_is_left_alone(patterns, tiny, fit_with):
    fit_with(1, lambda *args: os.kill(os.getpid(), signal.SIGINT) or time.sleep(5), KeyboardInterrupt, tiny, patterns)


SPOIL = {
    "loss is nan": lambda state, a, b: a[0, 0, 0, 0].fill_(float("nan")),
    "loss is (nan|inf)": lambda state, a, b: state.model.backbone.conv1.weight.data[0].fill_(float("inf")),
    "gradient_norm is (nan|inf)": lambda state, a, b: state.model.instance_head[0].weight.register_hook(
        lambda gradient: gradient * float("inf")
    ),
}


@pytest.mark.parametrize(("says", "spoil"), SPOIL.items())
def test_a_number_that_is_not_finite_stops_the_run_before_it_is_saved(
    tmp_path, patterns, config, fit_with, says, spoil
):
    last = tmp_path / "checkpoint-000001-000001.safetensors"
    says = rf"^{says} in epoch 2, step 2\. .* The last good checkpoint is {last}"
    error = fit_with(4, spoil, NumericalError, config, patterns, checkpoints=Checkpoints(tmp_path, 0), says=says)
    assert error.exit_code == 5
    assert Checkpoints(tmp_path).newest() == last


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_clusters": 5}, "n_clusters 3 there, 5 here"),
        ({"backbone": "resnet18"}, "backbone small there, resnet18 here"),
        ({"epochs": 9}, "epochs 2 there, 9 here"),
        ({}, "other images"),
    ],
)
def test_checkpoints_of_another_run_are_refused(tmp_path, patterns, tiny, change, says):
    fit(tiny, patterns, checkpoints=Checkpoints(tmp_path))
    data = patterns if change else dataclasses.replace(patterns, sha256="other")
    with pytest.raises(CheckpointError, match=f"is of another run: {says}"):
        fit(tiny.replace(**change), data, checkpoints=Checkpoints(tmp_path))


def test_a_training_that_was_stopped_does_not_go_on_from_another_start(tmp_path, patterns, config, fit_with):
    def start(seed):
        return build(config.replace(seed=seed), 1)

    fit_with(4, die, Killed, config, patterns, checkpoints=Checkpoints(tmp_path, 0), model=start(7))
    for other in (start(8), None):
        with pytest.raises(CheckpointError, match="is of another run: other weights to start from"):
            fit(config, patterns, checkpoints=Checkpoints(tmp_path, 0), model=other)
    checkpoints = Checkpoints(tmp_path, 0)
    assert same(fit(config, patterns, checkpoints=checkpoints, model=start(7)), fit(config, patterns, model=start(7)))
    assert checkpoints.resumed


def test_a_run_keeps_its_precision_on_another_machine_and_names_both(root, patterns, config, fit_with, monkeypatch):
    """As where a CPU that is fast in bf16 began, and one that is not goes on."""
    config = config.replace(precision="auto")
    for name, precision in (("quick", "bf16"), ("slow", "fp32")):
        monkeypatch.setattr("ccrepro.train.choose_precision", lambda *a, precision=precision: precision)
        monkeypatch.setattr("ccrepro.runs.resume.cpu_name", lambda name=name: name)
        with Run(config, patterns) as this:
            this.checkpoints.every = 0
            if name == "quick":
                fit_with(4, die, Killed, config, patterns, this.report, this.checkpoints)
            else:
                record = this.finish(*fit(config, patterns, this.report, this.checkpoints))
    assert (record["hardware"]["precision"], record["hardware"]["processors"]) == ("bf16", ["quick", "slow"])
    whole = fit(config.replace(precision="bf16"), patterns)
    assert record["history"]["loss"] == [float(f"{epoch['loss']:.6g}") for epoch in whole[1]]
