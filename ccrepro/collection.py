"""A folder of one's own pictures → clusters to look through: the CSV, contact sheets, a gallery, and the model.

Letters: N pictures, S side of the square they are kept at, K clusters.
"""

import io
import json
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_mutual_info_score

from ccrepro import files, gallery, stream
from ccrepro.baselines import kmeans
from ccrepro.checkpoint import Checkpoints, load_model, save_model
from ccrepro.config import Config, own_recipe
from ccrepro.datasets import ImageSet, own, pack
from ccrepro.datasets.decode import BadImage
from ccrepro.datasets.sources import Files
from ccrepro.errors import CheckpointError, ConfigError, PictureError
from ccrepro.estimator import view_agreement
from ccrepro.machine import choose_device
from ccrepro.metrics import scores
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.run import EpochLog
from ccrepro.train import Epoch, start, train

FEW = 1_000  # pictures, below which training from scratch is likely to lose against a pretrained start
REPLACED = (  # what `run` writes, whole folders among it
    *("training", "packed", "packed.partial", "sheets", "thumbs"),
    *("index.html", "clusters.csv", "log.jsonl", "model.safetensors", "sweep.csv", "sweep.png"),
)
OF_EARLIER = ("training/lock", "packed.partial/done.txt", "packed/index.json", "summary.json")  # one is always left
FIRM = 0.5  # agreement of views, below which a suggested K is called a hint


@dataclass(frozen=True)
class Collection:
    """The pictures of a folder: their paths, relative to it and in order; the images, and the side S they are kept at.

    Labels of ``data`` are the sub-folders, where every picture lies in one and there are two or more; they are used for
    scores alone.
    """

    folder: Path
    paths: tuple[str, ...]
    data: ImageSet
    side: int


@dataclass(frozen=True)
class Clusters:
    """What training made of a collection. cluster, confidence: (N,). kmeans: (N,), of k-means on the features that
    training started from where these were pretrained, otherwise on those it ended with."""

    config: Config
    model: ContrastiveClusteringModel
    cluster: np.ndarray
    confidence: np.ndarray
    kmeans: np.ndarray
    agreement: float  # of the clusters of two augmented views, as `ContrastiveClustering.score`
    seconds: float


def read(folder: str | Path, cache: Path, skip_bad: bool = False) -> Collection:
    """All pictures of a folder and its sub-folders, decoded once into the folder ``cache``.

    Raises `PictureError` where there is none, and `DataError` that lists the bad ones, unless they are to be skipped.
    """
    folder = Path(folder)
    paths = own.look_through(folder).pictures
    base = folder.parent if folder.is_file() else folder
    side = own.usual_side(paths)
    if skip_bad:
        paths = _good(paths, side)
    labels, names = _classes(paths, base)
    source = Files(paths, labels, names, side)
    packed = pack.read(cache, pack.fingerprint(source)) or pack.write(cache, source)
    relative = tuple(str(path.relative_to(base)) for path in paths)
    return Collection(base, relative, ImageSet(f"the pictures of {folder}", *packed), side)


def _good(paths: Sequence[Path], side: int) -> list[Path]:
    """Those that can be read; the others are named."""
    good = []
    with ThreadPoolExecutor() as pool:
        for path, picture in zip(paths, pool.map(own.read, paths, repeat(side)), strict=True):
            if isinstance(picture, BadImage):
                print(f"left out: {path}: {picture}", file=sys.stderr)
            else:
                good.append(path)
    if not good:
        raise PictureError(f"all of {len(paths)} pictures are bad", "pictures", "Some must be readable", "See above")
    return good


def _classes(paths: Sequence[Path], base: Path) -> tuple[np.ndarray | None, list[str]]:
    """The first sub-folder of each picture, as labels; None where some picture lies in none, or all in one."""
    tops = [path.relative_to(base).parts[0] if path.parent != base else None for path in paths]
    names = sorted({top for top in tops if top})
    if None in tops or len(names) < 2:
        return None, []
    return np.array([names.index(top) for top in tops], dtype=np.int64), names


def cluster(collection: Collection, n_clusters: int, out: Path, **settings: Any) -> Clusters:
    """Train on a collection and cluster it. ``settings``: of `Config`.

    A training that was stopped in the folder ``out`` goes on; one that was finished and saved there is not repeated.
    """
    data = collection.data
    config = own_recipe(n_clusters, len(data.images), data.images.shape[1:], **settings)
    before = None
    if config.pretrained:
        before = stream.outputs(start(config, data).model, data.images, config.image_size).h
    model, seconds = _finished(collection, config, out) or _trained(collection, config, out)
    found = stream.outputs(model, data.images, config.image_size)
    again = kmeans(found.z if before is None else before, config.n_clusters, config.seed)
    agreement = view_agreement(model, config, data.images)
    return Clusters(config, model, found.p.argmax(1), found.p.max(1), again, agreement, seconds)


def _trained(collection: Collection, config: Config, out: Path) -> tuple[ContrastiveClusteringModel, float]:
    """The model, and the seconds that it took here."""
    name, started = f"K={config.n_clusters}", " from ImageNet" if config.pretrained else ""
    print(
        f"{name}: network {config.backbone}{started}, views of {config.image_size}×{config.image_size} pixels, "
        f"batches of {config.batch_size}, {config.epochs} epochs on {choose_device(config).type}",
        flush=True,
    )
    began, log = time.monotonic(), EpochLog(out / "log.jsonl", name, config.epochs)

    def report(epoch: Epoch, model: ContrastiveClusteringModel) -> None:
        if epoch["epoch"]:  # 0 is before the first step, and has no numbers
            log.write(epoch)

    model, _ = train(config, collection.data, report, Checkpoints(_training(out), config.checkpoint_seconds))
    return model, time.monotonic() - began


def _finished(collection: Collection, config: Config, out: Path) -> tuple[ContrastiveClusteringModel, float] | None:
    """What `save` wrote of the same pictures under the same settings, or None."""
    path = out / "model.safetensors"
    try:
        model, saved, about = load_model(path)
    except CheckpointError:  # none there, or damaged: trained anew
        return None
    if about.get("pictures") != collection.data.sha256 or saved.differences(config):
        return None
    print(f"K={config.n_clusters}: trained before; remove {path} to train anew", flush=True)
    return model.to(choose_device(config)), about["seconds"]


def _training(out: Path) -> Path:
    """Where checkpoints lie until the model is saved."""
    return out / "training"


def table(collection: Collection, found: Clusters) -> pd.DataFrame:
    """path, cluster, confidence: one row per picture, in the order of the paths."""
    paths = [files.readable(path) for path in collection.paths]
    return pd.DataFrame({"path": paths, "cluster": found.cluster, "confidence": found.confidence.round(4)})


def save(collection: Collection, found: Clusters, out: Path) -> None:
    """Write clusters.csv, summary.json and model.safetensors into a folder, and drop the checkpoints there."""
    files.atomic_write(out / "clusters.csv", table(collection, found).to_csv(index=False))
    files.atomic_write(out / "summary.json", json.dumps(summary(collection, found), indent=1) + "\n")
    facts = {"side": collection.side, "pictures": collection.data.sha256, "seconds": found.seconds}
    save_model(found.model, found.config, out / "model.safetensors", **facts)
    shutil.rmtree(_training(out), ignore_errors=True)


def summary(collection: Collection, found: Clusters) -> dict[str, Any]:
    """What can be said of the clusters, as JSON values; with scores where sub-folders are classes."""
    sizes = np.bincount(found.cluster, minlength=found.config.n_clusters)
    result = {
        "pictures": len(found.cluster),
        "n_clusters": found.config.n_clusters,
        "sizes": sizes.tolist(),
        "agreement_of_views": round(found.agreement, 4),
        "kmeans_on": "the pretrained features" if found.config.pretrained else "the features learned here",
        "agreement_with_kmeans": round(float(adjusted_mutual_info_score(found.cluster, found.kmeans)), 4),
        "seconds": round(found.seconds, 1),
    }
    if collection.data.labels is not None:
        result["scores"] = scores(collection.data.labels, found.cluster)
        result["scores_kmeans"] = scores(collection.data.labels, found.kmeans)
    return result


def described(facts: dict[str, Any]) -> str:
    """The summary in words, for the terminal."""
    sizes = facts["sizes"]
    used = sum(n > 0 for n in sizes)
    lines = [
        f"{facts['pictures']:,} pictures in {used} clusters of {min(n for n in sizes if n):,} to {max(sizes):,}, "
        f"{facts['seconds']:.0f} s",
        f"clusters of two augmented views agree: {facts['agreement_of_views']:.2f} (1 always, 0 by chance)",
        f"agreement with k-means on {facts['kmeans_on']}: {facts['agreement_with_kmeans']:.2f}",
    ]
    if "scores" in facts:
        for name, key in (("CC", "scores"), (f"k-means on {facts['kmeans_on']}", "scores_kmeans")):
            values = "  ".join(f"{metric.upper()} {value:.3f}" for metric, value in facts[key].items())
            lines.append(f"against the sub-folders' names, {name}: {values}")
    if facts["pictures"] < FEW and facts["kmeans_on"] != "the pretrained features":
        lines.append(
            f"note: fewer than {FEW:,} pictures, trained from nothing: expect a start from ImageNet (--pretrained) to "
            "do better on photographs"
        )
    return "\n".join(lines)


def parse_clusters(text: str) -> list[int]:
    """ "10" → [10]; "2:20" → [2, …, 20]; "2:20:3" → [2, 5, …, 20]. Raises `ConfigError`."""
    try:
        first, *rest = (int(part) for part in text.split(":", 2))
        found = [first] if not rest else list(range(first, rest[0] + 1, *rest[1:]))
    except ValueError:
        found = []
    if not found or found[0] < 2:
        allowed = "K, or FIRST:LAST, or FIRST:LAST:STEP, from 2 on"
        raise ConfigError(f"n_clusters is {text!r}", "--n-clusters", allowed, "Write 10, or 2:20")
    return found


def sweep(
    collection: Collection, numbers: Iterable[int], out: Path, **settings: Any
) -> tuple[pd.DataFrame, dict[int, Clusters]]:
    """One training for each K, saved below ``out/sweep``. Returns what is measured of each, without labels, and its
    clusters; sweep.csv grows as they are done.

    Columns: n_clusters; used (clusters with a picture); agreement of the clusters of two augmented views; agreement
    with k-means on the features; smallest and largest cluster.
    """
    numbers, done, rows, began = list(numbers), {}, [], time.monotonic()
    for place, k in enumerate(numbers):
        if place:
            left = (time.monotonic() - began) / place * (len(numbers) - place)
            print(f"K={k}: number {place + 1} of {len(numbers)}, {left:.0f} s left for all", flush=True)
        folder = out / "sweep" / f"{k:03d}"
        found = done[k] = cluster(collection, k, folder, **settings)
        save(collection, found, folder)
        facts = summary(collection, found)
        row = {"n_clusters": k, "used": sum(n > 0 for n in facts["sizes"]), "agreement": facts["agreement_of_views"]}
        row |= {"with_kmeans": facts["agreement_with_kmeans"], "smallest": min(facts["sizes"])}
        rows.append(row | {"largest": max(facts["sizes"])})
        files.atomic_write(out / "sweep.csv", pd.DataFrame(rows).to_csv(index=False))
    return pd.DataFrame(rows), done


def suggest(measured: pd.DataFrame) -> tuple[int, str]:
    """A number of clusters, from `sweep`'s measurements, and why: the K where the product of the two agreements, of two
    views and with k-means, is largest."""
    both = product(measured)
    best = measured.loc[both.idxmax()]
    near = measured[(both >= 0.95 * both.max()) & (measured.n_clusters != best.n_clusters)].n_clusters.tolist()
    reason = (
        f"the product of two agreements is largest there: of the clusters of two augmented views "
        f"({best.agreement:.2f}), and of the clusters with k-means on the features ({best.with_kmeans:.2f}); "
        "each is 1 always, 0 by chance"
    )
    reason += f". Nearly as good: {', '.join(map(str, near))}" if near else ""
    if best.agreement < FIRM:
        reason += ". Views agree so little that this is a hint at most: no K tried divides these pictures firmly"
    return int(best.n_clusters), reason


def product(measured: pd.DataFrame) -> pd.Series:
    """Agreement of views times agreement with k-means, for each K of a sweep; 0 where one is below chance."""
    return measured.agreement.clip(lower=0) * measured.with_kmeans.clip(lower=0)


def run(folder: str, n_clusters: str, out: str | Path, skip_bad: bool, settings: dict[str, Any]) -> None:
    """Cluster a folder into ``out``: clusters.csv, summary.json, model.safetensors, index.html, sheets/. With several
    numbers of clusters also sweep.csv, sweep.png and sweep/; the rest is then of the number suggested.

    Raises `LockedError` where another process writes to ``out``.
    """
    numbers, out = parse_clusters(n_clusters), Path(out)
    others = own.look_through(folder).left_out  # a folder without pictures is told before anything is made
    check_out(folder, out)
    with files.lock(_training(out)):
        collection = read(folder, out / "packed", skip_bad)
        note = f"; left out, of kinds that are not read: {others}" if others else ""
        side = collection.side
        print(f"{len(collection.paths):,} pictures, kept at {side}×{side} pixels{note}", flush=True)
        own_recipe(
            max(numbers), len(collection.paths), collection.data.images.shape[1:], **settings
        )  # or it fails late
        if len(numbers) == 1:
            found, reason = cluster(collection, numbers[0], out, **settings), ""
        else:
            found, reason = _suggested(collection, numbers, out, **settings)
        save(collection, found, out)
        page = gallery.write(collection, found, out, reason)
    print(f"{described(summary(collection, found))}\n-> {out / 'clusters.csv'}, {page}")


def check_out(folder: str | Path, out: Path) -> None:
    """Raise `ConfigError` where what is written would be taken for pictures, or take the place of what others wrote."""
    pictures = Path(folder).resolve()
    if out.resolve().is_relative_to(pictures):
        what, allowed = f"{out} lies in {folder}", "Its sheets would be taken for pictures the next time"
        raise ConfigError(what, "--out", allowed, "Choose a folder outside")
    earlier = any((out / name).exists() for name in OF_EARLIER)
    for place in (out / name for name in REPLACED):
        if pictures.is_relative_to(place.resolve()) or (place.exists() and not earlier):
            what, allowed = f"{place} is there, and not of an earlier cluster", "It would be replaced"
            raise ConfigError(what, "--out", allowed, "Choose an empty folder, or a new one")


def _suggested(collection: Collection, numbers: Sequence[int], out: Path, **settings: Any) -> tuple[Clusters, str]:
    """The clusters of the K that a sweep suggests, and why; with the plot of all."""
    from ccrepro import plots  # late: matplotlib takes a second

    measured, done = sweep(collection, numbers, out, **settings)
    suggested, reason = suggest(measured)
    buffer = io.BytesIO()
    plots.cluster_numbers(suggested, measured.assign(product=product(measured))).savefig(buffer, format="png", dpi=160)
    files.atomic_write(out / "sweep.png", buffer.getvalue())
    print(f"{measured.to_string(index=False)}\nsuggested: K={suggested}: {reason}. See {out / 'sweep.png'}")
    return done[suggested], reason
