"""Bring a data set's files below the data root: download, verify, only then unpack; or take them from an ImageNet."""

import contextlib
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pooch
import requests
from tqdm.std import tqdm

from ccrepro.datasets.sources import IMAGENET10, IMAGENET_DOGS
from ccrepro.errors import ConfigError, DataError, unknown

BLOCK = 1 << 16  # bytes; at most so many of a broken download are lost


class Archive(NamedTuple):
    """Where an archive is, its hash as pooch writes it, and the folder that it holds."""

    url: str
    known_hash: str
    folder: str


TORONTO = "https://www.cs.toronto.edu/~kriz"
FAST_AI = "https://s3.amazonaws.com/fast-ai-imageclas"
# MD5 sums are those torchvision checks; Imagewoof's is fast.ai's own. Tiny-ImageNet's SHA-256 is the one in wide use.
ARCHIVES = {
    "cifar10": Archive(
        f"{TORONTO}/cifar-10-python.tar.gz", "md5:c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py"
    ),
    "cifar100": Archive(
        f"{TORONTO}/cifar-100-python.tar.gz", "md5:eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python"
    ),
    "stl10": Archive(
        "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        "md5:91f7769df0f17e558f3565bffb0c7dfb",
        "stl10_binary",
    ),
    "tiny-imagenet": Archive(
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "sha256:6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
        "tiny-imagenet-200",
    ),
    "imagenette": Archive(f"{FAST_AI}/imagenette2.tgz", "md5:fe2fc210e6bb7c5664d602c3cd71e612", "imagenette2"),
    "imagewoof": Archive(f"{FAST_AI}/imagewoof2.tgz", "md5:9aafe18bcdb1632c4249a76c458465ba", "imagewoof2"),
}
SUBSETS = {"imagenet10": ("imagenet-10", IMAGENET10), "imagenet-dogs": ("imagenet-dogs", IMAGENET_DOGS)}


def fetch(name: str, root: Path) -> Path:
    """Download and unpack a data set's archive into ``root``; returns the folder it holds.

    An interrupted download goes on where it stopped. Raises `DataError` where the archive cannot be had, is not the
    one known by its hash, or holds a member that would leave the folder.
    """
    archive = ARCHIVES[name]
    downloads, file = root / "downloads", archive.url.rsplit("/", 1)[1]
    try:
        path = pooch.retrieve(archive.url, archive.known_hash, file, downloads, downloader=_resumable)
    except (requests.RequestException, OSError, ValueError) as error:  # ValueError: the hash differs
        what = f"{file} could not be fetched: {' '.join(str(error).split())}"
        allowed = f"Its hash must be {archive.known_hash}"
        fix = f"Put it into {downloads}, or its unpacked folder {archive.folder} into {root}"
        raise DataError(what, archive.url, allowed, fix) from error
    unpack(Path(path), root, archive.folder)
    return root / archive.folder


def _resumable(url: str, output_file: str, _: object) -> None:
    """pooch's downloader: what has come is kept beside the target, and the rest is asked for."""
    partial = Path(output_file).with_name(url.rsplit("/", 1)[1] + ".part")
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with requests.get(url, stream=True, timeout=30, headers=headers) as response:
        if response.status_code != requests.codes.requested_range_not_satisfiable:  # all of it is here already
            response.raise_for_status()
            have = have if response.status_code == requests.codes.partial_content else 0
            total = int(response.headers.get("Content-Length", 0)) + have or None
            bar = tqdm(desc=partial.stem, initial=have, total=total, unit="B", unit_scale=True, mininterval=1)
            with partial.open("ab" if have else "wb") as file, bar:
                for block in response.iter_content(BLOCK):
                    file.write(block)
                    bar.update(len(block))
    os.replace(partial, output_file)


def unpack(path: Path, root: Path, folder: str) -> None:
    """Unpack an archive's ``folder`` below ``root``, whole or not at all.

    Raises `DataError` for a member that would lie outside, a link that leads outside, or a device.
    """
    with _unpacking(path, root / f".unpacking-{folder}") as scratch:
        if zipfile.is_zipfile(path):
            _unzip(path, scratch)
        else:
            _untar(path, scratch)
        if not (scratch / folder).is_dir():
            raise DataError(f"{path.name} holds no {folder}", str(path), "Another archive was expected", "Remove it")
        shutil.rmtree(root / folder, ignore_errors=True)
        os.replace(scratch / folder, root / folder)


@contextlib.contextmanager
def _unpacking(path: Path, scratch: Path) -> Iterator[Path]:
    """A folder to unpack into that never stays; a bad archive becomes a `DataError`."""
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        yield scratch
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        what, fix = f"{path.name} cannot be unpacked: {error}", "Remove it and fetch it again"
        raise DataError(what, str(path), "Members must stay inside their folder", fix) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _untar(path: Path, scratch: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        what = "this Python cannot unpack an archive safely"
        raise DataError(what, str(path), "Python 3.11.4 or newer is needed for it", "Unpack it by hand")
    with tarfile.open(path) as archive:
        archive.extractall(scratch, filter="data")


def _unzip(path: Path, scratch: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            parts = Path(member.filename.replace("\\", "/"))
            if parts.is_absolute() or ".." in parts.parts or stat.S_ISLNK(member.external_attr >> 16):
                raise zipfile.BadZipFile(f"{member.filename!r} would leave the folder")
        archive.extractall(scratch)


def from_imagenet(name: str, imagenet: Path, root: Path) -> Path:
    """Build ImageNet-10 or ImageNet-Dogs from an ILSVRC-2012 training folder: of class folders, or of a tar per class.

    Folders are linked, tars unpacked. Raises `DataError` that names every missing synset.
    """
    if name not in SUBSETS:
        raise unknown("subset of ImageNet", name, "--imagenet", SUBSETS)
    if not imagenet.is_dir():
        raise ConfigError(f"no folder {imagenet}", "--imagenet", "ILSVRC-2012's training folder", "Correct the path")
    folder, names = SUBSETS[name]
    base = imagenet / "train" if (imagenet / "train").is_dir() else imagenet
    missing = [s for s in names if not (base / s).is_dir() and not (base / f"{s}.tar").is_file()]
    if missing:
        what = f"{len(missing)} of {len(names)} synsets are missing: {', '.join(f'{s} ({names[s]})' for s in missing)}"
        raise DataError(what, str(base), "A folder or a tar of each is needed", "Add them")
    for synset in names:
        target = root / folder / synset
        if target.is_symlink():
            target.unlink()  # of an earlier call, perhaps to another folder
        elif target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if (base / synset).is_dir():
            target.symlink_to((base / synset).resolve(), target_is_directory=True)
        else:
            _unpack_class(base / f"{synset}.tar", target)
    return root / folder


def _unpack_class(path: Path, target: Path) -> None:
    """A class's tar holds its pictures without a folder of their own."""
    with _unpacking(path, target.with_name(f".unpacking-{target.name}")) as scratch:
        _untar(path, scratch)
        os.replace(scratch, target)
