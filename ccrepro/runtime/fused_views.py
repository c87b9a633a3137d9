"""Kernels of the views: what the plain operations of `ccrepro.augmentations` share with their fused forms.

The fused forms have no branch and no index that depends on the data: a compiler turns them into two passes over memory,
and they never make a GPU wait for the host. Tests hold them equal to the plain ones.

Letters: N views, C channels (1 or 3), H, W sides of the image, S side of the view.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # columns of factors
LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue


def rows_of_few(x: Tensor, top: Tensor, height: Tensor, size: int) -> Tensor:
    """Resize the rows as one sum of the few rows whose weights are not 0: float (N, H, C, W) → (N, S, C, W)."""
    n, n_in = x.shape[:2]
    scale, centre = _scale_and_centre(height, size)
    first = torch.ceil(top[:, None, None] + centre - scale.clamp(min=1) - 0.5)
    rows = first + torch.arange(math.ceil(2 * max(n_in / size, 1)), device=x.device)
    weights = resize_weights(height, rows - top[:, None, None], size)
    rows = rows.clamp(0, n_in - 1).long()
    shape = (n, size, *x.shape[2:])
    taps = zip(rows.unbind(2), weights.unbind(2), strict=True)
    return sum(weight[:, :, None, None] * x.gather(1, row[:, :, None, None].expand(shape)) for row, weight in taps)


def pixels_from(start: Tensor, n: int) -> Tensor:
    """(N, 1, n) all pixels, counted from the start of each image's stretch."""
    return torch.arange(n, device=start.device)[None, None, :] - start[:, None, None]


def _scale_and_centre(length: Tensor, n_out: int) -> tuple[Tensor, Tensor]:
    """Of the new pixels of a resize: how many old ones each takes, (N, 1, 1), and their middles, (N, n_out, 1)."""
    scale = (length / n_out)[:, None, None]
    return scale, (torch.arange(n_out, device=length.device)[None, :, None] + 0.5) * scale


def resize_weights(length: Tensor, pixel: Tensor, n_out: int) -> Tensor:
    """(N, n_out, P) triangle-filter weights of pixels, (N, 1 or n_out, P) and counted from the start of a stretch, that
    resize the stretch, of (N,) length, to n_out pixels."""
    scale, centre = _scale_and_centre(length, n_out)
    middle = pixel + 0.5
    distance = (middle - centre).abs()
    weights = (1 - distance / scale.clamp(min=1)).clamp(min=0)
    # Pixels of the stretch; and, where it is a fraction of a pixel off the grid, always the one that is sampled.
    weights = weights * (((middle > 0) & (middle < length[:, None, None])) | (distance <= 0.5))
    return weights / weights.sum(2, keepdim=True)


def color_jitter(x: Tensor, jitter: Tensor, factors: Tensor, order: Tensor, grayscale: Tensor) -> Tensor:
    """The same function as `ccrepro.augmentations.color_jitter`, without a branch or an index that depends on the data.

    x: float (N, C, S, S); the others are fields of `ccrepro.augmentations.Parameters`.

    The contrast needs a mean over the image and cuts the sequence in two. On either side of it come at most
    brightness and saturation, hue, brightness and saturation; a factor is neutral where its operation is not due.
    """
    factor, rank = factors.unbind(1), torch.argsort(order, 1).unbind(1)

    def toned(channels: Sequence[Tensor], late: bool, after_hue: bool, second: bool) -> Sequence[Tensor]:
        """Brightness or saturation, if one of them is due here."""

        def due(own: int, other: int) -> Tensor:
            place = (rank[own] > rank[CONTRAST], rank[own] > rank[HUE], rank[own] > rank[other])
            return jitter & (place[0] == late) & (place[1] == after_hue) & (place[2] == second)

        bright, saturated = due(BRIGHTNESS, SATURATION), due(SATURATION, BRIGHTNESS) & (len(channels) == 3)
        scale = torch.where(bright, factor[BRIGHTNESS], torch.where(saturated, factor[SATURATION], 1.0))
        gray = _per_channel(torch.where(saturated, 1 - factor[SATURATION], 0.0)) * gray_of(channels)
        return [(_per_channel(scale) * c + gray).clamp(0, 1) for c in channels]

    def side(channels: Sequence[Tensor], late: bool) -> Sequence[Tensor]:
        """All that comes before the contrast, or after it."""
        for second in (False, True):
            channels = toned(channels, late, False, second)
        if len(channels) == 3:
            due = _per_channel(jitter & ((rank[HUE] > rank[CONTRAST]) == late))
            turned = turn_hue(channels, _per_channel(factor[HUE]))
            channels = [torch.where(due, t, c) for t, c in zip(turned, channels, strict=True)]
        for second in (False, True):
            channels = toned(channels, late, True, second)
        return channels

    channels = side(x.unbind(1), late=False)
    scale = _per_channel(torch.where(jitter, factor[CONTRAST], 1.0))
    mean = (1 - scale) * gray_of(channels).mean((1, 2), keepdim=True)
    channels = [(scale * c + mean).clamp(0, 1) for c in channels]
    channels = side(channels, late=True)
    gray, dropped = gray_of(channels), _per_channel(grayscale)
    return torch.stack([torch.where(dropped, gray, c) for c in channels], 1)


def turn_hue(channels: Sequence[Tensor], shift: Tensor) -> list[Tensor]:
    """`hue` of red, green and blue (N, S, S), with shift (N, 1, 1)."""
    r, g, b = channels
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    safe = torch.where(chroma == 0, 1, chroma)
    sextant = torch.where(value == r, (g - b) / safe, torch.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    sextant = sextant + 6 * shift
    # Channel n of HSV → RGB is value - chroma · clamp(min(k, 4 - k), 0, 1) with k = (n + sextant) mod 6.
    turned = (_modulo6(sextant + n) for n in (5, 3, 1))
    return [value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in turned]


def _modulo6(x: Tensor) -> Tensor:
    return x - 6 * torch.floor(x / 6)


def gray_of(channels: Sequence[Tensor]) -> Tensor:
    if len(channels) == 1:
        return channels[0]
    r, g, b = channels
    return LUMA[0] * r + LUMA[1] * g + LUMA[2] * b


def _per_channel(values: Tensor) -> Tensor:
    """(N,) → (N, 1, 1)."""
    return values.view(-1, 1, 1)
