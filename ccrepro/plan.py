"""What a reproduction will run: its cells, which are done, and how long the others may take. Nothing here needs torch.

An estimate comes from a measured rate of training steps (``results/bench``) where there is one for the backbone and
image size, else from the seconds of finished runs on the same data set, else it is unknown.
"""

import itertools
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ccrepro import files
from ccrepro.config import DATASETS, Config, recipe
from ccrepro.errors import ConfigError, DataError
from ccrepro.results import Record, load_records

KEPT_BACK = 0.15  # share of a schedule's minutes that is not planned for training steps


class Cell(NamedTuple):
    """One run of a plan: its settings, whether it is done here, and the hours it may take, with their source."""

    config: Config
    done: bool
    hours: float | None
    source: str


def plan(
    profile: str,
    datasets: Iterable[str],
    variants: Iterable[str],
    seeds: Iterable[Any],
    runs_dir: str | Path = "runs",
    results_dir: str | Path = "results",
) -> list[Cell]:
    """All cells of a reproduction; those to run come last, in order of cost, the unknown ones at the end.

    Raises `ConfigError` for a name that cannot be.
    """
    records, rates, cells = load_records(profile, results_dir), load_rates(results_dir), []
    for dataset, variant, seed in itertools.product(datasets, variants, seeds):
        config = recipe(dataset, profile, variant, seed)
        done = (files.ROOT / runs_dir / config.cell / "run.json").exists()
        cells.append(Cell(config, done, *estimate(config, rates, records)))
    return sorted(cells, key=lambda cell: (not cell.done, np.inf if cell.hours is None else cell.hours))


def estimate(config: Config, rates: list[dict[str, Any]], records: list[Record]) -> tuple[float | None, str]:
    """Hours of a run and where that comes from; (None, "unknown") where nothing tells."""
    passed = 0 if config.baseline else config.epochs * images(config)  # images that training goes through
    measured = rate(config, rates)
    if measured and passed:
        return passed / measured / 3600, "bench"
    own = [r for r in records if r["dataset"] == config.dataset]
    same = [r for r in own if r["variant"] == config.variant]
    if same:
        return float(np.median([r["seconds"] for r in same])) / 3600, "the same variant's runs"
    alike = [r for r in own if r["epochs"] and r["config"]["backbone"] == config.backbone]
    if alike and passed:
        per_image = np.median([r["seconds"] / (r["epochs"] * r["n_images"]) for r in alike])
        return float(passed * per_image) / 3600, "other variants' runs"
    return None, "unknown"


def images(config: Config) -> int:
    """Images in one epoch."""
    facts = DATASETS[config.dataset]
    return min(config.sample or facts.images, facts.images) + (facts.unlabeled if config.unlabeled else 0)


def rate(config: Config, rates: list[dict[str, Any]]) -> float | None:
    """Images per second in training on this kind of device: of the recipe's batch size where that was measured."""
    device = config.device
    if device == "auto":
        device = "cuda" if shutil.which("nvidia-smi") else "cpu"
    wanted = (config.backbone, config.stem, config.image_size)
    fit = [r for r in rates if (r["backbone"], r["stem"], r["image_size"]) == wanted and r["device"] == device]
    fit = [r for r in fit if r["precision"] == config.precision] or fit
    fit = [r for r in fit if r["batch_size"] == config.batch_size] or fit
    return float(np.median([r["images_per_second"] for r in fit])) if fit else None


def epochs_within(config: Config, minutes: float, rates: list[dict[str, Any]]) -> int:
    """How many epochs of these settings so many minutes of training take, by the measured rates; at least one.

    `KEPT_BACK` of the time is for what the rate does not count: compiling, scoring on the way, checkpoints. Raises
    `ConfigError` where nothing tells the rate.
    """
    measured = rate(config, rates)
    if measured is None:
        network = f"{config.backbone}, {config.stem} stem, {config.image_size} pixels"
        what, fix = f"no rate of training steps is known for {network}", "Run the bench first, or give epochs"
        raise ConfigError(what, "results/bench", "Planning needs one of this kind of device", fix)
    return max(1, int((1 - KEPT_BACK) * 60 * minutes * measured / images(config)))


def load_rates(results_dir: str | Path = "results") -> list[dict[str, Any]]:
    """The measured rates of all machines; none where nothing was measured. Raises `DataError` for a damaged file."""
    rates: list[dict[str, Any]] = []
    for path in sorted((files.ROOT / results_dir / "bench").glob("*.json")):
        try:
            rates += json.loads(path.read_text())["rates"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path.name} has no rates", str(path), "It must be a bench's JSON", "Remove it") from None
    return rates


def missing(cells: list[Cell]) -> str:
    """The records that are to be made, cheap ones first, as make's targets."""
    return " ".join(f"runs/{cell.config.cell}/run.json" for cell in cells if not cell.done)


def as_text(cells: list[Cell]) -> str:
    """One line per cell, then the sum."""
    lines = [
        f"{cell.config.cell:<52} {'done' if cell.done else 'to run':<8} "
        f"{'' if cell.done else f'{duration(cell.hours):>10}  ({cell.source})'}".rstrip()
        for cell in cells
    ]
    to_run = [cell for cell in cells if not cell.done]
    known = [cell.hours for cell in to_run if cell.hours is not None]
    unknown = f", and {len(to_run) - len(known)} of unknown length" if len(known) < len(to_run) else ""
    total = f"{len(cells)} cells: {len(cells) - len(to_run)} done, {len(to_run)} to run"
    return "\n".join([*lines, f"{total}; about {duration(sum(known))} one by one{unknown}." if to_run else total + "."])


def duration(hours: float | None) -> str:
    """Hours, minutes or seconds, whichever reads best."""
    if hours is None:
        return "unknown"
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:,.0f} h"
