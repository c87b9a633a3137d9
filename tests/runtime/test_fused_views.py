import shutil

import pytest
import torch
from torch.testing import assert_close

from ccrepro import augmentations as A
from ccrepro.recipes import recipe
from ccrepro.runtime import fused_views

CLOSE = {"rtol": 0, "atol": 5e-6}  # in units of [0, 1]: rounding of float32 in another order of additions


def draw(generator, n, height, width, size):
    config = recipe("imagenet10", "paper", image_size=size)
    return A.draw(generator, torch.tensor([[height, width]]).expand(n, 2), config)


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_jitter_without_branches_is_the_same_function(photos, generator, channels):
    """For all 24 orders, and without jitter; grey and saturated pixels among them."""
    x = photos[:, :channels, :, :20].repeat(60, 1, 1, 1) / 255
    x[::7, :, :9] = 0.5
    x[::5, :1, 9:] = 1.0
    drawn = draw(generator, len(x), 20, 20, 20)
    assert len(drawn.order[drawn.jitter].unique(dim=0)) == 24
    fused = fused_views.color_jitter(x, drawn.jitter, drawn.factors, drawn.order, drawn.grayscale)
    assert_close(fused, A.color_jitter(x, drawn), **CLOSE)
    x = fused_views.rounded(x, quantize=True)
    fused = fused_views.color_jitter(x, drawn.jitter, drawn.factors, drawn.order, drawn.grayscale, quantize=True)
    apart = 255 * (fused - A.color_jitter(x, drawn, quantize=True)).abs()
    assert (apart > 0.01).float().mean() < 1e-3  # a sum in another order may fall to the other side of a level


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_views_are_the_same_views(photos, generator):
    drawn = draw(generator, 6, 20, 26, 16)
    assert_close(A.apply(photos, drawn, 16, compiled=True), A.apply(photos, drawn, 16), **CLOSE)
