import dataclasses
import json

import numpy as np
import pytest
import torch

from ccrepro import results, run
from ccrepro.config import recipe
from ccrepro.evaluate import evaluate
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
def done(patterns, tiny):
    model, history = train(tiny, patterns)
    clustering = evaluate(tiny, patterns, model)
    return run.record(tiny, patterns, model, clustering, history), tiny, model, clustering


def test_record_has_what_tables_and_figures_need(done):
    record = done[0]
    assert set(record) >= REQUIRED
    assert set(record["scores"]) == {"nmi", "acc", "ari"}
    assert record["config"] == dataclasses.asdict(done[1])
    assert record["overrides"] == {"n_clusters": 3, "batch_size": 32, "epochs": 2}
    assert len(record["history"]["loss"]) == record["epochs"] == 2
    assert np.sum(record["contingency"]) == 96
    assert np.trace(record["contingency"]) / 96 == pytest.approx(record["scores"]["acc"])
    assert json.loads(json.dumps(record)) == json.loads(json.dumps(record, allow_nan=False))


def test_overridden_run_is_kept_but_not_published(done, root):
    path = run.save(*done)
    assert path == root / "runs/demo/digits/cc-seed0+n_clusters=3+batch_size=32+epochs=2/run.json"
    assert not (root / "results").exists()
    kept = np.load(path.with_name("clustering.npz"))
    assert np.array_equal(kept["labels_pred"], done[3].labels_pred)
    assert (path.parent / "model.safetensors").stat().st_size > 1000


def test_plain_run_is_published_and_found(root, digits):
    config = recipe("digits", variant="kmeans-pixels", seed=3)
    clustering = evaluate(config, digits, None)
    record = run.record(config, digits, None, clustering, [])
    assert record["hardware"]["gpu"] is None
    assert run.save(record, config, None, clustering) == root / "runs/demo/digits/kmeans-pixels-seed3/run.json"
    assert (root / "results/runs/demo/digits/kmeans-pixels-seed3.json").read_text().count("\n") > 10
    runs = results.load_runs("demo")
    assert runs.loc[0, ["dataset", "variant", "seed", "epochs"]].tolist() == ["digits", "kmeans-pixels", 3, 0]
    assert runs.loc[0, "acc"] == record["scores"]["acc"]
    records = results.load_records("demo")
    assert [r["seed"] for r in results.find_records(records, "kmeans-pixels")] == [3]
    assert results.find_records(records, "kmeans-pixels", "cifar10") == results.find_records(records, "cc") == []


def test_log_keeps_every_epoch_and_prints_now_and_then(root, tiny, capsys):
    log = run.Log(dataclasses.replace(tiny, epochs=50), every_seconds=1000)
    for epoch in range(1, 51):
        log({"epoch": epoch, "loss": 7.0, "seconds": 0.1})
    assert [json.loads(line)["epoch"] for line in log.path.read_text().splitlines()] == list(range(1, 51))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2  # the first and the last
    assert "epoch 1/50" in lines[0]
    assert "s left" in lines[0]
    assert "epoch 50/50" in lines[1]


def test_hardware_names_the_cpu():
    assert run.hardware(None)["cpu"]
    assert run.hardware(None)["threads"] == torch.get_num_threads()
