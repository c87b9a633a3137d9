"""What is to be done on a machine that is lent for minutes: the queue in ``gpu.yaml``, and how far it is.

What is done is seen from records, wherever they are: of this machine below ``runs``, published ones below ``results``.
"""

import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ccrepro import files, plan, run
from ccrepro.config import Config, recipe
from ccrepro.errors import ConfigError

MEASURED = "runs/away/results"  # what this machine measured and planned, until it is published


class Item(NamedTuple):
    """A line of the queue: a cell with its epochs left open where a schedule gives them, or a bench (no settings)."""

    settings: dict[str, Any]
    schedule: str = ""
    release: bool = False
    minutes: float = 0.0  # of a bench


class Queue(NamedTuple):
    """What is to be done, in its order, and the minutes of training of each schedule."""

    items: list[Item]
    schedules: dict[str, float]


def read_queue(path: str | Path) -> Queue:
    """The queue in a YAML file. Raises `ConfigError` for a line that cannot be run, before anything is."""
    try:
        found = yaml.safe_load(Path(path).read_text())
        schedules, lines = dict(found["schedules"]), list(found["queue"])
        items = [_item(dict(line), schedules, path) for line in lines]
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        if isinstance(error, ConfigError):
            raise
        what, allowed = f"no queue: {' '.join(str(error).split())}", "schedules: {name: minutes}, and queue: a list"
        raise ConfigError(what, str(path), allowed, "See gpu.yaml") from None
    return Queue(items, schedules)


def _item(line: dict[str, Any], schedules: dict[str, float], path: str | Path) -> Item:
    if "bench" in line:
        return Item({}, minutes=float(line["bench"]))
    schedule, wanted = line.pop("schedule", ""), line.pop("release", False)
    if schedule and schedule not in schedules:
        known = ", ".join(map(repr, schedules))
        raise ConfigError(f"unknown schedule {schedule!r}", str(path), f"Known: {known}", "Name one of them")
    recipe(**line)
    return Item(line, schedule, wanted)


def is_done(config: Config | None, results_dir: str | Path = "results") -> bool:
    """Whether a cell's record is here, or among the published ones. None is a cell whose epochs are not planned yet."""
    if config is None:
        return False
    published = (files.ROOT / results_dir / kind / f"{run.run_name(config)}.json" for kind in ("runs", "tried"))
    return (run.run_folder(config) / "run.json").exists() or any(path.exists() for path in published)


def config_of(item: Item, queue: Queue, known_only: bool = False) -> Config | None:
    """A cell's settings, with the epochs of its schedule: planned from the measured rate when they are first asked for,
    and the same ever after. None for those not planned yet, if only what is known is wanted."""
    if not item.schedule:
        return recipe(**item.settings)
    known = planned()
    if item.schedule not in known:
        if known_only:
            return None
        minutes, own = queue.schedules[item.schedule], recipe(**item.settings)
        epochs = plan.epochs_within(own, minutes, _rates(own))
        known[item.schedule] = {"epochs": epochs, "minutes": minutes}
        files.atomic_write(files.ROOT / MEASURED / "schedules.json", json.dumps(known, indent=1) + "\n")
        print(f"schedule {item.schedule}: {epochs} epochs in {minutes:g} minutes, by the measured rate", flush=True)
    return recipe(**item.settings, epochs=known[item.schedule]["epochs"])


def planned() -> dict[str, dict[str, Any]]:
    """Schedules that were planned, here or on another machine."""
    for folder in (files.ROOT / MEASURED, files.ROOT / "results/gpu"):
        with contextlib.suppress(FileNotFoundError):
            return json.loads((folder / "schedules.json").read_text())
    return {}


def _rates(config: Config) -> list[dict[str, Any]]:
    """What was measured on this machine; where that says nothing of these settings, on others."""
    here = plan.load_rates(MEASURED)
    return here if plan.rate(config, here) else plan.load_rates()
