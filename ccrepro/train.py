"""The training loop (Algorithm 1): one stage, end to end, batch by batch.

All randomness of an epoch is a function of (seed, epoch), drawn on the CPU before its first step. So the stream is the
same on every device, and weights, optimizer, epoch and step are all that a checkpoint has to keep: what is resumed
equals, bit for bit on a CPU, what was never interrupted.
"""

import dataclasses
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccrepro import augmentations, foreign
from ccrepro.checkpoint import Checkpoints
from ccrepro.config import Config, check_fits
from ccrepro.datasets import ImageSet, as_tensor
from ccrepro.errors import CheckpointError, ConfigError, NumericalError
from ccrepro.interrupt import StopSignal
from ccrepro.loss import cluster_loss, instance_loss, mean_entropy, pair_cosines
from ccrepro.machine import choose_device, resolve, within_memory
from ccrepro.model import ContrastiveClusteringModel, build
from ccrepro.ranks import ALONE, Ranks

Epoch = dict[str, float]  # epoch (from 1), the means of NUMBERS over its steps, seconds
Report = Callable[[Epoch, ContrastiveClusteringModel], None]

# What `step` returns: the losses, the length of their gradient by all weights, and what to watch without labels.
NUMBERS = (
    *("loss", "instance_loss", "cluster_loss", "gradient_norm"),
    *(f"instance_{name}" for name in ("positive", "positive_sd", "negative", "negative_sd")),
    *(f"cluster_{name}" for name in ("positive", "positive_sd", "negative", "negative_sd")),
    *("entropy", "largest_share", "clusters_used"),
)

USED_LOSSES = {"both": (1, 1), "shared": (1, 1), "instance": (1, 0), "cluster": (0, 1)}  # instance, cluster
RESIDENT_SHARE = 0.5  # of a GPU's free memory that a data set may take, to be kept there
# Images of one pass whose views are drawn together, some 300 bytes each at the peak. All data sets of the paper are
# smaller: their random numbers are those of one drawing.
DRAWN = 131_072
CHECKED_STEPS = 50  # steps between two looks at a GPU's numbers; on a CPU every step is looked at


@dataclass
class State:
    """All that training changes."""

    model: ContrastiveClusteringModel
    network: nn.Module  # the model as it is called in training, wrapped where several ranks share it
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # finished epochs
    steps: list[Tensor] = field(default_factory=list)  # of the epoch under way: (NUMBERS,) for each
    checked: int = 0  # of these, found finite
    history: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0  # spent on the epoch under way


def train(
    config: Config,
    data: ImageSet,
    report: Report = lambda epoch, model: None,
    checkpoints: Checkpoints | None = None,
    ranks: Ranks = ALONE,
) -> tuple[ContrastiveClusteringModel | None, list[Epoch]]:
    """Train on all images, without their labels; from the newest of ``checkpoints``, where there is one.

    Returns the model in evaluation mode, on its device, and one dict per epoch: ``epoch`` (from 1), the means of the
    `NUMBERS` over its steps, and ``seconds``. ``report(epoch, model)`` is called with each; ``epoch`` 0, before the
    first step, has nothing but its number. A baseline has nothing to train: (None, []).

    ranks: the processes that train it together. All call this function; ``report`` and ``checkpoints`` are for rank 0.

    Raises `NumericalError` in the step where a number is not finite (on a GPU: where the next look at them finds it),
    `CheckpointError` for checkpoints that do not fit, and, where there are checkpoints, `Stopped` after SIGTERM or
    Ctrl-C, once the step under way is saved; `ConfigError` for settings of more ranks than there are, and where the
    GPU's memory is too small.
    """
    if config.ranks != ranks.size:
        what, allowed = f"devices x nodes is {config.ranks}", f"{ranks.size} trains here"
        raise ConfigError(what, "settings devices, nodes", allowed, "Use python -m ccrepro train for several")
    if config.baseline:
        return None, []
    check_fits(config, len(data.images), data.name)
    run = {"config": dataclasses.asdict(config), "data_sha256": data.sha256}
    different = _differences(ranks.share(lambda: run), run)
    if different:
        what, fix = f"another run than rank 0's: {', '.join(different)}", "Start all with the same command and data"
        raise ConfigError(what, f"rank {ranks.rank} of {ranks.size}", "Settings and images must be the same", fix)
    config = resolve(config)
    if config.compile != "off":
        torch.compiler.reset()  # what others compiled counts against our limit of eight, and keeps its memory
    torch.set_num_threads(config.threads)
    state = start(config, data, ranks)
    found = ranks.share(checkpoints.load if checkpoints else lambda: None)
    if found:
        _restore(state, *found, config, run)
        if ranks.rank == 0:
            _say_resumed(state, found[0], found[2], config)
    if state.epoch == 0 and not state.steps:
        report({"epoch": 0}, state.model)
    passes = _passes(config, data)
    saved = f"The step under way was finished and saved in {checkpoints.folder}" if checkpoints else ""
    with StopSignal(active=checkpoints is not None or ranks.size > 1) as stop, within_memory(config):
        while state.epoch < config.epochs:
            for _ in _epoch(state, config, passes, ranks):
                told, due = ranks.agree(stop.signal, checkpoints is not None and checkpoints.due())
                if config.device == "cpu" or told or due or len(state.steps) % CHECKED_STEPS == 0:
                    _check_finite(state, checkpoints)
                if checkpoints is not None and (told or due):
                    _save(state, checkpoints, config, run)
                if told:
                    stop.signal = told  # some rank's
                    ranks.agree(0)  # rank 0 has saved: what launched us ends all once one has left
                    raise stop.error(f"epoch {state.epoch + 1}, step {len(state.steps)}", saved)
            report(_close_epoch(state, checkpoints), state.model)
        if checkpoints is not None:
            _save(state, checkpoints, config, run)
        if stop.signal:
            raise stop.error(f"epoch {state.epoch}", saved)
    return state.model.eval(), state.history


def start(config: Config, data: ImageSet, ranks: Ranks = ALONE) -> State:
    """An untrained model on its device, and its optimizer."""
    model = build(config, data.images.shape[1])
    if config.normalize:
        mean, deviation = channel_statistics(data.images)
        model.standardize.mean.copy_(mean[:, None, None])
        model.standardize.deviation.copy_(deviation[:, None, None])
    if config.pretrained:
        foreign.start_from_imagenet(model, config)
    model = model.to(choose_device(config), memory_format=torch.channels_last)
    if config.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), config.lr, weight_decay=config.weight_decay, fused=True)
    else:
        optimizer = torch.optim.SGD(model.parameters(), config.lr, 0.9, weight_decay=config.weight_decay, fused=True)
    return State(model, ranks.wrap(model), optimizer)


def channel_statistics(images: np.ndarray, at_once: int = 2**20) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel's pixels in [0, 1]: uint8 (N, C, H, W) → (C,), (C,), exact for any N.

    The deviation of a channel in which all pixels are equal, as two of green fluorescence are, is 1: nothing is there
    to be scaled. at_once: pixels that are counted at a time; numpy makes 8 bytes of each.
    """
    at_once = max(1, at_once // math.prod(images.shape[2:]))
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    for first in range(0, len(images), at_once):
        for channel, count in enumerate(counts):
            count += np.bincount(images[first : first + at_once, channel].ravel(), minlength=256)
    share, value = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean, constant = share @ value, share.max(1) == 1
    variance = np.where(constant, 1, share @ value**2 - mean**2)
    return torch.tensor(mean).float(), torch.tensor(np.sqrt(variance)).float()


@dataclass(frozen=True)
class Pass:
    """Images that an epoch goes through once: uint8 (M, C, H, W), their own sizes (M, 2), and whether both losses are
    used on them (§4.2, STL-10)."""

    images: Tensor
    sizes: Tensor
    both: bool = True


def _passes(config: Config, data: ImageSet) -> list[Pass]:
    """What an epoch goes through: images that fit are moved to the device, others stay where they are mapped."""
    passes = [Pass(_placed(data.images, config), as_tensor(data.sizes))]
    if config.unlabeled:
        sizes = torch.tensor(data.unlabeled.shape[2:]).expand(len(data.unlabeled), 2)
        passes.insert(0, Pass(_placed(data.unlabeled, config), sizes, both=False))
    return passes


def _placed(images: np.ndarray, config: Config) -> Tensor:
    if config.device == "cuda" and images.nbytes < RESIDENT_SHARE * torch.cuda.mem_get_info()[0]:
        return as_tensor(images).cuda()
    return as_tensor(images)


def _epoch(state: State, config: Config, passes: list[Pass], ranks: Ranks) -> Iterator[None]:
    """Train what is left of an epoch, a step at a time; each adds its numbers to the state."""
    before, began, done = state.seconds, time.perf_counter(), len(state.steps)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, state.epoch)
    for number, part in enumerate(passes):
        skipped = min(done, len(part.images) // config.batch_size)
        done -= skipped
        for view_a, view_b in pairs(part.images, part.sizes, config, state.epoch, number, skipped, ranks):
            numbers = step(state.network, state.optimizer, view_a, view_b, config, part.both, ranks)
            state.steps.append(torch.stack([numbers[name] for name in NUMBERS]))
            state.seconds = before + time.perf_counter() - began
            yield
    if config.device == "cuda":
        torch.cuda.synchronize()  # for the steps that the host is ahead
        state.seconds = before + time.perf_counter() - began


def _close_epoch(state: State, checkpoints: Checkpoints | None) -> Epoch:
    """Means over the epoch's steps."""
    _check_finite(state, checkpoints)
    means = dict(zip(NUMBERS, torch.stack(state.steps).mean(0).tolist(), strict=True))
    state.history.append({"epoch": state.epoch + 1, **means, "seconds": state.seconds})
    state.epoch, state.steps, state.checked, state.seconds = state.epoch + 1, [], 0, 0.0
    return state.history[-1]


def _check_finite(state: State, checkpoints: Checkpoints | None) -> None:
    """Raise `NumericalError` with the first step and term that are not finite. The host waits for the device here."""
    steps = state.steps[state.checked :]
    wrong = (~torch.stack(steps).isfinite()).nonzero().tolist() if steps else []
    if wrong:
        number, term = wrong[0][0] + state.checked, wrong[0][1]
        what = f"{NUMBERS[term]} is {state.steps[number][term].item()}"
        last = checkpoints.newest() if checkpoints else None
        kept = f"the last good checkpoint is {last}" if last else "no checkpoint was written yet"
        where = f"epoch {state.epoch + 1}, step {number + 1}"
        raise NumericalError(what, where, "It must be finite", f"Lower lr or raise the temperatures; {kept}")
    state.checked = len(state.steps)


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    view_a: Tensor,
    view_b: Tensor,
    config: Config,
    both: bool = True,
    ranks: Ranks = ALONE,
) -> dict[str, Tensor]:
    """One step on two views (n, C, S, S) of this rank's images, each with its own batch statistics.

    ``both=False`` leaves the cluster loss out (STL-10's unlabeled images). Returns the `NUMBERS`, on the device: the
    host does not wait for them. They are of the global batch, and so the same on all ranks.
    """
    model.train()
    forward = losses if config.compile in ("off", "auto") else _compiled_losses(config.compile)
    optimizer.zero_grad(set_to_none=True)  # before the pass, which has their memory then
    loss, numbers = forward(model, view_a, view_b, config, config.heads if both else "instance", ranks)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    optimizer.step()
    return {**numbers, "gradient_norm": torch.nn.utils.get_total_norm(gradients)}


def losses(
    model: nn.Module, view_a: Tensor, view_b: Tensor, config: Config, heads: str, ranks: Ranks
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to be minimised, of the global batch on every rank, and all of the `NUMBERS` but the gradient's.

    The network may run in bf16; losses are in fp32. heads: whose losses count, as in `Config`.
    """
    with torch.autocast(view_a.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        outputs = [x for pair in model.pair(view_a, view_b) for x in pair]
    z_a, p_a, z_b, p_b = ranks.gather(torch.cat(outputs, 1)).split([x.shape[1] for x in outputs], 1)  # (N, D), (N, K)
    instance = instance_loss(z_a, z_b, config.instance_temperature)
    cluster = cluster_loss(p_a, p_b, config.cluster_temperature, config.entropy_weight)
    used = USED_LOSSES[heads]
    loss = used[0] * instance + used[1] * cluster
    with torch.no_grad():
        numbers = {"loss": loss.clone(), "instance_loss": instance.clone(), "cluster_loss": cluster.clone()}
        return loss, {**numbers, **signals(z_a, z_b, p_a, p_b)}


@functools.cache
def _compiled_losses(mode: str) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    return torch.compile(losses, mode=mode, dynamic=False)


def signals(z_a: Tensor, z_b: Tensor, p_a: Tensor, p_b: Tensor) -> dict[str, Tensor]:
    """What to watch without labels: cosines of positive and negative pairs of rows and of columns (`pair_cosines`),
    entropy of the mean assignment in nats, share of the largest cluster, clusters that are the largest assignment of
    some view. z: (N, D), p: (N, K)."""
    p = torch.cat((p_a, p_b))
    cosines = {"instance": pair_cosines(z_a, z_b), "cluster": pair_cosines(p_a.T, p_b.T)}
    named = {f"{head}_{name}": value for head, values in cosines.items() for name, value in values.items()}
    assigned = F.one_hot(p.argmax(1), p.shape[1]).sum(0)  # (K,)
    used = (assigned > 0).sum().to(p.dtype)
    return {**named, "entropy": mean_entropy(p), "largest_share": assigned.max() / len(p), "clusters_used": used}


def pairs(
    images: Tensor,
    sizes: Tensor,
    config: Config,
    epoch: int,
    number: int = 0,
    first: int = 0,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The pairs of views of one pass: uint8 (M, C, H, W) → two of (n, C, S, S) per step; M mod N images are left out.

    sizes: (M, 2) the images' own heights and widths. ``number`` tells the passes of one epoch apart; ``first`` steps
    are passed over. Views are made where training runs; images elsewhere are fetched while the last step computes.
    """
    n, device, own = config.batch_size, choose_device(config), ranks.rows(config.batch_size)
    steps, block = len(images) // n, max(1, DRAWN // n)
    generator = epoch_generator(config.seed, epoch, number)
    order = torch.randperm(len(images), generator=generator)[: steps * n].view(steps, n)
    fetch = _indexed if images.device.type == device.type else _streamed
    batches = fetch(images, order[first:, own], device)
    for start in range(first // block * block, steps, block):
        if start:  # each block has a source of its own, so that a resumed epoch need not draw those before
            generator = epoch_generator(config.seed, epoch, number, start // block)
        there = sizes[order[start : start + block].reshape(-1)]
        drawn = [augmentations.draw(generator, there, tuple(images.shape[2:]), config).to(device) for _ in range(2)]
        for done in range(max(first, start), min(start + block, steps)):
            here = slice((done - start) * n + own.start, (done - start) * n + own.stop)
            yield _views(next(batches), [parameters[here] for parameters in drawn], config)


def _views(batch: Tensor, drawn: Sequence[augmentations.Parameters], config: Config) -> tuple[Tensor, Tensor]:
    """Two views of a batch, augmented or plain, as the settings say."""
    compiled = config.compile not in ("off", "auto")
    augmented = {"both": (True, True), "one": (True, False), "none": (False, False)}[config.views]
    return tuple(
        augmentations.apply(batch, parameters, config.image_size, config.blur_kernel, compiled)
        if random
        else augmentations.plain(batch, config.image_size)
        for parameters, random in zip(drawn, augmented, strict=True)
    )


def _indexed(images: Tensor, order: Tensor, device: torch.device) -> Iterator[Tensor]:
    return (images[rows] for rows in order.to(device))


def _streamed(images: Tensor, order: Tensor, device: torch.device, ahead: int = 4) -> Iterator[Tensor]:
    """Batches from the host's memory, or mapped from disk, through pinned memory; some threads stay ``ahead`` of us.

    We move them ourselves: which GPU is the current one is each thread's own, and theirs is always the first.
    """

    def fetch(rows: Tensor) -> Tensor:
        return images[rows].pin_memory() if device.type == "cuda" else images[rows]

    with ThreadPoolExecutor(2) as pool:
        waiting = deque()
        for rows in order:
            waiting.append(pool.submit(fetch, rows))
            if len(waiting) > ahead:
                yield waiting.popleft().result().to(device, non_blocking=True)
        yield from (batch.result().to(device, non_blocking=True) for batch in waiting)


def first_pairs(data: ImageSet, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """What training sees first, to be looked at: a batch's plain images and its two views, (N, C, S, S) each."""
    images, sizes = as_tensor(data.images), torch.tensor(data.sizes)
    config = dataclasses.replace(config, device="cpu", compile="off")
    views = next(pairs(images, sizes, config, epoch=0))
    plain, _ = next(pairs(images, sizes, dataclasses.replace(config, views="none"), epoch=0))
    return plain, *views


def epoch_generator(seed: int, epoch: int, number: int = 0, block: int = 0) -> torch.Generator:
    """The source of all randomness of one pass of one epoch; of very many images, of the views of one block of them."""
    mixed = np.random.SeedSequence((seed, epoch, number, *((block,) if block else ()))).generate_state(1)[0]
    return torch.Generator().manual_seed(int(mixed))


def learning_rate(config: Config, epoch: int) -> float:
    """Of the epoch (from 0): constant, or half a cosine from ``config.lr`` down to zero; rising at first, if asked."""
    rising = min(1.0, (epoch + 1) / (config.warmup * config.epochs)) if config.warmup else 1.0
    falling = 1.0 if config.schedule == "constant" else (1 + math.cos(math.pi * epoch / config.epochs)) / 2
    return config.lr * rising * falling


def _save(state: State, checkpoints: Checkpoints, config: Config, run: dict[str, Any]) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    for number, parameter in enumerate(state.model.parameters()):
        slots = state.optimizer.state[parameter]
        tensors |= {f"optimizer.{number}.{slot}": v for slot, v in slots.items() if isinstance(v, Tensor)}
    if state.steps:
        tensors["steps"] = torch.stack(state.steps)
    facts = {"epoch": state.epoch, "history": state.history, "seconds": state.seconds, "machine": _machine(config)}
    checkpoints.save(f"{state.epoch:06d}-{len(state.steps):06d}", tensors, {**run, **facts})


def _restore(
    state: State, path: Path, tensors: dict[str, Tensor], facts: dict[str, Any], config: Config, run: dict[str, Any]
) -> None:
    """Take the run up where a checkpoint left it, on however many ranks. Raises `CheckpointError` for another run's."""
    different = _differences(facts, run)
    if different:
        what, allowed = f"{path.name} is of another run: {', '.join(different)}", "Settings and images must be the same"
        raise CheckpointError(what, str(path.parent), allowed, "Remove that folder to start anew")
    device = choose_device(config)
    model = {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}
    state.model.load_state_dict(model)
    parameters = list(state.model.parameters())
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, slot = key.split(".")
            parameter = parameters[int(number)]
            like = torch.empty_like(parameter if value.shape == parameter.shape else value, device=device)
            state.optimizer.state[parameter][slot] = like.copy_(value)
    state.steps = list(tensors["steps"].to(device)) if "steps" in tensors else []
    state.epoch, state.history, state.seconds = facts["epoch"], facts["history"], facts["seconds"]


def _say_resumed(state: State, path: Path, facts: dict[str, Any], config: Config) -> None:
    for name, now in _machine(config).items():
        before = facts["machine"].get(name, now)
        if before != now:
            print(f"warning: {name} was {before} and is {now}: not bit for bit the same run", flush=True)
    print(f"{path.parent.name}  resumed after epoch {state.epoch}, step {len(state.steps)}", flush=True)


def _machine(config: Config) -> dict[str, Any]:
    """On what the numbers of a run depend in their last bits."""
    return {name: getattr(config, name) for name in ("device", "precision", "compile", "threads", "ranks")} | {
        "torch": torch.__version__
    }


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """In what the settings and images of two runs differ; nothing where they are the same."""
    then, now = (Config(**known["config"]) for known in (there, here))
    old, new = then.differences(now), now.differences(then)
    images = [] if there["data_sha256"] == here["data_sha256"] else ["other images"]
    return [f"{name} {old[name]} there, {new[name]} here" for name in old] + images
