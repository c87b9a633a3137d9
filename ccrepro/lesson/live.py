"""What the lesson trains while it is read, and what it keeps of it."""

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor

from ccrepro.config import STRONG, Config, recipe
from ccrepro.datasets import ImageSet
from ccrepro.evaluate import Clustering, evaluate, feature_map, map_rows
from ccrepro.metrics import scores
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.results import mean_sd
from ccrepro.train import Epoch, train

PICTURED = (0.0, 0.04, 0.1, 0.3, 1.0)  # shares of the epochs after which the lesson looks at the clusters


@cache
def flower() -> Tensor:
    """One colour photograph that scikit-learn ships, cut to a square: uint8 (1, 3, 400, 400).

    By the Flickr user vultilion, licensed CC BY 2.0.
    """
    square = load_sample_image("flower.jpg")[27:427, 120:520]
    return torch.from_numpy(square.copy()).permute(2, 0, 1)[None]


def color_config(strength: float = 1.0, smallest_crop: float = 0.08, **overrides: Any) -> Config:
    """The paper's augmentation of ImageNet-10 on views of 112 pixels: ``strength`` is the s of its colour jitter (at
    most 1.25), ``smallest_crop`` the smallest area of a crop, as a share."""
    scaled = {name: strength * value for name, value in STRONG.items()}
    settings = {"image_size": 112, "crop_scale": (smallest_crop, 1.0), **scaled, **overrides}
    return recipe("imagenet10", "paper", **settings)


# Soft assignments of nine digits (three 0s, 1s and 7s) to three clusters in two views, (2, N, M). Made up so that they
# can be read: clusters 0 and 2 are partly mixed up.
EXAMPLE = torch.tensor(
    [
        [[0.05, 0.90, 0.05], [0.02, 0.95, 0.03], [0.10, 0.80, 0.10], [0.85, 0.05, 0.10], [0.55, 0.05, 0.40],
         [0.70, 0.10, 0.20], [0.30, 0.05, 0.65], [0.10, 0.10, 0.80], [0.45, 0.05, 0.50]],
        [[0.10, 0.85, 0.05], [0.05, 0.90, 0.05], [0.05, 0.85, 0.10], [0.75, 0.05, 0.20], [0.60, 0.10, 0.30],
         [0.50, 0.05, 0.45], [0.40, 0.05, 0.55], [0.15, 0.05, 0.80], [0.35, 0.10, 0.55]],
    ]
)  # fmt: skip


def example(data: ImageSet) -> tuple[Tensor, Tensor, Tensor]:
    """The pictures of `EXAMPLE`, (9, 1, 8, 8) in [0, 1], and its two views of Y, (9, 3) each."""
    rows = np.concatenate([np.flatnonzero(data.labels == digit)[:3] for digit in (0, 1, 7)])
    return torch.tensor(data.images[rows] / 255), *EXAMPLE


def counts(labels: np.ndarray, clusters: np.ndarray, n_clusters: int) -> np.ndarray:
    """Images by class and by cluster, clusters in the order of their numbers: int (classes, n_clusters)."""
    return np.stack([np.bincount(labels[clusters == k], minlength=labels.max() + 1) for k in range(n_clusters)], 1)


class Watch:
    """Keeps the clustering of all images at some epochs of a training; pass `report` to `ccrepro.train.train`."""

    def __init__(self, config: Config, data: ImageSet):
        self.config, self.data = config, data
        self.kept: dict[int, Clustering] = {}
        self.wanted = {round(share * config.epochs) for share in PICTURED}

    def report(self, epoch: Epoch, model: ContrastiveClusteringModel) -> None:
        number, total = epoch["epoch"], self.config.epochs
        if number in self.wanted:
            self.kept[number] = evaluate(self.config, self.data, model)
        if number and (number % 10 == 0 or number == total):
            print(f"epoch {number}/{total}  loss {epoch['loss']:.3f}  {epoch['seconds']:.1f} s/epoch", flush=True)

    def maps(self) -> list[dict[str, Any]]:
        """``epoch``, ``x``, ``y``, ``cluster`` and ``label`` of some images at each kept epoch, in one embedding."""
        rows = map_rows(len(self.data.images))
        points = feature_map([kept.features[rows] for kept in self.kept.values()])
        label = self.data.labels[rows]
        return [
            {"epoch": epoch, **p, "cluster": kept.labels_pred[rows], "label": label}
            for (epoch, kept), p in zip(self.kept.items(), points, strict=True)
        ]

    def progress(self) -> pd.DataFrame:
        """Scores against the labels at each kept epoch; training has seen none of this."""
        lines = [
            {
                "epoch": epoch,
                **{name.upper(): value for name, value in scores(self.data.labels, kept.labels_pred).items()},
                "clusters used": len(np.unique(kept.labels_pred)),
            }
            for epoch, kept in self.kept.items()
        ]
        return pd.DataFrame(lines).round(3)


def entropy_trials(data: ImageSet, epochs: int, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Train digits with and without the entropy term, with both heads and with the cluster head alone.

    One dict per training: heads, entropy_weight, seed; entropy in nats by epoch; counts, int (M,) images per cluster,
    the largest first; acc.
    """
    trials = []
    for seed in seeds:
        for variant in ("cc", "cluster-only"):
            for weight in (1.0, 0.0):
                config = recipe("digits", "demo", variant, seed, epochs=epochs, entropy_weight=weight)
                trials.append(_trial(config, data))
    return trials


def _trial(config: Config, data: ImageSet) -> dict[str, Any]:
    model, history = train(config, data)
    # The cluster head's own assignments, whatever the variant.
    clusters = evaluate(dataclasses.replace(config, heads="both"), data, model).labels_pred
    return {
        "heads": "both heads" if config.heads == "both" else "cluster head alone",
        "entropy_weight": config.entropy_weight,
        "seed": config.seed,
        "entropy": [epoch["entropy"] for epoch in history],
        "counts": np.sort(np.bincount(clusters, minlength=config.n_clusters))[::-1],
        "acc": scores(data.labels, clusters)["acc"],
    }


def entropy_table(trials: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """What the entropy term changes: mean ± sd over seeds, and the empty clusters of each; one line per setting."""
    lines = [
        {
            "trained": t["heads"],
            "entropy term": "with" if t["entropy_weight"] else "without",
            "largest cluster": t["counts"][0] / t["counts"].sum(),
            "smallest cluster": t["counts"][-1] / t["counts"].sum(),
            "empty clusters": int((t["counts"] == 0).sum()),
            "H of the mean assignment (nats)": t["entropy"][-1],
            "ACC": t["acc"],
        }
        for t in trials
    ]
    grouped = pd.DataFrame(lines).groupby(["trained", "entropy term"], sort=False)
    each = grouped["empty clusters"].agg(lambda counts: ", ".join(map(str, counts)))  # too few to be averaged
    return grouped.agg(mean_sd).assign(**{"empty clusters": each, "seeds": grouped.size()}).reset_index()
