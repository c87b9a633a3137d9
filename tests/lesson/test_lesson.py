"""The lesson runs to its end with every folded answer filled in, and what it trains on the way is what it says."""

import base64
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from ccrepro.lesson import demos
from ccrepro.recipes import recipe
from ccrepro.reproduce import notebooks

LESSON = Path(__file__).parents[2] / "notebooks/01_method.ipynb"


def cells_tagged(book, tag):
    return [c for c in book.cells if tag in c.metadata.get("tags", [])]


def said(cell):
    return "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in cell.outputs)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The lesson run top to bottom by papermill in smoke settings, with every answer filled in."""
    book, folder = nbformat.read(LESSON, as_version=4), tmp_path_factory.mktemp("lesson")
    for cell, answer in zip(cells_tagged(book, "exercise"), cells_tagged(book, "answer"), strict=True):
        (cell.source,) = re.findall(r"```python\n(.*?)\n```", answer.source, flags=re.S)
    nbformat.write(book, folder / "01_method.ipynb")
    notebooks.run(folder / "01_method.ipynb", folder / "out.ipynb", {"epochs": 2, "entropy_epochs": 1})
    return nbformat.read(folder / "out.ipynb", as_version=4)


@pytest.mark.slow
def test_every_folded_answer_is_right(executed):
    verdicts = [said(c).split(". ")[0] for c in cells_tagged(executed, "check")]
    assert len(verdicts) == 11
    assert verdicts == [f"Exercise {i}: right" for i in range(1, 12)]


@pytest.mark.slow
def test_by_hand_equals_the_package(executed):
    for needle in ("loss.instance_loss(z_a", "metrics.accuracy(data"):
        (cell,) = [c for c in executed.cells if c.cell_type == "code" and needle in c.source]
        by_hand, package = re.findall(r"\d+\.\d+", said(cell))
        assert by_hand == package


@pytest.mark.slow
def test_executed_lesson_shows_sliders_as_images_and_keeps_no_widget(executed):
    moved = [c for c in executed.cells if "sliders.Sliders(" in c.source]
    assert len(moved) == 2
    assert all(set(c.outputs[0].data) == {"image/png", "text/plain"} for c in moved)
    assert all(base64.b64decode(c.outputs[0].data["image/png"]).startswith(b"\x89PNG") for c in moved)
    assert "widgets" not in executed.metadata


def test_exercises_are_stated_open_and_answered():
    book = nbformat.read(LESSON, as_version=4)
    kinds = [(c.metadata.get("tags", [""]) or [""])[0] for c in book.cells]
    for i in (i for i, kind in enumerate(kinds) if kind == "exercise"):
        assert kinds[i + 1 : i + 3] == ["check", "answer"]
        assert "..." in book.cells[i].source
        assert book.cells[i - 1].source.startswith(f"**Exercise {kinds[:i].count('exercise') + 1}**")
        assert book.cells[i + 2].source.startswith("<details>")


def test_example_rows_are_assignments(digits):
    images, *views = demos.example(digits)
    assert images.shape == (9, 1, 8, 8)
    assert all(torch.allclose(y.sum(1), torch.ones(9)) for y in views)


@pytest.mark.slow
def test_training_gives_a_network_and_its_record_and_leaves_no_file(digits, root):
    network, record = demos.train(recipe("digits", "demo", epochs=2, n_clusters=3, batch_size=512), digits)
    assert network(torch.zeros(2, 1, 8, 8))[1].shape == (2, 3)
    assert len(record["history"]["loss"]) == record["epochs"] == 2
    assert not [*root.rglob("run.json")]


@pytest.mark.slow
def test_entropy_trials_differ_in_the_term_and_the_heads_only(digits):
    trials = demos.entropy_trials(digits, 1, [3])
    assert trials.trained.tolist() == ["both heads"] * 2 + ["cluster head alone"] * 2
    assert all(sizes.sum() == 1797 and (np.diff(sizes) <= 0).all() for sizes in trials.sizes)
    assert trials.entropy.str[0].nunique() == 4
    table = demos.entropy_table(trials)
    assert table["entropy term"].tolist() == ["with", "without", "with", "without"]
    assert table["empty clusters"].tolist() == [str((sizes == 0).sum()) for sizes in trials.sizes]
    assert float(table["largest cluster"][0]) == pytest.approx(trials.sizes[0][0] / 1797, abs=5e-4)
