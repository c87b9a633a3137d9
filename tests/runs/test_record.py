import json
import os
import shutil

import numpy as np
import pytest
import torch

from ccrepro.errors import DataError, LockedError
from ccrepro.evaluate import evaluate
from ccrepro.metrics import accuracy, scores
from ccrepro.model import build
from ccrepro.recipes import recipe
from ccrepro.runs.record import Run
from ccrepro.runs.resume import fit
from ccrepro.runs.weights import load_model

REQUIRED = {"dataset", "variant", "preset", "seed", "config", "scores", "epochs", "seconds", "hardware", "versions"}
REQUIRED |= {"commit", "data_sha256", "class_names", "examples", "n_images", "images", "n_clusters_used"}


@pytest.fixture
def done(root, patterns, tiny):
    with Run(tiny, patterns) as this:
        return this, this.finish(*fit(tiny, patterns, this.report))


def test_a_record_has_what_tables_and_figures_need(done, patterns, tiny):
    made = done[1]
    assert set(made) >= REQUIRED
    assert set(made["scores"]) == {"nmi", "acc", "ari"}
    assert made["config"] == tiny.model_dump()
    assert made["overrides"] == {"n_clusters": 3, "batch_size": 32, "epochs": 2}
    assert len(made["history"]["loss"]) == made["epochs"] == 2
    assert np.sum(made["contingency"]) == 96
    assert np.trace(made["contingency"]) / 96 == pytest.approx(made["scores"]["acc"])
    assert (made["data_sha256"], made["n_images"], made["images"]) == (patterns.sha256, 96, "96 images of 8×8 pixels")
    assert made["hardware"]["cpu"]
    assert "torch" in made["versions"]
    json.dumps(made, allow_nan=False)


def test_a_record_follows_the_clustering_over_the_epochs(done, patterns, tiny):
    made = done[1]
    assert [e["epoch"] for e in made["evolution"]] == [0, 1, 2]
    assert made["evolution"][-1]["scores"] == made["scores"]
    untrained = evaluate(tiny, patterns, build(tiny, 1))
    assert made["evolution"][0]["scores"] == scores(patterns.labels, untrained.labels_pred)
    assert made["evolution"][0]["cluster"] == untrained.labels_pred.tolist()  # all 96 are pictured
    assert made["tsne"]["label"] == patterns.labels.tolist()
    assert made["tsne"]["x"] == made["evolution"][-1]["x"] != made["evolution"][0]["x"]


def test_a_run_leaves_its_record_its_model_and_its_clustering_in_its_folder(done, patterns, tiny, root):
    this, made = done
    assert this.folder == root / "runs/demo/digits/cc-2ep-n_clusters=3-batch_size=32-seed0"
    assert json.loads((this.folder / "run.json").read_text())["scores"] == made["scores"]
    assert [path.name for path in root.iterdir()] == ["runs"]  # nothing is published
    kept = np.load(this.folder / "clustering.npz")
    assert accuracy(patterns.labels, kept["labels_pred"]) == made["scores"]["acc"]
    assert kept["features"].shape == (96, 64)
    model, config, about = load_model(this.folder)
    assert (config, about) == (tiny, {"channels": 1})
    assert np.array_equal(evaluate(tiny, patterns, model).labels_pred, kept["labels_pred"])


def test_a_baseline_has_a_record_and_no_model(root, digits):
    with Run(recipe("digits", "demo", "kmeans-pixels", seed=3), digits) as this:
        made = this.finish(None, [], commit="abc")
    assert this.folder == root / "runs/demo/digits/kmeans-pixels-seed3"
    assert (made["epochs"], made["commit"], made["hardware"]["gpu"]) == (0, "abc", None)
    assert json.loads((this.folder / "run.json").read_text()) == json.loads(json.dumps(made))
    assert not (this.folder / "model.safetensors").exists()


def test_a_run_logs_every_epoch_and_prints_now_and_then(root, patterns, tiny, capsys):
    this = Run(tiny.replace(epochs=50), patterns)
    model = build(tiny, 1)
    for epoch in range(1, 51):
        this.report({"epoch": epoch, "loss": 7.0, "entropy": 1.0, "largest_share": 0.4, "seconds": 0.1}, model)
    assert [json.loads(line)["epoch"] for line in this.log.path.read_text().splitlines()] == list(range(1, 51))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2  # the first and the last
    assert "epoch 1/50" in lines[0]
    assert "s left" in lines[0]
    assert "epoch 50/50" in lines[1]


def test_a_second_writer_is_told_who_has_the_folder_and_a_copy_of_a_folder_is_free(root, patterns, tiny):
    with Run(tiny, patterns) as this:
        with pytest.raises(LockedError, match=f"is locked by process {os.getpid()} on "), Run(tiny, patterns):
            pass
        this.checkpoints.save("0", {}, {})
        shutil.copytree(root / "runs", root / "copied")
        with Run(tiny, patterns, "copied"):
            pass
    with Run(tiny, patterns):
        pass


class Killed(BaseException):
    """In the place of a signal that ends the process."""


def killed(*arguments, **more):
    raise Killed


def test_an_error_frees_the_folder_and_gives_threads_back_though_its_traceback_lives_on(root, patterns, tiny):
    """As in JupyterLab, where a cell that was interrupted is run again."""
    config, before = tiny.replace(threads=torch.get_num_threads() + 1), torch.get_num_threads()
    with pytest.raises(Killed) as kept, Run(config, patterns):
        fit(config, patterns, killed)
    assert torch.get_num_threads() == before
    with Run(config, patterns):
        assert torch.get_num_threads() == before + 1
    assert kept.tb is not None


def test_a_run_that_is_done_stays_until_another_has_been_made_anew(done, patterns, tiny, monkeypatch):
    this, made = done

    def again(restart=False):
        with Run(tiny, patterns, restart=restart) as run:
            return run.record or run.finish(*fit(tiny, patterns, run.report, run.checkpoints), commit="new")

    assert again()["seconds"] == made["seconds"]
    remove = shutil.rmtree
    for step, commit in (
        (("ccrepro.runs.record.evaluate", killed), made["commit"]),
        (("shutil.rmtree", killed), "new"),  # as it takes the place of the old one
        (("shutil.rmtree", lambda folder, **more: remove(folder) or killed()), "new"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(*step)
            with pytest.raises(Killed):
                again(restart=True)
        assert again()["commit"] == commit
    names = [path.name for path in sorted(this.folder.parent.iterdir())]
    assert names == [f".{this.folder.name}.lock", this.folder.name]


def test_a_record_of_another_run_is_no_record_of_this_one(done, patterns, tiny):
    this, made = done
    (this.folder / "run.json").write_text(json.dumps(made | {"seed": 1}))
    with (
        pytest.raises(DataError, match=r"not the record of such a run: seed is 1, by its settings 0"),
        Run(tiny, patterns),
    ):
        pass
