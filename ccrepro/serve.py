"""A trained model put to use: predictions of a stream, features to a file, scores on a data set."""

import io
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ccrepro import datasets, files, foreign, stream
from ccrepro.baselines import kmeans
from ccrepro.checkpoint import load_model
from ccrepro.config import OWN, Config
from ccrepro.datasets import own
from ccrepro.errors import ConfigError, NumericalError, PictureError
from ccrepro.machine import choose_device
from ccrepro.metrics import scores
from ccrepro.model import ContrastiveClusteringModel


def load(path: str) -> tuple[ContrastiveClusteringModel, Config, int]:
    """A saved model on its device, its settings, and the side of the square that pictures are decoded to."""
    model, config, about = load_model(path)
    return model.to(choose_device(config)), config, about.get("side") or config.image_size


def sources(source: str) -> Iterable[str]:
    """Paths of a folder or picture; or, for "-", of standard input, a line each, as they come."""
    if source == "-":
        if isinstance(sys.stdin, io.TextIOWrapper):  # names are bytes, in whatever encoding
            sys.stdin.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape")
        return (line.removeprefix("\ufeff").rstrip("\r\n") for line in sys.stdin if line.strip())
    found = own.look_through(source)
    if found.left_out:
        print(f"left out, of kinds that are not read: {found.left_out}", file=sys.stderr)
    return list(map(str, found.pictures))


def predict(model_path: str, source: str) -> None:
    """Print a JSON line for each picture as soon as it is known, and at the end, to standard error, the rate.

    Raises `PictureError` at the end where some pictures were bad; their lines have ``error``.
    """
    model, config, side = load(model_path)
    _need_cluster_head(config)
    timing = stream.Timing()
    for found in _told(model, config, side, source, timing):
        sure = {"cluster": found.cluster, "confidence": round(found.confidence, 6)} if not found.error else {}
        print(_json({"path": found.path, **(sure or {"error": found.error})}), flush=True)
    _end(timing)


def _json(line: dict[str, Any]) -> str:
    """Readable where standard output takes its letters, otherwise escaped: names may be of any bytes."""
    text = json.dumps(line, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(line)
    return text


def _told(
    model: ContrastiveClusteringModel, config: Config, side: int, source: str, timing: stream.Timing
) -> Iterator[stream.Prediction]:
    """Predictions of a source; every ten seconds a line to standard error says how far they are."""
    paths, printed = sources(source), time.monotonic()
    for found in stream.predict(model, config.image_size, side, paths, timing):
        yield found
        if time.monotonic() - printed > 10:
            printed = time.monotonic()
            total = len(paths) if isinstance(paths, list) else None
            print(timing.so_far(total), file=sys.stderr, flush=True)


def embed(model_path: str, source: str, out: str) -> None:
    """Write path, cluster, confidence, z (N, D) and h (N, F) of all pictures to an .npz or a .parquet file."""
    kind = Path(out).suffix
    if kind not in (".npz", ".parquet"):
        raise ConfigError(f"cannot write {out}", "--out", "FILE.npz or FILE.parquet", "Give one of these endings")
    if kind == ".parquet":
        _need_pyarrow()
    model, config, side = load(model_path)
    _need_cluster_head(config)
    timing = stream.Timing()
    found = list(_told(model, config, side, source, timing))
    good = [f for f in found if f.error is None]
    for bad in (f for f in found if f.error):
        print(f"left out: {bad.path}: {bad.error}", file=sys.stderr)
    if not good:
        raise PictureError("no picture could be read", source, "Some must be pictures", "Correct the source")
    arrays = {
        "path": np.array([f.path for f in good]),
        "cluster": np.array([f.cluster for f in good]),
        "confidence": np.array([f.confidence for f in good], dtype=np.float32),
        "z": np.stack([f.outputs.z for f in good]),
        "h": np.stack([f.outputs.h for f in good]),
    }
    buffer = io.BytesIO()
    if kind == ".npz":
        np.savez_compressed(buffer, **arrays)
    else:
        columns = {name: list(array) if array.ndim == 2 else array for name, array in arrays.items()}
        columns["path"] = list(map(files.readable, columns["path"]))
        pd.DataFrame(columns).to_parquet(buffer, index=False)
    files.atomic_write(out, buffer.getvalue())
    print(f"{len(good):,} pictures: z {arrays['z'].shape}, h {arrays['h'].shape} -> {out}")
    _end(timing)


def _end(timing: stream.Timing) -> None:
    print(timing, file=sys.stderr)
    if timing.bad:
        what = f"{timing.bad} of {timing.images} pictures are bad"
        raise PictureError(what, "each is named above", "Every file must be a picture", "Leave them out")


def _need_cluster_head(config: Config) -> None:
    if config.heads == "instance":
        fix = "Use evaluate, or ContrastiveClustering.load(FILE).transform"
        raise ConfigError("heads is instance", "the model's settings", "Its cluster head was not trained", fix)


def _need_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401, pandas asks for it
    except ImportError:
        fix = "pip install 'ccrepro[parquet]', or write FILE.npz"
        raise ConfigError("Parquet needs pyarrow", "--out", "It is not installed with the rest", fix) from None


def evaluate(model_path: str, dataset: str | None, data_dir: str) -> None:
    """Print the scores of a saved model on a data set, by default the one that it was trained on."""
    model, config, _ = load(model_path)
    if dataset is None and config.dataset == OWN:
        raise ConfigError("no data set named", "evaluate", "Pictures of one's own have no labels here", "Add --dataset")
    _score(model, config, dataset or config.dataset, data_dir)


def evaluate_authors(path: str, config: Config, data_dir: str) -> None:
    """Print the scores of a checkpoint of the authors' code on the data set of the settings."""
    model, found = foreign.load_authors(path, config)
    print(f"{Path(path).name}: {found.backbone}, K={found.n_clusters}, epoch {found.epoch} as stored", flush=True)
    if found.epoch == 0:
        print("note: their epoch 0 is written after one epoch; the published numbers are of 1000", flush=True)
    _score(model.to(choose_device(config)), config, config.dataset, data_dir)


def _score(model: ContrastiveClusteringModel, config: Config, dataset: str, data_dir: str) -> None:
    data = datasets.load(dataset, data_dir)
    if data.labels is None:
        raise PictureError(f"{dataset} has no labels", "evaluate", "Scores need them", "Use predict")
    if data.images.shape[1] != model.backbone.conv1.in_channels:
        what = f"images of {data.images.shape[1]} channels, a model of {model.backbone.conv1.in_channels}"
        raise PictureError(what, dataset, "They must be equal", "Choose another data set")
    z, p, began, printed = [], [], time.monotonic(), time.monotonic()
    for i in range(0, len(data.images), 512):
        outputs = stream.outputs(model, data.images[i : i + 512], config.image_size)
        if not np.isfinite(outputs.z).all():
            fix = "Take another checkpoint"
            raise NumericalError("outputs that are not finite", f"images {i} on", "Weights of a trained model", fix)
        z.append(outputs.z)
        p.append(outputs.p.argmax(1))
        if time.monotonic() - printed > 10:
            printed = time.monotonic()
            done, total = min(i + 512, len(data.images)), len(data.images)
            left = (printed - began) / done * (total - done)
            print(f"{done:,} of {total:,} images, {left:.0f} s left", flush=True)
    found = {"cluster head": np.concatenate(p)} if config.heads != "instance" else {}  # which has none that is trained
    found["k-means on features"] = kmeans(np.concatenate(z), config.n_clusters, config.seed)
    for name, labels in found.items():
        values = "  ".join(f"{metric.upper()} {value:.4f}" for metric, value in scores(data.labels, labels).items())
        print(f"{dataset}, {name}: {values}  clusters used {len(np.unique(labels))} of {config.n_clusters}")
