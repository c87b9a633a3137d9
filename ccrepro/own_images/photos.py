"""Cluster photos on the features of a pretrained network: which network, the features, K, the starts.

Letters: N images, K clusters.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.std import tqdm

from ccrepro.baselines import kmeans
from ccrepro.config import Config
from ccrepro.data import ImageSet
from ccrepro.errors import ConfigError
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.own_images import N_INIT, own_recipe, starts
from ccrepro.own_images import features as seen
from ccrepro.runs import pretrained, resume, streaming
from ccrepro.runs.checkpoints import Checkpoints
from ccrepro.runs.weights import sha256
from ccrepro.runtime.device import choose_device
from ccrepro.runtime.ragged import Ragged

FINE_TUNING = 0.1  # of the learning rate is left when the network is trained too


class Photos(NamedTuple):
    """What came of N photos. config: with K. model: that of the best start. starts: the one of the lowest loss
    first. kmeans: int (N,), the clusters of k-means on the features at unit length. silhouettes: of each K that was
    tried, if any."""

    config: Config
    model: ContrastiveClusteringModel
    starts: list[starts.Start]
    kmeans: np.ndarray
    silhouettes: dict[int, float]


class Network:
    """A frozen pretrained network, and what makes models on it.

    name, weights, image_size: as `ccrepro.runs.pretrained.load` takes them. device: as in `Config`. about: name and
    SHA-256 of the weights.
    """

    def __init__(self, name: str, weights: str | Path = "", image_size: int = 0, device: str = "auto"):
        self.name, self.image_size = name, image_size or pretrained.facts(name)["image_size"]
        self.device = choose_device(device)
        network = pretrained.load(name, weights, self.image_size)
        self.encoder = network.to(self.device, memory_format=torch.channels_last)
        self.about = {"name": name, "sha256": sha256(self.encoder.state_dict())}

    def model(self, config: Config) -> ContrastiveClusteringModel:
        """The untrained model of these settings."""
        return pretrained.on(self.encoder, config, self.name).to(self.device)

    def features(self, config: Config, images: np.ndarray | Ragged, kept: Path | None, of: str) -> np.ndarray:
        """What `features.extract` makes of the images; ``of`` tells apart the images."""
        of = json.dumps([of, self.about["sha256"], {name: getattr(config, name) for name in seen.SETTINGS}])
        return seen.extract(self.model(config), config, images, kept, of)


def fit(
    network: Network,
    images: np.ndarray | Ragged,
    n_clusters: int | str,
    n_init: int = N_INIT,
    kept: Path | None = None,
    of: str = "",
    **settings: Any,
) -> Photos:
    """Cluster N uint8 images of three channels, in so many starts.

    n_clusters: K, or "auto": the K of the largest silhouette of k-means. kept: a folder for features and starts, so
    that what is interrupted goes on; ``of`` tells apart the images that they may be of. settings: of `Config`. Raises
    `ConfigError` as `own_recipe` does.
    """
    auto = n_clusters == "auto"
    config = own_recipe(2 if auto else n_clusters, len(images), 0, network.image_size, **settings)
    if n_init < 1:
        raise ConfigError(f"n_init is {n_init}. Choose 1 or more.")
    if auto and len(images) < seen.FEWEST:
        raise ConfigError(f"auto needs {seen.FEWEST} images or more, but there are {len(images)}. Give n_clusters.")
    features = network.features(config, images, kept and kept / "features", of)
    unit = seen.at_unit_length(features)
    curve = seen.silhouettes(unit, config.seed) if auto else {}
    config = config.replace(n_clusters=max(curve, key=curve.__getitem__)) if auto else config
    found = starts.fit(config, features, n_init, kept and kept / "starts", f"{of} {network.about}")
    model = network.model(config)
    model.load_state_dict(found[0].weights, strict=False)  # the others are the network's
    return Photos(config, model.eval(), found, kmeans(unit, config.n_clusters, config.seed), curve)


def fine_tune(
    model: ContrastiveClusteringModel, config: Config, data: ImageSet, epochs: int, kept: Path
) -> streaming.Outputs:
    """Train the last stage of the network too, for so many epochs on new views of the images: their outputs then.

    kept: a folder for checkpoints, so that what is interrupted goes on. Raises as `resume.fit` does.
    """
    for parameter in pretrained.last_stage(model.backbone.encoder):
        parameter.requires_grad_(True)
    model.backbone.trunk[-1].p = 0.0  # what it leaves out would be others after an interruption
    config = config.replace(epochs=epochs, lr=config.lr * FINE_TUNING)
    with tqdm(None, "fine-tuning", epochs, unit=" epochs") as bar:
        resume.fit(config, data, lambda epoch, _: bar.update(epoch["epoch"] - bar.n), Checkpoints(kept), model=model)
    return streaming.outputs(model, data.images, config)
