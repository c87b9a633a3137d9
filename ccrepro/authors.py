"""The authors' way of doing each part, to be measured against: written anew from the description of their code.

One picture at a time through PIL; losses that mask a matrix of similarities, the clusters' by broadcasting; two
forward passes in fp32; matching in plain Python. Nothing else in this package uses any of it.

Letters: N images, D instance dimension, K clusters.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from sklearn import metrics
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms

from ccrepro.config import Config
from ccrepro.model import ContrastiveClusteringModel


class Views(torch.utils.data.Dataset):
    """Two random views of each picture, float (3, S, S) each, through torchvision's transforms of PIL pictures."""

    def __init__(self, images: Tensor, config: Config):
        self.pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        strengths = (config.brightness, config.contrast, config.saturation, config.hue)
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(config.image_size, config.crop_scale, config.crop_ratio),
                transforms.RandomHorizontalFlip(config.flip),
                transforms.RandomApply([transforms.ColorJitter(*strengths)], config.jitter),
                transforms.RandomGrayscale(config.grayscale),
                *([Blur(config)] if config.blur else []),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.pictures[i]), self.transform(self.pictures[i])


class Blur:
    """OpenCV's Gaussian blur of a PIL picture, with the settings' probability."""

    def __init__(self, config: Config):
        self.config = config

    def __call__(self, picture: Image.Image) -> Image.Image:
        import cv2  # late: a large package, for this comparison alone

        if random.random() >= self.config.blur:
            return picture
        kernel, sigma = self.config.blur_kernel, random.uniform(*self.config.blur_sigma)
        return Image.fromarray(cv2.GaussianBlur(np.array(picture), (kernel, kernel), sigma))


def masked_contrast(similarity: Tensor) -> Tensor:
    """Cross-entropy of each row's positive against its negatives, gathered by a boolean mask: (2M, 2M) → scalar."""
    size = len(similarity)
    m = size // 2
    negative = torch.ones(size, size, dtype=torch.bool, device=similarity.device).fill_diagonal_(False)
    rows = torch.arange(size, device=similarity.device)
    negative[rows, rows.roll(m)] = False
    positives = torch.cat((similarity.diagonal(m), similarity.diagonal(-m)))[:, None]
    logits = torch.cat((positives, similarity[negative].view(size, -1)), 1)
    target = torch.zeros(size, dtype=torch.long, device=similarity.device)
    return F.cross_entropy(logits, target, reduction="sum") / size


def instance_loss(z_a: Tensor, z_b: Tensor, temperature: float = 0.5) -> Tensor:
    """z: (N, D) of unit length."""
    z = torch.cat((z_a, z_b))
    return masked_contrast(z @ z.T / temperature)


def cluster_loss(p_a: Tensor, p_b: Tensor, temperature: float = 1.0) -> Tensor:
    """p: (N, K). The cosines of all pairs of columns by broadcasting to (2K, 2K, N)."""
    columns = torch.cat((p_a.T, p_b.T))
    similarity = F.cosine_similarity(columns[:, None], columns[None], dim=2) / temperature
    loss = masked_contrast(similarity)
    for p in (p_a, p_b):
        share = p.sum(0) / p.sum()
        loss = loss + math.log(len(share)) + (share * share.log()).sum()
    return loss


def step(
    model: ContrastiveClusteringModel, optimizer: torch.optim.Optimizer, view_a: Tensor, view_b: Tensor, config: Config
) -> float:
    """Two forward passes in fp32, both losses, Adam; the loss is read at once."""
    model.train()
    optimizer.zero_grad()
    (z_a, p_a), (z_b, p_b) = model(view_a), model(view_b)
    loss = instance_loss(z_a, z_b, config.instance_temperature) + cluster_loss(p_a, p_b, config.cluster_temperature)
    loss.backward()
    optimizer.step()
    return loss.item()


def scores(labels_true: np.ndarray, labels_pred: np.ndarray) -> dict[str, float]:
    """NMI, ARI, Fowlkes-Mallows and ACC, each from the labels; both (n_images,), clusters numbered like classes."""
    counts = metrics.confusion_matrix(labels_true, labels_pred)
    matched = match(counts.max() - counts)
    renamed = np.array([matched.index(cluster) for cluster in range(len(matched))])[labels_pred]
    return {
        "nmi": metrics.normalized_mutual_info_score(labels_true, labels_pred),
        "ari": metrics.adjusted_rand_score(labels_true, labels_pred),
        "f": metrics.fowlkes_mallows_score(labels_true, labels_pred),
        "acc": metrics.accuracy_score(labels_true, renamed),
    }


def match(cost: Sequence[Sequence[float]]) -> list[int]:
    """The column of each row in the cheapest one-to-one matching of a square matrix, by shortest augmenting paths."""
    n = len(cost)
    of_row, of_column = [0.0] * (n + 1), [0.0] * (n + 1)  # potentials; column 0 is a helper
    owner = [0] * (n + 1)  # row of each column, from 1; 0 is none
    for row in range(1, n + 1):
        owner[0], column = row, 0
        slack, before, seen = [math.inf] * (n + 1), [0] * (n + 1), [False] * (n + 1)
        while owner[column]:
            seen[column], here, delta, nearest = True, owner[column], math.inf, 0
            for j in range(1, n + 1):
                if not seen[j]:
                    reduced = float(cost[here - 1][j - 1]) - of_row[here] - of_column[j]
                    if reduced < slack[j]:
                        slack[j], before[j] = reduced, column
                    if slack[j] < delta:
                        delta, nearest = slack[j], j
            for j in range(n + 1):
                if seen[j]:
                    of_row[owner[j]] += delta
                    of_column[j] -= delta
                else:
                    slack[j] -= delta
            column = nearest
        while column:
            owner[column], column = owner[before[column]], before[column]
    columns = [0] * n
    for j in range(1, n + 1):
        columns[owner[j] - 1] = j - 1
    return columns
