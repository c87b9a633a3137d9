"""What is known of the pixels of a data set before training: their mean and standard deviation."""

import math

import numpy as np


def channel_statistics(images: np.ndarray, at_once: int = 2**20) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel's pixels in [0, 1]: uint8 (N, C, H, W) → (C,), (C,), exact for any N.

    The deviation of a channel in which all pixels are equal is 1: there is nothing to scale. at_once: pixels that are
    counted at a time; numpy makes 8 bytes of each.
    """
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    for part in np.array_split(images, math.ceil(len(images) * math.prod(images.shape[2:]) / at_once)):
        counts += [np.bincount(part[:, channel].ravel(), minlength=256) for channel in range(len(counts))]
    share, value = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean, constant = share @ value, share.max(1) == 1
    return mean, np.sqrt(np.where(constant, 1, share @ value**2 - mean**2))
