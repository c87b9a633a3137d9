import dataclasses

import pytest
import torch
from torch.testing import assert_close

from ccrepro import augmentations
from ccrepro.batches import epoch_generator, epoch_pairs, first_pairs, pairs, passes
from ccrepro.recipes import recipe
from ccrepro.runtime.ragged import Ragged, sizes_of, starts_of


@pytest.fixture
def images(patterns):
    return torch.from_numpy(patterns.images)


def test_every_image_comes_once_and_the_rest_is_left_out(tiny):
    images = torch.arange(70, dtype=torch.uint8).view(70, 1, 1, 1).expand(70, 1, 8, 8)
    config = tiny.replace(views="none")
    found = [(a[:, 0, 0, 0] * 255).round().int() for a, _ in pairs(images, config, epoch=0)]
    assert [len(each) for each in found] == [32, 32]
    assert len(torch.cat(found).unique()) == 64


def test_each_epoch_has_its_own_order_and_draws(images, tiny):
    first, second, again = (next(pairs(images, tiny, epoch=e))[0] for e in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("views", "equal"), [("both", False), ("one", False), ("none", True)])
def test_views_are_augmented_as_table_3_says(patterns, images, tiny, views, equal):
    config = tiny.replace(views=views)
    a, b = next(pairs(images, config, epoch=0))
    order = torch.randperm(96, generator=epoch_generator(tiny.seed, 0))[:32]
    unaugmented = augmentations.eval_view(images[order], 8)
    assert torch.equal(a, b) == equal
    assert torch.equal(b, unaugmented) == (views != "both")
    assert torch.equal(a, unaugmented) == (views == "none")
    assert_close(first_pairs(patterns, config), (unaugmented, a, b), rtol=0, atol=0)


@pytest.mark.parametrize("preset", ["paper", "fast"])
def test_images_stored_one_by_one_have_the_views_of_those_in_one_array(photos, preset):
    """In the paper's preset with its rounding; in the other from a padded batch, as on a GPU."""
    config = recipe("imagenet10", preset, image_size=16, batch_size=3, backbone="small", device="cpu")
    ragged = Ragged(photos.flatten(), starts_of(sizes_of(photos)), sizes_of(photos))
    for array_views, ragged_views in zip(pairs(photos, config, 0), pairs(ragged, config, 0), strict=True):
        assert_close(ragged_views, array_views, rtol=0, atol=1e-6)
        assert array_views[0].shape == (3, 3, 16, 16)


def test_generators_differ_by_seed_epoch_pass_and_block():
    numbers = [(s, e, n) for s in range(3) for e in range(3) for n in range(4)]
    assert len({tuple(torch.rand(3, generator=epoch_generator(*each)).tolist()) for each in numbers}) == 36


def test_ranks_make_the_views_of_one_process_in_parts(images, tiny):
    whole = list(pairs(images, tiny, epoch=0))
    parts = (pairs(images, tiny, epoch=0, rows=slice(start, start + 16)) for start in (0, 16))
    joined = [tuple(map(torch.cat, zip(*both, strict=True))) for both in zip(*parts, strict=True)]
    assert_close(joined, whole, rtol=0, atol=1e-6)


def test_an_epoch_may_be_taken_up_at_any_step(images, tiny):
    whole = list(pairs(images, tiny, epoch=0))
    assert len(whole) == 3
    for first in range(3):
        assert_close(list(pairs(images, tiny, epoch=0, first=first)), whole[first:], rtol=0, atol=0)


def test_unlabeled_images_are_a_pass_of_their_own(patterns):
    """§4.2, STL-10: first all unlabeled images for the instance loss alone, then the others for both."""
    config = recipe("stl10", "paper", image_size=8, batch_size=32)
    parts = passes(config, dataclasses.replace(patterns, unlabeled=patterns.images.repeat(2, 0)))
    whole = list(epoch_pairs(parts, config, epoch=0))
    assert [both for *_, both in whole] == [False] * 6 + [True] * 3
    for first in (4, 6, 8):
        assert_close(list(epoch_pairs(parts, config, epoch=0, first=first)), whole[first:], rtol=0, atol=0)
