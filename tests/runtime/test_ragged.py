import numpy as np
import pytest
import torch

from ccrepro.runtime.ragged import Ragged, channels_of, joined, sizes_of, stacked, starts_of

SIZES = [(3, 5), (4, 2), (1, 7), (6, 6)]


@pytest.fixture(params=[1, 3])
def images(request):
    rng = np.random.default_rng(0)
    return [rng.integers(1, 256, (request.param, *size), dtype=np.uint8) for size in SIZES]


@pytest.fixture
def tensors(images):
    found = stacked(images)
    return Ragged(torch.from_numpy(found.pixels), found.starts, found.sizes, found.channels)


@pytest.mark.parametrize(
    "which", [slice(None), slice(1, 3), [2, 0, 0], np.array([True, False, True, True]), torch.tensor([3, 1])]
)
def test_a_part_has_the_same_images(images, which):
    found, rows = stacked(images)[which], np.arange(4)[which]
    assert [*map(np.array_equal, found, [images[row] for row in rows])] == [True] * len(rows)
    assert (sizes_of(found).tolist(), channels_of(found)) == ([list(SIZES[row]) for row in rows], len(images[0]))
    assert found.nbytes == sum(images[row].nbytes for row in rows)


def test_images_of_one_size_are_an_array(images):
    same = stacked([images[0], images[0] // 2])
    assert np.array_equal(same, np.stack([images[0], images[0] // 2]))
    assert np.array_equal(joined(same.ravel(), sizes_of(same), channels_of(same)), same)


def test_on_another_device_are_no_pixels_of_others(images, tensors):
    moved = tensors[[3, 1]].to(torch.device("meta"))
    assert (moved.device.type, len(moved.pixels), moved.nbytes) == ("meta", tensors[[3, 1]].nbytes, moved.nbytes)
    assert moved.starts.tolist() == starts_of(np.array([SIZES[3], SIZES[1]]), len(images[0])).tolist()
    assert tensors.to(torch.device("cpu")) is tensors
    packed = tensors[[3, 1]]._packed()
    assert all(np.array_equal(a, images[row]) for a, row in zip(packed, (3, 1), strict=True))


def test_boxes_are_cut_into_the_corner_of_one_batch(images, tensors):
    boxes = torch.tensor([[0, 1, 3, 4], [2, 0, 2, 1], [0, 0, 1, 7], [5, 5, 1, 1]]).float()
    found = tensors.cut(boxes)
    assert found.shape == (4, len(images[0]), 3, 7)
    for image, cut, (top, left, height, width) in zip(images, found.numpy(), boxes.int().tolist(), strict=True):
        assert np.array_equal(cut[:, :height, :width], image[:, top : top + height, left : left + width])
        assert np.count_nonzero(cut) == cut.shape[0] * height * width
