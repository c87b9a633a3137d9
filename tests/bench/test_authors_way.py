"""The authors' way must do the same work as ours, or a comparison of speed would be of nothing."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from ccrepro import augmentations, loss
from ccrepro.bench import authors_way
from ccrepro.recipes import recipe


def test_losses_are_the_same(generator):
    z = [F.normalize(torch.randn(20, 8, generator=generator), dim=1) for _ in "ab"]
    p = [torch.randn(20, 5, generator=generator).softmax(1) for _ in "ab"]
    assert_close(authors_way.instance_loss(*z, 0.3), loss.instance_loss(*z, 0.3))
    assert_close(authors_way.cluster_loss(*p, 0.7), loss.cluster_loss(*p, 0.7))


def test_views_have_the_same_statistics(photos):
    """Not the same draws, but the same laws: over many views of the same images, mean and spread agree."""
    pytest.importorskip("cv2")
    config = recipe("imagenet10", "paper", image_size=16)
    images = photos.repeat(200, 1, 1, 1)
    torch.manual_seed(0)
    pairs = authors_way.Views(images, config)
    theirs = torch.stack([pairs[i][0] for i in range(len(images))])
    sizes = torch.tensor([[20, 26]]).expand(len(images), 2)
    drawn = augmentations.draw(torch.Generator().manual_seed(0), sizes, config)
    ours = augmentations.apply(images, drawn, 16)
    for measured, tolerance in ((torch.mean, 0.02), (torch.std, 0.02), (sharpness, 0.002)):
        assert_close(measured(ours), measured(theirs), atol=tolerance, rtol=0)


def sharpness(x):
    return (x[..., 1:] - x[..., :-1]).abs().mean()
