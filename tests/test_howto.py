"""Every command and every piece of Python in the how-to pages runs as it is written, on small pictures."""

import io
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from test_collection import picture

from ccrepro import checkpoint, cli, config, datasets, foreign
from ccrepro.datasets import pack, sources
from ccrepro.model import build

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ["own_pictures", "models", "gpu", "results"]
SHORT = ["--epochs", "1", "--checkpoint-seconds", "600"]  # for what a test can wait
QUICK = {
    "ccrepro cluster": [*SHORT, "--image-size", "16"],
    "ccrepro train cifar10": [*SHORT, "--backbone", "small", "--batch-size", "10"],
}


def blocks(page, kind):
    return re.findall(rf"```{kind}\n(.*?)```", (DOCS / f"{page}.md").read_text(), flags=re.S)


@pytest.fixture
def place(root, monkeypatch):
    """A folder with all that the pages speak of."""
    rng = np.random.default_rng(0)
    (root / "photos").mkdir()
    for i in range(36):
        picture(i % 3, rng).save(root / f"photos/{i:02d}.png")
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), root / "resnet18.pth")
    theirs = config.recipe("cifar10", "paper")
    foreign.save_authors(build(theirs), theirs, root / "checkpoint_1000.tar", 1000)
    settings = config.recipe("cifar10", "paper", backbone="resnet18")
    checkpoint.save_model(build(settings), settings, root / "model.safetensors")
    images = rng.integers(0, 256, (20, 3, 32, 32)).astype(np.uint8)
    cifar = datasets.ImageSet("cifar10", images, np.full((20, 2), 32), np.arange(20) % 10, tuple("0123456789"), "made")
    load = datasets.load
    monkeypatch.setattr(datasets, "load", lambda name, *more: cifar if name == "cifar10" else load(name, *more))
    monkeypatch.chdir(root)
    return root


def run(line, monkeypatch, capsys):
    """One line of shell: a command of ours, perhaps fed by another command, perhaps into a file."""
    before, pipe, command = line.rpartition(" | ")
    command, redirected, target = command.partition(" > ")
    if pipe:
        fed = subprocess.run(before, shell=True, capture_output=True, text=True, check=True).stdout
        monkeypatch.setattr("sys.stdin", io.StringIO(fed))
    program, *arguments = shlex.split(command, comments=True)
    assert program == "ccrepro"
    quick = [option for start, options in QUICK.items() if command.startswith(f"{start} ") for option in options]
    capsys.readouterr()
    assert cli.main([*arguments, *quick]) == 0, line
    printed = capsys.readouterr().out
    if redirected:
        Path(target).write_text(printed)
    return printed


@pytest.fixture
def lent(place, monkeypatch):
    """A packed set of 60 noisy pictures, and a queue with one small cell on them; here and there are one folder."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 3, 32, 32)).astype(np.uint8), np.arange(60) % 10
    (place / "source").write_text("made here")
    source = sources.Bundle([place / "source"], lambda: sources.Arrays(images, labels, list("0123456789")))
    packed = pack.write(place / "packed/cifar10", source)
    monkeypatch.setenv("CCREPRO_DATA", str(place))
    monkeypatch.setattr(datasets, "load", lambda name, *more: datasets.ImageSet(name, *packed))
    cell = "{dataset: cifar10, profile: fast, backbone: small, batch_size: 16, epochs: 1}"
    (place / "gpu.yaml").write_text(f"schedules: {{}}\nqueue:\n- {cell}\n")


@pytest.mark.parametrize("page", PAGES)
def test_commands_run(page, place, request, monkeypatch, capsys):
    if page == "gpu":
        request.getfixturevalue("lent")
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    assert lines
    for line in lines:
        assert run(line, monkeypatch, capsys) or ">" in line
    if page == "own_pictures":
        for name in re.findall(r"`(clusters/[\w.]+)", (DOCS / f"{page}.md").read_text()):
            assert (place / name).exists(), name
        assert len((place / "predictions.jsonl").read_text().splitlines()) == 36


@pytest.mark.parametrize("page", ["python", "results"])
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert blocks(page, "python")
    for block in blocks(page, "python"):
        exec(compile(block, f"docs/{page}.md", "exec"), {})


def test_make_knows_what_the_pages_ask_of_it():
    lines = [line for block in blocks("models", "make") for line in block.splitlines()]
    assert len(lines) == 2
    for line in lines:
        done = subprocess.run(f"{line} --dry-run", shell=True, cwd=DOCS.parent, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "-m ccrepro" in done.stdout


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda p: p.stem)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (DOCS / link).exists(), link
