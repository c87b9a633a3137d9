"""The colour operations of the views in a form for GPUs and compilers, and what it shares with the plain form.

It has no branch and no index that depends on the data: a compiler makes two passes over memory of it, and a GPU never
waits for the host. Tests hold it equal to the plain form in `ccrepro.augmentations`.

Letters: N views, C channels (1 or 3), S the side of the view.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # columns of factors
TINY = 1e-3  # levels: what is a whole level but for rounding is not to fall to the next
LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue


def color_jitter(
    x: Tensor, jitter: Tensor, factors: Tensor, order: Tensor, grayscale: Tensor, quantize: bool = False
) -> Tensor:
    """The same function as `ccrepro.augmentations.color_jitter`: float (N, C, S, S) → the same.

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
        return [cut((_per_channel(scale) * c + gray).clamp(0, 1), quantize) for c in channels]

    def side(channels: Sequence[Tensor], late: bool) -> Sequence[Tensor]:
        """All that comes before the contrast, or after it."""
        for second in (False, True):
            channels = toned(channels, late, False, second)
        if len(channels) == 3:
            due = _per_channel(jitter & ((rank[HUE] > rank[CONTRAST]) == late))
            turned = turn_hue(channels, _per_channel(factor[HUE]), quantize)
            channels = [torch.where(due, t, c) for t, c in zip(turned, channels, strict=True)]
        for second in (False, True):
            channels = toned(channels, late, True, second)
        return channels

    channels = side(x.unbind(1), late=False)
    scale = _per_channel(torch.where(jitter, factor[CONTRAST], 1.0))
    mean = (1 - scale) * gray_of(channels).mean((1, 2), keepdim=True)
    channels = side([cut((scale * c + mean).clamp(0, 1), quantize) for c in channels], late=True)
    gray, dropped = rounded(gray_of(channels), quantize), _per_channel(grayscale)
    return torch.stack([torch.where(dropped, gray, c) for c in channels], 1)


def turn_hue(channels: Sequence[Tensor], shift: Tensor, quantize: bool = False) -> list[Tensor]:
    """`hue` of red, green and blue (N, S, S), with shift (N, 1, 1).

    There is no choice between cases in it: `torch.where` takes twenty times as long as a sum on a CPU.
    """
    r, g, b = channels
    most, least = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    chroma = most - least
    # Sixths of a turn from red (0) to yellow (1), green (2) and cyan (3), or to magenta (-1), blue (-2) and cyan (-3).
    distance = ((g - r) + (b - least)).div_(chroma.clamp(min=1e-30)).add_(1)
    hue = torch.copysign(distance, g - b)
    if quantize:  # PIL keeps hue and saturation as bytes, of which 255 is a whole turn, but hues are added modulo 256
        hue = hue.mul_(255 / 6).add_(TINY).remainder_(255).floor_().add_((255 * shift).trunc()).remainder_(256)
        hue = hue.mul_(6 / 255)
        chroma = chroma.div_(most.clamp(min=1e-30)).mul_(255).add_(TINY).floor_().mul_(most).div_(255)
    else:
        hue = hue.add_(6 * shift)
    # A channel is least within a sixth of the opposite hue, and most where it is two sixths away from that.
    away = (hue - opposite for opposite in (3, 5, 1))  # cyan, magenta, yellow
    away = (d.sub_((d / 6).round_(), alpha=6).abs_() for d in away)
    return [rounded(most - d.neg_().add_(2).clamp_(0, 1).mul_(chroma), quantize) for d in away]


def rounded(x: Tensor, quantize: bool) -> Tensor:
    """x in [0, 1]; with ``quantize`` rounded to whole levels of 0 … 255, halves up, as PIL resizes and converts."""
    return (255 * x).add_(0.5 + TINY).floor_().div_(255) if quantize else x


def cut(x: Tensor, quantize: bool) -> Tensor:
    """x in [0, 1]; with ``quantize`` without fractions of the levels 0 … 255, as PIL blends."""
    return (255 * x).add_(TINY).floor_().div_(255) if quantize else x


def gray_of(channels: Sequence[Tensor]) -> Tensor:
    if len(channels) == 1:
        return channels[0]
    r, g, b = channels
    return (LUMA[0] * r).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2])


def _per_channel(values: Tensor) -> Tensor:
    """(N,) → (N, 1, 1)."""
    return values.view(-1, 1, 1)
