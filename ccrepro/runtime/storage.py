"""Files that are whole or absent, and folders that one process at a time writes to."""

import contextlib
import io
import os
import socket
from pathlib import Path

import numpy as np
from filelock import AcquireReturnProxy, FileLock, Timeout
from numpy.typing import ArrayLike

from ccrepro.errors import CheckpointError, LockedError

ROOT = Path(__file__).resolve().parents[2]  # of the clone; relative folders start here


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


def sweep(folder: Path) -> None:
    """Remove what killed processes left of `atomic_write` below a folder that this process has locked."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def readable(name: str | Path) -> str:
    """A file's name as text for people: bytes that are not UTF-8 become ``\\xe9`` and the like."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def lock(folder: Path, wait: bool = False) -> AcquireReturnProxy:
    """Lock a folder until the with-block over the result ends, or ``.lock.release()`` is called, or the process ends.
    wait: if another process holds the lock, say so and wait for it. Otherwise raises `LockedError`, which names it."""
    claim, owner = FileLock(folder / "lock", thread_local=False), folder / "owner"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = claim.acquire(timeout=0)
    except Timeout:
        name = owner.read_text().strip() if owner.exists() else "another process"
        if not wait:
            raise LockedError(f"{folder} is locked by {name}. Wait for it, or stop it.") from None
        print(f"waiting for {folder}: {name} is at work on it", flush=True)
        held = claim.acquire()
    except (OSError, NotImplementedError) as error:  # a read-only folder, or a file system without locks
        reason = getattr(error, "strerror", None) or error
        raise LockedError(f"Cannot lock {folder}: {reason}. Choose a folder on another file system.") from None
    with contextlib.suppress(OSError):
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    return held
