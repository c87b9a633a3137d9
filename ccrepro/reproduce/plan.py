"""`ccrepro reproduce`: plan the runs, run what is missing, and make tables, figures and notebooks of all finished runs.

A run is done when its record is there. Whatever is made here goes to ``runs/`` and ``results/local/``, which git
ignores; ``results/`` itself holds what was published.
"""

import itertools
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.std import tqdm

from ccrepro import recipes
from ccrepro.config import Config
from ccrepro.data import here, load, sample, unseen
from ccrepro.data.registry import DATASETS
from ccrepro.errors import ConfigError, unknown
from ccrepro.recipes import PRESETS, RECIPES, departures, recipe, run_name
from ccrepro.reproduce import notebooks, pool, records, streams, tables
from ccrepro.runs import finished
from ccrepro.runs.finished import run_folder
from ccrepro.runs.record import Run
from ccrepro.runs.resume import fit
from ccrepro.runtime import storage
from ccrepro.runtime.device import at_once, visible_gpus

LOCAL = "results/local"

# Each report notebook needs a run of one of these variants, if any is named; "streaming": a run measured on a stream.
REPORTS: dict[str, tuple[str, ...]] = {
    "00_table1_datasets": (),
    "03_table2_main_results": ("cc", "kmeans-pixels", "nmf-pixels", "spectral-pixels", "agglomerative-pixels"),
    "04_table3_augmentation": ("views-one", "views-none"),
    "05_table4_heads": ("instance-only", "cluster-only", "shared-head", "no-entropy"),
    "06_table5_backbones": ("fast-m", "resnet18", "resnet50"),
    "07_figures_training": ("cc",),
    "08_examples": ("cc",),
    "09_streaming": ("streaming",),
}


class Planned(NamedTuple):
    """A run: its settings, whether it is done, and its expected seconds, the median of runs that differ in the seed."""

    config: Config
    done: bool
    seconds: float | None


def plan(
    preset: str,
    datasets: Sequence[str],
    variants: Sequence[str],
    seeds: Sequence[Any],
    runs_dir: str | Path = "",
    **overrides: Any,
) -> list[Planned]:
    """All runs of a reproduction. Those that are done come first; the others follow by seed: the full method first,
    which is measured on a stream too and so takes longest, then the quickest.

    Without names: all data sets of the preset but the stand-ins, and all variants that suit it. overrides: settings
    that depart from the recipes. Raises `ConfigError` for an unknown name or a bad value.
    """
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    datasets = datasets or [d for d in RECIPES[preset] if "stand-in" not in DATASETS[d].title]
    variants = variants or recipes.suitable(preset)
    places = [storage.place("", name) for name in ("results", LOCAL)]
    made = [r for place in places for r in records.by_preset(place).get(preset, [])]
    medians, planned = records.as_runs(made).groupby(tables.KIND).seconds.median(), []
    for dataset, variant, seed in dict.fromkeys(itertools.product(datasets, variants, seeds)):
        config = recipe(dataset, preset, variant, seed, **overrides)
        seconds = medians.get((dataset, departures(recipes.overrides(config)), variant))
        planned.append(Planned(config, (run_folder(config, runs_dir) / "run.json").exists(), seconds))

    def turn(p: Planned) -> tuple[bool, int, bool, float]:
        return not p.done, p.config.seed, p.config.variant != "cc", math.inf if p.seconds is None else p.seconds

    return sorted(planned, key=turn)


def describe(planned: list[Planned], processes: int) -> str:
    """How many runs are done, how many are not, and the time that these need."""
    open_ = [p for p in planned if not p.done]
    text = f"{len(planned)} run{'s' * (len(planned) != 1)}: {len(planned) - len(open_)} done, {len(open_)} to run"
    if not open_:
        return f"{text}."
    return f"{text}, {processes} at once, {_left(_seconds(open_, processes))}."


def progress(runs: list[Planned], number: int, processes: int, spent: float) -> str:
    """How many of these runs are done after ``spent`` seconds, and the time that the others need. The first minute is
    too short to tell how fast this machine is, beside those of the published runs."""
    expected = _seconds(runs[:number], processes)
    pace = spent / expected if expected > 60 else 1.0
    return f"{number} of {len(runs)} runs, {_left(pace * _seconds(runs[number:], processes))}"


def _seconds(runs: list[Planned], processes: int) -> float:
    """What runs are expected to take, several at once; NaN where nothing like them was published."""
    if not runs:
        return 0.0
    known = [p.seconds for p in runs if p.seconds is not None]
    return statistics.fmean(known) * len(runs) / processes if known else math.nan


def _left(seconds: float) -> str:
    return f"about {'an unknown time' if math.isnan(seconds) else tqdm.format_interval(seconds)} left"


def show(planned: list[Planned], jobs: int) -> None:
    """Print the arguments of `ccrepro` for each run that is not done, and to standard error what `describe` says."""
    print(describe(planned, at_once(jobs)), file=sys.stderr, flush=True)
    for config in (p.config for p in planned if not p.done):
        words = ["train", config.dataset, "--preset", config.preset, "--variant", config.variant, "--seed", config.seed]
        base = recipe(config.dataset, config.preset, config.variant, config.seed)
        for name, value in config:  # those of the machine too, which are no override
            option = f"--{name.replace('_', '-')}"
            if value != getattr(base, name):
                words += [option, *value] if isinstance(value, tuple) else [f"{option}={value}"]
        print(*words)


def reproduce(planned: list[Planned], jobs: int, runs_dir: str, data_dir: str) -> None:
    """Run what is missing, make tables, figures and notebooks below ``results/local``, and print your numbers beside
    the published and the reported ones. Raises `LockedError` while another process reproduces into the same folder, and
    `ConfigError` outside a clone."""
    local, processes = storage.place("", LOCAL), at_once(jobs)
    if not storage.place("", "notebooks").is_dir():
        raise ConfigError(f"There are no notebooks in {storage.place('')}. Go to a clone of the repository.")
    print(describe(planned, processes), flush=True)
    os.environ.update(OMP_NUM_THREADS="1", PYTHONHASHSEED="0")  # with one thread the numbers repeat bit for bit
    preset = planned[0].config.preset
    missing = [p for p in planned if not (p.done and _streamed(p.config, runs_dir))]
    began = time.monotonic()

    def done(number: int) -> None:
        print(progress(missing, number, processes, time.monotonic() - began), flush=True)

    with storage.lock(local):
        storage.sweep(local)
        runs = [(p.config, runs_dir, data_dir) for p in missing]
        pool.run_all(train, runs, processes, visible_gpus(), done)
        for p in planned:
            gather(run_folder(p.config, runs_dir), run_name(p.config), local)
        render(preset, processes, LOCAL, data_dir)
        yours, published = (records.by_preset(place).get(preset, []) for place in (local, local.parent))
    print(f"\nACC, mean ± standard deviation (number of seeds):\n{tables.comparison(yours, published)}\n")
    print(f"Tables, figures and executed notebooks: {LOCAL}/{{tables,figures,notebooks}}/{preset}")


def train(config: Config, runs_dir: str, data_dir: str) -> None:
    """Make a run, if it is not done: train, score, write its record. Measure the full method on a stream too."""
    every = load(config.dataset, data_dir)
    data = sample(every, config.sample, config.seed)
    with Run(config, data, runs_dir) as run:
        if not run.record:
            run.finish(*fit(config, data, run.report, run.checkpoints))
    if not _streamed(config, runs_dir):
        streams.measure(config, data, unseen(every, config.sample, config.seed), runs_dir)


def _streamed(config: Config, runs_dir: str) -> bool:
    """Whether a run has been measured on a stream, or need not be."""
    return config.variant != "cc" or (run_folder(config, runs_dir) / "streaming.json").exists()


def gather(folder: Path, name: str, results: Path) -> None:
    """Copy a finished run's record into a folder of results, under its name. Raises `DataError` for the record of
    another run."""
    finished.read(folder / "run.json", name)
    for kind, source in (("runs", folder / "run.json"), ("streaming", folder / "streaming.json")):
        target = results / kind / f"{name}.json"
        if source.exists() and not (target.exists() and target.read_bytes() == source.read_bytes()):
            storage.atomic_write(target, source.read_bytes())


def render(preset: str, processes: int, results_dir: str, data_dir: str = "", anew: bool = False) -> None:
    """Execute the report notebooks for which there are runs; they save tables and figures. Without ``anew``, leave out
    those that are newer than their notebook and the records. results_dir: below the clone's root."""
    root, notebooks_dir = storage.place("", results_dir), storage.place("", "notebooks")
    made = records.load_records(preset, root)
    run = {r["variant"] for r in made} | {"streaming" for r in made if "streaming" in r}
    newest = max(p.stat().st_mtime for kind in ("runs", "streaming") for p in (root / kind / preset).rglob("*.json"))
    given = {"preset": preset, "results_dir": results_dir, "out_dir": results_dir, "data_dir": data_dir}
    given["names"] = [name for name in dict.fromkeys(r["dataset"] for r in made) if here(name, data_dir)]
    jobs = []
    for name, needs in REPORTS.items():
        path, output = notebooks_dir / f"{name}.ipynb", root / "notebooks" / preset / f"{name}.ipynb"
        stale = anew or not output.exists() or output.stat().st_mtime < max(newest, path.stat().st_mtime)
        if stale and (not needs or run & set(needs)):
            known = notebooks.parameters(path)
            jobs.append((path, output, {name: value for name, value in given.items() if name in known}))
    if jobs:
        print(f"{len(jobs)} notebooks make tables and figures", flush=True)
        pool.run_all(notebooks.run, jobs, processes)
