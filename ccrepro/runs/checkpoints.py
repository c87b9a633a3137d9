"""The newest checkpoints of a run, each one sealed file in its folder."""

import time
from pathlib import Path
from typing import Any

from torch import Tensor

from ccrepro.errors import CheckpointError
from ccrepro.runs.weights import read_sealed, save_sealed

KEPT = 2  # checkpoints: the newest, and the one before in case the newest is damaged
COST_SHARE = 0.02  # of the time that may be spent on writing checkpoints


class Checkpoints:
    """``checkpoint-NAME.safetensors`` holds tensors and facts, under one SHA-256."""

    def __init__(self, folder: str | Path, every_seconds: float = 10.0):
        self.folder, self.every = Path(folder), every_seconds
        self.saved_at, self.cost = time.monotonic(), 0.0
        self.resumed = 0  # times that this run was taken up again
        self.machine: dict[str, Any] = {}  # what it runs on, and all processors that it ran on

    def due(self) -> bool:
        """Whether enough time has gone by since the last one: ``every_seconds``, or more where writing takes long."""
        return time.monotonic() - self.saved_at >= max(self.every, self.cost / COST_SHARE if self.every else 0)

    def save(self, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Write a checkpoint, then drop those beyond the newest two. ``name`` sorts after the earlier ones'.

        Raises `CheckpointError` when the disk does not take it; the earlier ones are unharmed then.
        """
        began = time.monotonic()
        facts = {**facts, "resumed": self.resumed, "machine": self.machine}
        save_sealed(self.folder / f"checkpoint-{name}.safetensors", tensors, facts)
        for old in self._paths()[:-KEPT]:
            old.unlink()
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - began

    def load(self) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
        """The newest sound checkpoint: its path, tensors and facts. None where nothing was saved yet.

        A damaged one is named in a warning and the one before it is taken. Raises `CheckpointError` where all are
        damaged.
        """
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
        """The newest checkpoint's file."""
        return max(self._paths(), default=None)

    def clear(self) -> None:
        """Remove all checkpoints: the run is done, and its weights are kept elsewhere."""
        for path in self._paths():
            path.unlink()

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.safetensors"))
