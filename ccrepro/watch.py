"""A run's log in the terminal, one line of numbers and a curve, again whenever it has grown; or in TensorBoard."""

import contextlib
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ccrepro import files
from ccrepro.errors import ConfigError, DataError

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH, BESIDE = 60, 22  # of the curve, and of what stands to either side, in characters


def watch(folder: Path, once: bool = False, every_seconds: float = 2.0) -> None:
    """Print the log of a run, or of ``cluster --out``, until it is done, or Ctrl-C. Raises `DataError` where there is
    none, and nobody about to write one."""
    shown = None
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            log, working = newest_log(folder), at_work(folder)
            epochs = read_log(log)
            finished = done(folder, epochs)
            if shown != (shown := (log, len(epochs), working)):
                print(describe(str(log.parent.relative_to(folder.parent)), epochs), flush=True)
                if not working and not finished:
                    print("  stopped: no process is at work on it; the command that began it goes on", flush=True)
            if once or finished:
                return
            time.sleep(every_seconds)


def at_work(folder: Path) -> bool:
    """Whether a process trains there, or reads the pictures first."""
    return files.is_held(folder) or files.is_held(folder / "training")


def newest_log(folder: Path) -> Path:
    """The log of a run, perhaps still to come; where several numbers of clusters are tried, that of the training under
    way."""
    logs = [log for log in (folder / "log.jsonl", *folder.glob("sweep/*/log.jsonl")) if log.exists()]
    if not logs and at_work(folder):
        return folder / "log.jsonl"
    if not logs:
        what, allowed = f"no log in {folder}", "The folder of a run has log.jsonl after its first epoch"
        raise DataError(what, str(folder), allowed, "Give runs/PROFILE/DATASET/VARIANT-seedK, or cluster's --out")
    return max(logs, key=lambda log: log.stat().st_mtime_ns)


def read_log(log: Path) -> list[dict[str, Any]]:
    """The epochs of a log; a line that is being written is left out."""
    epochs = []
    for line in log.read_text().splitlines() if log.exists() else ():
        try:
            epochs.append(json.loads(line))
        except ValueError:
            break
    return epochs


def done(folder: Path, epochs: list[dict[str, Any]]) -> bool:
    """Whether a run has its record; or a collection all its epochs, and ``training`` is no longer there."""
    last = epochs[-1] if epochs else {}
    complete = last.get("epoch", 0) >= last.get("epochs", math.inf) and not (folder / "training").exists()
    return complete or (folder / "run.json").exists()


def describe(name: str, epochs: list[dict[str, Any]]) -> str:
    """The last epoch in one line, and the loss of all as a curve from first to last."""
    if not epochs:
        return f"{name}: no epoch yet"
    last = epochs[-1]
    total = f"/{last['epochs']}" if "epochs" in last else ""
    pace = statistics.mean(e["seconds"] for e in epochs[-10:])
    left = f"  {pace * (last['epochs'] - last['epoch']):.0f} s left" if total else ""
    return (
        f"{name}  epoch {last['epoch']}{total}  loss {last['loss']:.3f}"
        f"  clusters in use {math.exp(last['entropy']):.1f}  largest {last['largest_share']:.0%}"
        f"  {pace:.1f} s/epoch{left}\n  loss {curve([e['loss'] for e in epochs], _width())}"
    )


def _width() -> int:
    """Of a curve that leaves room in the terminal for what stands beside it."""
    return max(10, min(WIDTH, shutil.get_terminal_size((WIDTH + BESIDE, 24)).columns - BESIDE))


def curve(values: list[float], width: int = WIDTH) -> str:
    """Values as a row of blocks, from the least to the largest; more than ``width`` are thinned out."""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    low, high = min(values), max(values)
    step = (high - low) / (len(BLOCKS) - 1) or 1.0
    return "".join(BLOCKS[round((value - low) / step)] for value in values) + f"  {values[0]:.2f} → {values[-1]:.2f}"


def also_tensorboard(report: Callable[..., None], folder: Path) -> Callable[..., None]:
    """A report that also writes every number of an epoch for TensorBoard. Raises `ConfigError` where that is not
    installed. What an interrupted run wrote beyond its checkpoint is written again, and the later one is shown."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        fix = "pip install 'ccrepro[tensorboard]'"
        raise ConfigError("tensorboard is not installed", "--log", "It is optional", fix) from None
    writer = SummaryWriter(str(folder))

    def both(epoch: dict[str, Any], model: Any) -> None:
        report(epoch, model)
        for name, value in epoch.items():
            if name != "epoch":
                writer.add_scalar(name, value, epoch["epoch"])
        writer.flush()

    return both
