"""The clone's folder, its git, and files that are whole or absent."""

import fcntl
import os
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from ccrepro.errors import CheckpointError, LockedError

ROOT = Path(__file__).resolve().parents[1]  # of the clone: relative folders are taken from here

# A lock is its process's alone: workers that it forks would keep it when it is killed, so they let go of it at once.
_locks: "weakref.WeakSet[IO[str]]" = weakref.WeakSet()
os.register_at_fork(after_in_child=lambda: [file.close() for file in list(_locks)])


def atomic_write(path: str | Path, content: str | bytes) -> Path:
    """Write a file so that nobody ever sees half of it: temporary name in the same folder, fsync, rename, fsync.

    Raises `CheckpointError` when it cannot be written; the file that was there before is unharmed.
    """
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{_writer()}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            fix = "Free some space, or choose a folder that can be written to"
            what = f"cannot write {path.name}: {error.strerror or error}"
            raise CheckpointError(what, str(path), f"{len(content):,} bytes must fit there", fix) from None
        raise
    return path


def readable(name: str | Path) -> str:
    """A file's name as text for people: bytes that are not UTF-8 become ``\\xe9`` and the like."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _writer() -> str:
    """This process, in the name of a file that it has not done yet."""
    return f"{os.getpid()}-{_host()}"


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def sweep(folder: Path, ours: bool = False) -> int:
    """Remove what `atomic_write` left below a folder in processes of this machine that were killed; how many.

    ours: nobody else is at work in the folder, so that what processes of other machines left there is swept too.
    """
    stale = [path for path in folder.rglob(".*.tmp") if _abandoned(path.name.split(".")[-3], ours)]
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)


def _abandoned(writer: str, ours: bool) -> bool:
    pid, _, host = writer.partition("-")
    elsewhere = host not in ("", _host())  # on a file system that is shared; of them nothing is known
    return ours if elsewhere else not _alive(pid)


def _alive(pid: str) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


def lock(folder: Path) -> IO[str]:
    """Claim a folder for this process; held until the returned file is closed, or the process ends in any way.

    Raises `LockedError`, which names the process that has it.
    """
    file = _try_lock(folder)
    if file is None:
        fix = "Wait for it, or stop it"
        raise LockedError(f"{_owner(folder)} is at work on this run", str(folder), "One at a time may be", fix)
    return file


def lock_one(
    folders: Sequence[Path], waiting: Callable[[list[str]], None] = lambda owners: None, seconds: float = 0.5
) -> tuple[Path, IO[str]]:
    """Claim the first of some folders that is free, as `lock` does, and wait while none is, looking every ``seconds``.

    ``waiting`` is called once where this has to wait, with the names of the processes that have them. Whoever holds
    one folder and waits for no other cannot deadlock.
    """
    asked = False
    while True:
        for folder in folders:
            file = _try_lock(folder)
            if file is not None:
                return folder, file
        if not asked:
            waiting([_owner(folder) for folder in folders])
            asked = True
        time.sleep(seconds)


def _try_lock(folder: Path) -> IO[str] | None:
    """The open lock with this process's name in it; None where another process has it. Raises `LockedError` where the
    file system knows no locks."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:  # a Lustre mounted without flock, say
        file.close()
        allowed, fix = "Runs at once must not write there together", "Choose a folder on another file system"
        raise LockedError(f"cannot lock {folder.name}: {error.strerror}", str(folder), allowed, fix) from None
    _locks.add(file)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _owner(folder: Path) -> str:
    return (folder / "lock").read_text().strip() or "another process"


def is_held(folder: Path) -> bool:
    """Whether a process has claimed a folder with `lock`, as far as one can know of a process on another machine."""
    try:
        _, pid, _, host = (folder / "lock").read_text().split()
    except (OSError, ValueError):
        return False
    return host != socket.gethostname() or _alive(pid)


def git(*arguments: str) -> str | None:
    """What git prints in the clone; None outside a clone, or where git fails."""
    try:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def commit() -> str:
    """The clone's commit, with "-dirty" where the code differs from it. Outside a clone ``$CCREPRO_COMMIT``, which
    `ccrepro.away` sets where the code is what was sent; else "unknown"."""
    head = git("rev-parse", "HEAD")
    if head is None:
        return os.environ.get("CCREPRO_COMMIT", "unknown")
    changed = git("status", "--porcelain", "--", "ccrepro", "notebooks", "pyproject.toml", "Makefile")
    return head.strip() + ("-dirty" if changed else "")
