"""The training loop (Algorithm 1): one stage, end to end, batch by batch.

>>> from ccrepro.data import load
>>> from ccrepro.recipes import recipe
>>> from ccrepro.train import start, train
>>> data = load("digits")
>>> state = start(recipe("digits", "demo", epochs=2), data)
>>> for _ in train(state, data):
...     if not state.steps:  # an epoch has just ended
...         print(f"epoch {state.epoch}: loss {state.history[-1]['loss']:.1f}")
epoch 1: loss 8.1
epoch 2: loss 7.6
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccrepro import batches
from ccrepro.augmentations import eval_view
from ccrepro.backbones import FastNetwork
from ccrepro.config import Config
from ccrepro.data import ImageSet, as_tensor, channel_statistics
from ccrepro.errors import NumericalError
from ccrepro.loss import cluster_loss, instance_loss, mean_entropy, pair_cosines
from ccrepro.model import ContrastiveClusteringModel, build
from ccrepro.recipes import check_fits
from ccrepro.runtime.device import choose_compile, choose_device, choose_precision
from ccrepro.runtime.ragged import Ragged

Epoch = dict[str, float]  # epoch (from 1), the means of METRIC_NAMES over its steps, seconds

# What `step` returns: the losses, the length of their gradient by all weights, and what to watch without labels.
METRIC_NAMES = (
    *("loss", "instance_loss", "cluster_loss", "gradient_norm"),
    *(f"instance_{name}" for name in ("positive", "positive_sd", "negative", "negative_sd")),
    *(f"cluster_{name}" for name in ("positive", "positive_sd", "negative", "negative_sd")),
    *("entropy", "largest_share", "clusters_used"),
)
OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9),
    "nesterov": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}
USED_LOSSES = {"both": (1, 1), "shared": (1, 1), "instance": (1, 0), "cluster": (0, 1)}  # instance, cluster
WHITENED_PIXELS = 2**21  # of which patches are taken for the whitening: 5,000 images of 20 pixels
CHECKED_STEPS = 50  # steps between two looks at a GPU's numbers; on a CPU every step is looked at


@dataclass
class State:
    """The settings, with every ``auto`` decided, and all that training changes.

    With several ranks, ``network`` is the model in its wrapper, ``gather`` collects the outputs of all ranks, and
    ``rows`` are this rank's rows of each batch.
    """

    config: Config
    model: ContrastiveClusteringModel
    optimizer: torch.optim.Optimizer
    network: nn.Module
    gather: Callable[[Tensor], Tensor] = lambda x: x
    rows: slice = field(default_factory=lambda: slice(None))
    epoch: int = 0  # finished epochs
    steps: list[Tensor] = field(default_factory=list)  # of the epoch under way: (METRIC_NAMES,) for each
    history: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0  # spent on the epoch under way


def start(config: Config, data: ImageSet, model: ContrastiveClusteringModel | None = None) -> State:
    """A new model, or the given one, on its device, and its optimizer.

    Raises `ConfigError` where a batch takes more images than there are, and where the device is absent.
    """
    check_fits(config, len(data.images), data.name)
    if model is None:
        model = build(config, data.channels)
        fit_input(model, config, data.images)
    config = resolve(config)
    model = model.to(config.device, memory_format=torch.channels_last)
    make = OPTIMIZERS[config.optimizer]
    optimizer = make(model.parameters(), config.lr, weight_decay=config.weight_decay, fused=True)
    return State(config, model, optimizer, model)


def resolve(config: Config, ranks: int = 1) -> Config:
    """The settings with every ``auto`` decided here. Raises `ConfigError` where the device is absent."""
    device, precision, mode = choose_device(config.device).type, config.precision, config.compile
    precision = choose_precision(device, config.map_side) if precision == "auto" else precision
    mode = choose_compile(device, config.map_side, ranks) if mode == "auto" else mode
    return config.replace(device=device, precision=precision, compile=mode)


def train(state: State, data: ImageSet) -> Iterator[None]:
    """Train on all images, without their labels. Yields after each step; after the last one of an epoch, whose means
    are in the history then, ``state.steps`` is empty.

    Raises `NumericalError` in the step where a number is not finite (on a GPU: where the next look at them finds it).
    """
    config, parts = state.config, batches.passes(state.config, data)
    n_steps = sum(part.steps(config) for part in parts)
    while state.epoch < config.epochs:
        began = time.perf_counter() - state.seconds
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(config, state.epoch)
        for views in batches.epoch_pairs(parts, config, state.epoch, len(state.steps), state.rows):
            state.steps.append(step(state, *views))
            ended = len(state.steps) == n_steps
            if ended or config.device == "cpu" or len(state.steps) % CHECKED_STEPS == 0:
                check_finite(state)
            state.seconds = time.perf_counter() - began
            if ended:
                close_epoch(state)
            yield


def step(state: State, view_a: Tensor, view_b: Tensor, both: bool = True) -> Tensor:
    """One step on two views (n, C, S, S) of this rank's images. Each view has its own batch statistics.

    ``both=False`` leaves the cluster loss out (STL-10's unlabeled images). Returns the values of `METRIC_NAMES` of the
    global batch, on the device, so that the host does not wait for them.
    """
    config = state.config
    state.network.train()
    forward = losses if config.compile == "off" else _compiled_losses(config.compile)
    state.optimizer.zero_grad(set_to_none=True)  # before the pass, which has their memory then
    loss, metrics = forward(state.network, view_a, view_b, config, config.heads if both else "instance", state.gather)
    loss.backward()
    gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
    state.optimizer.step()
    metrics["gradient_norm"] = torch.nn.utils.get_total_norm(gradients)
    return torch.stack([metrics[name] for name in METRIC_NAMES])


def losses(
    network: nn.Module, view_a: Tensor, view_b: Tensor, config: Config, heads: str, gather: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the global batch, the same on every rank, and all of `METRIC_NAMES` but the gradient's norm.

    The network may run in bf16; the losses are in fp32. heads: whose losses count, as in `Config`.
    """
    with torch.autocast(view_a.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        outputs = [*network(view_a), *network(view_b)]
    z_a, p_a, z_b, p_b = gather(torch.cat(outputs, 1)).split([x.shape[1] for x in outputs], 1)  # (N, D), (N, K)
    instance = instance_loss(z_a, z_b, config.instance_temperature)
    cluster = cluster_loss(p_a, p_b, config.cluster_temperature, config.entropy_weight)
    used = USED_LOSSES[heads]
    loss = used[0] * instance + used[1] * cluster
    with torch.no_grad():
        metrics = {"loss": loss.clone(), "instance_loss": instance.clone(), "cluster_loss": cluster.clone()}
        return loss, {**metrics, **diagnostics(z_a, z_b, p_a, p_b)}


@functools.cache
def _compiled_losses(mode: str) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    return torch.compile(losses, mode=mode, dynamic=False)


def diagnostics(z_a: Tensor, z_b: Tensor, p_a: Tensor, p_b: Tensor) -> dict[str, Tensor]:
    """What one can watch without labels: the cosines of positive and negative pairs of rows and of columns
    (`pair_cosines`), the entropy of the mean assignment in nats, the share of the largest cluster, and how many
    clusters are the largest entry of some row. z: (N, D), p: (N, K)."""
    p = torch.cat((p_a, p_b))
    cosines = {"instance": pair_cosines(z_a, z_b), "cluster": pair_cosines(p_a.T, p_b.T)}
    named = {f"{head}_{name}": value for head, values in cosines.items() for name, value in values.items()}
    assigned = F.one_hot(p.argmax(1), p.shape[1]).sum(0)  # (K,)
    used = (assigned > 0).sum().to(p.dtype)
    return {**named, "entropy": mean_entropy(p), "largest_share": assigned.max() / len(p), "clusters_used": used}


def learning_rate(config: Config, epoch: int) -> float:
    """The rate of an epoch (from 0): constant, or half a cosine down to zero; after a linear warm-up, if any."""
    rising = min(1.0, (epoch + 1) / (config.warmup * config.epochs)) if config.warmup else 1.0
    falling = 1.0 if config.schedule == "constant" else (1 + math.cos(math.pi * epoch / config.epochs)) / 2
    return config.lr * rising * falling


def check_finite(state: State) -> None:
    """Raise `NumericalError` with the first step and term that are not finite, among the epoch's last `CHECKED_STEPS`:
    the earlier ones were looked at before. The host waits for the device here."""
    recent = state.steps[-CHECKED_STEPS:]
    wrong = (~torch.stack(recent).isfinite()).nonzero().tolist() if recent else []
    if wrong:
        number, term = wrong[0][0] + len(state.steps) - len(recent), wrong[0][1]
        what, value = METRIC_NAMES[term], state.steps[number][term].item()
        where = f"epoch {state.epoch + 1}, step {number + 1}"
        raise NumericalError(f"{what} is {value} in {where}. Lower lr, or raise the temperatures.")


def close_epoch(state: State) -> None:
    """Append the means over the epoch's steps to the history, and begin the next epoch."""
    means = dict(zip(METRIC_NAMES, torch.stack(state.steps).mean(0).tolist(), strict=True))
    state.history.append({"epoch": state.epoch + 1, **means, "seconds": state.seconds})
    state.epoch, state.steps, state.seconds = state.epoch + 1, [], 0.0


def fit_input(model: ContrastiveClusteringModel, config: Config, images: np.ndarray | Ragged) -> None:
    """Set what the model takes from the images before training: the channels' statistics and the whitening."""
    if config.normalize:
        mean, deviation = map(torch.from_numpy, channel_statistics(images))
        model.standardize.mean.copy_(mean[:, None, None])
        model.standardize.deviation.copy_(deviation[:, None, None])
    if isinstance(model.backbone, FastNetwork):
        n = min(len(images), max(1, WHITENED_PIXELS // config.image_size**2))
        rows = np.linspace(0, len(images) - 1, n).astype(int)
        views = eval_view(as_tensor(images[rows]), config.image_size, config.quantize)
        model.backbone.whiten(model.standardize(views))
