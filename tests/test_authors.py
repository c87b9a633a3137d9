"""The authors' way must do the same work as ours, or a comparison of speed would be of nothing."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F
from torch.testing import assert_close

from ccrepro import authors, loss, metrics
from ccrepro.config import recipe


def test_losses_are_the_same(generator):
    z = [F.normalize(torch.randn(20, 8, generator=generator), dim=1) for _ in "ab"]
    p = [torch.randn(20, 5, generator=generator).softmax(1) for _ in "ab"]
    assert_close(authors.instance_loss(*z, 0.3), loss.instance_loss(*z, 0.3))
    assert_close(authors.cluster_loss(*p, 0.7), loss.cluster_loss(*p, 0.7))


@pytest.mark.parametrize("k", [1, 2, 10, 60])
def test_matching_is_the_cheapest(k):
    cost = np.random.default_rng(k).integers(0, 50, (k, k))
    columns = authors.match(cost)
    assert sorted(columns) == list(range(k))
    assert cost[np.arange(k), columns].sum() == cost[linear_sum_assignment(cost)].sum()


def test_scores_are_the_same():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 10, 900)
    pred = np.where(rng.random(900) < 0.7, (true + 3) % 10, rng.integers(0, 10, 900))
    theirs = authors.scores(true, pred)
    assert {name: theirs[name] for name in ("nmi", "acc", "ari")} == pytest.approx(metrics.scores(true, pred))


def test_views_have_the_same_statistics(photos):
    """Not the same draws, but the same laws: over many views of the same pictures, mean and deviation agree."""
    from ccrepro import augmentations

    pytest.importorskip("cv2")
    config = recipe("imagenet10", profile="paper", image_size=16)
    images = photos.repeat(200, 1, 1, 1)
    torch.manual_seed(0)
    pairs = authors.Views(images, config)
    theirs = torch.stack([pairs[i][0] for i in range(len(images))])
    drawn = augmentations.draw(
        torch.Generator().manual_seed(0), torch.tensor([[20, 26]]).expand(1200, 2), (20, 26), config
    )
    ours = augmentations.apply(images, drawn, 16)
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), abs=0.02)
    assert ours.std().item() == pytest.approx(theirs.std().item(), abs=0.02)
    assert (ours[..., 1:] - ours[..., :-1]).abs().mean().item() == pytest.approx(
        (theirs[..., 1:] - theirs[..., :-1]).abs().mean().item(), abs=0.002
    )
