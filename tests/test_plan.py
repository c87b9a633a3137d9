import json
import shutil

import pytest
from records import record

from ccrepro import plan
from ccrepro.cli import main
from ccrepro.config import recipe
from ccrepro.errors import ConfigError, DataError
from ccrepro.files import atomic_write

RATE = {"backbone": "resnet34", "stem": "imagenet", "image_size": 224, "batch_size": 256, "precision": "fp32",
        "device": "cpu", "images_per_second": 100.0}  # fmt: skip


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)


def bench(root, *rates):
    atomic_write(root / "results/bench/here.json", json.dumps({"hardware": {}, "rates": rates}))


def test_a_measured_rate_gives_the_hours(root):
    bench(root, RATE, RATE | {"batch_size": 64, "images_per_second": 1.0}, RATE | {"device": "cuda"})
    (cell,) = plan.plan("paper", ["cifar10"], ["cc"], [0])
    assert cell.hours == pytest.approx(1000 * 60_000 / 100 / 3600)
    assert cell.source == "bench"
    (stl10,) = plan.plan("paper", ["stl10"], ["cc"], [0])
    assert stl10.hours == pytest.approx(1000 * 113_000 / 100 / 3600)  # with its unlabeled images


@pytest.mark.parametrize(
    "change", [{"backbone": "resnet18"}, {"image_size": 32}, {"stem": "cifar"}, {"device": "cuda"}]
)
def test_a_rate_of_something_else_tells_nothing(root, change):
    bench(root, RATE | change)
    assert plan.plan("paper", ["cifar10"], ["cc"], [0])[0][2:] == (None, "unknown")


def test_finished_runs_tell_where_no_rate_does():
    seen = [record("cc", 0.9, s, seconds=40.0 + s, epochs=50) for s in range(3)]
    assert plan.estimate(recipe("digits"), [], seen) == (41 / 3600, "the same variant's runs")
    hours, source = plan.estimate(recipe("digits", variant="views-one", epochs=25), [], seen)
    assert source == "other variants' runs"
    assert hours == pytest.approx(20.5 / 3600)
    assert plan.estimate(recipe("digits", variant="resnet18"), [], seen) == (None, "unknown")
    assert plan.estimate(recipe("digits", variant="nmf-pixels"), [], seen) == (None, "unknown")


def test_cells_to_run_are_listed_cheap_ones_first(root):
    for variant, seconds in {"cc": 50.0, "kmeans-pixels": 0.1, "views-one": 40.0}.items():
        made = record(variant, 0.9, seconds=seconds, epochs=50 * (seconds > 1))
        atomic_write(root / f"results/runs/demo/digits/{variant}-seed0.json", json.dumps(made))
    atomic_write(root / "runs/demo/digits/views-one-seed0/run.json", "{}")
    cells = plan.plan("demo", ["digits"], ["resnet18", "cc", "views-one", "kmeans-pixels"], [0])
    assert plan.missing(cells).split() == [
        f"runs/demo/digits/{name}-seed0/run.json" for name in ("kmeans-pixels", "cc", "resnet18")
    ]
    text = plan.as_text(cells)
    assert text.splitlines()[0].split() == ["demo/digits/views-one-seed0", "done"]
    assert "4 cells: 1 done, 3 to run; about 50 s one by one, and 1 of unknown length." in text


def test_nothing_to_run_is_said(root):
    atomic_write(root / "runs/demo/digits/cc-seed0/run.json", "{}")
    cells = plan.plan("demo", ["digits"], ["cc"], [0])
    assert plan.as_text(cells).endswith("1 cells: 1 done, 0 to run.")
    assert plan.missing(cells) == ""


def test_command_line_prints_the_plan(root, capsys):
    arguments = ["plan", "--datasets", "digits", "--variants", "cc", "--seeds", "0", "1"]
    assert main([*arguments, "--cells"]) == 0
    assert capsys.readouterr().out.split() == [f"runs/demo/digits/cc-seed{s}/run.json" for s in (0, 1)]
    assert main(arguments) == 0
    assert "2 of unknown length" in capsys.readouterr().out


def test_mistakes_are_told(root):
    with pytest.raises(ConfigError, match="unknown variant 'ccc'"):
        plan.plan("demo", ["digits"], ["ccc"], [0])
    atomic_write(root / "results/bench/here.json", "[]")
    with pytest.raises(DataError, match=r"here.json has no rates"):
        plan.load_rates()


@pytest.mark.parametrize(
    ("hours", "text"),
    [(None, "unknown"), (0, "0 s"), (0.01, "36 s"), (0.5, "30 min"), (1.9, "114 min"), (2000, "2,000 h")],
)
def test_duration_reads_well(hours, text):
    assert plan.duration(hours) == text


def test_epochs_fill_the_minutes_but_for_what_is_kept_back():
    own = recipe("cifar10", "paper")
    rate = RATE | {"images_per_second": 10_000.0}  # 6 seconds an epoch
    assert plan.epochs_within(own, 10, [rate]) == 85
    assert plan.epochs_within(own, 0.01, [rate]) == 1
    assert plan.epochs_within(recipe("cifar10", "paper", sample=6_000), 10, [rate]) == 850
    with pytest.raises(ConfigError, match="resnet18, cifar stem, 32 pixels"):
        plan.epochs_within(recipe("cifar10", "fast"), 10, [rate])
