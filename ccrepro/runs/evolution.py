"""What a record keeps of a run on its way: scores, maps of the feature space, histograms of cosines; and examples.

Letters: N images, M images of a batch, D instance dimension, K clusters.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.manifold import TSNE
from torch import Tensor
from torch.nn import functional as F

from ccrepro.batches import pairs
from ccrepro.config import Config
from ccrepro.data import ImageSet, as_tensor
from ccrepro.evaluate import Clustering
from ccrepro.metrics import matched_classes, scores
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.runtime import storage

# When the feature space is pictured, as shares of all epochs: Fig. 4 shows epochs 0, 20, 50 and 100 of 1,000.
PICTURED = (0.0, 0.02, 0.05, 0.1, 0.3, 1.0)
POINTS = 600  # images that are pictured
SCORED = 10  # evenly spaced times that a run is scored on its way, beside these
FEATURES = 2000  # images whose features are kept each time
COSINE_BINS = 40


def scored(config: Config) -> set[int]:
    """The epochs after which a run is scored on its way, the last one excluded."""
    return ({round(i / SCORED * config.epochs) for i in range(SCORED)} | _pictured(config)) - {config.epochs}


def _pictured(config: Config) -> set[int]:
    """The epochs after which the feature space is pictured; only the last one for an ablation."""
    return {round(share * config.epochs) for share in (PICTURED if config.variant == "cc" else PICTURED[-1:])}


def keep(folder: Path, epoch: int, clustering: Clustering, cosines: dict[str, list[int]]) -> None:
    """Save the assignments after an epoch, the features of `FEATURES` fixed images and the histograms of cosines."""
    path, features = folder / f"epochs/{epoch:05d}.npz", clustering.features
    features = features[fixed_rows(len(features), FEATURES)]
    storage.save_arrays(path, labels_pred=clustering.labels_pred, features=features, **cosines)


def collect(folder: Path, config: Config, labels: np.ndarray) -> dict[str, Any]:
    """What `keep` saved, as entries of a record.

    ``evolution`` lists scores, clusters used and histograms of cosines at some epochs. At some of these it also has
    ``x``, ``y`` and ``cluster`` of the pictured images, in a t-SNE map of that epoch (Fig. 4). ``tsne`` is the last of
    these maps, with ``label``.
    """
    files = {epoch: folder / f"epochs/{epoch:05d}.npz" for epoch in sorted(scored(config) | {config.epochs})}
    kept = {epoch: storage.load_arrays(file) for epoch, file in files.items() if file.exists()}
    rows = fixed_rows(len(labels), POINTS)
    shown = np.isin(fixed_rows(len(labels), FEATURES), rows)
    found = []
    for epoch, arrays in kept.items():
        clusters, features = arrays.pop("labels_pred"), arrays.pop("features")
        found.append({"epoch": epoch, "scores": scores(labels, clusters), "n_clusters_used": len(np.unique(clusters))})
        if arrays:
            found[-1]["cosines"] = {name: counts.tolist() for name, counts in arrays.items()}
        if epoch in _pictured(config):
            found[-1] |= {**tsne(features[shown]), "cluster": clusters[rows].tolist()}
    last = {name: found[-1][name] for name in ("x", "y", "cluster")}
    return {"evolution": found, "tsne": {**last, "label": labels[rows].tolist()}}


@torch.inference_mode()
def cosine_histograms(config: Config, data: ImageSet, model: ContrastiveClusteringModel) -> dict[str, list[int]]:
    """How the cosines of positive and of negative pairs of rows and of columns are distributed (Fig. 3).

    Returns counts in `COSINE_BINS` equal bins from -1 to 1, under ``instance_positive``, ``instance_negative``,
    ``cluster_positive`` and ``cluster_negative``. They come from a tenth of the images, at most 2,000 and at least a
    batch, in batches of the training's size. Both views of them are the same at every call.
    """
    model.eval()
    rows = fixed_rows(len(data.images), max(config.batch_size, min(2000, len(data.images) // 10)))
    counts: dict[str, Tensor] = defaultdict(lambda: torch.zeros(COSINE_BINS))
    for views in pairs(as_tensor(data.images[rows]), config, epoch=0):
        (z_a, p_a), (z_b, p_b) = map(model, views)
        for head, a, b in (("instance", z_a, z_b), ("cluster", p_a.T, p_b.T)):
            vectors = F.normalize(torch.cat((a, b)), dim=1)  # (2M, D) of rows, (2K, M) of columns
            cosines, m = vectors @ vectors.T, len(a)
            same = torch.eye(m, dtype=torch.bool, device=cosines.device).repeat(2, 2)
            for name, found in (("positive", cosines.diagonal(m)), ("negative", cosines[~same])):
                counts[f"{head}_{name}"] += found.clamp(-1, 1).histc(COSINE_BINS, -1, 1).cpu()
    return {name: count.int().tolist() for name, count in counts.items()}


def fixed_rows(n_images: int, n: int) -> np.ndarray:
    """The sorted rows of at most n images that stand for all, the same at every call; a smaller n gives a subset."""
    return np.sort(np.random.default_rng(0).permutation(n_images)[:n])


def tsne(features: np.ndarray, seed: int = 0) -> dict[str, list[float]]:
    """``x`` and ``y`` of a t-SNE map of (N, D) features. Maps of several epochs have no axes in common."""
    begin = "pca" if np.ptp(features, axis=0).any() else "random"  # equal features have no principal components
    how = {"perplexity": min(30, (len(features) - 1) / 3), "init": begin, "random_state": seed, "n_jobs": 1}
    points = TSNE(**how).fit_transform(features).astype(float).round(2)
    return {"x": points[:, 0].tolist(), "y": points[:, 1].tolist()}


def examples(labels: np.ndarray, clustering: Clustering, n_clusters: int, n: int = 10) -> dict[str, list[Any]]:
    """Images worth a look, one per entry: ``kind``, ``image`` (its index), ``label``, ``cluster`` and ``confidence``.

    *right*: for each of at most 20 classes, its most confident image in the cluster that is matched to it. *wrong*: the
    n most confident images in another class's cluster. *between*: the n images with the smallest margin. Empty where no
    cluster head made the clusters.
    """
    if clustering.confidence is None:
        return {}
    right = matched_classes(labels, clustering.labels_pred, n_clusters)[clustering.labels_pred] == labels
    surest = np.argsort(-clustering.confidence, kind="stable")
    of_class = (surest[right[surest] & (labels[surest] == k)][:1] for k in np.unique(labels)[:20])
    chosen = {
        "right": np.concatenate([*of_class]),
        "wrong": surest[~right[surest]][:n],
        "between": np.argsort(clustering.margin, kind="stable")[:n],
    }
    rows = np.concatenate([*chosen.values()])
    return {
        "kind": [kind for kind, found in chosen.items() for _ in found],
        "image": rows.tolist(),
        "label": labels[rows].tolist(),
        "cluster": clustering.labels_pred[rows].tolist(),
        "confidence": [round(float(c), 4) for c in clustering.confidence[rows]],
    }
