"""One run: its folder, its log and its record.

The record is one JSON file, ``run.json``, written last: its presence means that the run is done. Tables and figures are
made from records alone.
"""

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import math
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccrepro.config import Config
from ccrepro.data import ImageSet
from ccrepro.errors import ConfigError, DataError
from ccrepro.evaluate import Clustering, cosine_histograms, evaluate, examples, fixed_rows, score, tsne
from ccrepro.metrics import contingency, scores
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.recipes import overrides, run_name
from ccrepro.runs.checkpoints import Checkpoints
from ccrepro.runs.weights import save_model
from ccrepro.runtime import storage
from ccrepro.runtime.device import cpu_name
from ccrepro.train import Epoch

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "openTSNE")

# When the feature space is pictured, as shares of all epochs: Fig. 4 has 0, 20, 50 and 100 of 1,000.
PICTURED = (0.0, 0.02, 0.05, 0.1, 0.3, 1.0)
POINTS = 600  # images that are pictured
SCORED = 10  # times that a run of the full method is scored on its way, evenly spaced, beside these
FEATURES = 2000  # images whose features are kept each time
EVERY = 10  # seconds between two lines on the terminal


class EpochLog:
    """A JSON line per epoch in a file, and on the terminal a line now and then with the time left.

    A training that is taken up again writes some epochs a second time: their first lines are dropped. ``clusters``:
    show how many are in use, the exponential of the entropy of the mean assignment. ``tensorboard``: write the numbers
    for TensorBoard too; raises `ConfigError` where that is not installed.
    """

    def __init__(self, path: Path, name: str, epochs: int, clusters: bool = True, tensorboard: bool = False):
        self.path, self.name, self.epochs, self.clusters = path, name, epochs, clusters
        self.start, self.printed, self.first = time.monotonic(), -math.inf, 0  # first: epoch that is written here
        self.board = _tensorboard(path.parent / "tensorboard") if tensorboard else None

    def write(self, epoch: Epoch, **more: Any) -> None:
        """Write an epoch's numbers; ``more`` goes into the file alone."""
        number, now = epoch["epoch"], time.monotonic()
        if not self.first:
            self.first = number
            lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
            storage.atomic_write(self.path, "".join(lines[: number - 1]))
        with self.path.open("a") as file:
            file.write(json.dumps({**epoch, "epochs": self.epochs, **more}) + "\n")
        if self.board:
            for name, value in epoch.items():
                self.board.add_scalar(name, value, number)
            self.board.flush()
        if now - self.printed >= EVERY or number == self.epochs:
            self.printed, rate = now, (now - self.start) / (number - self.first + 1)
            used = f"clusters used {math.exp(epoch['entropy']):.1f}  " if self.clusters else ""
            said = f"{self.name}  epoch {number}/{self.epochs}  loss {epoch['loss']:.3f}  {used}"
            print(f"{said}{rate:.2f} s/epoch  {rate * (self.epochs - number):.0f} s left", flush=True)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("TensorBoard is not installed. Run pip install 'ccrepro[tensorboard]'.") from None
    return SummaryWriter(str(folder))


class Run:
    """The folder of one run, held by this process alone: its checkpoints, a JSON line per epoch, the clustering at some
    epochs, and at the end the record.

    Pass `report` and `checkpoints` to `ccrepro.runs.resume.fit`, then call `finish` with what it returns. A run that
    was stopped goes on from its newest checkpoint; one that is done starts anew, and its record is gone until then.
    Raises `LockedError` where another process is at work on the same run.
    """

    def __init__(self, config: Config, data: ImageSet, runs_dir: str | Path = "runs", tensorboard: bool = False):
        self.config, self.data, self.start = config, data, time.monotonic()
        self.folder = run_folder(config, runs_dir)
        self._lock = storage.lock(self.folder)
        storage.sweep(self.folder)
        (self.folder / "run.json").unlink(missing_ok=True)
        self.checkpoints = Checkpoints(self.folder)
        self.clusters = config.heads != "instance"  # else a k-means would have to make them each time
        path, name = self.folder / "log.jsonl", run_name(config)
        self.log = EpochLog(path, name, config.epochs, self.clusters, tensorboard)

    def report(self, epoch: Epoch, model: ContrastiveClusteringModel) -> None:
        """Keep an epoch's numbers, and at some epochs the clustering; print a line now and then with the time left."""
        cosines = cosine_histograms(self.config, self.data, model)
        if self.clusters and epoch["epoch"] in _scored(self.config):
            self._keep(epoch["epoch"], evaluate(self.config, self.data, model), cosines)
        if epoch["epoch"]:
            self.log.write(epoch, cosines=cosines)

    def finish(
        self, model: ContrastiveClusteringModel | None, history: list[Epoch], commit: str = ""
    ) -> dict[str, Any]:
        """Cluster and score all images; write weights, assignments and the record, in the run's folder last.

        commit: of the code, where it is no clone that could tell.
        """
        clustering = evaluate(self.config, self.data, model)
        cosines = cosine_histograms(self.config, self.data, model) if model is not None else {}
        self._keep(self.config.epochs, clustering, cosines)
        if model is not None:
            save_model(model, self.config, self.folder / "model.safetensors", side=self.data.images.shape[2])
            _save_arrays(self.folder / "clustering.npz", **dataclasses.asdict(clustering))
        made_by = {"hardware": hardware(model) | self.checkpoints.machine, "versions": versions()}
        result = self._record(clustering, history, {**made_by, "commit": commit or git_commit()})
        storage.atomic_write(self.folder / "run.json", as_text(result))
        self.checkpoints.clear()
        self._lock.release()
        return result

    def _keep(self, epoch: int, clustering: Clustering, cosines: dict[str, list[int]]) -> None:
        """The assignments after an epoch, the features of `FEATURES` fixed images, and the cosines' histograms."""
        features = clustering.features[fixed_rows(len(clustering.features), FEATURES)]
        counts = {name: np.array(count) for name, count in cosines.items()}
        _save_arrays(_kept(self.folder, epoch), labels_pred=clustering.labels_pred, features=features, **counts)

    def _record(self, clustering: Clustering, history: list[Epoch], made_by: dict[str, Any]) -> dict[str, Any]:
        """Everything the tables and figures need of a run, as plain JSON values."""
        config, data = self.config, self.data
        return {
            **{name: getattr(config, name) for name in ("dataset", "variant", "preset", "seed")},
            "overrides": overrides(config),
            **score(config, data, clustering),
            "epochs": len(history),
            "seconds": round(sum(e["seconds"] for e in history) if history else time.monotonic() - self.start, 1),
            "resumed": self.checkpoints.resumed,
            "n_images": len(data.images),
            "packed_shape": list(data.images.shape[1:]),
            "n_clusters_used": len(np.unique(clustering.labels_pred)),
            "config": config.model_dump(),
            "data_sha256": data.sha256,
            **made_by,
            "class_names": data.class_names,
            "contingency": contingency(data.labels, clustering.labels_pred, config.n_clusters).tolist(),
            "examples": examples(data.labels, clustering, config.n_clusters),
            "history": {name: [float(f"{e[name]:.6g}") for e in history] for name in (history or [{}])[0]},
            **evolution(self.folder, config, data.labels),
        }


def _pictured(config: Config) -> set[int]:
    """The epochs after which the feature space is pictured: of an ablation, the last one alone."""
    return {round(share * config.epochs) for share in (PICTURED if config.variant == "cc" else PICTURED[-1:])}


def _scored(config: Config) -> set[int]:
    """The epochs after which a run is scored on its way; the last one is not among them."""
    return ({round(i / SCORED * config.epochs) for i in range(SCORED)} | _pictured(config)) - {config.epochs}


def _kept(folder: Path, epoch: int) -> Path:
    return folder / "epochs" / f"{epoch:05d}.npz"


def evolution(folder: Path, config: Config, labels: np.ndarray) -> dict[str, Any]:
    """``evolution``: scores, clusters used and histograms of cosines at some epochs, in their order; at some of these
    also ``x``, ``y`` and ``cluster`` of the pictured images, all in one t-SNE embedding (Fig. 4). ``tsne``: the last
    one, with ``label``. Where openTSNE is not installed there are no maps; `complete` adds them elsewhere."""
    epochs = sorted(_scored(config) | {config.epochs})
    kept = {epoch: _load_arrays(_kept(folder, epoch)) for epoch in epochs if _kept(folder, epoch).exists()}
    rows, pictured = fixed_rows(len(labels), POINTS), _pictured(config)
    shown = np.isin(fixed_rows(len(labels), FEATURES), rows)
    features = {epoch: arrays["features"][shown] for epoch, arrays in kept.items() if epoch in pictured}
    try:
        maps = dict(zip(features, tsne(list(features.values())), strict=True))
    except ImportError:
        print(f"{run_name(config)}  openTSNE is not installed: no maps of the feature space for now", flush=True)
        maps = {}
    found = []
    for epoch, arrays in kept.items():
        clusters = arrays.pop("labels_pred")
        found.append({"epoch": epoch, "scores": scores(labels, clusters), "n_clusters_used": len(np.unique(clusters))})
        del arrays["features"]
        found[-1] |= {"cosines": {name: counts.tolist() for name, counts in arrays.items()}} if arrays else {}
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
        raise DataError(f"{data.name} is not what {folder} was run on: their SHA-256 differ. Fetch the data set anew.")
    again = scores(data.labels, _load_arrays(folder / "clustering.npz")["labels_pred"])
    if any(abs(again[name] - value) > 1e-9 for name, value in record["scores"].items()):
        what = f"The assignments in {folder} score {again}, its record says {record['scores']}"
        raise DataError(f"{what}. Copy the run's folder again.")
    return {**record, **evolution(folder, Config(**record["config"]), data.labels)}


def as_text(record: dict[str, Any]) -> str:
    """A record as JSON, a line for each of its entries."""
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in record.items()) + "\n}\n"


def run_folder(config: Config, runs_dir: str | Path = "runs") -> Path:
    """Folder of a run below ``runs_dir``; overridden settings have a folder of their own."""
    return storage.ROOT / runs_dir / run_name(config)


def _save_arrays(path: Path, **arrays: np.ndarray | None) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: a for name, a in arrays.items() if a is not None})
    storage.atomic_write(path, buffer.getvalue())


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def hardware(model: ContrastiveClusteringModel | None) -> dict[str, Any]:
    """Names of what the run ran on."""
    gpu = torch.cuda.get_device_name() if model is not None and next(model.parameters()).is_cuda else None
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "gpu": gpu, "threads": torch.get_num_threads()}


def versions() -> dict[str, str]:
    """Of Python and of the packages on which the numbers depend, as far as these are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_commit() -> str:
    """The clone's commit, with "-dirty" where the code differs from it; "unknown" outside a clone."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(storage.ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "ccrepro", "notebooks", "pyproject.toml", "Makefile")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
