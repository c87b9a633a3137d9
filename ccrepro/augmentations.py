"""The random views of the images (§3.1): draw the parameters of every view, then apply them to a whole batch.

``draw`` takes all random numbers, on the CPU; ``apply`` is a deterministic function of images and parameters. Every
image has its own parameters, and its own order of the four colour operations. Given the same parameters, each operation
equals torchvision's on that image (float input, antialias on). With ``quantize``, each ends in whole levels of 0 … 255,
as the authors' operations on PIL's images do. `ccrepro.runtime.fused_views` has the colour operations in another form
with the same result, for GPUs and compilers.

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
from ccrepro.runtime.fused_views import BRIGHTNESS, CONTRAST, HUE, SATURATION, cut, rounded
from ccrepro.runtime.ragged import Ragged, sizes_of

OF_CUT = torch.tensor((0, 0, 1, 1))  # turns a box into that of the image's part that it cuts out
ORDERS = torch.tensor([*itertools.permutations((BRIGHTNESS, CONTRAST, SATURATION, HUE))], dtype=torch.int8)  # (24, 4)
CROP_RATIO = (3 / 4, 4 / 3)  # width over height of a crop [code]
BLUR_KERNEL, BLUR_SIGMA = 23, (0.1, 2.0)  # taps per axis; range of the standard deviation in pixels [code]
MIDDLE = 0.875  # share of the shorter side of photos that is scored
TRIES = 10  # attempts at a crop box that fits, as torchvision makes them
AT_ONCE = 2**18  # pixels of the views that a CPU makes at once, so that they stay in its cache
CUT_AT_ONCE = 64  # crops of images of different sizes that are padded to the largest of them


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

    def to(self, device: torch.device, keep_box: bool = False) -> "Parameters":
        """On a device; without the box where images differ in size, since it is the host that cuts them out."""
        moved = self._each(lambda field: field.to(device))
        return dataclasses.replace(moved, box=self.box) if keep_box else moved

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Parameters":
        fields = (getattr(self, f.name) for f in dataclasses.fields(self))
        return Parameters(*(None if field is None else function(field) for field in fields))


def draw(generator: torch.Generator, sizes: Tensor, config: Config) -> Parameters:
    """Parameters of one view of each image, with the distributions of the authors' code.

    sizes: (N, 2) the heights and widths of the images. What the settings never do (affine map, blur) is None.
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
        box=_draw_box(uniform, sizes.float(), config),
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


def apply(
    images: Tensor | Ragged, parameters: Parameters, size: int, quantize: bool = False, compiled: bool = False
) -> Tensor:
    """Make the views: N uint8 images → float (N, C, S, S) in [0, 1], S = ``size``.

    Order as in the authors' code: crop, flip, (affine map,) colour jitter, greyscale, blur. ``compiled`` lets
    `torch.compile` fuse the colour operations: half a minute once per shape of batch, then several times as fast.
    """
    fused = compiled or images.device.type == "cuda"
    few = len(images) if fused else max(1, AT_ONCE // size**2)
    if len(images) > few:
        starts = range(0, len(images), few)
        return torch.cat([apply(images[i : i + few], parameters[i : i + few], size, quantize) for i in starts])
    x = resized_crop(images, parameters.box, parameters.flip, size, quantize)
    if parameters.affine is not None:
        x = rounded(affine(x, parameters.affine), quantize)
    if fused:
        drawn = (parameters.jitter, parameters.factors, parameters.order, parameters.grayscale)
        x = (_compiled_jitter() if compiled else fused_views.color_jitter)(x, *drawn, quantize)
    else:
        x = color_jitter(x, parameters, quantize)
    return x if parameters.sigma is None else rounded(gaussian_blur(x, parameters.sigma), quantize)


@functools.cache
def _compiled_jitter() -> Callable[..., Tensor]:
    return torch.compile(fused_views.color_jitter, dynamic=False)


def eval_view(images: Tensor | Ragged, size: int, quantize: bool = False, middle: bool = False) -> Tensor:
    """The images as they are scored: N uint8 images → float (N, C, S, S), resized without keeping the aspect; or, with
    ``middle``, their middle squares, `MIDDLE` of the shorter side, as networks for ImageNet see them."""
    sizes = torch.from_numpy(sizes_of(images)).float()
    cut = (MIDDLE * sizes.amin(1, keepdim=True)).round().expand(-1, 2) if middle else sizes
    box = torch.cat((torch.floor((sizes - cut) / 2), cut), 1)
    return resized_crop(images, box, torch.zeros(len(box), dtype=torch.bool), size, quantize)


def resized_crop(images: Tensor | Ragged, box: Tensor, flip: Tensor, size: int, quantize: bool = False) -> Tensor:
    """Crop, resize (bilinear, antialiased) and flip: N uint8 images → float (N, C, S, S) in [0, 1].

    box: (N, 4) in whole pixels, on the CPU where images differ in size.
    """
    if quantize and images.device.type == "cpu":
        return _crop_one_by_one(images, box, flip, size)
    if isinstance(images, Tensor):
        return _crop_together(images, box, flip, size, quantize)
    parts = [slice(i, i + CUT_AT_ONCE) for i in range(0, len(images), CUT_AT_ONCE)]
    return torch.cat([_crop_together(images[p].cut(box[p]), box[p] * OF_CUT, flip[p], size, quantize) for p in parts])


def _crop_one_by_one(images: Tensor | Ragged, box: Tensor, flip: Tensor, size: int) -> Tensor:
    """In bytes, by PIL's own arithmetic; on a CPU four times as fast."""
    boxes = zip(images, box.int().tolist(), strict=True)
    crops = (image[None, :, top : top + height, left : left + width] for image, (top, left, height, width) in boxes)
    views = torch.cat([F.interpolate(crop, (size, size), mode="bilinear", antialias=True) for crop in crops])
    return torch.where(flip.view(-1, 1, 1, 1), views.flip(3), views).float().div_(255)


def _crop_together(images: Tensor, box: Tensor, flip: Tensor, size: int, quantize: bool) -> Tensor:
    box, flip = (values.to(images.device, non_blocking=True) for values in (box, flip))
    top, left, height, width = box.unbind(1)
    x = images.permute(0, 3, 1, 2).contiguous().float().div_(255).permute(0, 2, 3, 1)  # columns first: they are resized
    x = rounded(rows.resize(x.mT, left, width, size, flip).mT, quantize)
    return rounded(rows.resize(x, top, height, size), quantize)


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


def color_jitter(x: Tensor, parameters: Parameters, quantize: bool = False) -> Tensor:
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
                x.index_copy_(0, chosen, operation(x.index_select(0, chosen), factor, quantize))
    gray = parameters.grayscale.nonzero()[:, 0]
    x[gray] = rounded(luminance(x[gray]), quantize)
    return x


def brightness(x: Tensor, factor: Tensor, quantize: bool = False) -> Tensor:
    return cut((x * factor).clamp_(0, 1), quantize)


def contrast(x: Tensor, factor: Tensor, quantize: bool = False) -> Tensor:
    mean = luminance(x).mean((1, 2, 3), keepdim=True)
    return cut((x * factor).add_((1 - factor) * mean).clamp_(0, 1), quantize)


def saturation(x: Tensor, factor: Tensor, quantize: bool = False) -> Tensor:
    return cut(torch.lerp(luminance(x), x, factor).clamp_(0, 1), quantize)


def hue(x: Tensor, shift: Tensor, quantize: bool = False) -> Tensor:
    """Turn the hue by ``shift`` turns with value and chroma kept: float (N, 3, S, S), (N, 1, 1, 1) → (N, 3, S, S)."""
    return torch.stack(fused_views.turn_hue(x.unbind(1), shift[:, 0], quantize), 1)


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
