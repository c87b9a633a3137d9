"""Train trunk and heads on the features of a pretrained network, several times, and keep the start of the lowest loss.

Single starts scatter, as those of k-means do. The cluster loss tells a good one from a bad one without labels.

Letters: N images, V views, F width of the frozen features, K clusters.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor
from tqdm.std import tqdm

from ccrepro import train
from ccrepro.batches import epoch_generator
from ccrepro.config import Config
from ccrepro.errors import CheckpointError
from ccrepro.loss import cluster_loss
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.runs import pretrained
from ccrepro.runs.pretrained import OnFeatures
from ccrepro.runs.weights import read_sealed, save_sealed
from ccrepro.runtime.device import at_once, choose_device, threads


class Start(NamedTuple):
    """A training and what came of it. weights: what was trained, by name. z: float32 (N, D) and p: float32 (V + 1, N,
    K), of the images as they are and of their views. loss: `loss_of` p."""

    config: Config
    weights: dict[str, Tensor]
    history: list[train.Epoch]
    z: np.ndarray
    p: np.ndarray
    loss: float

    @property
    def clusters(self) -> np.ndarray:
        """int64 (N,)."""
        return self.p[0].argmax(1)


def fit(config: Config, features: np.ndarray, n_init: int, kept: Path | None = None, of: str = "") -> list[Start]:
    """So many starts on features (N, V + 1, F), the one of the lowest loss first. Each has a seed of its own, and one
    core of a CPU. kept: a folder of finished starts, which are not repeated; ``of`` tells apart the features that they
    may be of."""

    def calls() -> Iterator[Any]:
        for number in range(n_init):
            seed = int(np.random.SeedSequence((config.seed, number)).generate_state(1)[0]) % 2**31
            own = config.replace(seed=seed)
            yield delayed(_start)(own, features, kept and kept / f"start-{number}.safetensors", of)

    on_gpu = choose_device(config.device).type != "cpu"
    made = Parallel(1 if on_gpu else min(n_init, at_once()), return_as="generator")(calls())
    starts, bar = [], tqdm(made, "starts", n_init, mininterval=1)
    for start in bar:
        starts.append(start)
        bar.set_postfix_str(f"lowest loss {min(start.loss for start in starts):.3f}")
    return sorted(starts, key=lambda start: start.loss)


def _start(config: Config, features: np.ndarray, path: Path | None, of: str) -> Start:
    """One start, trained now or read from the file."""
    about = {"of": of, "config": config.model_dump(mode="json")}
    with threads(config.threads):
        model = pretrained.without_encoder(config, features.shape[-1])
        measure_length(model, features)
        state = begin(model.to(choose_device(config.device)), config)
        try:
            weights, known = read_sealed(path) if path else ({}, {})
        except CheckpointError:  # absent, or damaged
            known = {}
        if {name: known.get(name) for name in about} == about:
            model.load_state_dict(weights, strict=False)
            state.history = known["history"]
        else:
            for _ in range(config.epochs):
                learn(state, features)
            weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
            if path:
                save_sealed(path, weights, {**about, "history": state.history})
        z, p = outputs(model, features)
    return Start(config, weights, state.history, z, p, loss_of(torch.from_numpy(p), config))


def measure_length(model: ContrastiveClusteringModel, features: np.ndarray) -> None:
    """Give the trunk the mean length of these features, (N, V + 1, F), of the images as they are."""
    model.backbone.length.fill_(float(np.linalg.norm(features[:, 0], axis=1).mean()))


def begin(model: ContrastiveClusteringModel, config: Config) -> train.State:
    """The state of a training on features, before its first step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    config = train.resolve(config.replace(compile="off"))
    optimizer = train.OPTIMIZERS[config.optimizer](trained, config.lr, weight_decay=config.weight_decay, fused=True)
    return train.State(config, model, optimizer, OnFeatures(model))


def learn(state: train.State, features: np.ndarray) -> None:
    """Train one epoch on features (N, V + 1, F): each step on two of the views of its images."""
    features = torch.from_numpy(features)
    config, n, generator = state.config, state.config.batch_size, epoch_generator(state.config.seed, state.epoch)
    for group in state.optimizer.param_groups:
        group["lr"] = train.learning_rate(config, min(state.epoch, config.epochs - 1))
    order = torch.randperm(len(features), generator=generator)
    with threads(config.threads), torch.random.fork_rng():
        torch.manual_seed(generator.initial_seed())  # of what the dropout leaves out
        for rows in order[: len(order) // n * n].view(-1, n):
            pair = torch.randperm(features.shape[1], generator=generator)[:2]
            views = (features[rows, view].to(config.device) for view in pair)
            state.steps.append(train.step(state, *views))
    train.check_finite(state)
    train.close_epoch(state)


@torch.inference_mode()
def outputs(model: ContrastiveClusteringModel, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z (N, D) of the images as they are, p (V + 1, N, K) of these and of the views, from features (N, V + 1, F)."""
    network, device, features = OnFeatures(model).eval(), model.backbone.length.device, torch.from_numpy(features)
    z, p = zip(*(network(features[:, view].to(device)) for view in range(features.shape[1])), strict=True)
    return z[0].cpu().numpy(), torch.stack(p).cpu().numpy()


def loss_of(p: Tensor, config: Config) -> float:
    """The cluster loss of all images, between all pairs of their views, p (V + 1, N, K); the mean of the pairs."""
    pairs = itertools.combinations(p, 2)
    losses = [cluster_loss(a, b, config.cluster_temperature, config.entropy_weight).item() for a, b in pairs]
    return sum(losses) / len(losses)


def agreement(clusterings: list[np.ndarray]) -> float:
    """How much clusterings of the same images agree: the adjusted mutual information, the mean of all pairs; 1 where
    all are the same, 0 by chance, or of a pair that puts all images into one cluster."""
    pairs = list(itertools.combinations(clusterings, 2))
    each = [adjusted_mutual_info_score(a, b) if len(np.union1d(a, b)) > 1 else 0.0 for a, b in pairs]
    return float(np.mean(each)) if pairs else 1.0
