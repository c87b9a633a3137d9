"""Images that differ in size, in one flat array."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    import torch


class Ragged:
    """N images of C channels, each with its own height and width.

    pixels: uint8 (P,), an array or a tensor, which holds each image as (C, H, W). starts: int64 (N,), where in it each
    image begins. sizes: int64 (N, 2), the heights and widths. The last two are arrays.
    """

    def __init__(self, pixels: Any, starts: np.ndarray, sizes: np.ndarray, channels: int = 3):
        self.pixels, self.starts, self.sizes, self.channels = pixels, starts, sizes, channels

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, which: Any) -> Any:
        """An int: that image, (C, H, W). A slice, a mask or a list of ints: the same pixels with these images only."""
        if not isinstance(which, int | np.integer):
            return Ragged(self.pixels, self.starts[which], self.sizes[which], self.channels)
        (height, width), start = self.sizes[which].tolist(), self.starts[which].item()
        return self.pixels[start : start + self.channels * height * width].reshape(self.channels, height, width)

    def __iter__(self) -> Iterator[Any]:
        return map(self.__getitem__, range(len(self)))

    @property
    def nbytes(self) -> int:
        """Bytes that the pixels of these images take."""
        return self.channels * int(self.sizes.prod(1).sum())

    @property
    def device(self) -> "torch.device":
        return self.pixels.device

    def to(self, device: "torch.device", non_blocking: bool = False) -> Self:
        """The images, tensors already, on a device; those of other images stay behind."""
        if self.device.type == device.type:
            return self
        packed = self._packed()
        return Ragged(packed.pixels.to(device, non_blocking=non_blocking), packed.starts, self.sizes, self.channels)

    def pin_memory(self) -> Self:
        """A copy in memory that a GPU reads fast."""
        packed = self._packed()
        return Ragged(packed.pixels.pin_memory(), packed.starts, self.sizes, self.channels)

    def _packed(self) -> Self:
        """The same images without pixels of others between them."""
        if len(self.pixels) == self.nbytes:
            return self
        import torch  # late: data sets can be listed and packed without it

        pixels = torch.cat([image.reshape(-1) for image in self])
        return Ragged(pixels, starts_of(self.sizes, self.channels), self.sizes, self.channels)

    def cut(self, boxes: "torch.Tensor") -> "torch.Tensor":
        """The pixels in the boxes: uint8 (N, C, H, W), each in the top left corner, H and W those of the largest.

        boxes: (N, 4) on the CPU, whole numbers: top, left, height and width in the pixels of each image.
        """
        boxes = boxes.long()
        padded = self.pixels.new_zeros(len(self), self.channels, *boxes[:, 2:].amax(0).tolist())
        for image, place, (top, left, height, width) in zip(self, padded, boxes.tolist(), strict=True):
            place[:, :height, :width] = image[:, top : top + height, left : left + width]
        return padded


def joined(pixels: np.ndarray, sizes: np.ndarray, channels: int = 3) -> np.ndarray | Ragged:
    """Images that stand one behind the other in uint8 (P,): (N, C, H, W) where all have one size, else `Ragged`."""
    if (sizes == sizes[0]).all():
        return pixels.reshape(len(sizes), channels, *sizes[0])
    return Ragged(pixels, starts_of(sizes, channels), sizes, channels)


def stacked(images: Sequence[np.ndarray]) -> np.ndarray | Ragged:
    """At least one image, uint8 (C, H, W) each, as `joined` has them."""
    pixels = np.concatenate([image.ravel() for image in images])
    return joined(pixels, np.array([image.shape[1:] for image in images]), len(images[0]))


def starts_of(sizes: np.ndarray, channels: int = 3) -> np.ndarray:
    """Where each image begins if they stand one behind the other: sizes (N, 2) → int64 (N,)."""
    values = channels * sizes.astype(np.int64).prod(1)
    return np.cumsum(values) - values


def sizes_of(images: Any) -> np.ndarray:
    """Height and width of each image: `Ragged`, or (N, C, H, W) → int64 (N, 2)."""
    return images.sizes if isinstance(images, Ragged) else np.full((len(images), 2), tuple(images.shape[2:]))


def channels_of(images: Any) -> int:
    """C of `Ragged` images, or of (N, C, H, W)."""
    return images.channels if isinstance(images, Ragged) else images.shape[1]
