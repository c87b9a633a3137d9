"""The forty bad inputs: what a user may do wrong, and what must then be said, in one line and with which exit code."""

import contextlib
import dataclasses
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import nbformat
import numpy as np
import torch
from PIL import Image

from ccrepro import cli, datasets, train
from ccrepro.checkpoint import Checkpoints, load_weights, save_weights
from ccrepro.config import recipe
from ccrepro.datasets import fetch
from ccrepro.errors import CcreproError
from ccrepro.model import build

Outcome = tuple[int, str]  # exit code, all that was printed


class Case(NamedTuple):
    number: int
    what: str
    attempt: Callable[[Path], Outcome]
    code: int
    says: tuple[str, ...]


CASES: list[Case] = []


def case(number: int, what: str, code: int, *says: str) -> Callable:
    def add(attempt: Callable[[Path], Outcome]) -> Callable[[Path], Outcome]:
        CASES.append(Case(number, what, attempt, code, says))
        return attempt

    return add


def command(number: int, what: str, code: int, arguments: str, *says: str) -> None:
    CASES.append(Case(number, what, lambda folder: run(*arguments.split()), code, says))


def run(*arguments: str) -> Outcome:
    """The command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(arguments)
    return code, err.getvalue() if code else out.getvalue()


def call(function: Callable[[], object]) -> Outcome:
    """The Python API: an error's line and its exit code; or 0 and what was printed."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            function()
    except CcreproError as error:
        return error.exit_code, f"ccrepro: error: {error}\n"
    return 0, out.getvalue()


def try_out(case: Case, folder: Path) -> str | None:
    """None where the case ends as promised; otherwise what is wrong with it."""
    code, printed = case.attempt(folder)
    lines = [line for line in printed.splitlines() if not line.startswith("bad image: ")]
    if code != case.code:
        return f"exit code {code} instead of {case.code}: {printed[-300:]}"
    if code and (len(lines) != 1 or not lines[0].startswith("ccrepro: error: ")):
        return f"not one line: {printed[-300:]}"
    missing = [text for text in case.says if text not in printed]
    return f"does not say {missing}: {printed[-300:]}" if missing else None


command(1, "unknown data set", 2, "train MNIST", "unknown data set 'MNIST'", "'digits'")
command(2, "a flag that is neither true nor false", 2, "train digits --normalize maybe", "'maybe'", "true or false")
command(3, "unknown option", 2, "train digits --bogus 1", "'--bogus'")
command(4, "no epochs", 2, "train digits --epochs 0", "epochs is 0", "at least 1")
command(5, "no GPU", 2, "train digits --device cuda", "no CUDA device", "device=cpu")
command(11, "batch larger than the data set", 2, "train digits --batch-size 5000", "5000", "1797")
command(12, "one cluster", 2, "train digits --n-clusters 1", "n_clusters is 1", "at least 2")
command(14, "missing folder", 3, "datasets get folder:/nowhere/at/all", "no folder /nowhere/at/all", "folder:PATH")


@case(6, "--resume without a checkpoint", 4, "no checkpoint", "Leave --resume out")
def _(folder: Path) -> Outcome:
    return run("train", "digits", "--resume", "--runs-dir", str(folder), "--results-dir", str(folder))


def settings(folder: Path, text: str) -> Outcome:
    (folder / "my.yaml").write_text(text)
    return run("recipe", "digits", "--settings", str(folder / "my.yaml"))


case(7, "YAML syntax", 2, "my.yaml:3:", "seed: 1")(lambda folder: settings(folder, "epochs: 3\nlr: [1, 2\nseed: 1\n"))
case(8, "unknown key", 2, "unknown setting 'temprature'")(lambda folder: settings(folder, "temprature: 1\n"))
case(9, "temperature 0", 2, "instance_temperature is 0", "above 0")(
    lambda folder: settings(folder, "instance_temperature: 0\n")
)
case(13, "3e-4, which YAML reads as text", 0, "lr: 0.0003")(lambda folder: settings(folder, "lr: 3e-4\n"))


@case(10, "learning rate far too high", 5, "epoch 1, step", "is nan", "Lower lr")
def _(folder: Path) -> Outcome:
    code, printed = run("train", "digits", "--lr", "1e30", "--runs-dir", str(folder), "--results-dir", str(folder))
    assert not list(folder.rglob("*.safetensors"))
    return code, printed


@case(15, "damaged CIFAR batch", 3, "data_batch_2 has MD5", "not d4bba439e000b95fd0a9bffe97cbabec")
def _(folder: Path) -> Outcome:
    base = folder / "cifar-10-batches-py"
    base.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (base / name).write_bytes(b"damaged")
    return run("datasets", "get", "cifar10", "--data-dir", str(folder))


@case(
    16, "download without a network", 3, "could not be fetched", "md5:c58f30108f718f92721af3b95e74349a", "Put it into"
)
def _(folder: Path) -> Outcome:
    archive = fetch.ARCHIVES["cifar10"]._replace(url="http://127.0.0.1:9/cifar-10-python.tar.gz")
    with mock.patch.dict(fetch.ARCHIVES, cifar10=archive):
        return run("datasets", "get", "cifar10", "--data-dir", str(folder))


def pictures(folder: Path, **more: bytes) -> Outcome:
    """A folder of two classes with a good picture each, and more files."""
    for kind in ("cat", "dog"):
        (folder / "mine" / kind).mkdir(parents=True)
        Image.new("RGB", (40, 30), "red").save(folder / "mine" / kind / "good.png")
    for name, content in more.items():
        (folder / "mine" / "cat" / f"{name}.jpg").write_bytes(content)
    return run("datasets", "get", f"folder:{folder / 'mine'}", "--data-dir", str(folder / "data"))


@case(17, "empty class folder", 3, "empty class folders: bird")
def _(folder: Path) -> Outcome:
    (folder / "mine" / "bird").mkdir(parents=True)
    return pictures(folder)


case(18, "empty file and text for pictures", 3, "2 of 4 pictures are bad", "empty.jpg: empty file", "text.jpg: not an")(
    lambda folder: pictures(folder, empty=b"", text=b"hello")
)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


case(19, "truncated JPEG", 3, "1 of 3 pictures are bad", "cut.jpg: damaged", "--skip-bad")(
    lambda folder: pictures(folder, cut=jpeg()[:2000])
)


@case(20, "decompression bomb", 3, "bomb.jpg", "196000000 pixels")
def _(folder: Path) -> Outcome:
    buffer = io.BytesIO()
    Image.new("1", (14000, 14000)).save(buffer, "PNG")
    return pictures(folder, bomb=buffer.getvalue())


@case(21, "ImageNet without a synset", 3, "n02690373 (airliner)", "1 of 10 synsets")
def _(folder: Path) -> Outcome:
    for synset in fetch.IMAGENET10:
        if synset != "n02690373":
            (folder / "train" / synset).mkdir(parents=True)
    data = str(folder / "data")
    return run("datasets", "get", "imagenet10", "--imagenet", str(folder / "train"), "--data-dir", data)


def damaged_newest(folder: Path, damage: Callable[[bytes], bytes]) -> Outcome:
    saved = Checkpoints(folder)
    for step in "12":
        saved.save(step, {"w": torch.zeros(500)}, {})
    path = folder / "checkpoint-2.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    return call(Checkpoints(folder).load)


DAMAGED = ("warning: checkpoint-2.safetensors is damaged", "Using the one before it", "checkpoint-1.safetensors")
case(22, "empty checkpoint", 0, *DAMAGED, "0 bytes")(lambda folder: damaged_newest(folder, lambda content: b""))
case(23, "checkpoint cut short", 0, *DAMAGED)(
    lambda folder: damaged_newest(folder, lambda content: content[: len(content) // 3])
)
case(26, "one flipped bit", 0, *DAMAGED, "SHA-256")(
    lambda folder: damaged_newest(folder, lambda content: content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
)


def weights(folder: Path, content: bytes) -> Outcome:
    (folder / "model.safetensors").write_bytes(content)
    return call(lambda: load_weights(build(recipe("digits"), 1), folder / "model.safetensors"))


case(24, "a web page for weights", 4, "is a web page")(lambda folder: weights(folder, b"<!DOCTYPE html><html></html>"))
case(25, "a pickle for weights", 4, "never loaded since it can run code")(
    lambda folder: weights(folder, b"\x80\x04cos\nsystem\n")
)


@case(27, "weights of another K", 4, "(10, 128), expected (15, 128)")
def _(folder: Path) -> Outcome:
    path = save_weights(build(recipe("digits"), 1), folder / "m.safetensors")
    return call(lambda: load_weights(build(recipe("digits", n_clusters=15), 1), path))


@case(28, "weights that are not finite", 4, "values in backbone.conv1.weight are not finite")
def _(folder: Path) -> Outcome:
    model = build(recipe("digits"), 1)
    model.backbone.conv1.weight.data[0] = float("nan")
    path = save_weights(model, folder / "m.safetensors")
    return call(lambda: load_weights(build(recipe("digits"), 1), path))


def notebook(folder: Path, *parameters: str, tagged: bool = True, output: str = "out.ipynb") -> Outcome:
    cells = [nbformat.v4.new_code_cell('seed = 0  # a number\nname = ""  # a text'), nbformat.v4.new_code_cell("seed")]
    cells[0].metadata["tags"] = ["parameters"] if tagged else []
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, folder / "made.ipynb")
    return run("notebook", str(folder / "made.ipynb"), str(folder / output), *parameters)


case(29, "unknown parameter", 2, "unknown parameter 'sede'", "'seed'")(lambda folder: notebook(folder, "sede=1"))
case(30, "no parameters cell", 2, "without parameters cell")(lambda folder: notebook(folder, "seed=1", tagged=False))
case(31, "a text for a number", 2, "seed is 'banana'", "an integer")(lambda folder: notebook(folder, "seed=banana"))
case(32, "a number for a text", 2, "name is 7", "a text")(lambda folder: notebook(folder, "name=007"))


@case(33, "output folder absent", 0)
def _(folder: Path) -> Outcome:
    outcome = notebook(folder, "seed=3", output="a/b/out.ipynb")
    assert (folder / "a/b/out.ipynb").exists()
    return outcome


@case(38, "no visible GPU", 2, "CUDA_VISIBLE_DEVICES is '7'", "device=cpu")
def _(folder: Path) -> Outcome:
    with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES="7"):
        return run("train", "digits", "--device", "cuda", "--runs-dir", str(folder), "--results-dir", str(folder))


@case(39, "other threads on resuming", 0, "warning: threads was 1 and is 2")
def _(folder: Path) -> Outcome:
    data = datasets.load("digits")
    data = dataclasses.replace(data, images=data.images[:128], sizes=data.sizes[:128], labels=data.labels[:128])
    config = recipe("digits", epochs=1)
    train.train(config, data, checkpoints=Checkpoints(folder, 0))
    try:
        return call(lambda: train.train(dataclasses.replace(config, threads=2), data, checkpoints=Checkpoints(folder)))
    finally:
        torch.set_num_threads(1)


@case(40, "too little disk", 3, "too little space", "0.0 GB are free", "--data-dir")
def _(folder: Path) -> Outcome:
    full = shutil.disk_usage(folder)._replace(free=1000)
    with mock.patch("ccrepro.datasets.pack.shutil.disk_usage", return_value=full):
        return pictures(folder)


CASES.sort(key=lambda case: case.number)
