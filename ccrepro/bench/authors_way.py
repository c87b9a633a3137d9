"""The authors' way of doing each part, to be measured against: written anew from the description of their code.

One image at a time through PIL; losses that mask a matrix of similarities, the clusters' by broadcasting; fp32. Nothing
else in this package uses any of it.

Letters: N images, D instance dimension, K clusters.
"""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms

from ccrepro.augmentations import BLUR_KERNEL, BLUR_SIGMA, CROP_RATIO
from ccrepro.config import Config
from ccrepro.runtime.ragged import Ragged


class Views(torch.utils.data.Dataset):
    """Two random views of each image, float (3, S, S) each, through torchvision's transforms of PIL images."""

    def __init__(self, images: Tensor | Ragged, config: Config):
        self.images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        strengths = (config.brightness, config.contrast, config.saturation, config.hue)
        steps = [
            transforms.RandomResizedCrop(config.image_size, config.crop_scale, CROP_RATIO),
            transforms.RandomHorizontalFlip(config.flip),
            transforms.RandomApply([transforms.ColorJitter(*strengths)], config.jitter),
            transforms.RandomGrayscale(config.grayscale),
        ]
        blur = [transforms.RandomApply([blurred], config.blur)] if config.blur else []
        self.transform = transforms.Compose([*steps, *blur, transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[i]), self.transform(self.images[i])


def blurred(image: Image.Image) -> Image.Image:
    """OpenCV's Gaussian blur of a PIL image."""
    import cv2  # late: a large package, for this comparison alone

    sigma = torch.empty(()).uniform_(*BLUR_SIGMA).item()
    return Image.fromarray(cv2.GaussianBlur(np.array(image), (BLUR_KERNEL, BLUR_KERNEL), sigma))


def masked_contrast(similarity: Tensor) -> Tensor:
    """Cross-entropy of each row's positive against its negatives, gathered by a boolean mask: (2M, 2M) → scalar."""
    size, m = len(similarity), len(similarity) // 2
    rows = torch.arange(size, device=similarity.device)
    negative = ~torch.eye(size, dtype=torch.bool, device=similarity.device)
    negative[rows, rows.roll(m)] = False
    positives = torch.cat((similarity.diagonal(m), similarity.diagonal(-m)))[:, None]
    logits = torch.cat((positives, similarity[negative].view(size, -1)), 1)
    return F.cross_entropy(logits, torch.zeros_like(rows), reduction="sum") / size


def instance_loss(z_a: Tensor, z_b: Tensor, temperature: float = 0.5) -> Tensor:
    """z: (N, D) of unit length."""
    z = torch.cat((z_a, z_b))
    return masked_contrast(z @ z.T / temperature)


def cluster_loss(p_a: Tensor, p_b: Tensor, temperature: float = 1.0) -> Tensor:
    """p: (N, K). The cosines of all pairs of columns by broadcasting to (2K, 2K, N)."""
    columns = torch.cat((p_a.T, p_b.T))
    loss = masked_contrast(F.cosine_similarity(columns[:, None], columns[None], dim=2) / temperature)
    for share in (p_a.sum(0) / p_a.sum(), p_b.sum(0) / p_b.sum()):
        loss = loss + math.log(len(share)) + (share * share.log()).sum()
    return loss


def step(model: torch.nn.Module, optimizer: torch.optim.Adam, view_a: Tensor, view_b: Tensor, config: Config) -> float:
    """Two forward passes in fp32, both losses, Adam; the loss is read at once."""
    model.train()
    optimizer.zero_grad()
    (z_a, p_a), (z_b, p_b) = model(view_a), model(view_b)
    loss = instance_loss(z_a, z_b, config.instance_temperature) + cluster_loss(p_a, p_b, config.cluster_temperature)
    loss.backward()
    optimizer.step()
    return loss.item()
