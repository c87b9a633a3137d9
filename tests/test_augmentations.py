import dataclasses

import pytest
import reference
import torch
from scipy.stats import ks_2samp
from torch.testing import assert_close
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from ccrepro import augmentations as A
from ccrepro.recipes import recipe

CLOSE = {"rtol": 0, "atol": 5e-6}  # in units of [0, 1]: rounding of float32 in another order of additions
OFF = {"flip": 0, "jitter": 0, "grayscale": 0, "blur": 0, "crop_scale": (1, 1)}  # on square images


def imagenet(**changes):
    return recipe("imagenet10", "paper", **changes)


def one_by_one(images, function):
    return torch.stack([function(i, image) for i, image in enumerate(images)])


def by_torchvision(images, parameters, size):
    return one_by_one(images / 255, lambda i, image: reference.augment(image, parameters, i, size))


def draw(generator, n, height, width, config):
    return A.draw(generator, torch.tensor([[height, width]]).expand(n, 2), (height, width), config)


def per_image(values):
    return values.view(-1, 1, 1, 1)


@pytest.fixture
def square(photos):
    return photos[:, :, :, :20]


@pytest.mark.parametrize("size", [8, 20, 41])  # smaller than the crop (antialiased), alike, larger
def test_resized_crop_equals_torchvision(photos, size):
    box = torch.tensor([[0, 0, 20, 26], [3, 5, 10, 9], [1, 2, 19, 4], [7, 1, 5, 23], [19, 25, 1, 1], [2, 2, 16, 16]])
    flip = torch.tensor([0, 1, 0, 1, 1, 0]).bool()
    ours = A.resized_crop(photos / 255, box.float(), flip, size)

    def theirs(i, image):
        view = TF.resized_crop(image / 255, *box[i].tolist(), [size, size], antialias=True)
        return TF.hflip(view) if flip[i] else view

    assert_close(ours, one_by_one(photos, theirs), **CLOSE)


def test_crops_off_the_grid_are_finite_and_in_place():
    """An image that was squeezed has boxes at fractions of its pixels; the tiniest ones lie inside a pixel."""
    ramp = torch.arange(12.0).expand(1, 3, 12, 12) / 12
    starts, lengths = torch.meshgrid(torch.linspace(0, 11, 67), torch.tensor([0.3, 0.75, 1.0, 3.75]), indexing="ij")
    box = torch.stack([starts, starts, lengths, lengths], -1).reshape(-1, 4)
    box = box[(box[:, 0] + box[:, 2]) <= 12]
    views = A.resized_crop(ramp.expand(len(box), -1, -1, -1), box, torch.zeros(len(box)).bool(), 12)
    assert views.isfinite().all()
    middle = box[:, 1] + box[:, 3] / 2 - 0.5
    assert_close(views.mean((1, 2, 3)) * 12, middle, atol=0.5, rtol=0)


def test_eval_view_resizes_like_torchvision(photos, square):
    assert_close(A.eval_view(photos, 12), TF.resize(photos / 255, [12, 12], antialias=True), **CLOSE)
    assert_close(A.eval_view(square, 20), square / 255, **CLOSE)


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


def test_no_further_from_the_pil_pipeline_than_torchvisions_own_float_path(photos, generator):
    """PIL rounds to 8 bits after each operation; torchvision's functionals on tensors do not, and nor do we."""
    images = photos.repeat(16, 1, 1, 1)
    parameters = draw(generator, len(images), 20, 26, recipe("cifar10", "paper", image_size=32))

    def authors(i, image):
        return TF.to_tensor(reference.augment(TF.to_pil_image(image), parameters, i, 32))

    pil = one_by_one(images, authors)
    theirs = (by_torchvision(images, parameters, 32) - pil).abs()
    ours = (A.apply(images, parameters, 32) - pil).abs()
    assert 1e-3 < theirs.max() < 0.1
    assert ours.max() <= theirs.max() + 5e-6
    assert ours.mean() <= theirs.mean() + 5e-6


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

    def test_crops_of_squeezed_images_are_drawn_in_their_own_geometry(self):
        own = torch.tensor([[32, 48], [400, 300], [64, 640]]).repeat(500, 1)

        def boxes_in(shape):
            return A.draw(torch.Generator().manual_seed(3), own, shape, imagenet()).box

        boxes = boxes_in((256, 256))
        for kind, size in enumerate(own[:3]):
            scale = (256 / size).repeat(2)
            unsqueezed = boxes_in(tuple(size.tolist()))[kind::3]
            assert_close(boxes[kind::3] / scale, unsqueezed, rtol=1e-6, atol=1e-4)
            assert (boxes[kind::3, :2] + boxes[kind::3, 2:] <= 256 + 1e-3).all()

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
