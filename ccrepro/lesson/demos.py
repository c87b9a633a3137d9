"""The data and the trainings that the lesson shows."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor

from ccrepro.config import Config
from ccrepro.data import ImageSet
from ccrepro.evaluate import Clustering, evaluate
from ccrepro.metrics import accuracy, mean_sd, scores
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.recipes import STRONG, recipe
from ccrepro.runs.evolution import fixed_rows, tsne
from ccrepro.runs.resume import fit
from ccrepro.train import Epoch


def flower() -> Tensor:
    """A square of a colour photograph by the Flickr user vultilion, CC BY 2.0: uint8 (1, 3, 400, 400)."""
    return torch.tensor(load_sample_image("flower.jpg")[27:427, 120:520]).permute(2, 0, 1)[None]


def color_config(strength: float = 1.0, smallest_crop: float = 0.08, **overrides: Any) -> Config:
    """The paper's augmentation of ImageNet-10 on views of 112 pixels: ``strength`` is the s of its colour jitter (at
    most 1.25), ``smallest_crop`` the smallest area of a crop, as a share."""
    jitter = {name: strength * value for name, value in STRONG.items()}
    return recipe("imagenet10", "paper", **jitter, image_size=112, crop_scale=(smallest_crop, 1.0), **overrides)


# Soft assignments of nine digits (three 0s, 1s and 7s) to three clusters in two views, (2, N, M), made up for reading:
# clusters 0 and 2 are partly mixed up. In percent, one list per cluster.
VIEW_A = [[5, 2, 10, 85, 55, 70, 30, 10, 45], [90, 95, 80, 5, 5, 10, 5, 10, 5], [5, 3, 10, 10, 40, 20, 65, 80, 50]]
VIEW_B = [[10, 5, 5, 75, 60, 50, 40, 15, 35], [85, 90, 85, 5, 10, 5, 5, 5, 10], [5, 5, 10, 20, 30, 45, 55, 80, 55]]
EXAMPLE = torch.tensor([VIEW_A, VIEW_B]).mT / 100


def example(data: ImageSet) -> tuple[Tensor, Tensor, Tensor]:
    """The images of `EXAMPLE`, (9, 1, 8, 8) in [0, 1], and its two views of Y, (9, 3) each."""
    rows = np.concatenate([np.flatnonzero(data.labels == digit)[:3] for digit in (0, 1, 7)])
    return torch.tensor(data.images[rows] / 255), *EXAMPLE


def counts(labels: np.ndarray, clusters: np.ndarray, n_clusters: int) -> np.ndarray:
    """Images by class and by cluster, clusters in the order of their numbers: int (classes, n_clusters)."""
    return np.stack([np.bincount(labels[clusters == k], minlength=labels.max() + 1) for k in range(n_clusters)], 1)


class Watch:
    """Keeps the clustering of all images at some epochs of a training. Pass `report` to `ccrepro.runs.resume.fit`."""

    def __init__(self, config: Config, data: ImageSet):
        self.config, self.data = config, data
        self.kept: dict[int, Clustering] = {}

    def report(self, epoch: Epoch, model: ContrastiveClusteringModel) -> None:
        number, total = epoch["epoch"], self.config.epochs
        if number in {round(share * total) for share in (0, 0.04, 0.1, 0.3, 1)}:
            self.kept[number] = evaluate(self.config, self.data, model)
        if number and (number % 10 == 0 or number == total):
            print(f"epoch {number}/{total}  loss {epoch['loss']:.3f}  {epoch['seconds']:.1f} s/epoch", flush=True)

    def maps(self) -> list[dict[str, Any]]:
        """``epoch``, ``x``, ``y``, ``cluster`` and ``label`` of 600 images at each kept epoch, in one embedding."""
        rows = fixed_rows(len(self.data.images), 600)
        points = tsne([kept.features[rows] for kept in self.kept.values()])
        return [
            {"epoch": epoch, **xy, "cluster": kept.labels_pred[rows], "label": self.data.labels[rows]}
            for (epoch, kept), xy in zip(self.kept.items(), points, strict=True)
        ]

    def progress(self) -> pd.DataFrame:
        """NMI, ACC and ARI at each kept epoch, and the clusters in use; training has seen none of the labels."""
        lines = [
            {"epoch": epoch, **scores(self.data.labels, kept.labels_pred), "clusters used": len(set(kept.labels_pred))}
            for epoch, kept in self.kept.items()
        ]
        return pd.DataFrame(lines).round(3).rename(columns={"nmi": "NMI", "acc": "ACC", "ari": "ARI"})


def entropy_trials(data: ImageSet, epochs: int, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Train digits with and without the entropy term, with both heads and the cluster head alone. Of each training:
    heads, entropy_weight, seed, entropy (nats, by epoch), acc, counts (int (M,), images per cluster, largest first)."""
    trials, variants = [], {"cc": "both heads", "cluster-only": "cluster head alone"}
    for seed, variant, weight in itertools.product(seeds, variants, (1.0, 0.0)):
        config = recipe("digits", "demo", variant, seed, epochs=epochs, entropy_weight=weight)
        model, history = fit(config, data)
        clusters = evaluate(config.replace(heads="both"), data, model).labels_pred  # always of the cluster head
        trials.append({
            "heads": variants[variant], "entropy_weight": weight, "seed": seed,
            "entropy": [epoch["entropy"] for epoch in history], "acc": accuracy(data.labels, clusters),
            "counts": np.sort(np.bincount(clusters, minlength=config.n_clusters))[::-1],
        })  # fmt: skip
    return trials


def entropy_table(trials: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """What the entropy term changes, one line per setting: mean ± sd over seeds, and each seed's empty clusters."""
    lines = []
    for trial in trials:
        sizes = trial["counts"]
        lines.append({
            "trained": trial["heads"], "entropy term": "with" if trial["entropy_weight"] else "without",
            "largest cluster": sizes[0] / sizes.sum(), "smallest cluster": sizes[-1] / sizes.sum(),
            "empty clusters": (sizes == 0).sum(),
            "H of the mean assignment (nats)": trial["entropy"][-1], "ACC": trial["acc"],
        })  # fmt: skip
    grouped = pd.DataFrame(lines).groupby(["trained", "entropy term"], sort=False)
    each = grouped["empty clusters"].agg(lambda counts: ", ".join(map(str, counts)))  # too few for a mean
    return grouped.agg(mean_sd).assign(**{"empty clusters": each, "seeds": grouped.size()}).reset_index()
