"""Cells are trained in pieces that stop by themselves, travel, and go on exactly; on a bare machine too."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ccrepro import away, checkpoint, cli, datasets, files, jobs, parcel, results, run
from ccrepro import train as train_module
from ccrepro.config import recipe
from ccrepro.errors import ConfigError, DataError, NumericalError
from ccrepro.interrupt import StopSignal
from ccrepro.train import train

ROOT = Path(__file__).parents[1]
QUICK = {"dataset": "digits", "sample": 300, "batch_size": 64}
HOUR = 3600.0  # seconds that no test takes


def queue(*lines, **schedules):
    return jobs.Queue([jobs._item(dict(line), schedules, "test") for line in lines], schedules)


@pytest.fixture
def rates(root):
    """A measured rate: 1,000 images a second."""
    folder = root / "results/bench"
    folder.mkdir(parents=True)
    network = {"backbone": "small", "stem": "cifar", "image_size": 8, "batch_size": 64}
    rate = {**network, "precision": "fp32", "device": "cpu", "images_per_second": 1000.0}
    (folder / "made.json").write_text(json.dumps({"rates": [rate]}))
    return root


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("schedules: {a: 1}\nqueue:\n- {dataset: digits, schedule: b}", "unknown schedule 'b'"),
        ("schedules: {}\nqueue:\n- {dataset: mnist}", "unknown data set 'mnist'"),
        ("schedules: {}\nqueue:\n- {dataset: digits, epoch: 3}", "unknown setting 'epoch'"),
        ("queue: []", "schedules"),
        ("schedules: {\n", "no queue"),
        ("schedules: {}\nqueue:\n- {profile: demo}", "no queue"),
    ],
)
def test_a_queue_that_cannot_be_run_is_told_at_once(tmp_path, text, told):
    (tmp_path / "queue.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        jobs.read_queue(tmp_path / "queue.yaml")


def test_the_queue_of_this_clone_is_sound():
    found = jobs.read_queue(ROOT / "gpu.yaml")
    assert not found.items[0].settings  # the bench comes first
    assert found.items[1].settings["variant"] == "cc"
    assert found.items[1].release
    variants = {i.settings["variant"]: i.schedule for i in found.items if i.settings.get("profile") == "fast"}
    ablations = ("instance-only", "cluster-only", "views-one", "views-none")
    assert {variants[name] for name in ablations} == {"short"}
    assert any(i.settings.get("profile") == "paper" for i in found.items)


def test_a_schedule_is_planned_once_and_the_same_for_all_its_cells(rates):
    todo = queue(
        {**QUICK, "schedule": "s"}, {**QUICK, "variant": "views-one", "schedule": "s"}, {**QUICK, "epochs": 4}, s=0.5
    )
    assert jobs.config_of(todo.items[0], todo, known_only=True) is None
    first = jobs.config_of(todo.items[0], todo)
    assert first.epochs == 85  # 30 seconds less 15 %, of 1,000 images a second, 300 images an epoch
    (rates / "results/bench/made.json").unlink()
    assert jobs.config_of(todo.items[1], todo).epochs == 85
    assert jobs.config_of(todo.items[2], todo).epochs == 4
    assert first.overrides() == {"sample": 300, "batch_size": 64, "epochs": 85}


def test_loads_leave_room_for_the_code(root, monkeypatch):
    (root / "code").write_bytes(bytes(3 * 2**20))
    monkeypatch.setattr(files, "git", lambda *arguments: "code\0gone\0")
    assert away._outward(20).load == 17 * 2**20
    with pytest.raises(ConfigError, match="the code has 3 MiB of 6"):
        away._outward(6)


def test_without_a_rate_there_is_no_plan(root):
    todo = queue({**QUICK, "schedule": "s"}, s=1)
    with pytest.raises(ConfigError, match="no rate of training steps is known for small"):
        jobs.config_of(todo.items[0], todo)


@pytest.fixture
def over(monkeypatch):
    """Let the time be over in every so many steps of training, as the alarm tells it: by SIGTERM."""

    def every(steps):
        real, count = train_module.step, itertools.count(1)

        def step(*arguments):
            if next(count) % steps == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*arguments)

        monkeypatch.setattr(train_module, "step", step)

    return every


def test_pieces_make_the_run_that_one_go_would_have_made(root, over, monkeypatch, capsys):
    """Stopped in the middle of epochs, the weights are equal bit for bit."""
    item = queue({**QUICK, "epochs": 5}).items[0]
    config = recipe(**item.settings)
    over(7)  # of 4 steps an epoch
    assert [away.piece(config, item, HOUR) for _ in range(3)] == [False, False, True]
    monkeypatch.undo()
    monkeypatch.setattr(files, "ROOT", root)
    record = json.loads((run.run_folder(config) / "run.json").read_text())
    assert [p["end"] for p in record["pieces"]] == ["stopped in epoch 2, step 3", "stopped in epoch 4, step 2", "done"]
    assert record["resumed"] == 2
    assert "resumed after epoch" in capsys.readouterr().out
    data = datasets.sample(datasets.load("digits"), 300, 0)
    model, history = train(config, data)
    assert [e["loss"] for e in history] == pytest.approx(record["history"]["loss"], rel=1e-5)
    for name, tensor in load_file(run.run_folder(config) / "model.safetensors").items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert "half_precision" not in record  # nobody asked for its weights


def test_the_alarm_rings_when_the_time_is_over_and_not_once_the_work_is_done():
    with away._alarm(0.05), StopSignal() as stop:
        given_up = time.monotonic() + 120
        while not stop.signal and time.monotonic() < given_up:
            time.sleep(0.01)
    assert stop.signal == signal.SIGTERM
    before = set(threading.enumerate())
    with StopSignal() as outside, away._alarm(HOUR):
        (alarm,) = set(threading.enumerate()) - before
    alarm.join(120)
    assert not alarm.is_alive()
    assert not outside.signal


@pytest.fixture
def bare(tmp_path_factory):
    """A folder with the code alone, and how to run a command in it: PyTorch and the scientific stack are all it has."""
    place = tmp_path_factory.mktemp("bare")
    shutil.copytree(ROOT / "ccrepro", place / "ccrepro", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}/tests/bare:{place}"}

    def call(*arguments):
        command = [sys.executable, "-m", "ccrepro", "away", *map(str, arguments)]
        return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=True).stdout

    return place, call


QUEUE = "schedules: {}\nqueue:\n- {dataset: digits, sample: 300, batch_size: 64, epochs: 2, release: true}\n"


def test_from_here_to_a_bare_machine_and_home(bare, root, monkeypatch):
    """Packed here, trained where hardly anything is installed, completed and published here."""
    place, call = bare
    for folder in (root, place):
        (folder / "gpu.yaml").write_text(QUEUE)
    monkeypatch.setattr(files, "commit", lambda: "c" * 40)
    monkeypatch.setattr(away, "code_sha256", lambda: _hash_in(place))
    (load,) = away.pack(jobs.read_queue(root / "gpu.yaml"))
    printed = call("work", load, "--out", place / "out", "--minutes", "5")
    assert "openTSNE is not installed" in printed
    assert sorted(p.name for p in (place / "out").iterdir()) == ["manifest.json", "small.zip", "weights0.safetensors"]

    told = away.home([place / "out"])
    assert len(told) == 2, told
    name = "demo/digits/cc-seed0+sample=300+batch_size=64+epochs=2"
    (record,) = results.load_tried("demo")
    assert json.loads((root / f"results/tried/{name}.json").read_text()) == record
    assert results.load_records("demo") == []  # it is part of no table
    assert record["commit"] == "c" * 40
    assert "openTSNE" not in record["versions"]
    assert record["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert len(record["tsne"]["x"]) == 300
    assert [at["epoch"] for at in record["evolution"]] == [0, 1, 2]
    assert results.differences(record) == "sample 300 (0), batch_size 64 (128), epochs 2 (50)"
    assert (root / f"runs/{name}/log.jsonl").read_text().count("\n") == 2
    assert (root / "results/models/digits-demo-cc-seed0-epochs2/README.md").exists()
    for kept in (root / f"runs/{name}", root / "results/models/digits-demo-cc-seed0-epochs2"):
        assert checkpoint.load_model(kept)[1].epochs == 2
    assert cli.main(["evaluate", str(root / "results/models/digits-demo-cc-seed0-epochs2"), "--dataset", "digits"]) == 0
    assert away.pack(jobs.read_queue(root / "gpu.yaml"))[0].parent.name == "runs"  # nothing is left to be done
    assert jobs.is_done(recipe("digits", sample=300, batch_size=64, epochs=2))


def test_what_one_cell_runs_into_does_not_cost_the_next_its_minutes(root, tmp_path, monkeypatch, capsys):
    todo = queue({**QUICK, "epochs": 1, "lr": 1e30}, {**QUICK, "epochs": 1})
    with pytest.raises(NumericalError):
        away.work(todo, [], tmp_path / "out", 5)
    assert "NumericalError" in capsys.readouterr().err
    told = away.home([tmp_path / "out"])
    assert any("no whole checkpoint yet" in line for line in told)
    assert any(line.startswith("cc-seed0+sample=300+batch_size=64+epochs=1: NMI") for line in told)


def _hash_in(place):
    before, files.ROOT = files.ROOT, place
    try:
        return CODE_SHA256()
    finally:
        files.ROOT = before


CODE_SHA256 = away.code_sha256


@pytest.fixture
def half_done(root, over):
    """A run that was stopped, packed to be brought back in loads of two small parts."""
    todo = queue({**QUICK, "epochs": 200})
    config = recipe(**todo.items[0].settings)
    over(7)
    assert not away.piece(config, todo.items[0], HOUR)
    return todo, config


def test_a_checkpoint_travels_in_parts_and_the_run_goes_on_elsewhere(half_done, root, tmp_path, monkeypatch):
    todo, config = half_done
    monkeypatch.setattr(away, "HOMEWARD", parcel.Limits(part=10**6, load=2 * 10**6, files=8))
    loads = away._pack_back(todo, tmp_path / "out")
    assert len(loads) > 1
    shutil.copytree(root / "runs/away/back", tmp_path / "back")
    before = {p.name: p.read_bytes() for p in away._newest_checkpoint(run.run_folder(config))}
    monkeypatch.setattr(files, "ROOT", tmp_path / "there")
    told = away.home([tmp_path / "back" / "1"])
    assert any("to come" in line for line in told)
    assert any("no whole checkpoint yet" in line for line in told)
    told = away.home(sorted((tmp_path / "back").iterdir())[1:])
    assert any("goes on from checkpoint-" in line for line in told)
    assert {p.name: p.read_bytes() for p in away._newest_checkpoint(run.run_folder(config))} == before
    this = run.Run(config, datasets.sample(datasets.load("digits"), 300, 0))
    _, _, facts = this.checkpoints.load()
    assert facts["epoch"] >= 0
    assert facts["config"] == json.loads(json.dumps(dataclasses.asdict(config) | {"checkpoint_seconds": 60.0}))


def test_another_load_can_be_fetched_and_an_absent_one_is_told(half_done, tmp_path, capsys):
    todo, _ = half_done
    away._pack_back(todo, tmp_path / "out")
    away.fetch(1, tmp_path / "again")
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == sorted(
        p.name for p in (tmp_path / "out").iterdir()
    )
    assert cli.main(["away", "fetch", "9", "--out", str(tmp_path / "out")]) == 2
    assert "no load 9" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ccrepro/train.py", "../x", "/etc/x"])
def test_files_from_elsewhere_go_nowhere_but_below_runs(root, tmp_path, name):
    with zipfile.ZipFile(tmp_path / "small.zip", "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(DataError, match="no place for a run"):
        away._unfold(tmp_path, {})
    (tmp_path / "small.zip").unlink()
    (tmp_path / "a").write_text("x")
    with pytest.raises(DataError, match="no place for a run"):
        away._unfold(tmp_path, {"a": name})


def test_a_record_must_follow_from_its_assignments(root, patterns, tiny):
    this = run.Run(tiny, patterns)
    record = this.finish(*train(tiny, patterns, this.report))
    assert run.complete(record, this.folder, patterns) == record
    wrong = record | {"scores": record["scores"] | {"acc": record["scores"]["acc"] + 0.01}}
    with pytest.raises(DataError, match="the record says"):
        run.complete(wrong, this.folder, patterns)
    with pytest.raises(DataError, match="differs from what was run on"):
        run.complete(record, this.folder, dataclasses.replace(patterns, sha256="another"))
    assert np.array_equal(np.load(this.folder / "clustering.npz")["labels_pred"].shape, [96])
