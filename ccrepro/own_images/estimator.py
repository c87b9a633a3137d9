"""Contrastive Clustering as a scikit-learn estimator: for your own images, in your own code.

Letters: N images, C channels, H, W sides, F values of a flat row, D instance dimension, K clusters.
"""

import warnings
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ccrepro import augmentations, train
from ccrepro.batches import epoch_generator
from ccrepro.config import Config
from ccrepro.data import ImageSet, as_tensor
from ccrepro.errors import ConfigError, ImageError
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.own_images import FEW, N_INIT, PHOTO, TOO_FEW, inputs, own_recipe, photos, starts, usual_side
from ccrepro.own_images import features as seen
from ccrepro.recipes import OWN, overrides
from ccrepro.runs import resume, streaming
from ccrepro.runs.weights import load_model, save_model
from ccrepro.runtime.device import choose_device
from ccrepro.runtime.ragged import Ragged, sizes_of
from ccrepro.runtime.storage import place

VIEWS_SEED = 1  # of the two views that `view_agreement` compares
ELSEWHERE = ("dataset", "preset", "n_clusters", "seed")  # not allowed in `settings`
NAMED = ("epochs", "batch_size", "image_size", "flip")  # settings that are parameters of their own
SAVED = ("image_shape", "value_range", "verbose", "n_init")  # parameters that are no settings
FITTED = ("model_", "state_", "history_", "losses_", "labels_")  # what a new fit forgets


class ContrastiveClustering(ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin, BaseEstimator):
    """Cluster images without labels (Li et al., AAAI 2021).

    X is always one of: uint8 pixels, or numbers from 0 to 1, as (N, H, W), (N, H, W, 3) or (N, 3, H, W); a list, a
    column of a table, or a torch Dataset of images of any sizes: paths of files, Pillow's images, or arrays, each also
    with a label, which is ignored; flat rows (N, F), which ``image_shape`` folds. Images that are not fitted are
    resized, and made grey or coloured, as the model needs them.

    Parameters
    ----------
    n_clusters : K, 2 or more; with a pretrained backbone also "auto" (`ccrepro.own_images.photos.fit`).
    backbone : None trains a network on X alone, from scratch. A name is that of a pretrained network, which stays as it
        is: "efficientnet-lite0", which comes with ``ccrepro[images]``, or one of timm's. A layer on its features, and
        the heads, are trained.
    weights : the file of the backbone's weights; None is where it has them from itself.
    n_init : on a pretrained backbone, the number of starts, of which the one of the lowest loss is kept.
    epochs, batch_size, image_size, flip : settings of `ccrepro.config.Config`; None chooses by the number of images and
        their size (`own_recipe`). Use ``flip=0`` where a mirrored image means something else.
    settings : a dict of other settings of `Config`.
    image_shape : of flat rows: (H, W) or (C, H, W).
    value_range : the values of black and white, but of 8-bit images; None is (0, 1) in arrays, and in files and
        Pillow's images deeper than 8 bits what `ccrepro.data.images.joint_range` finds.
    random_state : the seed: an int, a `numpy.random.RandomState` or None.
    verbose : print what X holds, and a line per epoch while training.

    Attributes
    ----------
    labels_ : int64 (N,), the cluster of each image fitted, 0 … K - 1.
    model_ : the trained `ContrastiveClusteringModel`. config_ : its settings.
    history_ : one dict per epoch: losses, entropy, cosines of pairs and more.
    losses_ : of `fit` on a pretrained backbone: the cluster losses of all starts, the lowest first.
    values_ : black and white of the files fitted that are deeper than 8 bits, None if there were none.
    n_iter_ : epochs done. n_features_in_ : F, where flat rows were fitted.
    """

    def __init__(
        self,
        n_clusters: int | Literal["auto"] = 10,
        *,
        backbone: str | None = None,
        weights: str | Path | None = None,
        n_init: int = N_INIT,
        epochs: int | None = None,
        batch_size: int | None = None,
        image_size: int | None = None,
        flip: float | None = None,
        settings: dict[str, Any] | None = None,
        image_shape: tuple[int, ...] | None = None,
        value_range: tuple[float, float] | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ):
        self.n_clusters = n_clusters
        self.backbone = backbone
        self.weights = weights
        self.n_init = n_init
        self.epochs = epochs
        self.batch_size = batch_size
        self.image_size = image_size
        self.flip = flip
        self.settings = settings
        self.image_shape = image_shape
        self.value_range = value_range
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: None = None) -> Self:
        """Train on X from the start. Raises `ConfigError` for bad parameters, `ImageError` for bad images (both are a
        `ValueError`), and `NumericalError` where training diverges."""
        data = self._as_set(X, reset=True)
        if self.verbose:
            print(data, flush=True)
        network, chosen = self._start(data)
        if network:
            found = photos.fit(network, data.images, self.n_clusters, self.n_init, **chosen)
            best, self.config_ = found.starts[0], found.config
            self.history_, self.losses_ = best.history, [start.loss for start in found.starts]
            return self._finish(found.model, best.clusters)
        self.config_ = own_recipe(self.n_clusters, len(data.images), usual_side(data.images), **chosen)
        model, self.history_ = resume.fit(self.config_, data, self._printed)
        return self._finish(model, streaming.outputs(model, data.images, self.config_).p.argmax(1))

    def partial_fit(self, X: ArrayLike, y: None = None) -> Self:
        """Train one more epoch, on X, which must fill a batch; it may be other images each time. The first call makes
        model and optimizer: one start, where the backbone is pretrained, on the features of X alone. The learning rate
        stays that of the first epoch, since nobody knows which is the last."""
        fresh, network = not hasattr(self, "model_"), None
        data = self._as_set(X, reset=fresh)
        if fresh:
            network, chosen = self._start(data)
            about = (len(data.images), usual_side(data.images), network.image_size if network else 0)
            self.config_ = own_recipe(self.n_clusters, *about, **chosen)
        config = self.config_
        if len(data.images) < config.batch_size:
            what = f"{len(data.images)} images do not fill a batch of {config.batch_size}"
            raise ImageError(f"{what}. Give more, or set batch_size.")
        model = network.model(config) if network else getattr(self, "model_", None)
        features = seen.extract(model, config, data.images) if self.pretrained_ else None
        if network:
            starts.measure_length(model, features)
        if not hasattr(self, "state_"):  # the first call, or the first after `fit` or `load`
            self.state_ = train.start(config, data, model) if features is None else starts.begin(model, config)
            self.state_.history = list(getattr(self, "history_", []))
            self.state_.epoch = len(self.state_.history)
        model, self.history_ = self.state_.model, self.state_.history
        if features is None:
            streaming.learn(self.state_, data.images)
            return self._finish(model, streaming.outputs(model, data.images, config).p.argmax(1))
        starts.learn(self.state_, features)
        return self._finish(model, starts.outputs(model, features)[1][0].argmax(1))

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The cluster of each image: int64 (N,)."""
        return self._outputs(X).p.argmax(1)

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Soft assignments, rows that sum to 1: float32 (N, K)."""
        return self._outputs(X).p

    def transform(self, X: ArrayLike) -> np.ndarray:
        """The instance head's output, unit rows: float32 (N, D)."""
        return self._outputs(X).z

    def score(self, X: ArrayLike, y: None = None) -> float:
        """How well the clusters hold under augmentation, without labels: see `view_agreement`. It can compare settings,
        on images that were not fitted. It cannot tell which clusters you have in mind."""
        images = self._images(X)  # first, since it raises where nothing is fitted
        return view_agreement(self.model_, self.config_, images)

    def save(self, path: str | Path) -> Path:
        """Write the fitted model to one safetensors file, which `load` and ``ccrepro predict`` take."""
        check_is_fitted(self, "model_")
        parameters = {name: getattr(self, name) for name in SAVED}
        about = {"pretrained": self.pretrained_, "values": self.values_}
        return save_model(self.model_, self.config_, place(path), parameters=parameters, **about)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """What `save` or ``ccrepro cluster`` wrote, ready to predict. Raises `CheckpointError` for anything else."""
        model, config, facts = load_model(path)
        parameters = {name: getattr(config, name) for name in ("n_clusters", *NAMED)}
        for name, value in facts.get("parameters", {}).items():
            if name in SAVED:  # another version may have others
                parameters[name] = tuple(value) if isinstance(value, list) else value  # JSON has no tuples
        own, pretrained = overrides(config) if config.dataset == OWN else {}, facts.get("pretrained") or {}
        if pretrained:
            del own["backbone"]  # it is no setting of the user's then
        parameters["settings"] = {name: value for name, value in own.items() if name not in parameters}
        self = cls(**parameters, backbone=pretrained.get("name"), random_state=config.seed)
        self.model_, self.config_, self.pretrained_ = model.to(choose_device(config.device)), config, pretrained
        self.values_ = facts.get("values")
        return self

    @property
    def _n_features_out(self) -> int:
        """D, for scikit-learn: it names the columns of `transform` contrastiveclustering0 and so on."""
        return self.config_.instance_dim

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.two_d_array = self.image_shape is not None
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def _start(self, data: ImageSet) -> tuple[photos.Network | None, dict[str, Any]]:
        """The pretrained network, if there is one, and the settings that the parameters choose; forgets what was fitted
        before."""
        settings = self.settings or {}
        if not isinstance(settings, dict) or settings.keys() & ELSEWHERE:
            raise ConfigError(f"settings is {settings!r}. Give a dict without {', '.join(ELSEWHERE)}.")
        chosen = {name: getattr(self, name) for name in NAMED if getattr(self, name) is not None} | settings
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = int(check_random_state(seed).randint(2**31 - 1))
        for name in FITTED:
            self.__dict__.pop(name, None)
        chosen["seed"], network, self.pretrained_ = seed, None, {}
        if self.backbone:
            about = (chosen.get("image_size", 0), chosen.get("device", "auto"))
            network = photos.Network(self.backbone, self.weights or "", *about)
            self.pretrained_ = network.about
        elif len(data.images) < FEW and usual_side(data.images) >= PHOTO:
            warnings.warn(f"{TOO_FEW}: give backbone", stacklevel=3)
        return network, chosen

    def _finish(self, model: ContrastiveClusteringModel, clusters: np.ndarray) -> Self:
        self.model_, self.labels_, self.n_iter_ = model.eval(), clusters, len(self.history_)
        return self

    def _printed(self, epoch: train.Epoch, model: ContrastiveClusteringModel) -> None:
        if self.verbose and "loss" in epoch:
            print(f"epoch {epoch['epoch']}/{self.config_.epochs}  loss {epoch['loss']:.3f}", flush=True)

    def _outputs(self, X: ArrayLike) -> streaming.Outputs:
        images = self._images(X)
        return streaming.outputs(self.model_, images, self.config_)

    def _as_set(self, X: ArrayLike, reset: bool) -> ImageSet:
        return ImageSet("X", self._images(X, reset), None, (), "", values=self.values_)

    def _images(self, X: ArrayLike, reset: bool = False) -> np.ndarray | Ragged:
        """X as N uint8 images, with the channels of the model. ``reset``: X is to be fitted; it keeps its channels,
        but a pretrained backbone needs colour."""
        if not reset:
            check_is_fitted(self, "model_")
        x = inputs.unwrapped(X)
        if reset:
            self.values_ = inputs.black_and_white(self.value_range) if self.value_range else None
            if isinstance(x, list) and not self.values_:
                self.values_ = inputs.values_of(x)
        if isinstance(x, list):
            images = inputs.from_list(x, self.value_range, self.values_)
        else:
            if x.ndim <= 2 and self.image_shape is not None:
                x = validate_data(self, x, reset=reset, dtype="numeric", ensure_all_finite=False)
                x = inputs.fold(x, self.image_shape)
            images = inputs.from_array(np.asarray(x), self.value_range, None if reset else self.model_.channels)
        if not reset:
            return streaming.in_channels(images, self.model_.channels)
        if remark := inputs.too_dark(images):
            warnings.warn(remark, stacklevel=4)
        return streaming.in_channels(images, 3) if self.backbone else images


@torch.inference_mode()
def view_agreement(model: ContrastiveClusteringModel, config: Config, images: np.ndarray | Ragged) -> float:
    """The adjusted mutual information between the clusters of two augmented views of N uint8 images: 1 if every pair
    agrees, 0 by chance or if all is one cluster. Models of the same settings see the same views."""
    generator, images, device = epoch_generator(VIEWS_SEED, 0), as_tensor(images), next(model.parameters()).device
    sizes, clusters = torch.from_numpy(sizes_of(images)), []
    for _ in range(2):
        drawn, parts = augmentations.draw(generator, sizes, config), []
        for i in range(0, len(images), 256):
            some = slice(i, i + 256)
            views = augmentations.apply(images[some], drawn[some], config.image_size, config.quantize)
            parts.append(model(views.to(device))[1].argmax(1))
        clusters.append(torch.cat(parts).cpu().numpy())
    return starts.agreement(clusters)
