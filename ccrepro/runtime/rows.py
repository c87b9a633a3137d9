"""Resize or blur the rows of images: each new row is a weighted sum of a few old ones.

Letters: N images, C channels, H rows, W columns, S new rows, T old rows that make up a new one.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def resize(x: Tensor, start: Tensor, length: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Bilinear and antialiased, as in torchvision: float (N, C, H, W) → (N, C, S, W), S = ``size``.

    Of each image, ``length`` rows from ``start`` on, (N,) whole floats, are taken; ``flip``, (N,) bool, turns them.
    """
    start, scale = start[:, None, None], (length / size)[:, None, None]  # scale: old rows per new one
    reach = scale.clamp(min=1)
    centre = (torch.arange(size, device=x.device)[:, None] + 0.5) * scale  # (N, S, 1), counted from the start
    rows = torch.ceil(start + centre - reach - 0.5)
    rows = rows + torch.arange(math.ceil(2 * max(x.shape[2] / size, 1)), device=x.device)  # (N, S, T)
    middle = rows - start + 0.5
    distance = (middle - centre).abs()
    inside = (middle > 0) & (middle < length[:, None, None])
    weights = (1 - distance / reach).clamp(min=0) * inside
    if flip is not None:
        rows, weights = (torch.where(flip[:, None, None], v.flip(1), v) for v in (rows, weights))
    return _weighted(x, rows.clamp(0, x.shape[2] - 1).long(), weights / weights.sum(2, keepdim=True))


def blur(x: Tensor, sigma: Tensor, taps: int) -> Tensor:
    """Gaussian of standard deviation ``sigma``, (N,), or none where that is 0: float (N, C, H, W) → the same.

    Beyond the border lies the mirrored image.
    """
    last, offset = x.shape[2] - 1, torch.arange(taps, device=x.device) - taps // 2
    weights = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True))[:, None].expand(-1, last + 1, -1)
    rows = (torch.arange(last + 1, device=x.device)[:, None] + offset).remainder(2 * last)
    return _weighted(x, (last - (last - rows).abs()).expand_as(weights), weights)


def _weighted(x: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Sum the rows of these numbers with these weights, (N, S, T) each: (N, C, H, W) → (N, C, S, W)."""
    n, c, h, w = x.shape
    rows = rows + h * torch.arange(n, device=x.device)[:, None, None]  # numbers in one table of all images' rows
    table = x.transpose(1, 2).reshape(n * h, c * w)
    sums = F.embedding_bag(rows.flatten(0, 1), table, mode="sum", per_sample_weights=weights.flatten(0, 1))
    return sums.view(n, rows.shape[1], c, w).transpose(1, 2)
