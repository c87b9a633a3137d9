import pytest
import torch

from ccrepro.checkpoint import atomic_write, load_weights, save_weights
from ccrepro.config import recipe
from ccrepro.model import build


def test_failed_write_leaves_the_old_file_and_no_scraps(tmp_path, monkeypatch):
    path = atomic_write(tmp_path / "a.txt", "old")

    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_weights_survive_saving(tmp_path):
    model, other = build(recipe("digits", seed=1), 1), build(recipe("digits", seed=2), 1)
    save_weights(model, tmp_path / "model.safetensors")
    load_weights(other, tmp_path / "model.safetensors")
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
