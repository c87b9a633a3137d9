"""The order of the images and their two views: a function of (seed, epoch).

All random numbers of an epoch are drawn on the CPU before its first step. So the views are the same on every device,
and a run that resumes sees the views that it would have seen.

Letters: M images of one pass, N images of a batch, n = N / R of them on this one of R ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ccrepro import augmentations
from ccrepro.config import Config
from ccrepro.data import ImageSet, as_tensor
from ccrepro.runtime.device import choose_device, fetched, placed
from ccrepro.runtime.ragged import Ragged, sizes_of


@dataclass(frozen=True)
class Pass:
    """M images that an epoch trains on once, uint8, and whether both losses are used, or the instance loss alone (§4.2,
    STL-10's unlabeled images)."""

    images: Tensor | Ragged
    both: bool = True

    def steps(self, config: Config) -> int:
        """Full batches; M mod N images are left out of each epoch."""
        return len(self.images) // config.batch_size


def passes(config: Config, data: ImageSet) -> list[Pass]:
    """The passes of an epoch: the unlabeled images first, if the settings ask for them, then all others."""
    device = choose_device(config.device)
    found = [Pass(placed(as_tensor(data.images), device))]
    if config.unlabeled:
        found.insert(0, Pass(placed(as_tensor(data.unlabeled), device), both=False))
    return found


def epoch_pairs(
    parts: Sequence[Pass], config: Config, epoch: int, first: int = 0, rows: slice = slice(None)
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Both views of each batch of an epoch from its step ``first`` on, and whether both losses are used on them."""
    for number, part in enumerate(parts):
        skipped = min(first, part.steps(config))
        first -= skipped
        for view_a, view_b in pairs(part.images, config, epoch, number, skipped, rows):
            yield view_a, view_b, part.both


def pairs(
    images: Tensor | Ragged,
    config: Config,
    epoch: int,
    number: int = 0,
    first: int = 0,
    rows: slice = slice(None),
) -> Iterator[tuple[Tensor, Tensor]]:
    """The two views of each batch of one pass: M uint8 images → two of (n, C, S, S) per step.

    M mod N images are left out. number: of the pass in its epoch. first: steps to skip, which were taken before. rows:
    of each batch that this rank makes. Views are made on the device that trains.
    """
    n, device = config.batch_size, choose_device(config.device)
    start_row, stop_row, _ = rows.indices(n)
    steps, generator = len(images) // n, epoch_generator(config.seed, epoch, number)
    order = torch.randperm(len(images), generator=generator)[: steps * n].view(steps, n)
    batches = fetched(images, order[first:, rows], device)
    sizes = torch.from_numpy(sizes_of(images))[order.reshape(-1)]
    ragged = isinstance(images, Ragged)
    drawn = [augmentations.draw(generator, sizes, config).to(device, keep_box=ragged) for _ in range(2)]
    for done, batch in enumerate(batches, first):
        here = slice(done * n + start_row, done * n + stop_row)
        yield _views(batch, [parameters[here] for parameters in drawn], config)


def _views(batch: Tensor | Ragged, drawn: Sequence[augmentations.Parameters], config: Config) -> tuple[Tensor, Tensor]:
    """Two views of a batch, augmented or as they are, as the settings say."""
    compiled = config.compile not in ("off", "auto")
    augmented = {"both": (True, True), "one": (True, False), "none": (False, False)}[config.views]
    return tuple(
        augmentations.apply(batch, parameters, config.image_size, config.quantize, compiled)
        if random
        else augmentations.eval_view(batch, config.image_size, config.quantize)
        for parameters, random in zip(drawn, augmented, strict=True)
    )


def first_pairs(data: ImageSet, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """The first batch of a training, to look at: its images and its two views, (N, C, S, S) each."""
    images = as_tensor(data.images)
    config = config.replace(device="cpu", compile="off")
    views = next(pairs(images, config, epoch=0))
    unaugmented, _ = next(pairs(images, config.replace(views="none"), epoch=0))
    return unaugmented, *views


def epoch_generator(seed: int, epoch: int, number: int = 0) -> torch.Generator:
    """The source of all randomness of one pass of one epoch."""
    mixed = np.random.SeedSequence((seed, epoch, number)).generate_state(1)[0]
    return torch.Generator().manual_seed(int(mixed))
