"""Bring a data set's files below the data root: download, verify, then unpack; or take them from a local ImageNet."""

import os
import shutil
import zipfile
from pathlib import Path

import pooch
import requests

from ccrepro.data.registry import DATASETS
from ccrepro.errors import ConfigError, DataError, unknown


def fetch(name: str, root: Path) -> None:
    """Download and unpack a data set's archive into ``root``. Raises `DataError` if it cannot be downloaded, has
    another hash, or cannot be unpacked."""
    archive, folder = DATASETS[name].archive, DATASETS[name].folder
    downloads, file = root / "downloads", archive.url.rsplit("/", 1)[1]
    try:
        downloader = pooch.HTTPDownloader(progressbar=True)
        path = pooch.retrieve(archive.url, archive.known_hash, file, downloads, downloader=downloader)
    except Exception as error:  # of the network, of the file system, or since the hash differs
        lost = isinstance(error, requests.ConnectionError)  # its own text is three lines of the library's classes
        why = "no connection" if lost else " ".join(str(error).split())
        what = f"Cannot fetch {archive.url} ({archive.known_hash}): {why}"
        raise DataError(f"{what}. Put it into {downloads}, or its folder {folder} into {root}.") from error
    unpack(Path(path), root, folder)


def unpack(path: Path, root: Path, folder: str, bare: bool = False) -> None:
    """Unpack an archive's ``folder`` below ``root``, whole or not at all. bare: its members lie in no folder.

    Raises `DataError` for an archive that is damaged or lacks that folder, and for a tar with a device, or with a
    member or a link that leads outside. From a zip, members outside are left out, and links become files.
    """
    scratch = root / f".unpacking-{folder}"
    inside = scratch if bare else scratch / folder
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        if zipfile.is_zipfile(path):
            shutil.unpack_archive(path, scratch, "zip")
        else:
            shutil.unpack_archive(path, scratch, "tar", filter="data")
        if not inside.is_dir():
            raise shutil.ReadError(f"it holds no folder {folder}")
        shutil.rmtree(root / folder, ignore_errors=True)
        os.replace(inside, root / folder)
    except Exception as error:  # which ones a damaged archive may raise is not documented
        if isinstance(error, OSError) and error.errno:  # a full disk is no reason to fetch it again
            raise
        raise DataError(f"{path} cannot be unpacked: {error}. Remove it and fetch it again.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def from_imagenet(name: str, imagenet: Path, root: Path) -> None:
    """Build ImageNet-10 or ImageNet-Dogs from ILSVRC-2012's training folder, which holds a folder or a tar per class:
    folders are linked, tars unpacked. Raises `DataError`, which names every missing synset."""
    subsets = [name for name, facts in DATASETS.items() if facts.synsets]
    if name not in subsets:
        raise unknown("subset of ImageNet", name, subsets)
    if not imagenet.is_dir():
        raise ConfigError(f"There is no folder {imagenet}. Give the training folder of ILSVRC-2012.")
    folder, names = DATASETS[name].folder, DATASETS[name].synsets
    base = imagenet / "train" if (imagenet / "train").is_dir() else imagenet
    missing = [s for s in names if not (base / s).is_dir() and not (base / f"{s}.tar").is_file()]
    if missing:
        listed = ", ".join(f"{s} ({names[s]})" for s in missing)
        raise DataError(f"{base} lacks {len(missing)} of {len(names)} synsets: {listed}. Add a folder or a tar each.")
    (root / folder).mkdir(parents=True, exist_ok=True)
    for synset in names:
        target = root / folder / synset
        if target.is_symlink():
            target.unlink()  # of an earlier call, perhaps to another folder
        if (base / synset).is_dir() and not target.exists():
            target.symlink_to((base / synset).resolve())
        elif not target.exists():
            unpack(base / f"{synset}.tar", root / folder, synset, bare=True)  # holds its images without a folder
