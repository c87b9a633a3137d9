"""One run, one GPU: each of several runs at once takes a GPU that no other has.

A GPU is claimed by a lock on a file of its own, which the kernel drops with the process that holds it, however that
ends. Nothing here needs torch: a claim comes before CUDA is touched.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from ccrepro import files
from ccrepro.config import Config

CLAIMED = "CCREPRO_GPU"  # tells a process and its children which GPU is theirs already
_held: list[IO[str]] = []  # open until this process ends


def claim(config: Config) -> str | None:
    """Take a free GPU for the rest of this process, and let CUDA see no other; wait while all are taken.

    Returns its id, as CUDA_VISIBLE_DEVICES has it; None where there is nothing to claim: a run on the CPU, one of
    several ranks, a machine without GPUs, a process whose GPU was claimed before. To be called before anything asks
    CUDA for its devices.
    """
    if config.device == "cpu" or config.baseline or config.ranks > 1:
        return None
    visible = ids()
    if not visible or visible == [os.environ.get(CLAIMED)]:
        return None
    place = _place()
    folders = {place / gpu.replace("/", "_"): gpu for gpu in visible}
    folder, lock = files.lock_one(list(folders), lambda owners: _say(config, visible, owners))
    _held.append(lock)
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[CLAIMED] = folders[folder]
    return folders[folder]


def ids() -> list[str]:
    """The GPUs this process may use: those of CUDA_VISIBLE_DEVICES where it is set, as CUDA reads it, else all.

    CUDA takes no entry after the first that names no device, such as -1.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(i) for i in range(_installed())]
    found: list[str] = []
    for entry in map(str.strip, visible.split(",")):
        if not (entry.isdigit() or entry.startswith(("GPU-", "MIG-"))):
            break
        found.append(entry)
    return found


def _installed() -> int:
    """GPUs that nvidia-smi lists: CUDA numbers as many, from 0 on."""
    if shutil.which("nvidia-smi") is None:
        return 0
    done = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines()) if done.returncode == 0 else 0


def _place() -> Path:
    """Where this user's locks on this machine are. SLURM may number the GPUs of each job from 0 on, so that equal ids
    of two jobs are different GPUs: a job has a folder of its own."""
    job = os.environ.get("SLURM_JOB_ID")
    return Path(tempfile.gettempdir(), f"ccrepro-gpus-{os.getuid()}" + (f"-job{job}" if job else ""))


def _say(config: Config, visible: Sequence[str], owners: Sequence[str]) -> None:
    taken = ", ".join(f"{gpu} ({owner})" for gpu, owner in zip(visible, owners, strict=True))
    print(f"{config.cell}  waits for a GPU; taken: {taken}", flush=True)
