import json
import pickle
import random

import pytest
import torch
from torch.testing import assert_close

from ccrepro.checkpoint import Checkpoints, load_model, load_weights, read_tensors, save_weights
from ccrepro.config import recipe
from ccrepro.errors import CheckpointError
from ccrepro.model import build

TENSORS = {"w": torch.arange(12.0).view(3, 4), "n": torch.tensor(7)}


def facts(step):
    return {"epoch": step, "history": [{"loss": 0.1 + step, "tiny": 1e-17}], "config": {"a": [0.2, 1.0]}}


@pytest.fixture
def saved(tmp_path):
    """Two checkpoints; the second is the newest."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(f"{step:03d}", {name: t + step for name, t in TENSORS.items()}, facts(step))
    return checkpoints


def test_weights_survive_saving(tmp_path):
    model, other = build(recipe("digits", seed=1), 1), build(recipe("digits", seed=2), 1)
    save_weights(model, tmp_path / "model.safetensors")
    load_weights(other, tmp_path / "model.safetensors")
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


def test_the_newest_comes_back_as_it_was(saved):
    path, tensors, found = saved.load()
    assert path.name == "checkpoint-002.safetensors"
    assert_close(tensors, {name: t + 2 for name, t in TENSORS.items()}, rtol=0, atol=0)
    assert found == {**facts(2), "resumed": 0}
    assert saved.resumed == 1


def test_nothing_saved_is_nothing_found(tmp_path):
    assert Checkpoints(tmp_path).load() is None
    assert Checkpoints(tmp_path).newest() is None


def test_two_are_kept_and_all_are_cleared(saved):
    saved.save("003", TENSORS, facts(3))
    names = {path.name for path in saved.folder.iterdir()}
    assert names == {f"checkpoint-{n}.{kind}" for n in ("002", "003") for kind in ("json", "safetensors")}
    saved.clear()
    assert not list(saved.folder.iterdir())


def test_a_transposed_layout_survives(tmp_path):
    x = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    Checkpoints(tmp_path).save("1", {"x": x}, {})
    assert torch.equal(Checkpoints(tmp_path).load()[1]["x"], x)


def test_json_is_json(saved):
    record = json.loads((saved.folder / "checkpoint-002.json").read_text())
    assert set(record) == {"tensors_sha256", "facts", "sha256"}


def spoilt(blob, kind):
    if kind == "empty":
        return b""
    if kind == "cut":
        return blob[: len(blob) // 2]
    if kind == "other":
        return b"<html>not found</html>"
    at = random.Random(kind).randrange(len(blob) * 8)
    return blob[: at // 8] + bytes([blob[at // 8] ^ 1 << at % 8]) + blob[at // 8 + 1 :]


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize("kind", ["empty", "cut", "other", *range(30)])
def test_a_damaged_newest_one_is_named_and_the_one_before_it_is_used(saved, capsys, suffix, kind):
    path = saved.folder / f"checkpoint-002.{suffix}"
    path.write_bytes(spoilt(path.read_bytes(), kind))
    found, tensors, _ = saved.load()
    assert found.name == "checkpoint-001.safetensors"
    assert_close(tensors["w"], TENSORS["w"] + 1, rtol=0, atol=0)
    warning = capsys.readouterr().out
    assert warning.startswith(f"warning: {path.name} is damaged")
    assert "checkpoint-001.safetensors" in warning
    assert warning.count("\n") == 1


def test_tensors_without_their_json_are_no_checkpoint(saved):
    (saved.folder / "checkpoint-002.json").unlink()
    assert saved.load()[0].name == "checkpoint-001.safetensors"


def test_json_without_its_tensors(saved, capsys):
    (saved.folder / "checkpoint-002.safetensors").unlink()
    assert saved.load()[0].name == "checkpoint-001.safetensors"
    assert "cannot read checkpoint-002.safetensors: No such file" in capsys.readouterr().out


def test_both_damaged(saved):
    for path in saved.folder.glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no sound checkpoint is left") as caught:
        saved.load()
    assert "checkpoint-001" in str(caught.value)
    assert "checkpoint-002" in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("call", range(8))
def test_a_failed_save_leaves_the_earlier_checkpoints(saved, monkeypatch, call):
    """Each call that writes fails once: opening, flushing, renaming, of either file."""
    import os

    count = iter(range(100))
    for name in ("fsync", "fdopen", "replace"):
        real = getattr(os, name)

        def failing(*args, real=real, **kwargs):
            if next(count) == call:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, failing)
    with pytest.raises(CheckpointError, match="No space left on device"):
        saved.save("003", TENSORS, facts(3))
    monkeypatch.undo()
    assert not list(saved.folder.glob(".*"))
    again = Checkpoints(saved.folder)
    assert again.load()[0].name in ("checkpoint-002.safetensors", "checkpoint-003.safetensors")
    assert again.resumed == 1


class Hostile:
    def __reduce__(self):
        return (open, ("was-here", "w"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty: 0 bytes"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "a pointer of git-lfs"),
        (pickle.dumps(Hostile()), "a pickle or a zip, which is never loaded since it can run code"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00{}", "cut off or damaged: 10 bytes"),
        (b"just text that goes on", "not a safetensors file"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else None,
)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path, monkeypatch, content, says):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=says) as caught:
        read_tensors(path)
    assert "weights_only" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_torchs_own_format_is_refused(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="a pickle or a zip"):
        read_tensors(tmp_path / "model.safetensors")


def test_a_cut_file_is_told_with_its_size(tmp_path):
    path = save_weights(build(recipe("digits"), 1), tmp_path / "model.safetensors")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    with pytest.raises(CheckpointError, match=f"cut off or damaged: {size // 2:,} bytes"):
        read_tensors(path)


def test_weights_that_are_not_finite(tmp_path):
    model = build(recipe("digits"), 1)
    model.cluster_head[0].weight.data[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"values in cluster_head\.0\.weight are not finite"):
        load_weights(build(recipe("digits"), 1), save_weights(model, tmp_path / "m.safetensors"))


def test_weights_of_another_model(tmp_path):
    path = save_weights(build(recipe("digits"), 1), tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"cluster_head\.2\.weight is \(10, 128\), expected \(7, 128\)"):
        load_weights(build(recipe("digits", n_clusters=7), 1), path)
    with pytest.raises(CheckpointError, match=r"\d+ layers missing"):
        load_weights(build(recipe("digits", backbone="resnet18"), 1), path)


@pytest.mark.parametrize("text", ["{", "[]", '{"config": {}}', '{"config": 1, "packed_shape": [1, 8, 8]}'])
def test_a_damaged_record_is_told_by_its_name(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"run\.json is damaged: no record of a run"):
        load_model(tmp_path)
