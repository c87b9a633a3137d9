"""Contrastive Clustering as a scikit-learn estimator: for one's own pictures, in one's own code.

Letters: N images, C channels, H, W sides, F values of a flat row, D instance dimension, K clusters.
"""

import copy
import hashlib
import time
from numbers import Real
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ccrepro import augmentations, stream, train
from ccrepro.checkpoint import load_model, save_model
from ccrepro.config import OWN, Config, own_recipe
from ccrepro.datasets import ImageSet, as_tensor, own
from ccrepro.errors import ConfigError, PictureError
from ccrepro.machine import choose_device
from ccrepro.model import ContrastiveClusteringModel

VIEWS_SEED = 1  # of the two views that `score` compares: the same for every model


class ContrastiveClustering(ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin, BaseEstimator):
    """Cluster pictures without labels (Li et al., AAAI 2021).

    X, wherever it is taken, is one of: uint8 pixels, or numbers from 0 to 1, as (N, H, W), (N, H, W, 3) or
    (N, 3, H, W); a list of paths of picture files, or of Pillow's pictures; flat rows (N, F), where ``image_shape``
    says how to fold them. Pictures that come after those fitted may be of another size: they are resized; and grey or
    in colour: they are made what those were.

    Parameters
    ----------
    n_clusters : K, 2 or more.
    epochs, batch_size, image_size, backbone, flip : settings of `ccrepro.config.Config`; None chooses by the number
        of pictures and their size (`ccrepro.config.own_recipe`). ``flip=0`` where a mirrored picture means another
        thing, as with digits.
    pretrained : "imagenet", or the path of a file with torchvision's weights: the backbone's start.
    settings : a dict of any other settings of `Config`.
    image_shape : of flat rows: (H, W), (C, H, W) or "square" (the smallest that holds a row, then zeros).
    value_range : the numbers that are black and white; None is [0, 1]; "fit" takes the least and the largest of the X
        that is fitted, and cuts off later ones.
    random_state : seed of weights, order and augmentations: an int, a `numpy.random.RandomState` or None.
    verbose : print a line per epoch while training.

    Attributes
    ----------
    labels_ : int64 (N,), the cluster of each picture fitted, 0 … K - 1.
    model_ : the trained `ContrastiveClusteringModel`. config_ : its settings.
    history_ : one dict per epoch: losses, entropy, cosines of pairs and more, all without labels.
    n_iter_ : epochs done. n_features_in_ : F, where rows were flat, else X.shape[1]; of paths the side S they are
        decoded to.
    """

    def __init__(
        self,
        n_clusters: int = 10,
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        image_size: int | None = None,
        backbone: str | None = None,
        flip: float | None = None,
        pretrained: str | None = None,
        settings: dict[str, Any] | None = None,
        image_shape: tuple[int, ...] | str | None = None,
        value_range: tuple[float, float] | str | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ):
        self.n_clusters = n_clusters
        self.epochs = epochs
        self.batch_size = batch_size
        self.image_size = image_size
        self.backbone = backbone
        self.flip = flip
        self.pretrained = pretrained
        self.settings = settings
        self.image_shape = image_shape
        self.value_range = value_range
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: None = None) -> Self:
        """Train on X from the start. Raises `ConfigError` and `PictureError`, both a `ValueError`, for what cannot
        be, and `NumericalError` where training diverges."""
        data = self._as_set(self._fittable(X, reset=True))
        self._start(data)
        model, self.history_ = train.train(self.config_, data, self._printed)
        return self._finish(model, data)

    def partial_fit(self, X: ArrayLike, y: None = None) -> Self:
        """One more epoch, over X. The first call sets model and optimizer up; X may be other pictures each time, and
        must fill a batch. The learning rate stays at that of the first epoch, since nobody knows the last."""
        fresh = not hasattr(self, "config_")
        data = self._as_set(self._fittable(X, reset=fresh))
        if fresh:
            self._start(data)
        if not hasattr(self, "state_"):
            self.state_ = self._state(data)
        config, state = self.config_, self.state_
        if len(data.images) < config.batch_size:
            what = f"{len(data.images)} pictures do not fill a batch of {config.batch_size}"
            raise PictureError(what, "partial_fit", "One batch at the least", "Give more, or set batch_size")
        began = time.perf_counter()
        images, sizes = as_tensor(data.images), torch.tensor(data.sizes)
        steps = []
        for view_a, view_b in train.pairs(images, sizes, config, state.epoch):
            numbers = train.step(state.model, state.optimizer, view_a, view_b, config)
            steps.append(torch.stack([numbers[name] for name in train.NUMBERS]))
        means = dict(zip(train.NUMBERS, torch.stack(steps).mean(0).tolist(), strict=True))
        state.epoch += 1
        state.history.append({"epoch": state.epoch, **means, "seconds": time.perf_counter() - began})
        self.history_ = state.history
        return self._finish(state.model, data)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The cluster of each picture, image by image: int64 (N,)."""
        return self.predict_proba(X).argmax(1)

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Soft assignments, rows that sum to 1: float32 (N, K)."""
        return self._outputs(X).p

    def transform(self, X: ArrayLike) -> np.ndarray:
        """The instance head's output, unit rows: float32 (N, D)."""
        return self._outputs(X).z

    def score(self, X: ArrayLike, y: None = None) -> float:
        """How well the clusters hold under augmentation, without labels: the adjusted mutual information between the
        clusters of two augmented views of X. 1 where every pair agrees, 0 by chance and where all is one cluster.

        It can compare settings and numbers of clusters, on pictures that were not fitted; it cannot tell whether the
        clusters are those you have in mind.
        """
        images = self._predictable(X)  # or NotFittedError, before the model is asked for
        return view_agreement(self.model_, self.config_, images)

    def save(self, path: str | Path) -> Path:
        """Write the fitted model to one safetensors file, which `load` and ``ccrepro predict`` take."""
        check_is_fitted(self, "model_")
        parameters = {name: getattr(self, name) for name in ("image_shape", "value_range", "verbose")}
        facts = {"side": self.side_, "n_features": self.n_features_in_, "value_range": self.value_range_}
        return save_model(self.model_, self.config_, path, **facts, parameters=parameters)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """What `save` wrote, ``ccrepro cluster`` too, ready to predict. Raises `CheckpointError` for anything else."""
        model, config, about = load_model(path)
        names = ("n_clusters", "epochs", "batch_size", "image_size", "backbone", "flip")
        parameters = {name: _tuple(value) for name, value in about.get("parameters", {}).items()}
        own_settings = {name: getattr(config, name) for name in names}
        self = cls(**own_settings, random_state=config.seed, **parameters)
        self.settings = {k: v for k, v in config.overrides().items() if k not in names} if config.dataset == OWN else {}
        self.model_, self.config_, self.side_ = model, config, about.get("side")
        self.value_range_, self.n_features_in_ = _tuple(about.get("value_range")), about.get("n_features")
        self.model_.to(choose_device(config))
        return self

    @property
    def n_iter_(self) -> int:
        """Epochs done."""
        check_is_fitted(self, "history_")
        return len(self.history_)

    @property
    def _n_features_out(self) -> int:
        """D: the columns of `transform` are named contrastiveclustering0 … D - 1."""
        return self.config_.instance_dim

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.two_d_array = self.image_shape is not None
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Pickled, and copied, on the CPU."""
        state = super().__getstate__()
        if "model_" in state and next(state["model_"].parameters()).is_cuda:
            state = state | {"model_": copy.deepcopy(state["model_"]).cpu()}
            state.pop("state_", None)
        return state

    def _start(self, data: ImageSet) -> None:
        """Settings, from the pictures and from what the caller chose."""
        if len(data.images) < 2:
            what = f"n_samples={len(data.images)}: one sample cannot be clustered"
            raise PictureError(what, "fit", "Two pictures at the least", "Give more")
        names = ("epochs", "batch_size", "image_size", "backbone", "flip", "pretrained")
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if isinstance(self.n_clusters, int | np.integer) and len(data.images) < self.n_clusters:
            what = f"n_samples={len(data.images)} < n_clusters={self.n_clusters}"
            raise ConfigError(what, "fit", "As many pictures as clusters at the least", "Lower n_clusters")
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = int(check_random_state(seed).randint(2**31 - 1))
        shape = data.images.shape[1:]
        self.config_ = own_recipe(
            self.n_clusters, len(data.images), shape, **{**chosen, **_checked_settings(self.settings)}, seed=seed
        )
        for name in ("model_", "state_", "history_", "labels_"):
            self.__dict__.pop(name, None)

    def _state(self, data: ImageSet) -> train.State:
        """Of the training, where it begins; or, after `fit` or `load`, where these ended, with a new optimizer."""
        state = train.start(self.config_, data)
        if hasattr(self, "model_"):
            state.model.load_state_dict(self.model_.state_dict())
        state.history = list(getattr(self, "history_", []))
        state.epoch = len(state.history)
        return state

    def _finish(self, model: ContrastiveClusteringModel, data: ImageSet) -> Self:
        self.model_ = model.eval()
        self.labels_ = stream.outputs(model, data.images, self.config_.image_size).p.argmax(1)
        return self

    def _printed(self, epoch: train.Epoch, model: ContrastiveClusteringModel) -> None:
        if self.verbose and "loss" in epoch:
            number, total = epoch["epoch"], self.config_.epochs
            left = epoch["seconds"] * (total - number)
            print(f"epoch {number}/{total}  loss {epoch['loss']:.3f}  {left:.0f} s left", flush=True)

    def _outputs(self, X: ArrayLike) -> stream.Outputs:
        images = self._predictable(X)
        return stream.outputs(self.model_, images, self.config_.image_size)

    def _predictable(self, X: ArrayLike) -> np.ndarray:
        """The pictures, with the channels of the model."""
        check_is_fitted(self)
        return stream.in_channels(self._images(X, reset=False), self.model_.backbone.conv1.in_channels)

    def _fittable(self, X: ArrayLike, reset: bool) -> np.ndarray:
        """The pictures, with the channels of the model that is trained on, and in colour where the backbone's start
        wants that."""
        if not reset and hasattr(self, "model_"):
            return self._predictable(X)
        images = self._images(X, reset)
        return stream.in_channels(images, 3 if self.pretrained else images.shape[1])

    def _images(self, X: ArrayLike, reset: bool) -> np.ndarray:
        """X as uint8 (N, C, H, W). ``reset``: X is fitted, and what later X must be like is taken from it."""
        X = own.unwrapped(X)
        if own.is_paths(X):
            if reset:
                self.side_, self.value_range_ = own.usual_side(X), None
                self.n_features_in_ = self.side_
            return own.from_paths(X, self.side_ or self.config_.image_size)
        x = own.stacked(X) if not hasattr(X, "iloc") and not _is_sparse(X) else X
        if getattr(x, "ndim", 2) <= 2 and self.image_shape is not None:
            x = validate_data(self, x, reset=reset, dtype="numeric", ensure_all_finite=False)
            x = own.fold(x, self.image_shape)
        x = np.asarray(x)
        if x.ndim > 2 and x.dtype.kind == "O":
            x = x.astype(np.float32)
        if len(x.shape) and len(x) == 0:
            raise PictureError("X is empty", "X", "Found array with 0 sample(s); one is required", "Give pictures")
        if reset:
            self.side_ = None
            self.value_range_ = self._range_of(x)
            if x.ndim > 2 and self.image_shape is None:
                self.n_features_in_ = x.shape[1]
        if self.value_range == "fit":
            x = np.where(np.isfinite(x), np.clip(x, *self.value_range_), x)
        return own.from_array(x, self.value_range_)

    def _range_of(self, x: np.ndarray) -> tuple[float, float] | None:
        if self.value_range != "fit":
            return _checked_range(self.value_range)
        finite = x[np.isfinite(x)] if x.dtype.kind == "f" else x
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        return low, max(high, np.nextafter(low, np.inf))

    def _as_set(self, images: np.ndarray) -> ImageSet:
        sizes = np.broadcast_to(np.array(images.shape[2:]), (len(images), 2))
        digest = hashlib.sha256(images.tobytes()).hexdigest()
        return ImageSet("the pictures given", images, sizes, None, (), digest)


def view_agreement(model: ContrastiveClusteringModel, config: Config, images: np.ndarray) -> float:
    """The adjusted mutual information between the clusters of two augmented views of uint8 (N, C, H, W) images; 0
    where all is one cluster. The views are the same for every model of the same settings."""
    generator, shape = train.epoch_generator(VIEWS_SEED, 0), images.shape[2:]
    sizes, clusters = torch.tensor([shape] * len(images)), []
    for _ in range(2):
        drawn, parts = augmentations.draw(generator, sizes, shape, config), []
        for i in range(0, len(images), 256):
            batch = as_tensor(images[i : i + 256])
            views = augmentations.apply(batch, drawn[i : i + 256], config.image_size, config.blur_kernel)
            pixels = (views.clamp(0, 1) * 255).round().byte().numpy()
            parts.append(stream.outputs(model, pixels, config.image_size).p.argmax(1))
        clusters.append(np.concatenate(parts))
    if len(np.unique(np.concatenate(clusters))) == 1:
        return 0.0
    return float(adjusted_mutual_info_score(*clusters))


def _checked_range(given: Any) -> tuple[float, float] | None:
    """``value_range``, if it is one. Raises `ConfigError`."""
    numbers = isinstance(given, tuple | list) and len(given) == 2 and all(isinstance(v, Real) for v in given)
    if given is None or (numbers and given[0] < given[1]):
        return given
    allowed = "None, 'fit', or two numbers (darkest, brightest)"
    raise ConfigError(f"value_range is {given!r}", "value_range", allowed, "Give two numbers, the smaller one first")


def _checked_settings(given: Any) -> dict[str, Any]:
    """``settings``, if they are a dict of such as have no parameter of their own. Raises `ConfigError`."""
    if given is not None and not isinstance(given, dict):
        raise ConfigError(f"settings is {given!r}", "settings", "A dict", "Write settings={'lr': 0.1}, say")
    for name in {"n_clusters", "seed", "dataset", "profile"} & (given or {}).keys():
        allowed = "n_clusters and random_state, the seed, are parameters of their own; the pictures come as X"
        raise ConfigError(f"settings has {name}", "settings", allowed, "Leave it out there")
    return given or {}


def _is_sparse(x: Any) -> bool:
    return hasattr(x, "tocsr")


def _tuple(value: Any) -> Any:
    """Lists, into which JSON turns tuples, as tuples again."""
    return tuple(value) if isinstance(value, list) else value
