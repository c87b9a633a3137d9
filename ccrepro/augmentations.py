"""The random views of the images (§3.1): draw the parameters of every view, then apply them to a whole batch.

``draw`` takes all random numbers, on the CPU; ``apply`` is a deterministic function of images and parameters. Every
image has its own parameters, and its own order of the four colour operations. Given the same parameters, each operation
equals torchvision's on that image (float input, antialias on). `ccrepro.runtime.fused_views` has the colour operations
in another form with the same result, for GPUs and compilers.

Letters: N views, C channels (1 or 3), H and W the sides of the image, S the side of the view.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ccrepro.config import Config
from ccrepro.runtime import fused_views, rows
from ccrepro.runtime.fused_views import BRIGHTNESS, CONTRAST, HUE, SATURATION

ORDERS = torch.tensor([*itertools.permutations((BRIGHTNESS, CONTRAST, SATURATION, HUE))], dtype=torch.int8)  # (24, 4)
CROP_RATIO = (3 / 4, 4 / 3)  # width over height of a crop [code]
BLUR_KERNEL, BLUR_SIGMA = 23, (0.1, 2.0)  # taps per axis; range of the standard deviation in pixels [code]
TRIES = 10  # attempts at a crop box that fits, as torchvision makes them
AT_ONCE = 2**18  # pixels of the views that a CPU makes at once, so that they stay in its cache


@dataclass(frozen=True)
class Parameters:
    """What happens to each of N views; every field has N rows."""

    box: Tensor  # (N, 4) top, left, height, width of the crop in pixels
    flip: Tensor  # (N,) bool
    affine: Tensor | None  # (N, 5) angle, shift x, shift y in pixels of the view, shear x, shear y; angles in degrees
    jitter: Tensor  # (N,) bool
    factors: Tensor  # (N, 4) brightness, contrast, saturation, hue
    order: Tensor  # (N, 4) int8, the columns of factors in the order of their operations
    grayscale: Tensor  # (N,) bool
    sigma: Tensor | None  # (N,) standard deviation of the blur in pixels of the view; 0 is no blur

    def __getitem__(self, views: slice | Tensor) -> "Parameters":
        return self._each(lambda field: field[views])

    def to(self, device: torch.device) -> "Parameters":
        return self._each(lambda field: field.to(device))

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Parameters":
        fields = (getattr(self, f.name) for f in dataclasses.fields(self))
        return Parameters(*(None if field is None else function(field) for field in fields))


def draw(generator: torch.Generator, sizes: Tensor, shape: tuple[int, int], config: Config) -> Parameters:
    """Parameters of one view of each image, with the distributions of the authors' code.

    sizes: (N, 2) the images' own heights and widths, in which crops are drawn. shape: height and width they are stored
    in, which may be squeezed; boxes are given in its pixels. What the settings never do (affine map, blur) is None.
    """
    n = len(sizes)

    def uniform(low: float, high: float, *more: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *more, generator=generator)

    def happens(probability: float) -> Tensor:
        return torch.rand(n, generator=generator) < probability

    strengths = (config.brightness, config.contrast, config.saturation)
    shift = config.translation * config.image_size
    limits = (config.rotation, shift, shift, config.shear, config.shear)
    return Parameters(
        box=_draw_box(uniform, sizes.float(), config) * (torch.tensor(shape) / sizes).repeat(1, 2),
        flip=happens(config.flip),
        affine=torch.stack([uniform(-limit, limit) for limit in limits], 1) if any(limits) else None,
        jitter=happens(config.jitter),
        factors=torch.stack([uniform(1 - s, 1 + s) for s in strengths] + [uniform(-config.hue, config.hue)], 1),
        order=ORDERS[torch.randint(len(ORDERS), (n,), generator=generator)],
        grayscale=happens(config.grayscale),
        sigma=uniform(*BLUR_SIGMA) * happens(config.blur) if config.blur else None,
    )


def _draw_box(uniform: Callable[..., Tensor], sizes: Tensor, config: Config) -> Tensor:
    """(N, 4) crop boxes as RandomResizedCrop draws them: the first of ten tries that fits, or else the centre."""
    height, width = sizes[:, :1], sizes[:, 1:]  # (N, 1)
    area = height * width * uniform(*config.crop_scale, TRIES)
    ratio = torch.exp(uniform(*map(math.log, CROP_RATIO), TRIES))
    w, h = torch.round(torch.sqrt(area * ratio)), torch.round(torch.sqrt(area / ratio))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(1, keepdim=True)
    w, h = w.gather(1, first), h.gather(1, first)
    top, left = torch.floor(uniform(0, 1, 1) * (height - h + 1)), torch.floor(uniform(0, 1, 1) * (width - w + 1))
    # No try fits: the largest central box within the allowed ratios.
    low, high = CROP_RATIO
    most_w, most_h = torch.minimum(width, torch.round(height * high)), torch.minimum(height, torch.round(width / low))
    centre = (torch.floor((height - most_h) / 2), torch.floor((width - most_w) / 2), most_h, most_w)
    return torch.where(fits.any(1, keepdim=True), torch.cat((top, left, h, w), 1), torch.cat(centre, 1))


def apply(images: Tensor, parameters: Parameters, size: int, compiled: bool = False) -> Tensor:
    """Make the views: uint8 images (N, C, H, W) → float (N, C, S, S) in [0, 1], S = ``size``.

    Order as in the authors' code: crop, flip, (affine map,) colour jitter, greyscale, blur. ``compiled`` lets
    `torch.compile` fuse all but the blur: half a minute once per shape of batch, then several times as fast.
    """
    fused = compiled or images.is_cuda
    few = len(images) if fused else max(1, AT_ONCE // size**2)
    if len(images) > few:
        starts = range(0, len(images), few)
        return torch.cat([apply(images[i : i + few], parameters[i : i + few], size) for i in starts])
    x = (_compiled_sharp() if compiled else sharp)(images, parameters, size, fused)
    return x if parameters.sigma is None else gaussian_blur(x, parameters.sigma)


def sharp(images: Tensor, parameters: Parameters, size: int, fused: bool) -> Tensor:
    """The views before their blur: uint8 (N, C, H, W) → float (N, C, S, S) in [0, 1]."""
    x = resized_crop(_floats(images), parameters.box, parameters.flip, size)
    if parameters.affine is not None:
        x = affine(x, parameters.affine)
    if fused:
        drawn = (parameters.jitter, parameters.factors, parameters.order, parameters.grayscale)
        return fused_views.color_jitter(x, *drawn)
    return color_jitter(x, parameters)


@functools.cache
def _compiled_sharp() -> Callable[..., Tensor]:
    return torch.compile(sharp, dynamic=False)


def eval_view(images: Tensor, size: int) -> Tensor:
    """The images as they are scored: uint8 (N, C, H, W) → float (N, C, S, S), resized without keeping the aspect."""
    n, _, height, width = images.shape
    zero = torch.zeros(n, device=images.device)
    box = torch.stack((zero, zero, zero + height, zero + width), 1)
    return resized_crop(_floats(images), box, zero.bool(), size)


def _floats(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) → floats in [0, 1] of the same shape, stored as (N, W, C, H), which `resized_crop` reads."""
    return images.permute(0, 3, 1, 2).contiguous().float().div_(255).permute(0, 2, 3, 1)


def resized_crop(x: Tensor, box: Tensor, flip: Tensor, size: int) -> Tensor:
    """Crop, resize (bilinear, antialiased) and flip, columns first: float (N, C, H, W) → (N, C, S, S)."""
    top, left, height, width = box.unbind(1)
    x = rows.resize(x.mT, left, width, size, flip).mT
    return rows.resize(x, top, height, size)


def affine(x: Tensor, parameters: Tensor) -> Tensor:
    """Rotation, shift and shear about the centre, bilinear, zero outside: float (N, C, S, S) → the same."""
    angle, shift_x, shift_y, shear_x, shear_y = parameters.unbind(1)
    angle, shear_x, shear_y = (torch.deg2rad(v) for v in (angle, shear_x, shear_y))
    # Forward map, of determinant 1, as in torchvision.transforms.functional.affine; sampling needs its inverse.
    a, c = torch.cos(angle - shear_y) / torch.cos(shear_y), torch.sin(angle - shear_y) / torch.cos(shear_y)
    b, d = -a * torch.tan(shear_x) - torch.sin(angle), torch.cos(angle) - c * torch.tan(shear_x)
    inverse = torch.stack((d, -b, -c, a), 1).reshape(-1, 2, 2)
    shift = torch.stack((shift_x, shift_y), 1)[:, :, None] * (2 / x.shape[-1])
    grid = F.affine_grid(torch.cat((inverse, -inverse @ shift), 2), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)


def color_jitter(x: Tensor, parameters: Parameters) -> Tensor:
    """Brightness, contrast, saturation, hue in each image's own order, then greyscale: float (N, C, S, S) → the same.

    Saturation and hue leave an image of one channel as it is, as in torchvision.
    """
    operations = (brightness, contrast, saturation, hue) if x.shape[1] == 3 else (brightness, contrast)
    x = x.clone(memory_format=torch.contiguous_format)
    for position in range(4):
        for number, operation in enumerate(operations):
            chosen = (parameters.jitter & (parameters.order[:, position] == number)).nonzero()[:, 0]
            if len(chosen):
                factor = parameters.factors[chosen, number].view(-1, 1, 1, 1)
                x.index_copy_(0, chosen, operation(x.index_select(0, chosen), factor))
    gray = parameters.grayscale.nonzero()[:, 0]
    x[gray] = luminance(x[gray])
    return x


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    mean = luminance(x).mean((1, 2, 3), keepdim=True)
    return (x * factor).add_((1 - factor) * mean).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(luminance(x), x, factor).clamp_(0, 1)


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by ``shift`` turns with value and chroma kept: float (N, 3, S, S), (N, 1, 1, 1) → (N, 3, S, S)."""
    return torch.stack(fused_views.turn_hue(x.unbind(1), shift[:, 0]), 1)


def luminance(x: Tensor) -> Tensor:
    """(N, 3, S, S) → (N, 1, S, S); a single channel is its own luminance."""
    return fused_views.gray_of(x.unbind(1)).unsqueeze(1)


def gaussian_blur(x: Tensor, sigma: Tensor, kernel: int = BLUR_KERNEL) -> Tensor:
    """Blur with ``kernel`` taps and mirrored border where sigma, (N,), is not 0: float (N, C, S, S) → the same.

    A CPU blurs only the images that drew it. A GPU blurs all: it would have to wait for the number of these.
    """
    chosen = slice(None) if x.is_cuda else sigma.nonzero()[:, 0]
    blurred = rows.blur(rows.blur(x[chosen], sigma[chosen], kernel).mT, sigma[chosen], kernel).mT
    return blurred if x.is_cuda else x.index_copy(0, chosen, blurred)
