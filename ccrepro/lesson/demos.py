"""The data and the trainings that the lesson shows."""

import itertools
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor

from ccrepro.config import Config
from ccrepro.data import ImageSet
from ccrepro.evaluate import evaluate
from ccrepro.metrics import accuracy, mean_sd
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.recipes import STRONG, recipe
from ccrepro.runs.record import Run
from ccrepro.runs.resume import fit


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


def train(config: Config, data: ImageSet) -> tuple[ContrastiveClusteringModel, dict[str, Any]]:
    """Train as ``ccrepro train`` does, in a folder that is thrown away. Returns the network and the run's record."""
    with tempfile.TemporaryDirectory() as folder, Run(config, data, folder) as run:
        model, history = fit(config, data, run.report)
        return model, run.finish(model, history)


def entropy_trials(data: ImageSet, epochs: int, seeds: Sequence[int]) -> pd.DataFrame:
    """Train digits with and without the entropy term, with both heads and the cluster head alone. A row per training:
    trained, entropy term, entropy (nats, by epoch), ACC, sizes (int (M,), images per cluster, largest first)."""
    trials, heads, terms = [], {"both heads": "cc", "cluster head alone": "cluster-only"}, {"with": 1.0, "without": 0.0}
    for seed, trained, term in itertools.product(seeds, heads, terms):
        config = recipe("digits", "demo", heads[trained], seed, epochs=epochs, entropy_weight=terms[term])
        model, history = fit(config, data)
        clusters = evaluate(config.replace(heads="both"), data, model).labels_pred  # always of the cluster head
        sizes = np.sort(np.bincount(clusters, minlength=config.n_clusters))[::-1]
        entropy = [epoch["entropy"] for epoch in history]
        trials.append((trained, term, entropy, accuracy(data.labels, clusters), sizes))
    return pd.DataFrame(trials, columns=["trained", "entropy term", "entropy", "ACC", "sizes"])


def entropy_table(trials: pd.DataFrame) -> pd.DataFrame:
    """What the entropy term changes, one line per setting: mean ± sd over seeds, and each seed's empty clusters."""
    sizes = np.stack(trials.sizes)
    more = {"largest cluster": sizes[:, 0] / sizes.sum(1), "smallest cluster": sizes[:, -1] / sizes.sum(1)}
    more |= {"empty clusters": (sizes == 0).sum(1), "H of the mean assignment (nats)": trials.entropy.str[-1]}
    grouped = trials.assign(**more).groupby(["trained", "entropy term"], sort=False)
    each = grouped["empty clusters"].agg(lambda counts: ", ".join(map(str, counts)))  # too few for a mean
    return (
        grouped[[*more, "ACC"]].agg(mean_sd).assign(**{"empty clusters": each, "seeds": grouped.size()}).reset_index()
    )
