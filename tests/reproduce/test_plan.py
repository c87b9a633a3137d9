import itertools
import json
import os
import subprocess

import pytest
from in_place import clone
from made_records import record, write

from ccrepro.cli import main
from ccrepro.data import sample
from ccrepro.errors import ConfigError
from ccrepro.recipes import RECIPES, VARIANTS, recipe, run_name
from ccrepro.reproduce import plan
from ccrepro.runs.record import Run
from ccrepro.runs.resume import fit
from ccrepro.runtime import storage

SOME = ["views-none", "cc", "views-one", "kmeans-pixels"]


@pytest.fixture
def begun(root):
    """One run done, and records that tell how long two others take."""
    write(root / "results", [record("cc", 0.9, s, seconds=50.0 + s) for s in range(3)])
    write(root / "results/local", [record("kmeans-pixels", 0.7, seconds=1.0)])
    path = root / "runs/demo/digits/views-one-seed0/run.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")


def test_runs_to_do_come_last_the_full_method_first_and_then_in_order_of_cost(begun):
    planned = plan.plan("demo", ["digits"], SOME, ["0"])
    assert [(p.config.variant, p.done, p.seconds) for p in planned] == [
        ("views-one", True, None), ("cc", False, 51.0), ("kmeans-pixels", False, 1.0), ("views-none", False, None),
    ]  # fmt: skip
    assert plan.describe(planned, 2) == "4 runs: 1 done, 3 to run, 2 at once, about 00:39 left."
    assert plan.describe(planned[:1], 2).endswith("1 done, 0 to run.")
    assert "unknown" in plan.describe(planned[3:], 2)
    with pytest.raises(ConfigError, match="Unknown variant 'ccc'"):
        plan.plan("demo", ["digits"], ["ccc"], [0])


def test_time_left_follows_the_pace_of_this_machine_after_a_minute():
    runs = [plan.Planned(recipe("digits", "demo", "cc", seed), False, 90.0) for seed in range(4)]
    assert plan.progress(runs, 1, 2, 500.0) == "1 of 4 runs, about 02:15 left"  # 45 s were expected: too short
    assert plan.progress(runs, 2, 2, 180.0) == "2 of 4 runs, about 03:00 left"  # 90 s were expected, so half the speed
    assert plan.progress(runs, 4, 2, 360.0) == "4 of 4 runs, about 00:00 left"
    assert plan.progress([run._replace(seconds=None) for run in runs], 2, 2, 9.0).endswith("about an unknown time left")


def test_what_is_to_run_is_listed_and_nothing_run(begun, root, capsys):
    before = sorted(root.rglob("*"))
    assert main(["reproduce", "--variants", *SOME, "--seeds", "0", "--dry-run"]) == 0
    names = ["cc", "kmeans-pixels", "views-none"]
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"train digits --preset demo --variant {name} --seed 0" for name in names]
    assert sorted(root.rglob("*")) == before


def test_settings_that_depart_become_part_of_names_and_commands(root, capsys):
    words = ["reproduce", "--preset", "laptop", "--datasets", "cifar10", "--variants", "cc", "--seeds", "3"]
    assert main([*words, "--epochs", "10", "--image-size", "16", "--dry-run"]) == 0
    line = capsys.readouterr().out
    assert line == "train cifar10 --preset laptop --variant cc --seed 3 --image-size=16 --epochs=10\n"
    assert main([*words, "--device", "cpu", "--dry-run"]) == 0
    assert capsys.readouterr().out == "train cifar10 --preset laptop --variant cc --seed 3 --device=cpu\n"
    (planned,) = plan.plan("laptop", ["cifar10"], ["cc"], [3], epochs="10", image_size="16")
    assert run_name(planned.config) == "laptop/cifar10/cc-10ep-16px-seed3"
    assert run_name(recipe("cifar10", "laptop", seed="3", epochs=10, image_size=16)) == run_name(planned.config)


def test_all_of_a_preset_is_planned_but_stand_ins(root, capsys):
    assert main(["reproduce", "--preset", "fast", "--dry-run"]) == 0
    planned = {tuple(line.split()[1::2]) for line in capsys.readouterr().out.splitlines()}
    assert planned == set(itertools.product(RECIPES["paper"], ["fast"], set(VARIANTS) - {"fast-m"}, "012"))
    assert not {"resnet18", "resnet50", "fast-m"} & {p.config.variant for p in plan.plan("demo", [], [], [0])}
    assert {p.config.variant for p in plan.plan("laptop", [], [], [0])} == set(VARIANTS) - {"resnet18", "resnet50"}


def test_two_reproductions_at_once_do_not_mix(root, monkeypatch, capsys):
    monkeypatch.setattr("os.environ", dict(os.environ))  # some of it is set for the runs
    (root / "notebooks").mkdir()
    with storage.lock(root / "results/local"):
        assert main(["reproduce", "--variants", "cc", "--seeds", "0"]) == 6
    assert "results/local is locked by process" in capsys.readouterr().err


def test_records_are_gathered_once(root, digits):
    config = recipe("digits", "demo", "untrained", sample=200)
    data = sample(digits, config.sample, config.seed)
    with Run(config, data) as run:
        made = run.finish(*fit(config, data, run.report))
    copy = root / "results/local/runs/demo/digits/untrained-sample=200-seed0.json"
    plan.gather(run.folder, run_name(config), root / "results/local")
    assert json.loads(copy.read_text()) == json.loads(json.dumps(made))
    written = copy.stat().st_mtime_ns
    plan.gather(run.folder, run_name(config), root / "results/local")
    assert copy.stat().st_mtime_ns == written


@pytest.mark.slow
def test_reproduce_end_to_end(tmp_path):
    command, settings = clone(tmp_path)
    command += ["reproduce", "--datasets", "digits", "--variants", "kmeans-pixels", "untrained", "--seeds", "0"]

    def call():
        return subprocess.run(command, **settings, stdout=subprocess.PIPE, check=True).stdout

    def files():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    before, printed, made = files(), call(), files()
    assert "2 runs: 0 done, 2 to run" in printed
    assert "2 of 2 runs" in printed
    local = tmp_path / "results/local"
    for name in (
        "tables/demo/main_results.md",
        "figures/demo/main_results.png",
        "notebooks/demo/00_table1_datasets.ipynb",
    ):
        assert (local / name).exists()
    for name in ("kmeans-pixels-seed0", "untrained-seed0"):
        kept, run = local / f"runs/demo/digits/{name}.json", tmp_path / f"runs/demo/digits/{name}/run.json"
        assert kept.read_bytes() == run.read_bytes()
    assert before.items() <= made.items()
    assert {path.relative_to(tmp_path).parts[0] for path in made.keys() - before.keys()} == {"runs", "results"}
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"local", ".local.lock"}
    assert "2 runs: 2 done, 0 to run." in call()
    assert {path.name for path, time in files().items() if made.get(path) != time} <= {".local.lock"}
