"""From a trained model to assignments, scores and a map of the feature space.

Letters: N images, D instance dimension, K clusters.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ccrepro.augmentations import eval_view
from ccrepro.baselines import BASELINES, kmeans
from ccrepro.batches import pairs
from ccrepro.config import Config
from ccrepro.data import ImageSet, as_tensor
from ccrepro.metrics import matched_classes, scores
from ccrepro.model import ContrastiveClusteringModel

COSINE_BINS = 40
PIXELS = 2**23  # values of pixels that are made floats at once in evaluation: 55 images of 224 pixels in colour


@dataclass(frozen=True)
class Clustering:
    """What a run says of each of N images.

    labels_pred: int (N,) in 0 … K - 1. features: float32 (N, D), the instance head's output, or the pixels in [0, 1]
    of a baseline. confidence: float32 (N,), the largest assignment, and margin: float32 (N,), by how much it exceeds
    the second; both None where no cluster head made the clusters.
    """

    labels_pred: np.ndarray
    features: np.ndarray
    confidence: np.ndarray | None = None
    margin: np.ndarray | None = None


def evaluate(config: Config, data: ImageSet, model: ContrastiveClusteringModel | None) -> Clustering:
    """Cluster all images, as the variant does it.

    The full method and the cluster head alone take the largest assignment, image by image (§3.4); the instance head
    alone needs k-means on its output (Table 4); a baseline works on the pixels.
    """
    if config.baseline:
        pixels = data.images.reshape(len(data.images), -1).astype(np.float32) / 255
        return Clustering(BASELINES[config.baseline](pixels, config.n_clusters, config.seed), pixels)
    z, p = embed(model, as_tensor(data.images), config.image_size)
    if config.heads == "instance":
        return Clustering(kmeans(z, config.n_clusters, config.seed), z)
    first, second = torch.from_numpy(p).topk(2).values.numpy().T
    return Clustering(p.argmax(1), z, first, first - second)


@torch.inference_mode()
def embed(
    model: ContrastiveClusteringModel, images: Tensor, size: int, batch_size: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """z (N, D) and p (N, K) of unaugmented images: uint8 (N, C, H, W), resized to ``size``; float32 arrays.

    At most ``batch_size`` images and `PIXELS` are at work at once.
    """
    model.eval()
    device, at_once = next(model.parameters()).device, max(1, min(batch_size, PIXELS // images[0].numel()))
    parts = [model(eval_view(batch.to(device), size)) for batch in images.split(at_once)]
    z, p = (torch.cat(outputs).cpu().numpy() for outputs in zip(*parts, strict=True))
    return z, p


def score(config: Config, data: ImageSet, clustering: Clustering) -> dict[str, dict[str, float]]:
    """NMI, ACC and ARI of the assignments; for the full method also those of k-means on the same features."""
    result = {"scores": scores(data.labels, clustering.labels_pred)}
    if config.heads == "both" and not config.baseline:
        again = kmeans(clustering.features, config.n_clusters, config.seed)
        result["scores_kmeans_on_features"] = scores(data.labels, again)
    return result


def examples(labels: np.ndarray, clustering: Clustering, n_clusters: int, n: int = 10) -> dict[str, list[Any]]:
    """Images to be looked at, one per entry: ``kind`` (*right*, the most confident of each class that is in its
    matched cluster, of at most 20; *wrong*, the n most confident of the others; *between*, the n of the smallest
    margin), ``image`` (its index), ``label``, ``cluster`` and ``confidence``. Empty where no cluster head decided."""
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


@torch.inference_mode()
def cosine_histograms(config: Config, data: ImageSet, model: ContrastiveClusteringModel) -> dict[str, list[int]]:
    """How the cosines of positive and of negative pairs are distributed, of rows and of columns [Fig. 3].

    Counts in `COSINE_BINS` equal bins from -1 to 1, under ``instance_positive``, ``instance_negative``,
    ``cluster_positive`` and ``cluster_negative``. They are of batches of the training's size of a tenth of the images,
    at most 2,000, whose two views are the same at every call.
    """
    model.eval()
    rows = fixed_rows(len(data.images), max(config.batch_size, min(2000, len(data.images) // 10)))
    counts: dict[str, Tensor] = defaultdict(lambda: torch.zeros(COSINE_BINS))
    for views in pairs(as_tensor(data.images[rows]), as_tensor(data.sizes[rows]), config, epoch=0):
        (z_a, p_a), (z_b, p_b) = map(model, views)
        for head, a, b in (("instance", z_a, z_b), ("cluster", p_a.T, p_b.T)):
            vectors = F.normalize(torch.cat((a, b)), dim=1)  # (2M, F)
            cosines, m = vectors @ vectors.T, len(a)
            same = torch.eye(m, dtype=torch.bool, device=cosines.device).repeat(2, 2)
            for name, found in (("positive", cosines.diagonal(m)), ("negative", cosines[~same])):
                counts[f"{head}_{name}"] += found.clamp(-1, 1).histc(COSINE_BINS, -1, 1).cpu()
    return {name: count.int().tolist() for name, count in counts.items()}


def fixed_rows(n_images: int, n: int) -> np.ndarray:
    """At most n images that stand for all, the same at every call, sorted; those of a smaller n are among them."""
    return np.sort(np.random.default_rng(0).permutation(n_images)[:n])


def tsne(features: Sequence[np.ndarray], seed: int = 0) -> list[dict[str, list[float]]]:
    """``x`` and ``y`` of the same images at several epochs, all in one t-SNE embedding.

    It is made of the last (N, D) features; each earlier point is placed by its nearest neighbours among them.
    """
    from openTSNE import TSNE  # late: two seconds that only a finished run needs

    embedding = TSNE(random_state=seed, n_jobs=1).fit(features[-1])
    points = [*(embedding.transform(earlier) for earlier in features[:-1]), embedding]
    return [{"x": p[:, 0].tolist(), "y": p[:, 1].tolist()} for p in (np.asarray(p).round(2) for p in points)]
