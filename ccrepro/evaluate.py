"""From a trained model to assignments and scores.

Letters: N images, D instance dimension, K clusters.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ccrepro.augmentations import eval_view
from ccrepro.baselines import BASELINES, kmeans
from ccrepro.config import Config
from ccrepro.data import ImageSet, as_tensor
from ccrepro.metrics import scores
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.runtime.ragged import Ragged, channels_of, sizes_of

PIXELS = 2**23  # values of pixels that are made floats at once in evaluation: 55 images of 224 pixels in colour


@dataclass(frozen=True)
class Clustering:
    """The clustering of N images.

    labels_pred: int (N,) in 0 … K - 1. features: float32 (N, D), the instance head's output, or the pixels in [0, 1]
    of a baseline. confidence: float32 (N,), the largest assignment, and margin: float32 (N,), by how much it exceeds
    the second; both None where no cluster head made the clusters.
    """

    labels_pred: np.ndarray
    features: np.ndarray
    confidence: np.ndarray | None = None
    margin: np.ndarray | None = None


def evaluate(config: Config, data: ImageSet, model: ContrastiveClusteringModel | None) -> Clustering:
    """Cluster all images in the way of the variant.

    The full method and the cluster head alone take the largest assignment, image by image (§3.4); the instance head
    alone needs k-means on its output (Table 4); a baseline works on the pixels.
    """
    images = as_tensor(data.images)
    if config.baseline:
        if isinstance(images, Ragged):  # a baseline needs as many pixels of each
            views = torch.cat([eval_view(images[i : i + 1], config.image_size) for i in range(len(images))])
        else:
            views = images.float() / 255
        pixels = views.flatten(1).numpy()
        return Clustering(BASELINES[config.baseline](pixels, config.n_clusters, config.seed), pixels)
    z, p = embed(model, images, config)
    if config.heads == "instance":
        return Clustering(kmeans(z, config.n_clusters, config.seed), z)
    first, second = torch.from_numpy(p).topk(2).values.numpy().T
    return Clustering(p.argmax(1), z, first, first - second)


@torch.inference_mode()
def embed(
    model: ContrastiveClusteringModel, images: Tensor | Ragged, config: Config, batch_size: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """z (N, D) and p (N, K) of unaugmented images: N uint8 ones, resized as the settings say; float32 arrays.

    At most ``batch_size`` images and `PIXELS` are at work at once.
    """
    model.eval()
    largest = channels_of(images) * int(sizes_of(images).prod(1).max())
    device, at_once = next(model.parameters()).device, max(1, min(batch_size, PIXELS // largest))
    how = (config.image_size, config.quantize, config.backbone == "pretrained")
    batches = (images[i : i + at_once].to(device) for i in range(0, len(images), at_once))
    parts = [model(eval_view(batch, *how)) for batch in batches]
    z, p = (torch.cat(outputs).cpu().numpy() for outputs in zip(*parts, strict=True))
    return z, p


def score(config: Config, data: ImageSet, clustering: Clustering) -> dict[str, dict[str, float]]:
    """NMI, ACC and ARI of the assignments; for the full method also those of k-means on the same features."""
    result = {"scores": scores(data.labels, clustering.labels_pred)}
    if config.heads == "both" and not config.baseline:
        again = kmeans(clustering.features, config.n_clusters, config.seed)
        result["scores_kmeans_on_features"] = scores(data.labels, again)
    return result
