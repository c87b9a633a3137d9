"""A released model loads, says what the record says, and is told apart from a damaged one."""

import json
import re

import pytest
import torch

from ccrepro import checkpoint, release
from ccrepro.config import recipe
from ccrepro.errors import CheckpointError
from ccrepro.model import build

SETTINGS = {"backbone": "small", "epochs": 7, "batch_size": 64}


@pytest.fixture
def model():
    return build(recipe("cifar10", "fast", **SETTINGS)).eval()


@pytest.fixture
def record():
    config = recipe("cifar10", "fast", **SETTINGS)
    return {
        "dataset": "cifar10", "variant": "cc", "profile": "fast", "seed": 0, "epochs": 7, "n_images": 60_000,
        "scores": {"nmi": 0.1234, "acc": 0.2345, "ari": 0.3456}, "n_clusters_used": 9, "packed_shape": [3, 32, 32],
        "config": vars(config), "half_precision": {"same": 0.9987, "scores": {"nmi": 0.1, "acc": 0.2, "ari": 0.3}},
        "pieces": [{"seconds": 540.0}, {"seconds": 60.0}], "versions": {"torch": "2.11.0"}, "commit": "c" * 40,
        "hardware": {"gpu": "a GPU", "cpu": "a CPU", "cores": 2, "threads": 1}, "data_sha256": "d" * 64,
    }  # fmt: skip


@pytest.fixture
def folder(model, record, tmp_path, monkeypatch):
    monkeypatch.setattr(release, "PART_BYTES", 200_000)
    return release.release(record, release.halved(model), tmp_path / release.name(record))


def test_kernels_and_matrices_are_halved_and_nothing_else(model):
    halved, full = release.halved(model), model.state_dict()
    assert halved.keys() == full.keys()
    kinds = {t.dtype for name, t in halved.items() if full[name].dim() in (2, 4)}
    assert kinds == {torch.float16}
    rest = [name for name in halved if full[name].dim() not in (2, 4)]
    assert any("running_var" in name for name in rest)
    assert "standardize.mean" in rest
    assert all(torch.equal(halved[name], full[name]) and halved[name].dtype == full[name].dtype for name in rest)
    assert sum(t.nbytes for t in halved.values()) < 0.52 * sum(t.nbytes for t in full.values())


def test_released_model_loads_with_its_settings(folder, model, record):
    parts = sorted(folder.glob("*.safetensors"))
    assert len(parts) > 3
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {p.name for p in parts}
    loaded, config, about = checkpoint.load_model(folder)
    assert (config.epochs, config.backbone, about) == (7, "small", {"channels": 3, "side": 32})
    x = torch.rand(4, 3, 32, 32)
    for ours, theirs in zip(loaded(x), model(x), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-3)
        assert not torch.equal(ours, theirs)  # it is rounded


def test_parts_stay_below_their_limit(folder, model):
    largest = max(t.nbytes for t in release.halved(model).values())
    assert max(p.stat().st_size for p in folder.glob("*.safetensors")) < max(200_000, largest) + 10_000


@pytest.mark.parametrize("harm", ["bit", "missing", "settings", "elsewhere", "no index"])
def test_damaged_release_is_named(folder, harm):
    part, index = sorted(folder.glob("*.safetensors"))[1], folder / "model.safetensors.index.json"
    if harm == "bit":
        blob = bytearray(part.read_bytes())
        blob[-1] ^= 1
        part.write_bytes(blob)
    elif harm == "missing":
        part.unlink()
    elif harm == "settings":
        index.write_text(index.read_text().replace('n_clusters\\": 10', 'n_clusters\\": 11'))
    elif harm == "elsewhere":
        index.write_text(index.read_text().replace(part.name, f"../{part.name}"))
    else:
        index.write_text("[]")
    with pytest.raises(CheckpointError):
        checkpoint.load_model(folder)


def test_card_says_what_the_record_says(folder, record):
    card = (folder / "README.md").read_text()
    for text in ("NMI 0.1234, ACC 0.2345, ARI 0.3456", "9 of 10 clusters", "60,000 images", "seed 0", "7 epochs",
                 "epochs 7 (400)", "backbone small (resnet18)", "99.87%", "10.0 minutes in 2 piece(s)", "a GPU",
                 "d" * 64, "c" * 10, "people", "60,000 images, all that",
                 "results/models/cifar10-fast-cc-seed0-epochs7 "):  # fmt: skip
        assert text in card, text
    assert not re.search(r"[{}]", card), "a placeholder was not filled"
    size = sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 1e6
    assert float(re.search(r"in ([\d.]+) MB", card)[1]) == pytest.approx(size, rel=0.05)
