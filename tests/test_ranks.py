"""Several processes that train together equal one; a process that dies ends the others, and the run goes on."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import rank_script
import torch
from rank_script import CASES, COUNTED, ORDER
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from ccrepro import cli, ranks, scaling
from ccrepro.config import recipe
from ccrepro.errors import ConfigError, PeerError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """What the ranks of each size found: one rank's each in a file."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(ROOT / "tests/rank_script.py"), str(folder / "out"), *"24"]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=HANGS)
    return folder


@pytest.fixture(scope="module", params=[2, 4])
def together(request, computed):
    """What each of R ranks found."""
    return [torch.load(computed / f"out.{request.param}.{rank}") for rank in range(request.param)]


@functools.cache
def alone_in(case):
    return rank_script.two_steps(*CASES[case], ranks.ALONE)


@pytest.mark.parametrize("name", CASES)
def test_ranks_equal_one_process(name, together):
    """Loss, every gradient, what is watched, weights after two steps and running statistics, on every rank."""
    alone = alone_in(name)
    assert {"loss", "gradient_norm", "gradient.backbone.conv1.weight", "after.backbone.bn1.running_var"} <= set(alone)
    for rank in together:
        for key, value in alone.items():
            assert (rank[f"{name}.{key}"] - value).norm() <= 1e-9 * max(1, value.norm()), key


def test_ranks_go_through_the_images_of_one_process_in_parts(together):
    alone = rank_script.order(*ORDER, ranks.ALONE)  # (steps, N)
    assert torch.equal(torch.cat([rank["order"] for rank in together], 1), alone)
    assert all(len(np.unique(epoch)) == 64 for epoch in alone.reshape(2, 64).numpy())  # none twice, 70 mod 16 left out


def test_ranks_agree_and_share(together):
    size = len(together)
    assert [rank["agreed"].tolist() for rank in together] == [[size - 1, 7, 0]] * size
    assert [rank["shared"].item() for rank in together] == [100] * size


def test_no_rank_leaves_before_rank_0_has_saved(together):
    """Else what launched them would end rank 0 in the middle of it."""
    assert all(rank["saved first"] for rank in together)


def test_a_real_step_sends_what_the_formulas_say(computed):
    config, data = COUNTED
    setting = scaling.Setting(config.batch_size, config.instance_dim, config.n_clusters)
    calls, sizes = Counter(), Counter()
    for each in scaling.collectives(setting, scaling.network(config, data.images.shape[1]), ranks=2, gpu=False):
        calls[each.kind] += each.calls
        sizes[each.kind] += each.bytes
    for rank in range(2):
        assert torch.load(computed / f"out.2.{rank}")["sent"] == {"calls": calls, "bytes": sizes}


def test_a_rank_blind_to_the_others_would_be_noticed():
    """Half of the batch alone has another loss: what the equality above would catch."""
    config, data = CASES["digits' settings"]

    class Blind(ranks.Ranks):
        size = 2

    whole, half = (rank_script.two_steps(config, data, r)["loss"] for r in (ranks.ALONE, Blind()))
    assert (whole - half).abs() > 0.1


HANGS = 300  # seconds after which a job that should have ended, or come further, is given up


def options(folder):
    found = ["train", "digits", "--sample", "320", "--batch-size", "64", "--epochs", "12", "--seed", "5"]
    found += ["--device", "cpu", "--checkpoint-seconds", "0"]
    return [*found, "--runs-dir", str(folder), "--results-dir", str(folder)]


@pytest.fixture
def start_two(tmp_path):
    """Start the run with two ranks. What is left of it in the end is killed."""
    command = [sys.executable, "-m", "ccrepro", *options(tmp_path), "--devices", "2"]
    environment, jobs = {**os.environ, "PYTHONPATH": str(ROOT)}, []

    def start():
        jobs.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=-2, text=True))
        return jobs[-1]

    yield start
    for job in jobs:
        if job.poll() is None:
            for process in [*psutil.Process(job.pid).children(recursive=True), job]:
                process.kill()


def newest_checkpoint(folder):
    return max((p.name for p in folder.rglob("checkpoint-*.json")), default="")


def wait_for_checkpoint(folder, job, after=""):
    given_up = time.monotonic() + HANGS
    while newest_checkpoint(folder) <= after:
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < given_up
        time.sleep(0.02)


def test_a_killed_rank_ends_the_job_and_the_run_goes_on_with_fewer(tmp_path, start_two, capsys):
    job = start_two()
    wait_for_checkpoint(tmp_path, job)
    workers = psutil.Process(job.pid).children()
    next(w for w in workers if w.environ()["RANK"] == "1").kill()
    killed = time.monotonic()
    said = job.communicate(timeout=HANGS)[0]
    assert (job.returncode, time.monotonic() - killed < 60) == (7, True), said
    assert re.search(r"^ccrepro: error: a process ended by SIGKILL \(rank 1 of 2, process \d+\)\. .*\.$", said, re.M)
    assert "Traceback" not in said
    assert not any(w.is_running() for w in workers)

    newest, job = newest_checkpoint(tmp_path), start_two()
    wait_for_checkpoint(tmp_path, job, newest)
    job.send_signal(signal.SIGTERM)
    said = job.communicate(timeout=HANGS)[0]
    assert job.returncode == 143, said
    assert said.count("ccrepro: error: stopped by SIGTERM") == 1
    assert said.count("resumed after epoch") == 1

    assert cli.main(options(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "warning: ranks was 2 and is 1: not bit for bit the same run" in said
    assert "resumed after epoch" in said
    assert len(list(tmp_path.rglob("run.json"))) == 1


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        ({0: 7, 1: -9}, r"^a process ended by SIGKILL \(rank 1 of 2, process 11\)"),
        (
            {0: 7, 1: 7},
            r"^lost another process of this run \(rank 0 of 2, process 10\)\. All must live, on all machines",
        ),
        ({1: 1}, r"^a process ended by an error, told above \(rank 1 of 2"),
        ({0: 7, 1: 5}, "5"),  # it has told its error itself
    ],
)
def test_what_ends_a_job_is_told_in_a_line(monkeypatch, codes, told):
    """The other ranks of one that has died may be seen to end at the same moment, or be all that there are here."""
    failures = {rank: ProcessFailure(rank, 10 + rank, code, "none") for rank, code in codes.items()}

    def failed(*arguments):
        raise ChildFailedError("ccrepro", failures)

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda *arguments: failed)
    with pytest.raises((PeerError, SystemExit), match=told):
        ranks.launch(recipe("digits", devices=2), [])


def test_batch_must_divide_into_the_ranks():
    with pytest.raises(ConfigError, match=r"batch_size is 128, for 3 devices in all .*batch_size=126"):
        recipe("digits", devices=3)


def test_several_ranks_need_the_command_line(patterns, tiny):
    import dataclasses

    from ccrepro.train import train

    with pytest.raises(ConfigError, match=r"devices x nodes is 2 .*python -m ccrepro train"):
        train(dataclasses.replace(tiny, devices=2), patterns)


def test_a_rank_that_was_given_another_run_says_so(patterns, tiny):
    import dataclasses

    from ccrepro.train import train

    class Second(ranks.Ranks):
        rank, size = 1, 2

        def share(self, make):
            return {"config": dataclasses.asdict(dataclasses.replace(tiny, seed=7)), "data_sha256": "another's"}

    with pytest.raises(
        ConfigError, match=r"another run than rank 0's: seed 7 there, 0 here, other images \(rank 1 of 2"
    ):
        train(dataclasses.replace(tiny, devices=2), patterns, ranks=Second())


def test_nodes_must_know_where_they_meet(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="nodes is 2, but MASTER_ADDR is not set"):
        ranks._meeting(recipe("digits", nodes=2))
    for name, value in {"MASTER_ADDR": "first", "MASTER_PORT": "29500", "NODE_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"NODE_RANK is '2' .*from 0 to 1"):
        ranks._meeting(recipe("digits", nodes=2))
    monkeypatch.setenv("NODE_RANK", "1")
    found = ranks._meeting(recipe("digits", nodes=2))
    assert (found["rdzv_endpoint"], found["rdzv_configs"]) == ("first:29500", {"rank": 1})


def test_slurms_tasks_are_the_ranks(monkeypatch):
    config = recipe("digits", devices=2, nodes=2)
    assert ranks.to_be_launched(config)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert ranks.to_be_launched(config), "in the script of a job of four tasks, not in one of them"
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert not ranks.to_be_launched(config)
    with pytest.raises(ConfigError, match=r"devices is 2 .* Give srun --ntasks-per-node=2\.$"):
        ranks.settle(config)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    assert ranks.settle(config) == config
