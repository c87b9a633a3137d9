"""Weights and checkpoints on disk: whole or absent, never silently damaged, and without pickle."""

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ccrepro import files
from ccrepro.config import Config
from ccrepro.errors import CheckpointError
from ccrepro.model import ContrastiveClusteringModel, build

KEPT = 2  # checkpoints: the newest, and the one before in case the newest is damaged
SEAL = ', "sha256": "'  # the last key of the JSON file: the hash of all that stands before it
INDEX = "model.safetensors.index.json"  # of a model in parts: what lies in which file, and what `save_model` keeps
COST_SHARE = 0.02  # of the time that may be spent on writing checkpoints


class Checkpoints:
    """The newest checkpoints of a run in its folder, each a pair of files.

    ``checkpoint-NAME.safetensors`` holds the tensors; ``checkpoint-NAME.json``, written after it, holds the rest and
    the SHA-256 of both. Without a sound JSON file there is no checkpoint.
    """

    def __init__(self, folder: str | Path, every_seconds: float = 10.0):
        self.folder, self.every = Path(folder), every_seconds
        self.saved_at, self.cost = time.monotonic(), 0.0
        self.resumed = 0  # times that this run was taken up again

    def due(self) -> bool:
        """Whether enough time has gone by since the last one: ``every_seconds``, or more where writing takes long."""
        return time.monotonic() - self.saved_at >= max(self.every, self.cost / COST_SHARE if self.every else 0)

    def save(self, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Write a checkpoint, then drop those beyond the newest two. ``name`` sorts after the earlier ones'.

        Raises `CheckpointError` when the disk does not take it; the earlier ones are unharmed then.
        """
        began = time.monotonic()
        facts = {**facts, "resumed": self.resumed}
        blob = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
        files.atomic_write(self._path(name, "safetensors"), blob)
        text = json.dumps({"tensors_sha256": hashlib.sha256(blob).hexdigest(), "facts": facts})[:-1]
        files.atomic_write(self._path(name, "json"), f'{text}{SEAL}{_hash(text)}"}}')
        for old in self._names()[:-KEPT]:
            self._path(old, "json").unlink()
            self._path(old, "safetensors").unlink(missing_ok=True)
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - began

    def load(self) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
        """The newest sound checkpoint: its path, tensors and facts. None where nothing was saved yet.

        A damaged one is named in a warning and the one before it is taken. Raises `CheckpointError` where all are
        damaged.
        """
        damaged = []
        for name in reversed(self._names()):
            path = self._path(name, "safetensors")
            try:
                tensors, facts = self._read(name)
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            for message in damaged:
                print(f"warning: {message} Using the one before it, {path}", flush=True)
            self.resumed = facts["resumed"] + 1
            return path, tensors, facts
        if damaged:
            what, fix = f"no sound checkpoint is left: {' '.join(damaged)}", f"Remove {self.folder} to start anew"
            raise CheckpointError(what, str(self.folder), "One of the newest two must be sound", fix)
        return None

    def require(self) -> None:
        """Raise `CheckpointError` where there is nothing to go on from."""
        if not self._names():
            raise CheckpointError("no checkpoint", str(self.folder), "--resume needs one", "Leave --resume out")

    def newest(self) -> Path | None:
        """The tensors of the newest checkpoint."""
        names = self._names()
        return self._path(names[-1], "safetensors") if names else None

    def clear(self) -> None:
        """Remove all checkpoints: the run is done, and its weights are kept elsewhere."""
        for path in self.folder.glob("checkpoint-*"):
            path.unlink()

    def _path(self, name: str, kind: str) -> Path:
        return self.folder / f"checkpoint-{name}.{kind}"

    def _names(self) -> list[str]:
        return sorted(path.stem.removeprefix("checkpoint-") for path in self.folder.glob("checkpoint-*.json"))

    def _read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        path = self._path(name, "json")
        content = path.read_bytes()
        text, _, rest = content.rpartition(SEAL.encode())
        if rest != f'{_hash(text)}"}}'.encode():
            raise _damaged(path, f"its {len(content):,} bytes do not match their SHA-256")
        record = json.loads(content)
        return read_tensors(self._path(name, "safetensors"), record["tensors_sha256"]), record["facts"]


def _hash(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path.name} is damaged: {why}", str(path), "It must be as it was written", "Remove it")


def read_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises `CheckpointError` for a file that is absent, is something
    else, is damaged or holds numbers that are not finite. Nothing in it can run."""
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path.name}: {error.strerror}", str(path), "It must be a file", "Correct it"
        ) from None
    if sha256 is not None and hashlib.sha256(blob).hexdigest() != sha256:
        raise _damaged(path, f"its {len(blob):,} bytes do not match their SHA-256")
    try:
        tensors = load(blob)
    except (SafetensorError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{path.name} is {describe_kind(blob)}",
            str(path),
            "It must be a whole safetensors file",
            "Get it again from its source",
        ) from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(
                f"values in {name} are not finite", str(path), "Weights are finite", "Take an earlier file"
            )
    return tensors


def describe_kind(blob: bytes, expected: str = "a safetensors file") -> str:
    """What a file that is not the ``expected`` looks like."""
    head = blob[:200].lstrip().lower()
    if not blob:
        return "empty: 0 bytes"
    if head.startswith((b"<!doctype", b"<html")):
        return "a web page"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of git-lfs, not the file it points to"
    if blob.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05")):
        return "a pickle or a zip, which is never loaded since it can run code"
    size = int.from_bytes(blob[:8], "little")
    if blob[8:9] == b"{" and size < 100_000_000:
        return f"cut off or damaged: {len(blob):,} bytes"
    return f"not {expected}"


def save_weights(model: nn.Module, path: str | Path) -> Path:
    """The model's state as safetensors."""
    return files.atomic_write(path, save({name: t.cpu().contiguous() for name, t in model.state_dict().items()}))


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load what `save_weights` wrote into a model of the same shape.

    Raises `CheckpointError` for a file that cannot be read, and for one of another model, with what differs.
    """
    _load_tensors(model, read_tensors(Path(path)), path)


def _load_tensors(model: nn.Module, tensors: dict[str, Tensor], path: str | Path) -> None:
    own = model.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    other = [n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape]
    if missing or extra or other:
        parts = [f"{len(missing)} layers missing, {len(extra)} unknown"] if missing or extra else []
        parts += [f"{n} is {tuple(tensors[n].shape)}, expected {tuple(own[n].shape)}" for n in sorted(other)[:3]]
        what, fix = f"weights of another model: {'; '.join(parts)}", "Give the settings that it was trained with"
        raise CheckpointError(what, str(path), "Backbone, stem and heads must be the same", fix)
    model.load_state_dict(tensors)


def save_model(model: ContrastiveClusteringModel, config: Config, path: str | Path, **facts: Any) -> Path:
    """A trained model in one safetensors file: weights, the settings that rebuild it, and ``facts`` (JSON values) on
    the pictures it takes, all under one SHA-256. `load_model` needs nothing else."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    about = json.dumps({"config": dataclasses.asdict(config), "channels": model.backbone.conv1.in_channels, **facts})
    blob = save(tensors, {"ccrepro": about, "sha256": _hash(about + _tensors_hash(tensors))})
    return files.atomic_write(path, blob)


def load_model(path: str | Path) -> tuple[ContrastiveClusteringModel, Config, dict[str, Any]]:
    """The model in evaluation mode on the CPU, its settings and the facts on its pictures.

    path: a file of `save_model`, the folder of a finished run, or that of a released model. Raises `CheckpointError`
    for anything else, and for a file that is damaged; nothing in it can run.
    """
    path = Path(path)
    if (path / INDEX).exists():
        about, tensors = _read_parts(path)
    elif path.is_dir() and (path / "run.json").exists():
        about = _of_run(path / "run.json")
        path = path / "model.safetensors"
        tensors = read_tensors(path)
    else:
        path = path / "model.safetensors" if path.is_dir() else path
        tensors = read_tensors(path)
        about = _about(path, tensors)
    config = Config(**about.pop("config"))
    model = build(config, about["channels"])
    _load_tensors(model, tensors, path)
    return model.to(memory_format=torch.channels_last).eval(), config, about


def _of_run(path: Path) -> dict[str, Any]:
    """What a run's record says of its model: the settings and facts."""
    try:
        record = json.loads(path.read_text())
        channels, side, _ = record["packed_shape"]
        return {"config": dict(record["config"]), "channels": channels, "side": side}
    except (ValueError, KeyError, TypeError):
        raise _damaged(path, "no record of a run") from None


def index(about: dict[str, Any], tensors: dict[str, Tensor], weight_map: dict[str, str]) -> str:
    """The index of a model in parts: what others expect there, and what `save_model` keeps beside its tensors.

    weight_map: the file of each tensor.
    """
    text = json.dumps(about)
    size = sum(tensor.nbytes for tensor in tensors.values())
    metadata = {"total_size": size, "ccrepro": text, "sha256": _hash(text + _tensors_hash(tensors))}
    return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=1) + "\n"


def _read_parts(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `index` describes: the settings and facts, and the tensors of all parts."""
    try:
        found = json.loads((folder / INDEX).read_text())
        metadata, names = found["metadata"], sorted(set(found["weight_map"].values()))
        text, sha256 = metadata["ccrepro"], metadata["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _damaged(folder / INDEX, "no index of a model that ccrepro released") from None
    if any(Path(name).name != name for name in names):
        raise _damaged(folder / INDEX, "it names files elsewhere")
    tensors = {key: tensor for name in names for key, tensor in read_tensors(folder / name).items()}
    if sha256 != _hash(text + _tensors_hash(tensors)):
        raise _damaged(folder / INDEX, "the parts do not match its SHA-256")
    return json.loads(text), tensors


def _about(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What `save_model` wrote beside the tensors, all of it being as it was written."""
    blob = path.read_bytes()
    notes = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")]).get("__metadata__", {})
    if "ccrepro" not in notes:
        what, allowed = f"{path.name} holds weights without their settings", "It must be a model that ccrepro saved"
        raise CheckpointError(what, str(path), allowed, "Give the run's folder, or the file that `save` wrote")
    if notes.get("sha256") != _hash(notes["ccrepro"] + _tensors_hash(tensors)):
        raise _damaged(path, f"its {len(blob):,} bytes do not match their SHA-256")
    return json.loads(notes["ccrepro"])


def _tensors_hash(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
