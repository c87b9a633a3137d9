"""Two CPU processes that torchrun starts equal one; a signal to torchrun saves, and the run goes on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rank_script
import torch
from torch.testing import assert_close

from ccrepro.errors import ConfigError
from ccrepro.runs.checkpoints import Checkpoints
from ccrepro.runs.resume import fit
from ccrepro.runtime.distributed import ALONE, Ranks

HANGS = 300  # seconds after which a job that should have ended, or come further, is given up


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(Path(__file__).with_name("rank_script.py")), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(job):
    """What a job printed, once it has ended. On SIGTERM, torchrun ends its ranks first, even those that hang."""
    try:
        return job.communicate(timeout=HANGS)[0]
    finally:
        job.terminate()


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    job = torchrun("compute", folder)
    said = ended(job)
    assert job.returncode == 0, said
    return [torch.load(folder / f"rank{rank}") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", rank_script.CASES)
def test_two_ranks_equal_one_process(name, computed):
    """Loss, every gradient and what is watched, on both ranks. Half of the batch alone has another loss."""
    alone = rank_script.first_step(*rank_script.CASES[name], ALONE)
    assert {"loss", "entropy", "backbone.conv1.weight", "cluster_head.0.weight"} <= set(alone)
    for rank in computed:
        assert_close(rank[name], alone, rtol=1e-9, atol=1e-9)

    class Blind(Ranks):
        size = 2

    assert (rank_script.first_step(*rank_script.CASES[name], Blind())["loss"] - alone["loss"]).abs() > 0.1


@pytest.mark.slow
def test_ranks_agree_and_share_and_none_leaves_before_rank_0_has_saved(computed):
    assert [rank["agreed"] for rank in computed] == [[1, 7, 0]] * 2
    assert [rank["shared"] for rank in computed] == ["made by 0"] * 2
    assert all(rank["saved first"] for rank in computed)  # else torchrun would end rank 0 while it saves


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_and_the_run_goes_on_as_if_unbroken(tmp_path, computed, capsys):
    job, given_up = torchrun("train", tmp_path), time.monotonic() + HANGS
    while Checkpoints(tmp_path).newest() is None:
        assert job.poll() is None, ended(job)
        assert time.monotonic() < given_up
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    said = ended(job)
    assert said.count("Stopped by SIGTERM in epoch") == 1, said
    assert not (tmp_path / "weights").exists()

    said = ended(torchrun("train", tmp_path))
    assert said.count("resumed after epoch") == 1, said
    assert "warning" not in said
    assert_close(torch.load(tmp_path / "weights"), computed[0]["unbroken"], rtol=0, atol=0)

    fit(rank_script.CONFIG, rank_script.DATA, checkpoints=Checkpoints(tmp_path))
    assert "warning: ranks was 2 and is 1: not bit for bit the same run" in capsys.readouterr().out


def test_unequal_shares_are_refused(patterns, tiny):
    class Two(Ranks):
        size = 2

    with pytest.raises(ConfigError, match=r"batch_size is 15, for 2 ranks\. Write a multiple of that"):
        fit(tiny.replace(batch_size=15), patterns, ranks=Two())
