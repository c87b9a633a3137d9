"""Weights that others made: the authors' checkpoints, read and written, and torchvision's ImageNet backbones.

Both come as pickles. They are read with torch's ``weights_only``, which builds tensors and plain values and refuses
everything else; there is no fallback to anything laxer.

Letters: D instance dimension, K clusters.
"""

import io
import pickle
import urllib.error
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models import get_model_weights

from ccrepro import files
from ccrepro.checkpoint import describe_kind, read_tensors
from ccrepro.config import Config
from ccrepro.errors import CheckpointError
from ccrepro.model import BACKBONES, ContrastiveClusteringModel, build

# The parts of the model under the authors' names, and under ours; below these, all names are torchvision's.
PREFIXES = {"resnet.": "backbone.", "instance_projector.": "instance_head.", "cluster_projector.": "cluster_head."}

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what torchvision trained with


class AuthorsCheckpoint(NamedTuple):
    """A file of the authors' code: the weights under our names, what they say of the model, and ``epoch`` as stored:
    their number n is written after n + 1 epochs."""

    weights: dict[str, Tensor]
    backbone: str
    n_clusters: int
    instance_dim: int
    epoch: int


def read_authors(path: str | Path) -> AuthorsCheckpoint:
    """Read ``checkpoint_N.tar``, a dict with ``net`` and perhaps ``optimizer`` and ``epoch``.

    Raises `CheckpointError` for any other file, for one that would need more than tensors to load, and for weights
    that are not exactly those of a ResNet with the two heads.
    """
    path = Path(path)
    stored = _unpickled(path)
    net = stored.get("net") if isinstance(stored, dict) else None
    if not isinstance(net, dict) or not all(isinstance(value, Tensor) for value in net.values()):
        keys = (
            f"the keys {', '.join(map(repr, list(stored)[:5]))}" if isinstance(stored, dict) else type(stored).__name__
        )
        allowed = "A checkpoint of the authors' code is a dict with 'net', 'optimizer' and 'epoch'"
        raise CheckpointError(f"{path.name} holds {keys}", str(path), allowed, "Give their checkpoint_N.tar")
    net = {name.removeprefix("module."): value for name, value in net.items()}  # as DataParallel saves it
    weights = {_ours(path, name): value for name, value in net.items()}
    backbone = _backbone(path, weights)
    heads = [weights.get(f"{head}.2.weight") for head in ("instance_head", "cluster_head")]
    if any(head is None or head.ndim != 2 for head in heads):
        raise _not_theirs(path, "a head is missing")
    epoch = stored.get("epoch", 0)
    found = AuthorsCheckpoint(weights, backbone, len(heads[1]), len(heads[0]), epoch if isinstance(epoch, int) else 0)
    _check_exact(path, found)
    return found


def load_authors(path: str | Path, config: Config) -> tuple[ContrastiveClusteringModel, AuthorsCheckpoint]:
    """The authors' weights in our model, in evaluation mode, and what was read.

    Raises `CheckpointError` where the settings are of another backbone, stem, K or D than the file.
    """
    found = read_authors(path)
    there = (found.backbone, "imagenet", found.n_clusters, found.instance_dim)
    here = (config.backbone, config.stem, config.n_clusters, config.instance_dim)
    if there != here:
        line = "{}, {} stem, K={}, D={}"
        what = f"checkpoint {line.format(*there)}; settings {line.format(*here)}"
        fix = f"Choose a data set of {found.n_clusters} classes, or --backbone {found.backbone}"
        raise CheckpointError(what, str(path), "They must be equal", fix)
    model = build(config)
    model.load_state_dict(found.weights)
    return model.to(memory_format=torch.channels_last).eval(), found


def save_authors(model: ContrastiveClusteringModel, config: Config, path: str | Path, epoch: int) -> Path:
    """Write a checkpoint that the authors' code loads: ``net``, a fresh ``optimizer`` and ``epoch``.

    Raises `CheckpointError` for a model that their code cannot hold.
    """
    wrong = [f"backbone {config.backbone}"] if config.backbone == "small" else []
    wrong += [f"stem {config.stem}"] if config.stem != "imagenet" else []
    wrong += [name for name in ("normalize", "head_norm") if getattr(config, name)]
    wrong += ["one shared head"] if config.heads == "shared" else []
    wrong += ["grey pictures"] if model.backbone.conv1.in_channels != 3 else []
    if wrong:
        what, allowed = f"the authors' model has no {', '.join(wrong)}", "A ResNet as in the paper, heads without norm"
        raise CheckpointError(what, "export", allowed, "Train with --profile paper")
    theirs = {ours: prefix for prefix, ours in PREFIXES.items()}
    net = {}
    for name, value in model.state_dict().items():
        part, dot, rest = name.partition(".")
        net[theirs[part + dot] + rest] = value.detach().cpu().contiguous()
    optimizer = torch.optim.Adam(model.parameters(), config.lr, weight_decay=config.weight_decay).state_dict()
    buffer = io.BytesIO()
    torch.save({"net": net, "optimizer": optimizer, "epoch": epoch}, buffer)
    return files.atomic_write(path, buffer.getvalue())


def start_from_imagenet(model: ContrastiveClusteringModel, config: Config) -> None:
    """Give the backbone torchvision's ImageNet weights, and its input the mean and deviation they were trained with.

    ``config.pretrained`` is "imagenet", which downloads them once, or a file: torchvision's .pth or a safetensors with
    the same names. Raises `CheckpointError` where they cannot be had, or are of another backbone.
    """
    path = Path(config.pretrained)
    if config.backbone == "small" or config.stem != "imagenet" or model.backbone.conv1.in_channels != 3:
        what = f"no ImageNet weights fit backbone {config.backbone} with the {config.stem} stem"
        fix = "Use --backbone resnet18 --stem imagenet, and colour pictures"
        raise CheckpointError(what, "setting pretrained", "A ResNet with its own stem, three channels", fix)
    if config.pretrained == "imagenet":
        tensors = _downloaded(config.backbone)
    else:
        tensors = read_tensors(path) if path.suffix == ".safetensors" else _unpickled(path)
    if not isinstance(tensors, dict):
        raise _other_backbone(path, config)
    own = model.backbone.state_dict()
    tensors = {name: value for name, value in tensors.items() if not name.startswith("fc.")}
    for name in own.keys() - tensors.keys():  # old files do not count the batches
        if name.endswith("num_batches_tracked"):
            tensors[name] = own[name]
    if tensors.keys() != own.keys() or any(tensors[name].shape != own[name].shape for name in own):
        raise _other_backbone(path, config)
    model.backbone.load_state_dict(tensors)
    if config.normalize:
        model.standardize.mean.copy_(torch.tensor(IMAGENET_MEAN)[:, None, None])
        model.standardize.deviation.copy_(torch.tensor(IMAGENET_DEVIATION)[:, None, None])


def _downloaded(backbone: str) -> dict[str, Tensor]:
    weights = get_model_weights(backbone).DEFAULT
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        what = f"cannot fetch {weights.url}: {' '.join(str(error).split())}"
        place = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
        fix = f"Put the file at {place}, or give --pretrained FILE"
        raise CheckpointError(what, "setting pretrained", "It takes a network, once", fix) from None


def _unpickled(path: Path) -> Any:
    """What `torch.save` wrote, if it is tensors and plain values."""
    try:
        blob = path.read_bytes()
    except OSError as error:
        what = f"cannot read {path.name}: {error.strerror}"
        raise CheckpointError(what, str(path), "It must be a file", "Correct it") from None
    try:
        stored = torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not blob.startswith((b"PK\x03\x04", b"\x80")):
            raise _no_checkpoint(path, blob) from None
        what = f"{path.name} holds more than tensors, or is damaged: {_reason(error)}"
        allowed = "Only tensors and plain values are loaded, since a pickle can run code"
        raise CheckpointError(what, str(path), allowed, "Save its tensors alone, and give that file") from None
    except (EOFError, RuntimeError, OSError, ValueError, KeyError, AttributeError, TypeError, IndexError):
        raise _no_checkpoint(path, blob) from None
    return stored


def _reason(error: Exception) -> str:
    """The object at fault. torch's own text goes on to recommend the unsafe way to load, which is no advice."""
    text = " ".join(str(error).split())
    return text.partition("Unsupported global: GLOBAL ")[2].split()[0] if "Unsupported global" in text else "unreadable"


def _no_checkpoint(path: Path, blob: bytes) -> CheckpointError:
    cut = blob.startswith((b"PK\x03\x04", b"\x80"))
    kind = f"cut off or damaged: {len(blob):,} bytes" if cut else describe_kind(blob, "a checkpoint of torch")
    return CheckpointError(f"{path.name} is {kind}", str(path), "It must be a whole file of torch.save", "Get it again")


def _ours(path: Path, name: str) -> str:
    for theirs, ours in PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    raise _not_theirs(path, f"{name} is unknown")


def _backbone(path: Path, weights: dict[str, Tensor]) -> str:
    """The ResNet with as many blocks in each stage, of one kind."""
    blocks = {tuple(name.split(".")[1:3]) for name in weights if name.startswith("backbone.layer")}
    counts = Counter(stage for stage, _ in blocks)
    depths = tuple(counts[f"layer{i}"] for i in (1, 2, 3, 4))
    kind = "Bottleneck" if "backbone.layer1.0.conv3.weight" in weights else "BasicBlock"
    for name, (block, stages, _) in BACKBONES.items():
        if (block.__name__, stages) == (kind, depths):
            return name
    raise _not_theirs(path, f"{depths} blocks in the stages")


def _check_exact(path: Path, found: AuthorsCheckpoint) -> None:
    """Raise unless names and shapes are those of the model, and all values finite."""
    settings = {"backbone": found.backbone, "n_clusters": found.n_clusters, "instance_dim": found.instance_dim}
    with torch.device("meta"):
        own = ContrastiveClusteringModel(Config(**settings)).state_dict()
    missing, extra = sorted(own.keys() - found.weights.keys()), sorted(found.weights.keys() - own.keys())
    if missing or extra:
        named = f", such as {(missing + extra)[0]}"
        raise _not_theirs(path, f"{len(missing)} tensors missing, {len(extra)} unknown{named}")
    for name, value in found.weights.items():
        if value.shape != own[name].shape:
            raise _not_theirs(path, f"{name} is {tuple(value.shape)}, expected {tuple(own[name].shape)}")
        if value.is_floating_point() and not value.isfinite().all():
            what, allowed = f"values in {name} are not finite", "Weights are finite"
            raise CheckpointError(what, str(path), allowed, "Take an earlier checkpoint")


def _not_theirs(path: Path, why: str) -> CheckpointError:
    what, allowed = f"{path.name} is not of the authors' model: {why}", "A ResNet 18, 34 or 50 with their two heads"
    return CheckpointError(what, str(path), allowed, "Give their checkpoint_N.tar")


def _other_backbone(path: Path, config: Config) -> CheckpointError:
    what, allowed = f"{path.name} does not hold a {config.backbone}", "torchvision's names and shapes"
    return CheckpointError(what, str(path), allowed, "Give --backbone as in the file")
