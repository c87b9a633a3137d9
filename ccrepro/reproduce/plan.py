"""`ccrepro reproduce`: plan the runs, run what is missing, and make tables, figures and notebooks of all that is done.

A run is done when its record is there. Whatever is made here goes to ``runs/`` and ``results/local/``, which git
ignores; ``results/`` itself holds what was published.
"""

import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.std import tqdm

from ccrepro import recipes
from ccrepro.config import Config
from ccrepro.data import ImageSet, load, sample
from ccrepro.data.registry import DATASETS
from ccrepro.errors import unknown
from ccrepro.recipes import PRESETS, RECIPES, VARIANTS, departures, recipe, run_name
from ccrepro.reproduce import notebooks, pool, records, streams, tables
from ccrepro.reproduce.records import Record
from ccrepro.runs.record import Run, as_text, complete
from ccrepro.runs.resume import fit
from ccrepro.runtime import storage

LOCAL = "results/local"

# The report notebooks, and the variants of which one must have been run; without any, no run is needed. "streaming": a
# run must have been measured on a stream.
REPORTS: dict[str, tuple[str, ...]] = {
    "00_datasets": (),
    "03_main_results": ("cc", "kmeans-pixels", "nmf-pixels", "spectral-pixels", "agglomerative-pixels"),
    "04_augmentation": ("views-one", "views-none"),
    "05_heads": ("instance-only", "cluster-only", "shared-head", "no-entropy"),
    "06_backbones": ("resnet18", "resnet50"),
    "07_evolution": ("cc",),
    "08_examples": ("cc",),
    "09_streaming": ("streaming",),
}


class Planned(NamedTuple):
    """A run: its settings, whether it is done, and the seconds that it may take, by the median of runs alike."""

    config: Config
    done: bool
    seconds: float | None


def plan(
    preset: str,
    datasets: Sequence[str],
    variants: Sequence[str],
    seeds: Sequence[Any],
    runs_dir: str | Path = "runs",
    **overrides: Any,
) -> list[Planned]:
    """All runs of a reproduction; those to run come last, seed by seed, in order of cost, the unknown ones at the end.

    Without names: all data sets of the preset but the stand-ins, and all variants but, for the demo, Table 5's, whose
    networks are too large for it. overrides: settings that depart from the recipes. Raises `ConfigError` for a name or
    a value that cannot be.
    """
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    datasets = datasets or [d for d in RECIPES[preset] if "stand-in" not in DATASETS[d].title]
    variants = variants or [name for name, v in VARIANTS.items() if preset != "demo" or v.table != "5"]
    found = []
    known = [*_records(preset, "results"), *_records(preset, LOCAL)]
    for dataset, variant, seed in dict.fromkeys(itertools.product(datasets, variants, seeds)):
        config = recipe(dataset, preset, variant, seed, **overrides)
        changed = recipes.overrides(config)
        kind = (dataset, variant, departures(changed))
        alike = [r["seconds"] for r in known if (r["dataset"], r["variant"], records.departs(r)) == kind]
        seconds = float(np.median(alike)) if alike else None
        found.append(Planned(config, _record(config, runs_dir).exists(), seconds))
    return sorted(found, key=lambda p: (not p.done, p.config.seed, np.inf if p.seconds is None else p.seconds))


def _records(preset: str, results_dir: str) -> list[Record]:
    return records.load_records(preset, results_dir) if preset in records.presets(results_dir) else []


def _record(config: Config, runs_dir: str | Path) -> Path:
    return storage.ROOT / runs_dir / run_name(config) / "run.json"


def describe(planned: list[Planned], at_once: int) -> str:
    """How many are done, how many are to run, and for how long."""
    open_ = [p for p in planned if not p.done]
    known = [p.seconds for p in open_ if p.seconds is not None]
    text = f"{len(planned)} run{'s' * (len(planned) != 1)}: {len(planned) - len(open_)} done, {len(open_)} to run"
    if not open_:
        return f"{text}."
    time_ = tqdm.format_interval(np.mean(known) * len(open_) / at_once) if known else "an unknown time"
    return f"{text}, {at_once} at once, about {time_} left."


def reproduce(
    planned: list[Planned], at_once: int, gpus: list[str], runs_dir: str = "runs", data_dir: str = ""
) -> None:
    """Run what is missing, make tables, figures and notebooks below ``results/local``, and print your numbers beside
    the published and the reported ones. Raises `LockedError` where another process does the same."""
    os.environ.update(OMP_NUM_THREADS="1", PYTHONHASHSEED="0")  # with one thread the numbers repeat bit for bit
    preset = planned[0].config.preset
    with storage.lock(storage.ROOT / LOCAL):
        storage.sweep(storage.ROOT / LOCAL)
        open_ = [p.config for p in planned if not (p.done and _streamed(p.config, runs_dir))]
        jobs = [(config, runs_dir, data_dir) for config in open_]
        began = time.monotonic()

        def done(number: int) -> None:
            pace = (time.monotonic() - began) / number
            print(
                f"{number} of {len(jobs)} runs, about {tqdm.format_interval(pace * (len(jobs) - number))} left",
                flush=True,
            )

        if jobs:
            pool.run_all(train, jobs, at_once, gpus, done)
        for p in planned:
            gather(_record(p.config, runs_dir), LOCAL, data_dir)
        render(preset, at_once, LOCAL, data_dir)
        yours, published = (_records(preset, place) for place in (LOCAL, "results"))
    print(f"\nACC, mean ± standard deviation (number of seeds):\n{tables.comparison(yours, published)}\n")
    print(f"Tables, figures and executed notebooks: {LOCAL}/{{tables,figures,notebooks}}/{preset}")


def train(config: Config, runs_dir: str, data_dir: str) -> None:
    """Make a run: train, score, write its record; of the full method also what it does on a stream."""
    data = _data(config, data_dir)
    if not _record(config, runs_dir).exists():
        run = Run(config, data, runs_dir)
        run.finish(*fit(config, data, run.report, run.checkpoints))
    if not _streamed(config, runs_dir):
        streams.measure(config, data, runs_dir)


def _streamed(config: Config, runs_dir: str) -> bool:
    """Whether nothing of a finished run is still to be measured on a stream."""
    return config.variant != "cc" or _record(config, runs_dir).with_name("streaming.json").exists()


def _data(config: Config, data_dir: str) -> ImageSet:
    return sample(load(config.dataset, data_dir), config.sample, config.seed)


def gather(path: Path, results_dir: str, data_dir: str) -> None:
    """Copy a finished run's record below ``results_dir``. A run that was made elsewhere, where no map of its features
    could be made, gets that first."""
    record = records.read(path)
    config = Config(**record["config"])
    if "tsne" not in record and path.with_name("clustering.npz").exists():
        storage.atomic_write(path, as_text(complete(record, path.parent, _data(config, data_dir))))
    for kind, source in (("runs", path), ("streaming", path.with_name("streaming.json"))):
        target = storage.ROOT / results_dir / kind / f"{run_name(config)}.json"
        if source.exists() and not (target.exists() and target.read_bytes() == source.read_bytes()):
            storage.atomic_write(target, source.read_bytes())


def render(preset: str, at_once: int, results_dir: str, data_dir: str = "", anew: bool = False) -> None:
    """Execute the report notebooks for which there are runs, which save tables and figures; unless ``anew`` only
    those that are older than what they are made of."""
    root = storage.ROOT / results_dir
    made = records.load_records(preset, results_dir)
    run = {r["variant"] for r in made} | {"streaming" for r in made if "streaming" in r}
    names = [name for name, needs in REPORTS.items() if not needs or run & set(needs)]
    sources = [p for kind in ("runs", "streaming") for p in (root / kind / preset).rglob("*.json")]
    jobs = []
    for name in names:
        path, output = storage.ROOT / f"notebooks/{name}.ipynb", root / "notebooks" / preset / f"{name}.ipynb"
        newest = max(p.stat().st_mtime for p in [path, *sources])
        if anew or not output.exists() or output.stat().st_mtime < newest:
            parameters: dict[str, Any] = {"preset": preset, "out_dir": results_dir}
            parameters |= {"results_dir": results_dir} if name != "00_datasets" else {}
            parameters |= {"data_dir": data_dir} if name in ("00_datasets", "08_examples") else {}
            jobs.append(notebooks.Job(path, output, parameters))
    if jobs:
        print(f"{len(jobs)} notebooks make tables and figures", flush=True)
        pool.run_all(notebooks.run, jobs, at_once)
