"""What users give by mistake, or others on purpose: one message, its exit code, and nothing half-made or run."""

import io
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ccrepro.cli import main
from ccrepro.data.registry import DATASETS
from ccrepro.data.synsets import IMAGENET10
from ccrepro.model import build
from ccrepro.recipes import recipe
from ccrepro.runs.weights import save_model
from ccrepro.runtime import storage


class Hostile:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def png(size, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Run a command in ``tmp_path``; it must end with this code, and unless that is 0 with one line that says why."""
    monkeypatch.chdir(tmp_path)

    def check(command, code, *says):
        assert main(command.split()) == code
        printed = capsys.readouterr().err
        assert "Traceback" not in printed
        assert [line[:16] for line in printed.splitlines()[-1:]] == ["ccrepro: error: "] or code == 0
        assert [text for text in says if text not in printed] == []

    return check


@pytest.fixture
def images(tmp_path):
    """Make a folder of two classes with a good image each, and more files in one of them."""

    def make(**more):
        for kind in ("cat", "dog"):
            (tmp_path / "mine" / kind).mkdir(parents=True)
            (tmp_path / "mine" / kind / "good.png").write_bytes(png((40, 30)))
        for name, content in more.items():
            (tmp_path / "mine" / "cat" / f"{name}.jpg").write_bytes(content)

    return make


BAD = {
    "empty": (b"", "empty.jpg: empty file"),
    "text": (b"hello", "text.jpg: not an image"),
    "cut": (png((80, 80))[:70], "cut.jpg: cannot be read"),
    "bomb": (png((14000, 14000), "1"), "bomb.jpg: cannot be read: Image size"),
}


def test_bad_images_of_a_folder_are_listed_and_can_be_left_out(told, images):
    images(**{name: content for name, (content, _) in BAD.items()})
    reasons = [reason for _, reason in BAD.values()]
    cluster = "cluster mine --n-clusters 2 --out out --epochs 1"
    told(cluster, 3, "4 of 6 images are bad", "--skip-bad", *reasons)
    told(f"{cluster} --skip-bad", 0, "4 bad images are left out, 2 remain", *reasons)


def test_folders_that_lack_something(told, images):
    images()
    told("cluster mine --n-clusters 10 --out out", 2, "n_clusters is 10", "2 images")
    told("cluster mine --n-clusters 2 --out mine/out", 2, "mine/out")


def test_a_disk_that_is_too_small(told, images, monkeypatch, tmp_path):
    images()
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    told("cluster mine --n-clusters 2 --out out", 3, "0.0 GB free", "--data-dir")


def test_data_sets_that_are_damaged_incomplete_or_out_of_reach(told, tmp_path, monkeypatch):
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        path = tmp_path / "damaged/cifar-10-batches-py" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"damaged")
    told("datasets get cifar10 --data-dir damaged", 3, "data_batch_1")
    for synset in IMAGENET10:
        if synset != "n02690373":
            (tmp_path / "train" / synset).mkdir(parents=True)
    told("datasets get imagenet10 --imagenet train --data-dir data", 3, "n02690373 (airliner)")
    facts = DATASETS["cifar10"]
    nowhere = facts.archive._replace(url="http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setitem(DATASETS, "cifar10", facts._replace(archive=nowhere))
    told("datasets get cifar10 --data-dir data", 3, "http://127.0.0.1:9", "md5:c58f30108f718f92721af3b95e74349a")


def test_a_learning_rate_far_too_high_leaves_no_weights(told, tmp_path):
    command = "train digits --lr 1e30 --sample 320 --batch-size 64 --epochs 1 --runs-dir"
    told(f"{command} {tmp_path}", 5, "epoch 1, step", "is nan", "Lower lr")
    assert not list(tmp_path.rglob("model.safetensors"))


def flipped(content):
    return content[:-9] + bytes([content[-9] ^ 4]) + content[-8:]


@pytest.mark.parametrize(
    ("damage", "says"),
    [(lambda content: b"", "0 bytes"), (lambda content: content[:999], "damaged"), (flipped, "damaged")],
    ids=["empty", "cut short", "a flipped bit"],
)
def test_damaged_weights(told, images, tmp_path, damage, says):
    images()
    config = recipe("digits", "demo")
    save_model(build(config, 1), config, tmp_path / "m.safetensors", side=8)
    (tmp_path / "m.safetensors").write_bytes(damage((tmp_path / "m.safetensors").read_bytes()))
    told("predict m.safetensors mine", 4, "m.safetensors", says)


def test_nothing_that_is_read_can_run_code(told, tmp_path):
    mark = tmp_path / "mark"
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps(Hostile(mark)))
    torch.save({"w": Hostile(mark)}, tmp_path / "torch.safetensors")
    for name in ("pickle", "torch"):
        told(f"predict {name}.safetensors .", 4, f"{name}.safetensors")
    told("evaluate --authors-checkpoint torch.safetensors", 4, "torch.safetensors")
    np.savez(tmp_path / "clustering.npz", labels_pred=np.array([Hostile(mark)], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        storage.load_arrays(tmp_path / "clustering.npz")
    assert not mark.exists()
