"""One run: its folder, its log and its record.

The record, ``run.json``, is written last: a run that has one is done. Tables and figures are made from it alone.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from ccrepro.config import Config
from ccrepro.data import ImageSet
from ccrepro.evaluate import Clustering, evaluate, score
from ccrepro.metrics import contingency
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.recipes import overrides, run_name
from ccrepro.runs import evolution
from ccrepro.runs.checkpoints import Checkpoints
from ccrepro.runs.finished import Record, read, run_folder
from ccrepro.runs.weights import save_model
from ccrepro.runtime import storage
from ccrepro.runtime.device import choose_device, cpu_name, threads
from ccrepro.train import Epoch

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn")
EVERY = 10  # seconds between two lines on the terminal


def planned(config: Config) -> str:
    """What a training is about to do, in words. Raises `ConfigError` where its device is missing."""
    network, side = f"network {config.backbone} on {choose_device(config.device).type}", config.image_size
    return f"{network}, batches of {config.batch_size} images, views of {side}×{side} pixels"


class EpochLog:
    """Writes a JSON line per epoch to a file, and now and then a line with the time left to the terminal.

    ``clusters`` shows how many clusters are in use, the exponential of the entropy of the mean assignment. A resumed
    training writes some epochs a second time: their first lines are dropped.
    """

    def __init__(self, path: Path, name: str, epochs: int, clusters: bool = True):
        self.path, self.name, self.epochs, self.clusters = path, name, epochs, clusters
        self.start, self.printed, self.first = time.monotonic(), -math.inf, 0  # first: epoch that is written here

    def write(self, epoch: Epoch, **more: Any) -> None:
        """Write an epoch's numbers, of which epoch 0 has none; ``more`` goes into the file only."""
        number, now = epoch["epoch"], time.monotonic()
        if not number:
            return
        if not self.first:
            self.first = number
            lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
            storage.atomic_write(self.path, "".join(lines[: number - 1]))
        with self.path.open("a") as file:
            file.write(json.dumps({**epoch, "epochs": self.epochs, **more}) + "\n")
        if now - self.printed >= EVERY or number == self.epochs:
            self.printed, rate = now, (now - self.start) / (number - self.first + 1)
            used = f"  clusters used {math.exp(epoch['entropy']):.1f}" if self.clusters else ""
            said = f"{self.name}  epoch {number}/{self.epochs}  loss {epoch['loss']:.3f}{used}"
            print(f"{said}  {rate:.2f} s/epoch  {rate * (self.epochs - number):.0f} s left", flush=True)


class Run:
    """The folder of one run: its checkpoints, its log, and at the end its record.

    Within a with-block the folder is locked, and torch has as many threads as the settings say. There, pass `report`
    and `checkpoints` to `ccrepro.runs.resume.fit`, then call `finish` with what it returns. A stopped run goes on from
    its newest checkpoint. ``record`` is what the folder holds already, of a run that is done. With ``restart`` the run
    is made anew in a folder beside it, which takes its place at the end.

    Entering raises `LockedError` where another process works on the same run, and `DataError` where the record in its
    folder is not of this run.
    """

    def __init__(self, config: Config, data: ImageSet, runs_dir: str | Path = "", restart: bool = False):
        self.config, self.data, self.start = config, data, time.monotonic()
        self.final, self.record = run_folder(config, runs_dir), None
        self.again = self.final.with_name(f"{self.final.name}.again")
        self.folder = self.again if restart else self.final
        self.checkpoints = Checkpoints(self.folder)
        self.log = EpochLog(self.folder / "log.jsonl", run_name(config), config.epochs, config.heads != "instance")

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as held:
            held.enter_context(storage.lock(self.final))
            held.enter_context(threads(self.config.threads))
            storage.sweep(self.folder)
            self.record = self._replaced() or (self._read(self.final) if self.folder == self.final else None)
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def _replaced(self) -> Record | None:
        """Put the run that was made anew, if it is done, in the place of the old one, and return its record. Whenever
        this is killed, one of them is whole, and the next process goes on here."""
        if record := self._read(self.again):
            shutil.rmtree(self.final, ignore_errors=True)
            os.replace(self.again, self.final)
        return record

    def _read(self, folder: Path) -> Record | None:
        path = folder / "run.json"
        return read(path, run_name(self.config)) if path.exists() else None

    def report(self, epoch: Epoch, model: ContrastiveClusteringModel) -> None:
        """Log an epoch's numbers, and at some epochs save the clustering too."""
        config, cosines = self.config, evolution.cosine_histograms(self.config, self.data, model)
        if config.heads != "instance" and epoch["epoch"] in evolution.scored(config):  # else each would take a k-means
            evolution.keep(self.folder, epoch["epoch"], evaluate(config, self.data, model), cosines)
        self.log.write(epoch, cosines=cosines)

    def finish(self, model: ContrastiveClusteringModel | None, history: list[Epoch], commit: str = "") -> Record:
        """Cluster and score all images; write the weights, the assignments and, last, the record, and return it.
        commit: of the code, where there is no clone to ask."""
        clustering = evaluate(self.config, self.data, model)
        cosines = evolution.cosine_histograms(self.config, self.data, model) if model is not None else {}
        evolution.keep(self.folder, self.config.epochs, clustering, cosines)
        if model is not None:
            save_model(model, self.config, self.folder / "model.safetensors")
            storage.save_arrays(self.folder / "clustering.npz", **dataclasses.asdict(clustering))
        made_by = {"hardware": hardware(model) | self.checkpoints.machine, "versions": versions()}
        result = self._record(clustering, history, {**made_by, "commit": commit or git_commit()})
        storage.atomic_write(self.folder / "run.json", as_text(result))
        self.checkpoints.clear()
        self._replaced()
        return result

    def _record(self, clustering: Clustering, history: list[Epoch], made_by: dict[str, Any]) -> Record:
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
            "images": str(data),
            "n_clusters_used": len(np.unique(clustering.labels_pred)),
            "config": config.model_dump(),
            "data_sha256": data.sha256,
            **made_by,
            "class_names": data.class_names,
            "contingency": contingency(data.labels, clustering.labels_pred, config.n_clusters).tolist(),
            "examples": evolution.examples(data.labels, clustering, config.n_clusters),
            "history": {name: [float(f"{e[name]:.6g}") for e in history] for name in (history or [{}])[0]},
            **evolution.collect(self.folder, config, data.labels),
        }


def as_text(record: Record) -> str:
    """A record as JSON, one line for each entry."""
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in record.items()) + "\n}\n"


def hardware(model: ContrastiveClusteringModel | None) -> dict[str, Any]:
    """The processors that the run used, and the number of torch's threads."""
    gpu = torch.cuda.get_device_name() if model is not None and next(model.parameters()).is_cuda else None
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "gpu": gpu, "threads": torch.get_num_threads()}


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide the numbers, where these are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_commit() -> str:
    """The clone's commit, with "-dirty" where the code differs from it; "unknown" where the code is in none."""
    if not (storage.CODE / "pyproject.toml").exists():  # an installed package, perhaps below a clone of something else
        return "unknown"

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(storage.CODE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "ccrepro", "notebooks", "pyproject.toml", "Makefile")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
