import dataclasses

import numpy as np
import pytest
import reference
import torch
from scipy.stats import ks_2samp
from torch.testing import assert_close
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from ccrepro import augmentations as A
from ccrepro.data import as_tensor
from ccrepro.recipes import recipe
from ccrepro.runtime.ragged import stacked

CLOSE = {"rtol": 0, "atol": 5e-6}  # in units of [0, 1]: rounding of float32 in another order of additions
OFF = {"flip": 0, "jitter": 0, "grayscale": 0, "blur": 0, "crop_scale": (1, 1)}  # on square images


def imagenet(**changes):
    return recipe("imagenet10", "paper", **changes)


def one_by_one(images, function):
    return torch.stack([function(i, image) for i, image in enumerate(images)])


def by_torchvision(images, parameters, size):
    return one_by_one(images / 255, lambda i, image: reference.augment(image, parameters, i, size))


def draw(generator, n, height, width, config):
    return A.draw(generator, torch.tensor([[height, width]]).expand(n, 2), config)


def noise(height, width):
    """An image uint8 (3, height, width) with detail of all sizes."""
    rng, image = np.random.default_rng(height), np.zeros((3, height, width))
    for size in (2, 7, 30, height):
        coarse = torch.from_numpy(rng.uniform(0, 64, (1, 3, size, size)))
        image += torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0].numpy()
    return image.astype(np.uint8)


def per_image(values):
    return values.view(-1, 1, 1, 1)


@pytest.fixture
def square(photos):
    return photos[:, :, :, :20]


@pytest.mark.parametrize("size", [8, 20, 41])  # smaller than the crop (antialiased), alike, larger
def test_resized_crop_equals_torchvision(photos, size):
    box = torch.tensor([[0, 0, 20, 26], [3, 5, 10, 9], [1, 2, 19, 4], [7, 1, 5, 23], [19, 25, 1, 1], [2, 2, 16, 16]])
    flip = torch.tensor([0, 1, 0, 1, 1, 0]).bool()
    ours = A.resized_crop(photos, box.float(), flip, size)

    def theirs(i, image):
        view = TF.resized_crop(image / 255, *box[i].tolist(), [size, size], antialias=True)
        return TF.hflip(view) if flip[i] else view

    assert_close(ours, one_by_one(photos, theirs), **CLOSE)


@pytest.mark.parametrize("share", [(0.08, 0.2), (0.2, 0.5), (0.5, 1.0)])
def test_crops_of_own_pixels_are_those_of_pil(generator, share):
    """Images of different sizes, each cropped in its own geometry, as PIL crops and resizes the file."""
    images = [noise(*size) for size in ((375, 500), (640, 427), (90, 60), (33, 200))]
    sizes = torch.tensor([image.shape[1:] for image in images])
    crops = A.draw(generator, sizes, imagenet(crop_scale=share, jitter=0, grayscale=0, blur=0))
    ours = A.apply(as_tensor(stacked(images)), crops, 64, quantize=True)
    pils = [TF.to_pil_image(torch.from_numpy(image)) for image in images]
    theirs = one_by_one(pils, lambda i, image: TF.to_tensor(reference.augment(image, crops, i, 64)))
    assert_close(ours, theirs, rtol=0, atol=1.01 / 255)
    together = A._crop_together(as_tensor(stacked(images)).cut(crops.box), crops.box * A.OF_CUT, crops.flip, 64, True)
    assert_close(together, theirs, rtol=0, atol=2.01 / 255)  # as on a GPU: two roundings may fall to the other side
    assert ((together - theirs).abs() > 1.01 / 255).float().mean() < 1e-3
    unrounded = A.apply(as_tensor(stacked(images)), crops, 64)
    assert_close(unrounded, theirs, rtol=0, atol=1.01 / 255)  # PIL rounds after the columns, and after the rows


def test_images_of_different_sizes_are_scored_as_pil_resizes_them():
    images = [noise(30, 41), noise(12, 12), noise(90, 20)]
    theirs = [TF.resize(TF.to_pil_image(torch.from_numpy(image)), [16, 16]) for image in images]
    apart = 255 * A.eval_view(as_tensor(stacked(images)), 16, quantize=True)
    apart -= 255 * torch.stack([*map(TF.to_tensor, theirs)])
    assert apart.abs().max() < 1.01
    assert (apart.abs() > 0.5).float().mean() < 0.1


def test_eval_view_resizes_like_torchvision(photos, square):
    assert_close(A.eval_view(photos, 12), TF.resize(photos / 255, [12, 12], antialias=True), **CLOSE)
    assert_close(A.eval_view(square, 20), square / 255, **CLOSE)
    middle = TF.resize(TF.center_crop(photos / 255, [18, 18]), [12, 12], antialias=True)  # 18 of 20 by 26
    assert_close(A.eval_view(photos, 12, middle=True), middle, **CLOSE)


@pytest.mark.parametrize(
    ("name", "channels"), [("brightness", 1), ("brightness", 3), ("contrast", 1), ("contrast", 3), ("saturation", 3)]
)
def test_colour_operation_equals_torchvision(square, generator, name, channels):
    ours, theirs = getattr(A, name), getattr(TF, f"adjust_{name}")
    x, factors = square[:, :channels] / 255, 0.2 + 1.6 * torch.rand(6, generator=generator)
    assert_close(ours(x, per_image(factors)), one_by_one(x, lambda i, v: theirs(v, factors[i].item())), **CLOSE)


def test_hue_equals_torchvision(square):
    x = square / 255
    x[0, :, :4] = 0.5  # grey: no hue
    x[1, :, :4] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    shift = torch.tensor([-0.5, -0.21, 0.0, 0.07, 0.3, 0.5])
    ours = A.hue(x, per_image(shift))
    assert_close(ours, one_by_one(x, lambda i, v: TF.adjust_hue(v, shift[i].item())), **CLOSE)


def test_an_image_of_one_channel_has_neither_saturation_nor_hue(square, generator):
    parameters = draw(generator, 6, 20, 20, imagenet(jitter=1.0, brightness=0.0, contrast=0.0, image_size=20))
    assert_close(A.color_jitter(square[:, :1] / 255, parameters), square[:, :1] / 255, **CLOSE)


@pytest.mark.parametrize(("side", "kernel"), [(20, 3), (20, 23), (70, 23)])
def test_blur_equals_torchvision(generator, side, kernel):
    x, sigma = torch.rand(6, 3, side, side, generator=generator), torch.tensor([0.1, 0.0, 0.5, 1.0, 2.0, 0.7])
    theirs = one_by_one(x, lambda i, v: TF.gaussian_blur(v, kernel, sigma[i].item()) if sigma[i] > 0 else v)
    assert_close(A.gaussian_blur(x, sigma, kernel), theirs, **CLOSE)


def test_affine_equals_torchvision(square, generator):
    config = recipe("digits", "demo", rotation=40.0, translation=0.3, shear=25.0, image_size=20, crop_scale=(1, 1))
    parameters = draw(generator, 6, 20, 20, config)
    alone = dataclasses.replace(parameters, jitter=torch.zeros(6).bool())
    assert_close(A.affine(square / 255, parameters.affine), by_torchvision(square, alone, 20), **CLOSE)


@pytest.mark.parametrize("dataset", ["cifar10", "stl10", "imagenet10"])
@pytest.mark.parametrize("size", [16, 32])
def test_whole_pipeline_equals_torchvision_image_by_image(photos, generator, dataset, size):
    images = photos.repeat(16, 1, 1, 1)
    parameters = draw(generator, len(images), 20, 26, recipe(dataset, "paper", image_size=size))
    assert len(parameters.order.unique(dim=0)) > 15  # nearly all of the 24 orders occur
    ours = A.apply(images, parameters, size)
    assert_close(ours, by_torchvision(images, parameters, size), **CLOSE)
    assert ours.min() >= 0
    assert ours.max() <= 1 + 1e-5


def test_whole_pipeline_of_digits_equals_torchvision(digits, generator):
    images, parameters = torch.from_numpy(digits.images[:40]), draw(generator, 40, 8, 8, recipe("digits", "demo"))
    assert_close(A.apply(images, parameters, 8), by_torchvision(images, parameters, 8), **CLOSE)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_quantized_colour_operation_is_that_of_pil(square, generator, name):
    factors = torch.rand(6, generator=generator)
    factors = factors - 0.5 if name == "hue" else 0.2 + 1.6 * factors
    theirs = getattr(TF, f"adjust_{name}")
    pil = one_by_one(square, lambda i, v: TF.to_tensor(theirs(TF.to_pil_image(v), factors[i].item())))
    ours = getattr(A, name)(square / 255, per_image(factors), quantize=True)
    apart = 255 * (ours - pil).abs()
    assert (apart < 1.01).float().mean() > 0.998  # of some hues, PIL's own rounding falls to the other side
    assert (apart > 0.5).float().mean() < (0.01 if name in ("brightness", "hue") else 0.2)
    assert_close(ours * 255, (ours * 255).round(), rtol=0, atol=1e-4)


def test_quantized_pipeline_has_the_brightness_and_the_detail_of_pil(photos, generator):
    """Rounded after each operation, as PIL does; without that, views are brighter and smoother."""
    images = photos.repeat(32, 1, 1, 1)
    parameters = draw(generator, len(images), 20, 26, recipe("cifar10", "paper", image_size=96))
    pil = [reference.augment(TF.to_pil_image(image), parameters, i, 96) for i, image in enumerate(images)]
    pil = torch.stack([*map(TF.to_tensor, pil)])
    rounded, smooth = (A.apply(images, parameters, 96, quantize) for quantize in (True, False))
    brighter = [255 * (views - pil).mean().item() for views in (rounded, smooth)]
    assert abs(brighter[0]) < 0.15 < 0.7 < brighter[1]
    detail = [views.diff(n=2, dim=3).square().mean() for views in (rounded, smooth, pil)]
    assert detail[0] / detail[2] == pytest.approx(1, abs=0.02)
    assert detail[1] / detail[2] < 0.99


def test_without_augmentation_a_view_is_the_image(square, generator):
    parameters = draw(generator, 6, 20, 20, imagenet(image_size=16, **OFF))
    assert_close(A.apply(square, parameters, 16), A.eval_view(square, 16), **CLOSE)


@pytest.mark.parametrize(
    "only",
    [
        {"crop_scale": (0.2, 0.4)},
        {"flip": 1},
        {"jitter": 1, "brightness": 0.8},
        {"jitter": 1, "contrast": 0.8},
        {"jitter": 1, "saturation": 0.8},
        {"jitter": 1, "hue": 0.4},
        {"grayscale": 1},
        {"blur": 1},
        {"rotation": 30},
        {"translation": 0.3},
        {"shear": 30},
    ],
    ids=lambda only: ",".join(only),
)
def test_each_augmentation_alone_changes_every_image(square, generator, only, monkeypatch):
    monkeypatch.setattr(A, "BLUR_SIGMA", (1, 2))  # the least one that is drawn is not to be seen
    colourless = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    config = imagenet(image_size=20, **{**OFF, **colourless, **only})
    views = A.apply(square, draw(generator, 6, 20, 20, config), 20)
    assert ((views - square / 255).abs().amax((1, 2, 3)) > 1e-3).all()


def test_same_generator_gives_same_views(photos):
    config = imagenet(image_size=16)
    a, b, c = (A.apply(photos, draw(torch.Generator().manual_seed(seed), 6, 20, 26, config), 16) for seed in (1, 1, 2))
    assert_close(a, b, rtol=0, atol=0)
    assert (a - c).abs().amax((1, 2, 3)).min() > 0.01


def test_rows_of_parameters_belong_to_images(photos, generator, monkeypatch):
    parameters = draw(generator, 6, 20, 26, imagenet(image_size=16))
    whole = A.apply(photos, parameters, 16)
    assert_close(A.apply(photos[2:5], parameters[2:5], 16), whole[2:5], **CLOSE)
    monkeypatch.setattr(A, "AT_ONCE", 4 * 16**2)  # four views at once, and the last two
    assert_close(A.apply(photos, parameters, 16), whole, **CLOSE)


class TestDistributions:
    """The laws of what is drawn, against torchvision's own samplers, 4,000 draws each; seeds are fixed."""

    n = 4000

    @pytest.fixture
    def drawn(self, generator):
        return draw(generator, self.n, 32, 48, imagenet())

    def same_law(self, ours, theirs):
        return ks_2samp(ours, theirs).pvalue > 0.001

    def test_crop_boxes(self, drawn):
        torch.manual_seed(0)
        theirs = [T.RandomResizedCrop.get_params(torch.empty(3, 32, 48), (0.08, 1), (3 / 4, 4 / 3)) for _ in drawn.flip]
        for ours, column in zip(drawn.box.T, torch.tensor(theirs).T, strict=True):
            assert self.same_law(ours, column)

    @pytest.mark.parametrize("size", [(32, 48), (48, 32)])
    def test_crop_boxes_that_never_fit_fall_back_to_the_centre(self, generator, size):
        boxes = draw(generator, 5, *size, imagenet(crop_scale=(1, 1))).box
        theirs = T.RandomResizedCrop.get_params(torch.empty(3, *size), (1, 1), (3 / 4, 4 / 3))
        assert_close(boxes, torch.tensor([theirs], dtype=torch.float32).expand(5, 4))

    def test_crops_lie_in_their_own_image(self):
        sizes = torch.tensor([[32, 48], [400, 300], [64, 640]]).repeat(500, 1)
        boxes = A.draw(torch.Generator().manual_seed(3), sizes, imagenet()).box
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()
        assert_close(boxes, boxes.round())

    def test_colour_factors(self, drawn):
        torch.manual_seed(0)
        ranges = ([0.2, 1.8], [0.2, 1.8], [0.2, 1.8], [-0.2, 0.2])
        theirs = [T.ColorJitter.get_params(*ranges) for _ in drawn.flip]
        for i in range(4):
            assert self.same_law(drawn.factors[:, i], [t[1 + i] for t in theirs])

    def test_orders_are_equally_frequent(self, drawn):
        orders, counts = drawn.order.unique(dim=0, return_counts=True)
        assert sorted(map(sorted, orders.tolist())) == [[0, 1, 2, 3]] * 24
        assert (counts / self.n - 1 / 24).abs().max() < 0.015

    def test_probabilities(self, drawn):
        for name, p in (("flip", 0.5), ("jitter", 0.8), ("grayscale", 0.2)):
            assert getattr(drawn, name).float().mean().item() == pytest.approx(p, abs=0.03), name
        assert (drawn.sigma > 0).float().mean().item() == pytest.approx(0.5, abs=0.03)

    def test_standard_deviation_of_the_blur_is_uniform(self, drawn):
        assert self.same_law(drawn.sigma[drawn.sigma > 0], torch.linspace(0.1, 2, self.n))
