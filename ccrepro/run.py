"""One run: its folder, its log and its record.

A record is one JSON file. It is written to ``runs/<cell>/run.json`` (ignored by git; its presence means that the run is
done here) and, for a recipe without overrides, to ``results/runs/<cell>.json``, from which tables and figures are made.
One with overrides is published only by name (`publish`), under ``results/tried``, and shown with what differs.
"""

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccrepro import files
from ccrepro.checkpoint import Checkpoints, save_weights
from ccrepro.config import Config
from ccrepro.datasets import ImageSet
from ccrepro.errors import DataError
from ccrepro.evaluate import Clustering, cases, evaluate, feature_map, map_rows, score
from ccrepro.machine import cpu_name
from ccrepro.metrics import contingency, scores
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.train import Epoch

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "openTSNE")


# When the feature space is pictured, as shares of all epochs: Fig. 4 has 0, 20, 50 and 100 of 1,000.
PICTURED = (0.0, 0.02, 0.05, 0.1, 0.3, 1.0)
SCORED = 20  # times that a run is scored on its way, evenly spaced


class EpochLog:
    """A JSON line per epoch in a file, and on the terminal a line now and then with the time left.

    A training that is taken up again writes some epochs a second time: their first lines, and one that was cut off, are
    dropped. ``clusters``: show how many are in use, the exponential of the entropy of the mean assignment.
    """

    def __init__(self, path: Path, name: str, epochs: int, clusters: bool = True, every_seconds: float = 10):
        self.path, self.name, self.epochs, self.clusters, self.every = path, name, epochs, clusters, every_seconds
        self.start, self.printed = time.monotonic(), -math.inf
        self.first = math.inf  # the first epoch written here

    def write(self, epoch: Epoch) -> None:
        number, now = epoch["epoch"], time.monotonic()
        if self.first == math.inf:
            self._drop_from(number)
        with self.path.open("a") as file:
            file.write(json.dumps({**epoch, "epochs": self.epochs}) + "\n")
        self.first = min(self.first, number)
        if now - self.printed < self.every and number < self.epochs:
            return
        self.printed = now
        rate = (now - self.start) / (number - self.first + 1)
        used = f"clusters used {math.exp(epoch['entropy']):.1f}  " if self.clusters else ""
        print(
            f"{self.name}  epoch {number}/{self.epochs}  loss {epoch['loss']:.3f}  {used}"
            f"{rate:.2f} s/epoch  {rate * (self.epochs - number):.0f} s left",
            flush=True,
        )

    def _drop_from(self, number: int) -> None:
        """Keep the lines of earlier epochs alone."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        files.atomic_write(self.path, "".join(f"{line}\n" for line in lines if _number(line) < number))


class Run:
    """The folder of one run, held by this process alone: its checkpoints, a JSON line per epoch, the clustering at some
    epochs, and at the end the record.

    Pass `report` and `checkpoints` to `ccrepro.train.train`, then call `finish` with what it returns. A run that was
    stopped goes on from its newest checkpoint; one that is done starts anew, and its record is gone until then.
    Raises `LockedError` where another process is at work on the same run.
    """

    def __init__(
        self,
        config: Config,
        data: ImageSet,
        runs_dir: str | Path = "runs",
        results_dir: str | Path = "results",
        every_seconds: float = 10,
    ):
        self.config, self.data, self.results = config, data, files.ROOT / results_dir
        self.start, self.collapsed = time.monotonic(), False  # whether clusters have died
        self.folder = run_folder(config, runs_dir)
        self._lock = files.lock(self.folder)
        files.sweep(self.folder, ours=True)
        (self.folder / "run.json").unlink(missing_ok=True)
        self.checkpoints = Checkpoints(self.folder, config.checkpoint_seconds)
        clusters = config.heads != "instance"
        self.log = EpochLog(self.folder / "log.jsonl", config.cell, config.epochs, clusters, every_seconds)
        self.scored = scored(config)

    def report(self, epoch: Epoch, model: ContrastiveClusteringModel) -> None:
        """Keep an epoch's numbers, and at some epochs the clustering; print a line now and then with the time left."""
        number = epoch["epoch"]
        if number in self.scored and self.config.heads != "instance":  # which needs a k-means each time
            self._keep(number, evaluate(self.config, self.data, model))
        if number == 0:
            return
        self.log.write(epoch)
        self._warn_of_collapse(epoch)

    def _warn_of_collapse(self, epoch: Epoch) -> None:
        """Say in words when clusters die: where the entropy of the mean assignment is that of half of them or fewer."""
        effective, clusters = math.exp(epoch["entropy"]), self.config.n_clusters
        collapsed = effective <= clusters / 2
        if collapsed and not self.collapsed:
            print(
                f"warning: {self.config.cell}  epoch {epoch['epoch']}: the images lie in {effective:.1f} of {clusters} "
                f"clusters, the largest holds {epoch['largest_share']:.0%}; a collapse, if it lasts",
                flush=True,
            )
        self.collapsed = collapsed

    def finish(self, model: ContrastiveClusteringModel | None, history: list[Epoch], **more: Any) -> dict[str, Any]:
        """Cluster and score all images; write weights, assignments and the record, in the run's folder last.

        ``more``: further entries of the record, as plain JSON values.
        """
        clustering = evaluate(self.config, self.data, model)
        self._keep(self.config.epochs, clustering)
        if model is not None:
            save_weights(model, self.folder / "model.safetensors")
            _save_arrays(self.folder / "clustering.npz", **dataclasses.asdict(clustering))
        result = self._record(model, clustering, history) | more
        if not self.config.overrides():
            publish(result, self.results)
        files.atomic_write(self.folder / "run.json", as_text(result))
        self.checkpoints.clear()
        self._lock.close()
        return result

    def _keep(self, epoch: int, clustering: Clustering) -> None:
        """The assignments after an epoch, and the features of the images that are pictured."""
        rows = map_rows(len(clustering.features))
        features = clustering.features[rows] if epoch in pictured(self.config) else np.zeros(0)
        _save_arrays(_kept(self.folder, epoch), labels_pred=clustering.labels_pred, features=features)

    def _record(
        self, model: ContrastiveClusteringModel | None, clustering: Clustering, history: list[Epoch]
    ) -> dict[str, Any]:
        """Everything the tables and figures need of a run, as plain JSON values."""
        config, data = self.config, self.data
        return {
            "dataset": config.dataset,
            "variant": config.variant,
            "profile": config.profile,
            "seed": config.seed,
            "overrides": config.overrides(),
            **score(config, data, clustering),
            "epochs": len(history),
            "seconds": round(sum(e["seconds"] for e in history) if history else time.monotonic() - self.start, 1),
            "resumed": self.checkpoints.resumed,
            "n_images": len(data.images),
            "packed_shape": list(data.images.shape[1:]),
            "n_clusters_used": len(np.unique(clustering.labels_pred)),
            "config": dataclasses.asdict(config),
            "data_sha256": data.sha256,
            "hardware": hardware(model),
            "versions": versions(),
            "commit": files.commit(),
            "class_names": data.class_names,
            "contingency": contingency(data.labels, clustering.labels_pred, config.n_clusters).tolist(),
            "cases": cases(data.labels, clustering, config.n_clusters),
            "history": {name: [_short(e[name]) for e in history] for name in (history[0] if history else ())},
            **evolution(self.folder, config, data.labels),
        }


def pictured(config: Config) -> set[int]:
    """The epochs after which the feature space is pictured."""
    return {round(share * config.epochs) for share in PICTURED}


def scored(config: Config) -> set[int]:
    """The epochs after which a run is scored on its way; the last one is not among them."""
    return ({round(i / SCORED * config.epochs) for i in range(SCORED)} | pictured(config)) - {config.epochs}


def _kept(folder: Path, epoch: int) -> Path:
    return folder / "epochs" / f"{epoch:05d}.npz"


def evolution(folder: Path, config: Config, labels: np.ndarray) -> dict[str, Any]:
    """``evolution``: scores and clusters used at some epochs, in their order; at some of these also ``x``, ``y`` and
    ``cluster`` of the pictured images, all in one t-SNE embedding (Fig. 4). ``tsne``: the last of these pictures, with
    ``label``. Where openTSNE is not installed there are no pictures; `complete` adds them elsewhere."""
    epochs = sorted(scored(config) | {config.epochs})
    kept = {epoch: _load_arrays(_kept(folder, epoch)) for epoch in epochs if _kept(folder, epoch).exists()}
    features = {epoch: arrays["features"] for epoch, arrays in kept.items() if len(arrays["features"])}
    try:
        maps = dict(zip(features, feature_map(list(features.values())), strict=True))
    except ImportError:
        print(f"{config.cell}  openTSNE is not installed: no maps of the feature space for now", flush=True)
        maps = {}
    rows, found = map_rows(len(labels)), []
    for epoch, arrays in kept.items():
        clusters = arrays["labels_pred"]
        found.append({"epoch": epoch, "scores": scores(labels, clusters), "n_clusters_used": len(np.unique(clusters))})
        if epoch in maps:
            found[-1] |= {**maps[epoch], "cluster": clusters[rows].tolist()}
    if not maps:
        return {"evolution": found}
    last = {name: found[-1][name] for name in ("x", "y", "cluster")}
    return {"evolution": found, "tsne": {**last, "label": labels[rows].tolist()}}


def complete(record: dict[str, Any], folder: Path, data: ImageSet) -> dict[str, Any]:
    """The record of a run that was made elsewhere, with what could not be made there: the maps of the feature space.

    Raises `DataError` unless the images are those it was run on and their assignments give the scores it states.
    """
    if record["data_sha256"] != data.sha256:
        fix = "Fetch the data set anew"
        raise DataError(f"{data.name} differs from what was run on", str(folder), "Their SHA-256 must be equal", fix)
    again = scores(data.labels, _load_arrays(folder / "clustering.npz")["labels_pred"])
    if any(abs(again[name] - value) > 1e-9 for name, value in record["scores"].items()):
        what = f"the assignments score {again}, the record says {record['scores']}"
        raise DataError(what, str(folder), "They must be equal", "Bring the run home again")
    config = Config(**record["config"])
    return {**record, "overrides": config.overrides(), **evolution(folder, config, data.labels)}


def publish(record: dict[str, Any], results_dir: str | Path = "results") -> Path:
    """Write a record below ``results/runs``, or below ``results/tried`` where it overrides its recipe."""
    config = Config(**record["config"])
    path = files.ROOT / results_dir / ("tried" if config.overrides() else "runs") / f"{run_name(config)}.json"
    return files.atomic_write(path, as_text(record))


def as_text(record: dict[str, Any]) -> str:
    """A record as JSON, a line for each of its entries."""
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in record.items()) + "\n}\n"


def run_name(config: Config) -> str:
    """The cell, and what differs from its recipe: profile/dataset/variant-seedK+epochs=120."""
    return config.cell + "".join(f"+{name}={_file_name(value)}" for name, value in config.overrides().items())


def run_folder(config: Config, runs_dir: str | Path = "runs") -> Path:
    """Folder of a run below ``runs_dir``; overridden settings have a folder of their own."""
    return files.ROOT / runs_dir / run_name(config)


def _file_name(value: Any) -> str:
    return re.sub(r"[^\w.,-]", "", str(value))


def _save_arrays(path: Path, **arrays: np.ndarray | None) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: a for name, a in arrays.items() if a is not None})
    files.atomic_write(path, buffer.getvalue())


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _number(line: str) -> float:
    """The epoch of a line of the log; infinite for one that was cut off."""
    try:
        return json.loads(line)["epoch"]
    except ValueError:
        return math.inf


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def hardware(model: ContrastiveClusteringModel | None) -> dict[str, Any]:
    """Names of what the run ran on."""
    on_gpu = model is not None and next(model.parameters()).is_cuda
    gpu = torch.cuda.get_device_name() if on_gpu else None
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "gpu": gpu, "threads": torch.get_num_threads()}


def versions() -> dict[str, str]:
    """Of Python and of the packages on which the numbers depend, as far as these are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
