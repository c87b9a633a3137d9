import numpy as np

from ccrepro.data.statistics import channel_statistics


def test_channel_statistics_are_those_of_all_pixels():
    images = np.random.default_rng(0).integers(0, 256, (23, 3, 5, 6), np.uint8)
    mean, deviation = channel_statistics(images, at_once=7 * 30)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 2, 3)))
    np.testing.assert_allclose(deviation, (images / 255).std((0, 2, 3)))
