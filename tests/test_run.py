import dataclasses
import json

import numpy as np
import pytest
import torch

from ccrepro import results, run
from ccrepro.checkpoint import load_weights
from ccrepro.config import recipe
from ccrepro.evaluate import evaluate
from ccrepro.metrics import accuracy, scores
from ccrepro.model import build
from ccrepro.train import train

REQUIRED = {
    "dataset",
    "variant",
    "profile",
    "seed",
    "config",
    "scores",
    "epochs",
    "seconds",
    "hardware",
    "versions",
    "commit",
}


@pytest.fixture
def done(root, patterns, tiny):
    this = run.Run(tiny, patterns)
    return this, this.finish(*train(tiny, patterns, this.report))


def test_record_has_what_tables_and_figures_need(done, tiny):
    record = done[1]
    assert set(record) >= REQUIRED
    assert set(record["scores"]) == {"nmi", "acc", "ari"}
    assert record["config"] == dataclasses.asdict(tiny)
    assert record["overrides"] == {"n_clusters": 3, "batch_size": 32, "epochs": 2}
    assert len(record["history"]["loss"]) == record["epochs"] == 2
    assert np.sum(record["contingency"]) == 96
    assert np.trace(record["contingency"]) / 96 == pytest.approx(record["scores"]["acc"])
    assert json.loads(json.dumps(record)) == json.loads(json.dumps(record, allow_nan=False))


def test_record_follows_the_clustering_over_the_epochs(done, patterns, tiny):
    record = done[1]
    assert [e["epoch"] for e in record["evolution"]] == [0, 1, 2]
    assert record["evolution"][-1]["scores"] == record["scores"]
    untrained = evaluate(tiny, patterns, build(tiny, 1))
    assert record["evolution"][0]["scores"] == scores(patterns.labels, untrained.labels_pred)
    assert record["evolution"][0]["cluster"] == untrained.labels_pred.tolist()  # all 96 are pictured
    assert record["tsne"]["label"] == patterns.labels.tolist()
    assert record["tsne"]["x"] == record["evolution"][-1]["x"] != record["evolution"][0]["x"]


def test_overridden_run_is_kept_but_not_published(done, patterns, tiny, root):
    this, record = done
    assert this.folder == root / "runs/demo/digits/cc-seed0+n_clusters=3+batch_size=32+epochs=2"
    assert json.loads((this.folder / "run.json").read_text())["scores"] == record["scores"]
    assert not (root / "results").exists()
    kept = np.load(this.folder / "clustering.npz")
    assert accuracy(patterns.labels, kept["labels_pred"]) == record["scores"]["acc"]
    assert kept["features"].shape == (96, 64)
    model = build(tiny, 1)
    load_weights(model, this.folder / "model.safetensors")
    assert np.array_equal(evaluate(tiny, patterns, model).labels_pred, kept["labels_pred"])


def test_plain_run_is_published_and_found(root, digits):
    config = recipe("digits", variant="kmeans-pixels", seed=3)
    this = run.Run(config, digits)
    record = this.finish(None, [])
    assert record["hardware"]["gpu"] is None
    assert this.folder == root / "runs/demo/digits/kmeans-pixels-seed3"
    assert (root / "results/runs/demo/digits/kmeans-pixels-seed3.json").read_text().count("\n") > 10
    runs = results.load_runs("demo")
    assert runs.loc[0, ["dataset", "variant", "seed", "epochs"]].tolist() == ["digits", "kmeans-pixels", 3, 0]
    assert runs.loc[0, "acc"] == record["scores"]["acc"]
    records = results.load_records("demo")
    assert [r["seed"] for r in results.find_records(records, "kmeans-pixels")] == [3]
    assert results.find_records(records, "cc") == []
    assert [r["seed"] for r in results.load_records("demo", datasets=["digits"], seeds=[3, 4])] == [3]
    assert results.load_records("demo", datasets=["cifar10"]) == results.load_records("demo", seeds=[4]) == []


def test_run_logs_every_epoch_and_prints_now_and_then(root, patterns, tiny, capsys):
    this = run.Run(dataclasses.replace(tiny, epochs=50), patterns, every_seconds=1000)
    model = build(tiny, 1)
    for epoch in range(1, 51):
        this.report({"epoch": epoch, "loss": 7.0, "entropy": 1.0, "largest_share": 0.4, "seconds": 0.1}, model)
    assert [json.loads(line)["epoch"] for line in this.log.path.read_text().splitlines()] == list(range(1, 51))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2  # the first and the last
    assert "epoch 1/50" in lines[0]
    assert "s left" in lines[0]
    assert "epoch 50/50" in lines[1]


def test_hardware_names_the_cpu():
    assert run.hardware(None)["cpu"]
    assert run.hardware(None)["threads"] == torch.get_num_threads()


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(run, "PACKAGES", ("torch", "no-such-package"))
    assert set(run.versions()) == {"python", "torch"}
