"""One run: its folder, its log and its record.

A record is one JSON file. It is written to ``runs/<cell>/run.json`` (ignored by git; its presence means that the run is
done here) and, for a recipe without overrides, to ``results/runs/<cell>.json``, from which tables and figures are made.
"""

import dataclasses
import importlib.metadata
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
from ccrepro.checkpoint import save_weights
from ccrepro.config import Config
from ccrepro.datasets import ImageSet
from ccrepro.evaluate import Clustering, score, tsne
from ccrepro.metrics import contingency
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.train import Epoch

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "openTSNE")


class Log:
    """Keeps one JSON line per epoch in the run's folder and prints a line now and then, with rate and time left."""

    def __init__(self, config: Config, runs_dir: str | Path = "runs", every_seconds: float = 10):
        self.config, self.every, self.printed = config, every_seconds, -math.inf
        self.folder = run_folder(config, runs_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "log.jsonl"
        self.path.write_text("")
        self.start = time.monotonic()

    def __call__(self, epoch: Epoch) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(epoch) + "\n")
        now, done, total = time.monotonic(), epoch["epoch"], self.config.epochs
        if now - self.printed < self.every and done < total:
            return
        self.printed = now
        rate = (now - self.start) / done
        print(
            f"{self.config.cell}  epoch {done}/{total}  loss {epoch['loss']:.3f}  "
            f"{rate:.2f} s/epoch  {rate * (total - done):.0f} s left",
            flush=True,
        )


def run_folder(config: Config, runs_dir: str | Path = "runs") -> Path:
    """Folder of a run below ``runs_dir``; overridden settings have a folder of their own."""
    overrides = config.overrides()
    suffix = "".join(f"+{name}={_file_name(value)}" for name, value in overrides.items())
    return files.ROOT / runs_dir / (config.cell + suffix)


def _file_name(value: Any) -> str:
    return re.sub(r"[^\w.,-]", "", str(value))


def record(
    config: Config,
    data: ImageSet,
    model: ContrastiveClusteringModel | None,
    clustering: Clustering,
    history: list[Epoch],
) -> dict[str, Any]:
    """Everything the tables and figures need of a run, as plain JSON values."""
    return {
        "dataset": config.dataset,
        "variant": config.variant,
        "profile": config.profile,
        "seed": config.seed,
        "overrides": config.overrides(),
        **score(config, data, clustering),
        "epochs": len(history),
        "seconds": round(sum(epoch["seconds"] for epoch in history), 1),
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
        "history": {name: [_short(e[name]) for e in history] for name in (history[0] if history else ())},
        "tsne": tsne(clustering, data.labels),
    }


def save(
    result: dict[str, Any],
    config: Config,
    model: ContrastiveClusteringModel | None,
    clustering: Clustering,
    runs_dir: str | Path = "runs",
    results_dir: str | Path = "results",
) -> Path:
    """Write weights, assignments and record; the record in the run's folder last. Returns its path."""
    folder = run_folder(config, runs_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if model is not None:
        save_weights(model, folder / "model.safetensors")
        np.savez_compressed(folder / "clustering.npz", labels_pred=clustering.labels_pred, features=clustering.features)
    text = "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in result.items()) + "\n}\n"
    if not config.overrides():
        files.atomic_write(files.ROOT / results_dir / "runs" / f"{config.cell}.json", text)
    return files.atomic_write(folder / "run.json", text)


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def hardware(model: ContrastiveClusteringModel | None) -> dict[str, Any]:
    """Names of what the run ran on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = re.findall(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
        cpu = names[0] if names else cpu
    on_gpu = model is not None and next(model.parameters()).is_cuda
    gpu = torch.cuda.get_device_name() if on_gpu else None
    return {"cpu": cpu, "cores": os.cpu_count(), "gpu": gpu, "threads": torch.get_num_threads()}


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}
