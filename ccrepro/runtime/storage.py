"""Files that are whole or absent, and folders that one process at a time writes to."""

import contextlib
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from ccrepro.errors import CheckpointError, LockedError

ROOT = Path(__file__).resolve().parents[2]  # of the clone: relative folders are taken from here


def atomic_write(path: str | Path, content: str | bytes) -> Path:
    """Write a file so that nobody ever sees half of it: temporary name in the same folder, fsync, rename, fsync.

    Raises `CheckpointError` when it cannot be written; the file that was there before is unharmed.
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
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # makes the rename last through a power cut
        finally:
            os.close(folder)
    except OSError as error:
        what = f"Cannot write {path} ({len(content):,} bytes): {error.strerror or error}"
        raise CheckpointError(f"{what}. Free some space, or choose another folder.") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def sweep(folder: Path) -> None:
    """Remove what killed processes left of `atomic_write` below a folder that this process has locked."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def readable(name: str | Path) -> str:
    """A file's name as text for people: bytes that are not UTF-8 become ``\\xe9`` and the like."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class _Claim(FileLock):
    """A lock that is held already: a with-block claims it no second time, and so frees it at its end."""

    def __enter__(self) -> "_Claim":
        return self


def lock(folder: Path, wait: bool = False) -> FileLock:
    """Claim a folder for this process; held until `FileLock.release`, the end of a with-block, or of the process.

    wait: for another process that has it, and say so; otherwise `LockedError`, which names it, is raised at once.
    """
    claimed = _Claim(folder / "lock", thread_local=False)
    owner = folder / "owner"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        claimed.acquire(timeout=0)
    except Timeout:
        name = owner.read_text().strip() if owner.exists() else "another process"
        if not wait:
            raise LockedError(f"{folder} is locked by {name}. Wait for it, or stop it.") from None
        print(f"waiting for {folder}: {name} is at work on it", flush=True)
        claimed.acquire()
    except (OSError, NotImplementedError) as error:  # a folder that cannot be written, a file system without locks
        reason = getattr(error, "strerror", None) or error
        raise LockedError(f"Cannot lock {folder}: {reason}. Choose a folder on another file system.") from None
    with contextlib.suppress(OSError):
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    return claimed
