"""The training loop (Algorithm 1): one stage, end to end, batch by batch.

All randomness of an epoch is a function of (seed, epoch), drawn on the CPU before its first step, so the stream is
the same on every device and no generator state has to be kept.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ccrepro import augmentations
from ccrepro.config import Config, check_fits
from ccrepro.datasets import ImageSet, as_tensor
from ccrepro.errors import ConfigError, NumericalError
from ccrepro.loss import cluster_loss, instance_loss, mean_entropy, pair_cosines
from ccrepro.model import ContrastiveClusteringModel, build

Epoch = dict[str, float]  # epoch (from 1), what `step` returns as means over the epoch, seconds
Report = Callable[[Epoch, ContrastiveClusteringModel], None]


def train(
    config: Config, data: ImageSet, report: Report = lambda epoch, model: None
) -> tuple[ContrastiveClusteringModel | None, list[Epoch]]:
    """Train from scratch on all images, without their labels.

    Returns the model in evaluation mode, on its device, and one dict per epoch: ``epoch`` (from 1), the means of what
    `step` returns, and ``seconds``. ``report(epoch, model)`` is called with each; ``epoch`` 0, before the first step,
    has nothing but its number. A baseline has nothing to train: (None, []).
    Raises `NumericalError` when a loss is not finite.
    """
    if config.baseline:
        return None, []
    check_fits(config, len(data.images), data.name)
    device = choose_device(config)
    torch.set_num_threads(config.threads)
    model = build(config, data.images.shape[1]).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    passes = [(images.to(device), sizes, both) for images, sizes, both in _passes(config, data)]
    history: list[Epoch] = []
    report({"epoch": 0}, model)
    for epoch in range(config.epochs):
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, epoch)
        steps = [
            step(model, optimizer, view_a, view_b, config, both)
            for number, (images, sizes, both) in enumerate(passes)
            for view_a, view_b in pairs(images, sizes, config, epoch, number)
        ]
        history.append(_summary(epoch + 1, steps, time.perf_counter() - start))
        report(history[-1], model)
    return model.eval(), history


def step(
    model: ContrastiveClusteringModel,
    optimizer: torch.optim.Optimizer,
    view_a: Tensor,
    view_b: Tensor,
    config: Config,
    both: bool = True,
) -> dict[str, Tensor]:
    """One step on two views (N, C, S, S); each goes through the network by itself, with its own batch statistics.

    ``both=False`` leaves the cluster loss out (STL-10's unlabeled images). Returns the step's numbers, on the device.
    """
    model.train()
    (z_a, p_a), (z_b, p_b) = model(view_a), model(view_b)
    instance = instance_loss(z_a, z_b, config.instance_temperature)
    cluster = cluster_loss(p_a, p_b, config.cluster_temperature, config.entropy_weight)
    used = {"both": (1, 1), "shared": (1, 1), "instance": (1, 0), "cluster": (0, 1)}[
        config.heads if both else "instance"
    ]
    loss = used[0] * instance + used[1] * cluster
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return {"loss": loss.detach(), "instance_loss": instance.detach(), "cluster_loss": cluster.detach()} | signals(
        z_a, z_b, p_a, p_b
    )


@torch.no_grad()
def signals(z_a: Tensor, z_b: Tensor, p_a: Tensor, p_b: Tensor) -> dict[str, Tensor]:
    """What to watch without labels: cosines of positive and negative pairs of rows and of columns (`pair_cosines`),
    entropy of the mean assignment in nats, and the largest share of a cluster. z: (N, D), p: (N, K)."""
    p = (p_a + p_b) / 2
    cosines = {"instance": pair_cosines(z_a, z_b), "cluster": pair_cosines(p_a.T, p_b.T)}
    named = {f"{head}_{name}": value for head, values in cosines.items() for name, value in values.items()}
    return {**named, "entropy": mean_entropy(p), "largest_share": p.mean(0).max()}


def pairs(
    images: Tensor, sizes: Tensor, config: Config, epoch: int, number: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """The pairs of views of one pass: uint8 (M, C, H, W) → two of (N, C, S, S) per step; M mod N images are left out.

    sizes: (M, 2) the images' own heights and widths. ``number`` tells the passes of one epoch apart.
    """
    n, size = config.batch_size, config.image_size
    steps = len(images) // n
    generator = epoch_generator(config.seed, epoch, number)
    order = torch.randperm(len(images), generator=generator)[: steps * n]
    shape = tuple(images.shape[2:])
    drawn = [augmentations.draw(generator, sizes[order], shape, config).to(images.device) for _ in range(2)]
    order = order.to(images.device)
    augmented = {"both": (True, True), "one": (True, False), "none": (False, False)}[config.views]
    for start in range(0, steps * n, n):
        batch, rows = images[order[start : start + n]], slice(start, start + n)
        yield tuple(
            augmentations.apply(batch, parameters[rows], size, config.blur_kernel)
            if random
            else augmentations.plain(batch, size)
            for parameters, random in zip(drawn, augmented, strict=True)
        )


def first_pairs(data: ImageSet, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """What training sees first, to be looked at: a batch's plain images and its two views, (N, C, S, S) each."""
    images, sizes = as_tensor(data.images), torch.tensor(data.sizes)
    views = next(pairs(images, sizes, config, epoch=0))
    plain, _ = next(pairs(images, sizes, dataclasses.replace(config, views="none"), epoch=0))
    return plain, *views


def epoch_generator(seed: int, epoch: int, number: int = 0) -> torch.Generator:
    """The source of all randomness of one pass of one epoch."""
    mixed = np.random.SeedSequence((seed, epoch, number)).generate_state(1)[0]
    return torch.Generator().manual_seed(int(mixed))


def learning_rate(config: Config, epoch: int) -> float:
    """Of the epoch (from 0): constant, or half a cosine from ``config.lr`` down to zero."""
    if config.schedule == "constant":
        return config.lr
    return config.lr * (1 + math.cos(math.pi * epoch / config.epochs)) / 2


def choose_device(config: Config) -> torch.device:
    """Raises `ConfigError` when CUDA is asked for and absent."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ConfigError("no CUDA device found", "setting device", "Known here: 'auto', 'cpu'", "Use device=cpu")
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


def _passes(config: Config, data: ImageSet) -> list[tuple[Tensor, Tensor, bool]]:
    """The images each epoch goes through, their sizes, and whether both losses are used on them (§4.2, STL-10)."""
    passes = [(as_tensor(data.images), torch.tensor(data.sizes), True)]
    if config.unlabeled:
        sizes = torch.tensor(data.unlabeled.shape[2:]).expand(len(data.unlabeled), 2)
        passes.insert(0, (as_tensor(data.unlabeled), sizes, False))
    return passes


def _summary(epoch: int, steps: list[dict[str, Tensor]], seconds: float) -> Epoch:
    """Means over the epoch's steps. The device is asked for numbers here only, once per epoch."""
    means = {name: torch.stack([s[name] for s in steps]).mean().item() for name in steps[0]}
    if not math.isfinite(means["loss"]):
        fix = "Lower lr or raise the temperatures; nothing of this epoch was saved"
        raise NumericalError(f"the loss is {means['loss']}", f"epoch {epoch}", "It must be finite", fix)
    return {"epoch": epoch, **means, "seconds": seconds}
