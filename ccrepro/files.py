"""The clone's folder, its git, and files that are whole or absent."""

import os
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the clone: relative folders are taken from here


def atomic_write(path: str | Path, content: str | bytes) -> Path:
    """Write a file so that nobody ever sees half of it: temporary name in the same folder, fsync, rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def git(*arguments: str) -> str | None:
    """What git prints in the clone; None outside a clone, or where git fails."""
    try:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def commit() -> str:
    """The clone's commit, with "-dirty" where the code differs from it; "unknown" outside a clone."""
    head = git("rev-parse", "HEAD")
    if head is None:
        return "unknown"
    changed = git("status", "--porcelain", "--", "ccrepro", "notebooks", "pyproject.toml", "Makefile")
    return head.strip() + ("-dirty" if changed else "")
