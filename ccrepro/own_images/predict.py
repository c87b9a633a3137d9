"""Use a trained model: predict a stream of images, write features to a file, score it on a data set."""

import io
import json
import sys
from collections.abc import Iterable
from csv import QUOTE_ALL, DictWriter
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from tqdm.std import tqdm

from ccrepro import data
from ccrepro.data import images as files
from ccrepro.data.images import BadImage
from ccrepro.errors import ConfigError, ImageError
from ccrepro.evaluate import evaluate as clustered
from ccrepro.evaluate import score
from ccrepro.own_images import inputs, sorting
from ccrepro.recipes import OWN, recipe
from ccrepro.runs import streaming
from ccrepro.runs.weights import load_authors, load_model
from ccrepro.runtime import storage
from ccrepro.runtime.device import choose_device

Source = Annotated[str, Parameter(allow_leading_hyphen=True)]  # since it may be "-"


def predict(model: str, source: Source, /, *, csv: bool = False, move_into: str = "") -> None:
    """Print the cluster of each image, one JSON line each as soon as it is known.

    The line of a bad image has ``error``; if there were any, raises `ImageError` at the end.

    Args:
        model: A model.safetensors, or the folder of a finished run or of `cluster --out`.
        source: A folder, an image, or - for paths on standard input.
        csv: Print a table in place of JSON lines.
        move_into: Folder to sort the images into, as `cluster --move-into` does; it may hold others.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # JSON is UTF-8; a name's other bytes are escaped
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    table = DictWriter(sys.stdout, ("path", "cluster", "confidence", "error"), lineterminator="\n", quoting=QUOTE_ALL)
    target, base = storage.place(move_into), storage.place(source)
    below = base.is_dir()
    if move_into:
        sorting.check_apart(source, target)
    if csv:
        table.writeheader()
    images = bad = others = 0
    for path, found in _predictions(model, source, bar=not sys.stdout.isatty()):
        if isinstance(found, BadImage):
            line, bad = {"error": str(found)}, bad + 1
        else:
            line = {"cluster": int(found.p.argmax()), "confidence": round(float(found.p.max()), 6)}
            if move_into:
                name = Path(path).relative_to(base) if below else Path(path).name
                others += not sorting.sort(Path(path), target, line["cluster"], name)
        line = {"path": path, **line}
        if csv:
            table.writerow(line)
        else:
            print(json.dumps(line, ensure_ascii=False))
        sys.stdout.flush()
        images += 1
    if others:
        print(f"not sorted, since another file of the same name is there: {others:,}", file=sys.stderr)
    _check_none_bad(bad, images)


def embed(model: str, source: Source, /, *, out: str) -> None:
    """Write the features of each image to one .npz file: path, cluster, confidence, z (N, D) and h (N, F).

    Bad images are left out; if there were any, raises `ImageError` at the end.

    Args:
        model: A model.safetensors, or the folder of a finished run or of `cluster --out`.
        source: A folder, an image, or - for paths on standard input.
        out: The file, NAME.npz.
    """
    if Path(out).suffix != ".npz":
        raise ConfigError(f"Cannot write {out}. Give a file that ends in .npz.")
    good, bad = [], []
    for path, found in _predictions(model, source):
        (bad if isinstance(found, BadImage) else good).append((path, found))
    for path, error in bad:
        print(f"left out: {path}: {error}", file=sys.stderr)
    if good:
        paths, outputs = zip(*good, strict=True)
        z, p, h = map(np.stack, zip(*outputs, strict=True))
        storage.save_arrays(
            storage.place(out), path=np.array(paths), cluster=p.argmax(1), confidence=p.max(1), z=z, h=h
        )
        print(f"{len(good):,} images: z {z.shape}, h {h.shape} -> {out}")
    _check_none_bad(len(bad), len(good) + len(bad))


def _predictions(path: str, source: str, bar: bool = True) -> Iterable[tuple[str, streaming.Outputs | BadImage]]:
    """The predictions of a folder, of one image, or, for "-", of the paths on standard input as they come; with
    ``bar``, a terminal shows the progress."""
    model, config, facts = load_model(path)
    if config.heads == "instance":
        raise ConfigError("This model has no trained cluster head, since heads is instance. Use evaluate.")
    if source == "-":
        if isinstance(sys.stdin, io.TextIOWrapper):  # names may be any bytes
            sys.stdin.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape")
        paths = (line.removeprefix("\ufeff").rstrip("\r\n") for line in sys.stdin if line.strip())
    else:
        paths = list(map(str, inputs.look_through(source)))
    longest = inputs.LONGEST if config.dataset == OWN else files.LONGEST  # as in the training
    found = streaming.predict(model.to(choose_device(config.device)), config, paths, longest, facts.get("values"))
    total = None if source == "-" else len(paths)
    return tqdm(found, total=total, unit=" images", disable=None if bar else True)


def _check_none_bad(bad: int, images: int) -> None:
    if bad:
        raise ImageError(f"{bad} of {images} images are bad, as named above. Leave them out.")


def evaluate(
    model: str = "",
    /,
    *,
    authors_checkpoint: str = "",
    dataset: str = "",
    backbone: str = "resnet34",
    data_dir: str = "",
) -> None:
    """Score a trained model on a data set: NMI, ACC, ARI.

    Args:
        model: A model.safetensors, or the folder of a finished run.
        authors_checkpoint: In place of MODEL, checkpoint_N.tar of the authors' code.
        dataset: Its name; else the one that the model was trained on.
        backbone: Of the authors' checkpoint.
        data_dir: Folder of data sets; else $CCREPRO_DATA, else data/.
    """
    if bool(model) == bool(authors_checkpoint):
        raise ConfigError("Give a MODEL, or --authors-checkpoint FILE.")
    if model:
        network, config, _ = load_model(model)
    else:
        config = recipe(dataset or "cifar10", backbone=backbone)
        network, epoch = load_authors(authors_checkpoint, config)
        named = f"{config.backbone}, K={config.n_clusters}, epoch {epoch} as stored"
        print(f"{Path(authors_checkpoint).name}: {named}", flush=True)
    dataset = dataset or config.dataset
    if dataset == OWN:
        raise ConfigError("This model was trained on images without labels. Name a data set with --dataset.")
    known = data.load(dataset, data_dir)
    if known.channels != network.channels:
        what = f"{dataset} has images of {known.channels} channels, but the model takes {network.channels}"
        raise ImageError(f"{what}. Choose another data set.")
    found = clustered(config, known, network.to(choose_device(config.device)))
    names = ("k-means on features",) if config.heads == "instance" else ("cluster head", "k-means on features")
    for name, values in zip(names, score(config, known, found).values(), strict=False):
        print(f"{dataset}, {name}: {'  '.join(f'{metric.upper()} {value:.4f}' for metric, value in values.items())}")
    print(f"clusters used: {len(np.unique(found.labels_pred))} of {config.n_clusters}")
