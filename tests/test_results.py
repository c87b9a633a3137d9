import json
import subprocess

import pytest

from ccrepro import files, results
from ccrepro.errors import DataError
from ccrepro.files import atomic_write


@pytest.mark.parametrize(
    ("values", "text"), [([], "not run"), ([0.5], "0.500"), ([0.9, 0.8], "0.850 ± 0.071"), ([1, 1, 1], "1.000 ± 0.000")]
)
def test_mean_sd(values, text):
    assert results.mean_sd(values) == text


def test_data_sets_have_the_papers_counts():
    frame = results.data_sets()
    ours = frame[frame["samples reported"] != "–"]
    assert len(ours) == 6
    assert ours["samples reported"].astype(int).tolist() == ours["images ours"].tolist()
    assert ours["classes reported"].astype(int).tolist() == ours["classes ours"].tolist()


def test_comparison_with_the_last_commit(root):
    path = "results/runs/demo/digits/cc-seed0.json"
    record = {"dataset": "digits", "variant": "cc", "seed": 0, "scores": {"nmi": 0.5, "acc": 0.9, "ari": 0.5}}
    atomic_write(root / path, json.dumps(record))
    assert "–" in results.compare("demo")  # not a clone
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "."]):
        subprocess.run(git + command, check=True)
    record["scores"]["acc"] = 0.95
    atomic_write(root / path, json.dumps(record))
    assert results.compare("demo").split()[-4:] == ["demo/digits/cc-seed0", "0.9500", "0.9000", "+0.0500"]
    assert len(files.commit()) == 40


def test_damaged_record_is_named(root):
    atomic_write(root / "results/runs/demo/digits/cc-seed0.json", "{")
    with pytest.raises(DataError, match=r"cc-seed0.json is not JSON"):
        results.load_runs("demo")


def test_origins_name_commit_settings_hardware_and_time():
    hardware = {"cpu": "C", "cores": 2, "gpu": None, "threads": 1}
    record = {"dataset": "digits", "variant": "cc", "seed": 0, "commit": "a" * 40 + "-dirty", "config": {"lr": 0.1}}
    record |= {"n_images": 1797, "epochs": 50, "seconds": 45.6, "hardware": hardware}
    other = record | {
        "config": {"lr": 0.2, "devices": 4, "nodes": 2},
        "hardware": hardware | {"gpu": "G"},
        "energy_joules": 7.2e6,
    }
    lines = results.origins([record, other])
    assert lines.commit[0] == "aaaaaaaaaa-dirty"
    assert lines.hardware.tolist() == ["1 of 2 cores of C", "8 × G"]
    assert lines.energy.tolist() == ["not measured", "2 kWh"]
    assert lines.seconds[0] == "46"
    assert lines.settings.nunique() == 2


def test_what_was_measured_of_a_stream_comes_with_its_run(root):
    record = {"dataset": "digits", "variant": "cc", "seed": 0}
    atomic_write(root / "results/runs/demo/digits/cc-seed0.json", json.dumps(record))
    assert results.load_records("demo") == [record]
    atomic_write(root / "results/online/demo/digits/cc-seed0.json", json.dumps({"assign": {}}))
    assert results.load_records("demo") == [record | {"online": {"assign": {}}}]
