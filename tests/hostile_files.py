"""Files that try to run code when they are read, or to be unpacked outside their folder."""

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ccrepro.checkpoint import Checkpoints, read_tensors
from ccrepro.config import read_settings
from ccrepro.datasets import fetch
from ccrepro.errors import CcreproError


class Hostile:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def _weights(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Hostile(mark)))
    read_tensors(folder / "model.safetensors")


def _torch_file(folder: Path, mark: Path) -> None:
    torch.save({"w": Hostile(mark)}, folder / "model.safetensors")
    read_tensors(folder / "model.safetensors")


def _checkpoint(folder: Path, mark: Path) -> None:
    saved = Checkpoints(folder)
    saved.save("1", {"w": torch.zeros(3)}, {})
    for path in folder.glob("checkpoint-1.*"):
        path.write_bytes(pickle.dumps(Hostile(mark)))
    Checkpoints(folder).load()


def _yaml(folder: Path, mark: Path) -> None:
    (folder / "settings.yaml").write_text(f"lr: !!python/object/apply:os.system ['touch {mark}']\n")
    read_settings(folder / "settings.yaml")


def _arrays(folder: Path, mark: Path) -> None:
    from ccrepro.run import _load_arrays

    np.savez(folder / "a.npz", features=np.array([Hostile(mark)], dtype=object))
    try:
        _load_arrays(folder / "a.npz")["features"]
    except ValueError as error:
        raise CcreproError("refused", "a.npz", str(error), "None") from error


def _tar(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Callable[[Path, Path], None]:
    def attempt(folder: Path, mark: Path) -> None:
        path = folder / "in" / "set.tar"
        path.parent.mkdir()
        with tarfile.open(path, "w") as archive:
            member = tarfile.TarInfo(name.replace("MARK", str(mark)))
            member.type, member.linkname = kind, link.replace("MARK", str(mark))
            archive.addfile(member, io.BytesIO())
            if kind != tarfile.REGTYPE:
                through = tarfile.TarInfo(f"{member.name}/mark" if kind == tarfile.SYMTYPE else "set/more")
                archive.addfile(through, io.BytesIO())
        fetch.unpack(path, folder / "root", "set")

    return attempt


def _zip(folder: Path, mark: Path) -> None:
    path = folder / "in" / "set.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("set/a", "")
        archive.writestr(f"../{mark.name}", "")
    fetch.unpack(path, folder / "root", "set")


FILES: dict[str, Callable[[Path, Path], None]] = {
    "a pickle for weights": _weights,
    "torch's own format for weights": _torch_file,
    "pickles for a checkpoint": _checkpoint,
    "a YAML tag": _yaml,
    "pickled objects in an array file": _arrays,
    "a tar with ..": _tar("../mark"),
    "a tar with an absolute path": _tar("MARK"),
    "a tar with a link that leads out": _tar("set", tarfile.SYMTYPE, ".."),
    "a tar with a hard link that leads out": _tar("set/link", tarfile.LNKTYPE, "../../in/set.tar"),
    "a tar with a device": _tar("set/device", tarfile.CHRTYPE),
    "a zip with ..": _zip,
}


def try_out(name: str, folder: Path) -> tuple[bool, bool]:
    """Whether it was refused by one of the package's errors, and whether anything happened outside its folder."""
    folder = folder.resolve()
    (folder / "root").mkdir()
    mark = folder / "mark"
    try:
        FILES[name](folder, mark)
        refused = False
    except CcreproError:
        refused = True
    outside = {"mark", "more"} & set(os.listdir(folder)) or (folder / "root/set").exists()
    return refused, bool(outside)
