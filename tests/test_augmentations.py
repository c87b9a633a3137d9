import dataclasses
import shutil

import pytest
import reference
import torch
from scipy.stats import ks_2samp
from torch.testing import assert_close
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from ccrepro import augmentations as A
from ccrepro.config import recipe

CLOSE = {"rtol": 0, "atol": 5e-6}  # in units of [0, 1]: rounding of float32 in another order of additions


def one_by_one(images, function):
    return torch.stack([function(i, image) for i, image in enumerate(images)])


def draw(generator, n, height, width, config):
    return A.draw(generator, torch.tensor([[height, width]]).expand(n, 2), (height, width), config)


def per_image(values):
    return values.view(-1, 1, 1, 1)


@pytest.fixture
def x(photos):
    return photos[:, :, :, :20] / 255


@pytest.fixture
def factors(generator):
    return 0.2 + 1.6 * torch.rand(6, generator=generator)


@pytest.mark.parametrize("size", [8, 20, 41])  # smaller than the crop (antialiased), alike, larger
def test_resized_crop_equals_torchvision(photos, size):
    box = torch.tensor([[0, 0, 20, 26], [3, 5, 10, 9], [1, 2, 19, 4], [7, 1, 5, 23], [19, 25, 1, 1], [2, 2, 16, 16]])
    flip = torch.tensor([0, 1, 0, 1, 1, 0]).bool()
    ours = A.resized_crop(photos / 255, box.float(), flip, size)

    def theirs(i, image):
        view = TF.resized_crop(image / 255, *box[i].tolist(), [size, size], antialias=True)
        return TF.hflip(view) if flip[i] else view

    assert_close(ours, one_by_one(photos, theirs), **CLOSE)


def test_plain_resizes_like_torchvision(photos):
    assert_close(A.plain(photos, 12), TF.resize(photos / 255, [12, 12], antialias=True), **CLOSE)


def test_plain_at_the_same_size_is_the_image(digits):
    assert_close(A.plain(torch.from_numpy(digits.images[:5]), 8), torch.from_numpy(digits.images[:5]) / 255, **CLOSE)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (A.brightness, TF.adjust_brightness),
        (A.contrast, TF.adjust_contrast),
        (A.saturation, TF.adjust_saturation),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_colour_operation_equals_torchvision(x, factors, ours, theirs, channels):
    if channels == 1 and ours is A.saturation:
        pytest.skip("one channel has no saturation: a test below shows that recolor leaves it out")
    x = x[:, :channels]
    assert_close(ours(x, per_image(factors)), one_by_one(x, lambda i, v: theirs(v, factors[i].item())), **CLOSE)


def test_hue_equals_torchvision(x):
    x[0, :, :4] = 0.5  # grey: no hue
    x[1, :, :4] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    shift = torch.tensor([-0.5, -0.21, 0.0, 0.07, 0.3, 0.5])
    ours = A.hue(x, per_image(shift))
    assert_close(ours, one_by_one(x, lambda i, v: TF.adjust_hue(v, shift[i].item())), **CLOSE)


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_jitter_without_branches_is_the_same_function(photos, generator, channels):
    """For all 24 orders, and without jitter; grey and saturated pixels among them."""
    config = recipe("imagenet10", profile="paper", image_size=20)
    x = photos[:, :channels, :, :20].repeat(60, 1, 1, 1) / 255
    x[::7, :, :9] = 0.5
    x[::5, :1, 9:] = 1.0
    parameters = draw(generator, len(x), 20, 20, config)
    assert len(parameters.order[parameters.jitter].unique(dim=0)) == 24
    assert_close(A.recolor_without_branches(x, parameters), A.recolor(x, parameters), **CLOSE)


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_views_are_the_same_views(photos, generator):
    config = recipe("imagenet10", profile="paper", image_size=16)
    parameters = draw(generator, 6, 20, 26, config)
    assert_close(A.apply(photos, parameters, 16, compiled=True), A.apply(photos, parameters, 16), **CLOSE)


@pytest.mark.parametrize(("n_in", "n_out"), [(12, 12), (12, 40), (40, 12), (37, 5)])
def test_rows_from_the_few_that_count_are_the_same_rows(n_in, n_out, generator):
    start, length = torch.rand(2, 200, generator=generator) * n_in
    start, length = torch.minimum(start, n_in - length), length.clamp(min=0.3)  # off the grid, some inside one pixel
    start[:60], length[:60] = start[:60].floor(), length[:60].ceil()
    start[0], length[0] = 0, n_in
    x = torch.rand(200, n_in, 3, 2, generator=generator)
    assert_close(A._rows_of_few(x, start, length, n_out), A._rows_of_all(x, start, length, n_out), **CLOSE)


def test_blur_of_views_larger_than_a_block(generator):
    x, sigma = torch.rand(2, 3, 70, 70, generator=generator), torch.tensor([1.7, 0.4])
    theirs = one_by_one(x, lambda i, v: TF.gaussian_blur(v, 23, sigma[i].item()))
    assert_close(A.gaussian_blur(x, sigma, 23), theirs, **CLOSE)


@pytest.mark.parametrize("kernel", [3, 23])
def test_blur_equals_torchvision(x, kernel):
    sigma = torch.tensor([0.1, 0.0, 0.5, 1.0, 2.0, 0.7])
    ours = A.gaussian_blur(x, sigma, kernel)
    theirs = one_by_one(x, lambda i, v: TF.gaussian_blur(v, kernel, sigma[i].item()) if sigma[i] > 0 else v)
    assert_close(ours, theirs, **CLOSE)


def test_a_picture_of_one_channel_has_neither_saturation_nor_hue(photos, generator):
    config = recipe("imagenet10", profile="paper", jitter=1.0, brightness=0.0, contrast=0.0, image_size=20)
    parameters = draw(generator, 6, 20, 26, config)
    gray = photos[:, :1, :, :20] / 255
    assert_close(A.recolor(gray, parameters), gray, **CLOSE)


def test_affine_equals_torchvision(x, generator):
    config = recipe("digits", rotation=40.0, translation=0.3, shear=25.0, image_size=20)
    parameters = draw(generator, 6, 20, 20, config)
    plain = dataclasses.replace(
        parameters,
        box=torch.tensor([[0.0, 0.0, 20.0, 20.0]]).expand(6, 4),
        jitter=torch.zeros(6, dtype=torch.bool),
        grayscale=torch.zeros(6, dtype=torch.bool),
    )
    images = (x * 255).byte()
    theirs = one_by_one(images, lambda i, v: reference.augment(v, plain, i, 20, 3))
    assert_close(A.affine(images / 255, parameters.affine), theirs, **CLOSE)


@pytest.mark.parametrize("dataset", ["cifar10", "stl10", "imagenet10"])
@pytest.mark.parametrize("size", [16, 32])
def test_whole_pipeline_equals_torchvision_image_by_image(photos, generator, dataset, size):
    config = recipe(dataset, profile="paper", image_size=size)
    images = photos.repeat(16, 1, 1, 1)
    parameters = draw(generator, len(images), 20, 26, config)
    assert len(parameters.order.unique(dim=0)) > 15  # nearly all of the 24 orders occur
    ours = A.apply(images, parameters, size, config.blur_kernel)
    theirs = one_by_one(images, lambda i, v: reference.augment(v, parameters, i, size, config.blur_kernel))
    assert_close(ours, theirs, **CLOSE)
    assert ours.min() >= 0
    assert ours.max() <= 1 + 1e-5


def test_no_further_from_the_pil_pipeline_than_torchvisions_own_float_path(photos, generator):
    """PIL rounds to 8 bits after each operation; torchvision's functionals on tensors do not, and nor do we."""
    config = recipe("cifar10", profile="paper", image_size=32)
    images = photos.repeat(16, 1, 1, 1)
    parameters = draw(generator, len(images), 20, 26, config)
    pil = one_by_one(images, lambda i, v: reference.augment_pil(v, parameters, i, 32))
    floats = one_by_one(images, lambda i, v: reference.augment(v, parameters, i, 32, config.blur_kernel))
    theirs, ours = (floats - pil).abs(), (A.apply(images, parameters, 32) - pil).abs()
    assert 1e-3 < theirs.max() < 0.1
    assert ours.max() <= theirs.max() + 5e-6
    assert ours.mean() <= theirs.mean() + 5e-6


def test_whole_pipeline_of_digits_equals_torchvision(digits, generator):
    config = recipe("digits")
    parameters = draw(generator, 40, 8, 8, config)
    ours = A.apply(torch.from_numpy(digits.images[:40]), parameters, 8)
    theirs = one_by_one(torch.from_numpy(digits.images[:40]), lambda i, v: reference.augment(v, parameters, i, 8, 3))
    assert_close(ours, theirs, **CLOSE)


def test_without_augmentation_a_view_is_the_plain_image(photos, generator):
    off = {"flip": 0, "jitter": 0, "grayscale": 0, "blur": 0, "crop_scale": (1, 1), "crop_ratio": (1, 1)}
    config = recipe("imagenet10", profile="paper", image_size=16, **off)
    square = photos[:, :, :, :20]
    assert_close(A.apply(square, draw(generator, 6, 20, 20, config), 16), A.plain(square, 16), **CLOSE)


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
        {"blur": 1, "blur_sigma": (1, 2)},
        {"rotation": 30},
        {"translation": 0.3},
        {"shear": 30},
    ],
    ids=lambda only: ",".join(only),
)
def test_each_augmentation_alone_changes_every_image(photos, generator, only):
    off = {"flip": 0, "jitter": 0, "grayscale": 0, "blur": 0, "crop_scale": (1, 1), "crop_ratio": (1, 1)}
    off |= {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    config = recipe("imagenet10", profile="paper", image_size=20, **{**off, **only})
    square = photos[:, :, :, :20]
    views = A.apply(square, draw(generator, 6, 20, 20, config), 20)
    assert ((views - square / 255).abs().amax((1, 2, 3)) > 1e-3).all()


def test_same_generator_gives_same_views(photos):
    config = recipe("imagenet10", profile="paper", image_size=16)
    a, b, c = (A.apply(photos, draw(torch.Generator().manual_seed(seed), 6, 20, 26, config), 16) for seed in (1, 1, 2))
    assert_close(a, b, rtol=0, atol=0)
    assert (a - c).abs().amax((1, 2, 3)).min() > 0.01


def test_rows_of_parameters_belong_to_images(photos, generator):
    config = recipe("imagenet10", profile="paper", image_size=16)
    parameters = draw(generator, 6, 20, 26, config)
    whole = A.apply(photos, parameters, 16)
    assert_close(A.apply(photos[2:5], parameters[2:5], 16), whole[2:5], **CLOSE)


class TestDistributions:
    """The laws of what is drawn, against torchvision's own samplers, 4,000 draws each; seeds are fixed."""

    n = 4000

    @pytest.fixture
    def drawn(self, generator):
        return draw(generator, self.n, 32, 48, recipe("imagenet10", profile="paper"))

    def same_law(self, ours, theirs):
        return ks_2samp(ours, theirs).pvalue > 0.001

    def test_crop_boxes(self, drawn):
        torch.manual_seed(0)
        theirs = [T.RandomResizedCrop.get_params(torch.empty(3, 32, 48), (0.08, 1), (3 / 4, 4 / 3)) for _ in drawn.flip]
        for ours, column in zip(drawn.box.T, torch.tensor(theirs).T, strict=True):
            assert self.same_law(ours, column)

    def test_crop_boxes_that_never_fit_fall_back_to_the_centre(self, generator):
        config = recipe("imagenet10", profile="paper", crop_scale=(1, 1), crop_ratio=(0.5, 0.6))
        boxes = draw(generator, 5, 32, 48, config).box
        theirs = T.RandomResizedCrop.get_params(torch.empty(3, 32, 48), (1, 1), (0.5, 0.6))
        assert_close(boxes, torch.tensor([theirs], dtype=torch.float32).expand(5, 4))

    def test_crops_of_squeezed_images_are_drawn_in_their_own_geometry(self):
        config = recipe("imagenet10", profile="paper")
        own = torch.tensor([[32, 48], [400, 300], [64, 640]]).repeat(500, 1)
        boxes = A.draw(torch.Generator().manual_seed(3), own, (256, 256), config).box
        plain = [A.draw(torch.Generator().manual_seed(3), own, tuple(size), config).box for size in own[:3].tolist()]
        for kind, size in enumerate(own[:3]):
            scale = (256 / size).repeat(2)
            assert_close(boxes[kind::3] / scale, plain[kind][kind::3], rtol=1e-6, atol=1e-4)
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

    def test_blur_deviation_is_uniform(self, drawn):
        assert self.same_law(drawn.sigma[drawn.sigma > 0], torch.linspace(0.1, 2, self.n))


def test_crops_off_the_grid_of_a_squeezed_picture_are_finite_and_in_place():
    """A picture kept smaller than it was has boxes at fractions of its pixels; the tiniest ones lie inside a pixel."""
    ramp = torch.arange(12.0).expand(1, 3, 12, 12) / 12
    starts, lengths = torch.meshgrid(torch.linspace(0, 11, 67), torch.tensor([0.3, 0.75, 1.0, 3.75]), indexing="ij")
    box = torch.stack([starts, starts, lengths, lengths], -1).reshape(-1, 4)
    box = box[(box[:, 0] + box[:, 2]) <= 12]
    views = A.resized_crop(ramp.expand(len(box), -1, -1, -1), box, torch.zeros(len(box)).bool(), 12)
    assert views.isfinite().all()
    middle = box[:, 1] + box[:, 3] / 2 - 0.5
    torch.testing.assert_close(views.mean((1, 2, 3)) * 12, middle, atol=0.5, rtol=0)
