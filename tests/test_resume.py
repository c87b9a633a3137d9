"""A run that was stopped anywhere goes on as if nothing had been: bit for bit, on the CPU."""

import dataclasses
import json
import os
import signal
import threading
import time

import pytest
import torch

from ccrepro import checkpoint, run, train
from ccrepro.checkpoint import Checkpoints
from ccrepro.config import recipe
from ccrepro.errors import CheckpointError, LockedError, NumericalError, Stopped, StoppedByUser
from ccrepro.interrupt import StopSignal

EPOCHS, STEPS = 3, 3  # of `often` on the 96 patterns


@pytest.fixture
def often(tiny):
    """Settings that save at every step."""
    return dataclasses.replace(tiny, epochs=EPOCHS, checkpoint_seconds=0)


class Killed(BaseException):
    """Stands for a death without warning."""


def die_at(monkeypatch, number):
    """Let the process die before its step of this number (from 0, of this process)."""
    real, count = train.step, iter(range(10_000))

    def step(*args):
        if next(count) == number:
            raise Killed
        return real(*args)

    monkeypatch.setattr(train, "step", step)


def train_until_killed(monkeypatch, number, *args):
    with monkeypatch.context() as patched:
        die_at(patched, number)
        with pytest.raises(Killed):
            train.train(*args)


def silent(epoch, model):
    pass


def untimed(history):
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in history]


def equal(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


OTHER = {"optimizer": "sgd", "normalize": True, "head_norm": True, "warmup": 0.5}


@pytest.mark.parametrize(
    ("number", "settings"),
    [*((number, {}) for number in range(EPOCHS * STEPS)), (5, OTHER)],
    ids=lambda value: str(value) if isinstance(value, int) else ",".join(value),
)
def test_a_run_killed_before_any_step_ends_as_if_it_had_not_been(
    tmp_path, patterns, often, monkeypatch, number, settings
):
    often = dataclasses.replace(often, **settings)
    model, history = train.train(often, patterns)
    train_until_killed(monkeypatch, number, often, patterns, silent, Checkpoints(tmp_path, 0))
    checkpoints = Checkpoints(tmp_path, 0)
    again, resumed = train.train(often, patterns, checkpoints=checkpoints)
    assert untimed(resumed) == untimed(history)
    assert equal(again, model)
    assert checkpoints.resumed == (number > 0)


def test_a_run_killed_again_and_again(tmp_path, patterns, often, monkeypatch):
    model, history = train.train(often, patterns)
    for _ in range(4):
        train_until_killed(monkeypatch, 2, often, patterns, silent, Checkpoints(tmp_path, 0))
    again, resumed = train.train(often, patterns, checkpoints=Checkpoints(tmp_path, 0))
    assert untimed(resumed) == untimed(history)
    assert equal(again, model)


def test_two_passes_of_an_epoch_resume_within_either(tmp_path, patterns, monkeypatch):
    config = recipe("stl10", "paper", backbone="small", image_size=8, batch_size=32, epochs=1, checkpoint_seconds=0)
    config = dataclasses.replace(config, jitter=0, grayscale=0, compile="off")
    data = dataclasses.replace(patterns, unlabeled=patterns.images.repeat(2, 0))
    model, history = train.train(config, data)
    for number in (4, 7):
        folder = tmp_path / str(number)
        train_until_killed(monkeypatch, number, config, data, silent, Checkpoints(folder, 0))
        again, resumed = train.train(config, data, checkpoints=Checkpoints(folder, 0))
        assert untimed(resumed) == untimed(history)
        assert equal(again, model)


def test_the_record_of_a_resumed_run_says_so_and_its_log_has_each_epoch_once(root, patterns, often, monkeypatch):
    first = run.Run(often, patterns)
    never = Checkpoints(first.folder, 1e9)  # nothing is saved before it dies
    train_until_killed(monkeypatch, 7, often, patterns, first.report, never)
    first._lock.close()
    with first.log.path.open("a") as file:
        file.write('{"epoch": 3, "lo')  # a line that was cut off
    this = run.Run(often, patterns)
    record = this.finish(*train.train(often, patterns, this.report, this.checkpoints))
    assert [json.loads(line)["epoch"] for line in this.log.path.read_text().splitlines()] == [1, 2, 3]
    assert record["resumed"] == 0
    assert not list(this.folder.glob("checkpoint-*"))

    second = run.Run(often, patterns)
    train_until_killed(monkeypatch, 7, often, patterns, second.report, second.checkpoints)
    assert not (second.folder / "run.json").exists()
    second._lock.close()
    this = run.Run(often, patterns)
    again = this.finish(*train.train(often, patterns, this.report, this.checkpoints))
    assert again["resumed"] == 1
    same = {"scores", "evolution", "tsne", "contingency"}
    assert {name: again[name] for name in same} == {name: record[name] for name in same}


class TestSignals:
    @pytest.fixture(autouse=True)
    def _as_in_a_terminal(self):
        """A shell that starts the tests in the background lets them ignore Ctrl-C."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    @pytest.mark.parametrize(
        ("number", "error", "code"), [(signal.SIGTERM, Stopped, 143), (signal.SIGINT, StoppedByUser, 130)]
    )
    def test_one_signal_saves_the_step_and_stops(self, tmp_path, patterns, often, monkeypatch, number, error, code):
        config = dataclasses.replace(often, checkpoint_seconds=1e6)  # only the signal makes it save
        model, history = train.train(config, patterns)
        real, count = train.step, iter(range(100))

        def step(*args):
            if next(count) == 4:
                os.kill(os.getpid(), number)
            return real(*args)

        with monkeypatch.context() as patched:
            patched.setattr(train, "step", step)
            with pytest.raises(error, match=r"epoch 2, step 2\)\. The step under way was finished and saved") as caught:
                train.train(config, patterns, checkpoints=Checkpoints(tmp_path, 1e6))
        assert caught.value.exit_code == code
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        again, resumed = train.train(config, patterns, checkpoints=Checkpoints(tmp_path, 1e6))
        assert untimed(resumed) == untimed(history)
        assert equal(again, model)

    def test_a_second_ctrl_c_acts_at_once(self):
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)

    def test_without_checkpoints_ctrl_c_is_left_alone(self, patterns, tiny, monkeypatch):
        monkeypatch.setattr(train, "step", lambda *args: os.kill(os.getpid(), signal.SIGINT) or time.sleep(5))
        with pytest.raises(KeyboardInterrupt):
            train.train(tiny, patterns)

    def test_outside_the_main_thread_no_handler_is_set(self):
        errors = []

        def block():
            try:
                with StopSignal():
                    pass
            except ValueError as error:
                errors.append(error)

        thread = threading.Thread(target=block)
        thread.start()
        thread.join()
        assert errors == []


class TestNumbers:
    def train_with(self, config, data, folder, monkeypatch, spoil):
        """Train, with ``spoil`` called on (model, optimizer, view a, view b) before the fifth step."""
        real, count = train.step, iter(range(100))

        def step(model, optimizer, view_a, view_b, *rest):
            if next(count) == 4:
                spoil(model, optimizer, view_a, view_b)
            return real(model, optimizer, view_a, view_b, *rest)

        monkeypatch.setattr(train, "step", step)
        with pytest.raises(NumericalError, match=r"epoch 2, step 2\)") as caught:
            train.train(config, data, checkpoints=Checkpoints(folder, 0))
        assert "the last good checkpoint is" in str(caught.value)
        assert "checkpoint-000001-000001" in str(caught.value)
        assert caught.value.exit_code == 5
        assert Checkpoints(folder).newest().name == "checkpoint-000001-000001.safetensors"
        return str(caught.value)

    def test_an_input(self, tmp_path, patterns, often, monkeypatch):
        def spoil(model, optimizer, view_a, view_b):
            view_a[0, 0, 0, 0] = float("nan")

        assert self.train_with(often, patterns, tmp_path, monkeypatch, spoil).startswith("loss is nan")

    def test_a_weight(self, tmp_path, patterns, often, monkeypatch):
        def spoil(model, optimizer, view_a, view_b):
            model.backbone.conv1.weight.data[0, 0, 0, 0] = float("inf")

        assert "is nan" in self.train_with(often, patterns, tmp_path, monkeypatch, spoil)

    def test_a_gradient(self, tmp_path, patterns, often, monkeypatch):
        def spoil(model, optimizer, view_a, view_b):
            model.instance_head[0].weight.register_hook(lambda gradient: gradient * float("inf"))

        says = self.train_with(often, patterns, tmp_path, monkeypatch, spoil)
        assert says.startswith(("gradient_norm is nan", "gradient_norm is inf"))

    @pytest.mark.parametrize("term", ["instance", "cluster"])
    def test_a_loss(self, tmp_path, patterns, often, monkeypatch, term):
        real, due = getattr(train, f"{term}_loss"), []
        monkeypatch.setattr(train, f"{term}_loss", lambda *args: real(*args) * (float("nan") if due else 1))
        says = self.train_with(often, patterns, tmp_path, monkeypatch, lambda *args: due.append(1))
        assert says.startswith("loss is nan")

    def test_a_learning_rate_far_too_high(self, patterns, tiny):
        with pytest.raises(NumericalError, match="no checkpoint was written yet"):
            train.train(dataclasses.replace(tiny, lr=1e30), patterns)


class TestCheckpointsOfAnotherRun:
    @pytest.fixture
    def folder(self, tmp_path, patterns, often):
        train.train(often, patterns, checkpoints=Checkpoints(tmp_path, 0))
        return tmp_path

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"n_clusters": 5}, "n_clusters 3 there, 5 here"),
            ({"backbone": "resnet18"}, "backbone small there, resnet18 here"),
            ({"seed": 4}, "seed 0 there, 4 here"),
            ({"epochs": 9}, "epochs 3 there, 9 here"),
        ],
    )
    def test_other_settings(self, folder, patterns, often, change, says):
        with pytest.raises(CheckpointError, match=says) as caught:
            train.train(dataclasses.replace(often, **change), patterns, checkpoints=Checkpoints(folder))
        assert caught.value.exit_code == 4

    def test_other_images(self, folder, patterns, often):
        other = dataclasses.replace(patterns, sha256="other")
        with pytest.raises(CheckpointError, match="other images"):
            train.train(often, other, checkpoints=Checkpoints(folder))

    def test_another_number_of_threads_is_only_warned_of(self, folder, patterns, often, capsys):
        train.train(dataclasses.replace(often, threads=2), patterns, checkpoints=Checkpoints(folder))
        torch.set_num_threads(1)
        assert "warning: threads was 1 and is 2: not bit for bit the same run" in capsys.readouterr().out


def test_a_second_writer_is_told_who_has_the_folder(root, patterns, tiny):
    this = run.Run(tiny, patterns)
    with pytest.raises(LockedError, match=f"process {os.getpid()} on .* is at work on this run"):
        run.Run(tiny, patterns)
    this._lock.close()
    run.Run(tiny, patterns)


def test_a_collapse_is_told_in_words_once(root, patterns, tiny, capsys):
    this = run.Run(dataclasses.replace(tiny, epochs=50), patterns)
    model = train.build(tiny, 1)
    for epoch, entropy in enumerate((1.0, 0.1, 0.1, 1.0, 0.2), start=1):
        this.report({"epoch": epoch, "loss": 7.0, "entropy": entropy, "largest_share": 0.97, "seconds": 0.1}, model)
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(warnings) == 2
    assert "epoch 2: the images lie in 1.1 of 3 clusters, the largest holds 97%" in warnings[0]


def test_checkpoints_take_a_fiftieth_of_the_time_at_most(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path, every_seconds=10)
    now[0] = 9.0
    assert not checkpoints.due()
    now[0] = 10.0
    assert checkpoints.due()
    real = checkpoint.files.atomic_write

    def slow(*args):
        now[0] += 1
        return real(*args)

    monkeypatch.setattr(checkpoint.files, "atomic_write", slow)
    checkpoints.save("1", {"x": torch.zeros(1)}, {})
    assert checkpoints.cost == 2
    now[0] += 99
    assert not checkpoints.due()
    now[0] += 2
    assert checkpoints.due()
