"""Files that are whole or absent, and folders that one process at a time writes to."""

import contextlib
import io
import math
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import ArrayLike

from ccrepro.errors import CheckpointError, DataError, LockedError

CODE = Path(__file__).resolve().parents[2]  # where the package lies: a clone, or among installed packages


def place(path: str | Path | None, default: str = "") -> Path:
    """A folder or file that a user names: ``~`` is the home folder, and what is relative is so to the current folder.
    What is not named is the ``default`` below the root of the clone that the current folder lies in, as those of
    notebooks do; outside a clone, below the current folder."""
    return Path(os.path.expanduser(path)) if path else _root() / default


def _root() -> Path:
    here = Path.cwd()
    return next((above for above in (here, *here.parents) if (above / "ccrepro/runtime/storage.py").exists()), here)


def listing(folder: Path, *patterns: str) -> list[Path]:
    """What matches in a folder, sorted; of several patterns, each is for one level further down. Nothing where a folder
    is absent. Raises `OSError` where one cannot be listed, which `Path.glob` would take for empty."""
    try:
        found = sorted(path for path in folder.iterdir() if path.match(patterns[0]))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [below for path in found for below in listing(path, *patterns[1:])] if patterns[1:] else found


def atomic_write(path: str | Path, content: str | bytes) -> Path:
    """Write a file under a temporary name, then rename it: whenever this is killed, the old or the new file is whole.

    Raises `CheckpointError` when it cannot be written; the old file is unharmed.
    """
    path, content = Path(path), content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        what = f"Cannot write {path} ({len(content):,} bytes): {error.strerror or error}"
        raise CheckpointError(f"{what}. Free some space, or choose another folder.") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def save_arrays(path: str | Path, /, **arrays: ArrayLike | None) -> Path:
    """Write those of the arrays that are not None to one ``.npz`` file, as `atomic_write` does."""
    np.savez_compressed(buffer := io.BytesIO(), **{name: a for name, a in arrays.items() if a is not None})
    return atomic_write(path, buffer.getvalue())


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """What `save_arrays` wrote."""
    with np.load(path) as arrays:
        return dict(arrays)


def make_array(path: Path, what: str, dtype: type, shape: tuple[int, ...], elsewhere: str) -> np.ndarray:
    """A new array in a file, mapped to be filled with ``what``. Raises `DataError` where the disk has too little space:
    writing to a mapped file would end the process there. ``elsewhere``: what the user can choose another of."""
    folder, needed = path.parent.parent, math.prod(shape) * np.dtype(dtype).itemsize
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        what = f"{folder} has {free / 1e9:.1f} GB free, but the {what} take {needed / 1e9:.1f} GB"
        raise DataError(f"{what}. Free some space, or choose another {elsewhere}.")
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


def sweep(folder: Path) -> None:
    """Remove what killed processes left of `atomic_write` below a folder that this process has locked."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def readable(name: str | Path) -> str:
    """A file's name as text for people: bytes that are not UTF-8 become ``\\xe9`` and the like."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def lock(folder: Path, wait: bool = False) -> Iterator[None]:
    """Lock a folder for the length of the block. The operating system keeps the lock, and frees it when the process
    ends; the file beside the folder only names the owner.

    wait: if another process holds the lock, say so and wait for it. Otherwise raises `LockedError`, which names it.
    """
    path = folder.with_name(f".{folder.name}.lock")
    claim = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = claim.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise LockedError(f"{folder} is locked by {path.read_text()}. Wait for it, or stop it.") from None
        print(f"waiting for {folder}: {path.read_text()} is at work on it", flush=True)
        held = claim.acquire()
    except (OSError, NotImplementedError) as error:  # a read-only folder, or a file system without locks
        reason = getattr(error, "strerror", None) or error
        raise LockedError(f"Cannot lock {folder}: {reason}. Choose another folder.") from None
    with held:
        with contextlib.suppress(OSError):  # the disk may be full
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
