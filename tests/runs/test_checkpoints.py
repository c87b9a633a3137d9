import os
import random

import pytest
import torch

from ccrepro.errors import CheckpointError
from ccrepro.runs import checkpoints
from ccrepro.runs.checkpoints import Checkpoints


def tensors(step):
    return {"w": torch.arange(12.0).view(3, 4) + step, "n": torch.tensor(7)}


OURS = {"resumed": 0, "machine": {}}  # what is added to the facts


def facts(step):
    return {"epoch": step, "history": [{"loss": 0.1 + step, "tiny": 1e-17}], "config": {"a": [0.2, 1.0]}}


@pytest.fixture
def saved(tmp_path):
    """Two checkpoints; the second is the newest."""
    saved = Checkpoints(tmp_path)
    for step in (1, 2):
        saved.save(f"{step:03d}", tensors(step), facts(step))
    return saved


def is_checkpoint(found, step):
    """Whether what was loaded is what was saved after a step, bit for bit."""
    same = all(torch.equal(found[1][name], tensor) for name, tensor in tensors(step).items())
    return found[0].name == f"checkpoint-{step:03d}.safetensors" and same and found[2] == {**facts(step), **OURS}


def test_the_newest_comes_back_as_it_was_two_are_kept_and_all_are_cleared(saved):
    assert is_checkpoint(saved.load(), 2)
    assert saved.resumed == 1
    saved.save("003", tensors(3), facts(3))
    names = [f"checkpoint-{step}.safetensors" for step in ("002", "003")]
    assert sorted(path.name for path in saved.folder.iterdir()) == names
    assert saved.newest().name == names[1]
    saved.clear()
    assert not list(saved.folder.iterdir())
    assert saved.load() is saved.newest() is None


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_newest_one_is_named_and_the_one_before_it_is_used(saved, capsys, seed):
    path = saved.newest()
    content, at = path.read_bytes(), random.Random(seed).randrange(path.stat().st_size * 8)  # a bit
    flipped = content[: at // 8] + bytes([content[at // 8] ^ 1 << at % 8]) + content[at // 8 + 1 :]
    path.write_bytes(flipped if seed else content[: len(content) // 2])
    found = saved.load()
    assert is_checkpoint(found, 1)
    (warning,) = capsys.readouterr().out.splitlines()
    assert warning.startswith("warning: ")
    assert str(path) in warning
    assert warning.endswith(f"Using the one before it, {found[0]}")


def test_both_damaged(saved):
    for path in saved.folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"^No sound checkpoint is left: .*-002.*-001.* to start anew"):
        saved.load()


def test_a_failed_save_leaves_the_earlier_checkpoints(saved, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(CheckpointError, match="No space left on device"):
            saved.save("003", tensors(3), facts(3))
    assert len(list(saved.folder.iterdir())) == 2
    assert is_checkpoint(saved.load(), 2)


def test_one_is_due_once_the_time_is_over(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    saved, due = Checkpoints(tmp_path, every_seconds=10), []
    for now[0] in (9.0, 10.0):
        due.append(saved.due())
    saved.save("1", {}, {})
    assert [*due, saved.due()] == [False, True, False]
