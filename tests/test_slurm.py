"""Job scripts: read, checked by the shell and shellcheck, and run by a made-up SLURM on real cells."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ccrepro.cli import main
from ccrepro.files import ROOT, atomic_write

CELLS = ["--datasets", "digits", "--variants", "cc", "untrained", "--seeds", "0", "1"]
HANGS = 300  # seconds after which a job that should have ended, or come further, is given up


def script_of(text, *lines):
    """The words of a made-up program on PATH."""
    return "\n".join(["#!/bin/sh", text, *lines]) + "\n"


@pytest.fixture
def cluster(root, monkeypatch):
    """A folder that stands for the clone, and one with made-up SLURM commands, which write down what they are told."""
    place = root / "bin"
    sbatch = f"cat > {root}/submitted.sh; echo Submitted batch job 17"
    for name, text in {"sbatch": sbatch, "scontrol": f'echo "$@" >> {root}/scontrol.txt'}.items():
        atomic_write(place / name, script_of(text)).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folders = {f"--{name}-dir": str(root / name) for name in ("runs", "results")}
    return root, [word for pair in folders.items() for word in pair]


def dry_run(capsys, *arguments):
    assert main(["slurm", *arguments, "--dry-run"]) == 0
    return capsys.readouterr().out


def start(root, index):
    """One index of the submitted array, as SLURM starts it."""
    job = {"SLURM_ARRAY_TASK_ID": str(index), "SLURM_ARRAY_JOB_ID": "17", "SLURM_JOB_ID": str(18 + index)}
    with (root / f"{index}.log").open("a") as log:
        return subprocess.Popen(["bash", root / "submitted.sh"], env=os.environ | job, stdout=log, stderr=log)


def test_one_index_per_cell_that_is_to_run(root, capsys):
    atomic_write(root / "runs/demo/digits/cc-seed1/run.json", "{}")
    text = dry_run(capsys, *CELLS)
    assert re.findall(r'^  "(.*)"$', text, flags=re.M) == [
        "demo/digits/cc-seed0 digits cc 0",
        "demo/digits/untrained-seed0 digits untrained 0",
        "demo/digits/untrained-seed1 digits untrained 1",
    ]
    assert "#SBATCH --array=0-2\n" in text
    assert not (root / "runs/slurm").exists(), "a dry run writes nothing"


def test_what_a_cell_asks_of_the_cluster(root, capsys):
    options = ["--time", "1:00:00", "--array-limit", "8", "--partition", "gpu", "--sbatch=--account=me"]
    text = dry_run(
        capsys,
        "--profile",
        "paper",
        "--datasets",
        "cifar10",
        "--variants",
        "cc",
        "--seeds",
        "0",
        *options,
        "--cpus-per-gpu",
        "6",
    )
    asked = re.findall(r"^#SBATCH (.*)$", text, flags=re.M)
    expected = [
        *("--job-name=ccrepro", "--array=0-0%8", "--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=6"),
        *("--time=1:00:00", "--signal=B:USR1@120", "--requeue", "--open-mode=append", f"--chdir={root}"),
        *(f"--output={root}/runs/slurm/%A_%a.log", "--gres=gpu:1", "--partition=gpu", "--account=me"),
    ]
    assert asked == expected
    assert "srun" not in text
    assert "--devices" not in text
    assert "--gres" not in dry_run(capsys, *CELLS, "--gpus-per-cell", "0")


def test_several_gpus_have_a_process_each_and_are_told_by_scancel(root, capsys):
    text = dry_run(capsys, *CELLS, "--gpus-per-cell", "4", "--nodes", "2")
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=4", "#SBATCH --gres=gpu:4"} <= set(text.splitlines())
    (command,) = re.findall(r"^srun .* &$", text, flags=re.M)
    assert command.startswith("srun --cpus-per-task=4 --kill-on-bad-exit=1 --wait=0 ")
    assert command.endswith(" --devices 4 --nodes 2 &")
    assert 'kill -TERM "$run"' not in text, "srun kills its tasks on SIGTERM"
    assert 'scancel --signal=TERM "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' in text, "no other index"


@pytest.mark.parametrize("gpus", ["1", "8"])
def test_the_script_is_sound_shell(root, capsys, monkeypatch, gpus):
    monkeypatch.setattr("ccrepro.files.ROOT", root / "a clone's place")
    text = dry_run(capsys, *CELLS, "--gpus-per-cell", gpus)
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, "--shell=bash", "-"], input=text, capture_output=True, text=True)
    assert done.stdout == ""


def test_submitted_cells_run_and_their_records_are_written(cluster, capsys):
    root, folders = cluster
    assert main(["slurm", "--datasets", "digits", "--variants", "kmeans-pixels", "--seeds", "3", *folders]) == 0
    assert capsys.readouterr().out == f"Submitted batch job 17; logs in {root}/runs/slurm\n"
    assert (root / "runs/slurm").is_dir()
    (root / "ccrepro").symlink_to(ROOT / "ccrepro")  # the script runs in the folder that stands for the clone
    assert start(root, 0).wait(timeout=HANGS) == 0, (root / "0.log").read_text()
    record = json.loads((root / "results/runs/demo/digits/kmeans-pixels-seed3.json").read_text())
    assert record["scores"]["acc"] > 0.7
    assert start(root, 0).wait(timeout=HANGS) == 0
    assert (root / "0.log").read_text().endswith("demo/digits/kmeans-pixels-seed3 is done\n")
    assert not (root / "scontrol.txt").exists()
    assert main(["slurm", "--datasets", "digits", "--variants", "kmeans-pixels", "--seeds", "3", *folders]) == 0
    assert "1 cells: 1 done, 0 to run." in capsys.readouterr().err


def test_ahead_of_the_limit_a_cell_saves_and_is_queued_again(cluster, capsys):
    root, folders = cluster
    assert main(["slurm", "--datasets", "digits", "--variants", "cc", "--seeds", "0", *folders]) == 0
    job, folder = start(root, 0), root / "runs/demo/digits/cc-seed0"
    end = time.monotonic() + HANGS
    while not (folder / "log.jsonl").exists():
        assert time.monotonic() < end, (root / "0.log").read_text()
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)  # as with scancel, where SLURM tells the run itself
    time.sleep(0.2)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=HANGS) == 143
    log = (root / "0.log").read_text()
    assert re.search(r"ccrepro: error: stopped by SIGTERM \(epoch \d+, step \d+\)\. The step under way .* saved", log)
    assert (root / "scontrol.txt").read_text() == "requeue 17_0\n"
    assert not (folder / "run.json").exists()
    assert list(folder.glob("checkpoint-*")), "nothing was saved"


def test_what_fails_is_not_queued_again(cluster, capsys):
    root, folders = cluster
    assert main(["slurm", "--datasets", "digits", "--variants", "untrained", "--seeds", "0", *folders]) == 0
    text = (root / "submitted.sh").read_text()
    (root / "submitted.sh").write_text(text.replace("--profile demo", "--profile dmo"))
    assert start(root, 0).wait(timeout=HANGS) == 2
    assert "unknown profile 'dmo'" in (root / "0.log").read_text()
    assert not (root / "scontrol.txt").exists()


def test_mistakes_are_told_in_a_line(cluster, capsys, monkeypatch, tmp_path):
    root, _ = cluster
    paper = ["slurm", "--profile", "paper", "--datasets", "cifar10", "--variants", "cc", "--seeds", "0"]
    assert main([*paper, "--nodes", "0"]) == 2
    assert "nodes is 0 (ccrepro slurm). It must be at least 1." in capsys.readouterr().err
    assert main([*paper, "--data-dir", str(tmp_path)]) == 3
    assert f"cifar10 is not packed ({tmp_path})" in capsys.readouterr().err
    atomic_write(root / "bin/sbatch", script_of("echo sbatch: error: invalid partition >&2", "exit 1")).chmod(0o755)
    assert main(["slurm", *CELLS]) == 1
    assert "sbatch refused: sbatch: error: invalid partition" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(["slurm", *CELLS]) == 2
    assert "no sbatch here (PATH)" in capsys.readouterr().err
    assert not (root / "submitted.sh").exists()
