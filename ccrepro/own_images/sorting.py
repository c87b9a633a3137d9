"""Sort image files into one folder for each cluster."""

import filecmp
import os
import shutil
from pathlib import Path

from ccrepro.errors import ConfigError
from ccrepro.runtime import storage


def check_apart(images: str | Path, target: Path) -> None:
    """Raise `ConfigError` if what is written could be taken for images, or could replace them."""
    source, place = storage.place(images).resolve(), target.resolve()
    if place.is_relative_to(source) or source.is_relative_to(place):
        what = f"Of {images} and {target}, one lies in the other"
        raise ConfigError(f"{what}. Choose a folder for the results elsewhere.")


def new_target(images: str | Path, target: str | Path) -> Path:
    """The folder to sort images into, which holds nothing yet. Raises `ConfigError` where it does, and as `check_apart`
    does."""
    target = storage.place(target)
    check_apart(images, target)
    if storage.listing(target, "*"):
        raise ConfigError(f"{target} is not empty. Choose a new folder for the sorted images.")
    return target


def sort(image: Path, target: Path, cluster: int, name: str | Path) -> bool:
    """Put an image into the folder of its cluster below ``target``, as a hard link where the disk allows it, else as a
    copy; ``name`` is its path there. False where another file of this name is there, which stays."""
    place = target / str(cluster) / name
    if place.exists():
        return filecmp.cmp(image, place, shallow=False)
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(image.resolve(), place)
    except OSError:  # another disk, or one without links
        partial = place.with_name(f".{place.name}.partial")
        shutil.copy2(image, partial)
        os.replace(partial, place)
    return True
