"""The two newest checkpoints of a run, each one sealed file in the run's folder."""

import time
from pathlib import Path
from typing import Any

from torch import Tensor

from ccrepro.errors import CheckpointError
from ccrepro.runs.weights import read_sealed, save_sealed
from ccrepro.runtime import storage

Found = tuple[Path, dict[str, Tensor], dict[str, Any]]  # a checkpoint's file, tensors and facts
KEPT = 2  # the newest, and the one before it in case the newest is damaged
EVERY = 60.0  # seconds; writing a large network takes about one


class Checkpoints:
    """The files ``checkpoint-NAME.safetensors`` of a folder. Each holds tensors and facts, under one SHA-256."""

    def __init__(self, folder: str | Path, every_seconds: float = EVERY):
        self.folder, self.every, self.saved_at = Path(folder), every_seconds, time.monotonic()
        self.resumed = 0  # how often this run was resumed
        self.machine: dict[str, Any] = {}  # what the run runs on, and all processors that it ran on

    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self.saved_at >= self.every

    def save(self, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Write a checkpoint, then remove all but the newest two. ``name`` must sort after the earlier names. Raises
        `CheckpointError` when it cannot be written; the earlier ones are unharmed."""
        facts = {**facts, "resumed": self.resumed, "machine": self.machine}
        save_sealed(self.folder / f"checkpoint-{name}.safetensors", tensors, facts)
        for old in self._paths()[:-KEPT]:
            old.unlink()
        self.saved_at = time.monotonic()

    def load(self) -> Found | None:
        """Path, tensors and facts of the newest checkpoint that is not damaged; None where nothing was saved yet. A
        warning names a damaged one. Raises `CheckpointError` where all are damaged."""
        damaged = ""
        for path in reversed(self._paths()):
            try:
                tensors, facts = read_sealed(path)
            except CheckpointError as error:
                damaged += f"{error} "
                continue
            if damaged:
                print(f"warning: {damaged}Using the one before it, {path}", flush=True)
            self.resumed = facts["resumed"] + 1
            return path, tensors, facts
        if damaged:
            raise CheckpointError(f"No sound checkpoint is left: {damaged}Remove {self.folder} to start anew.")
        return None

    def newest(self) -> Path | None:
        """The file of the newest checkpoint."""
        return max(self._paths(), default=None)

    def clear(self) -> None:
        """Remove all checkpoints, once the run is done and its weights are saved elsewhere."""
        for path in self._paths():
            path.unlink()

    def _paths(self) -> list[Path]:
        return storage.listing(self.folder, "checkpoint-*.safetensors")
