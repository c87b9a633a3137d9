"""Run records, read back, beside the numbers that the paper reports. Nothing here needs torch, so tables come fast."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ccrepro.data.registry import DATASETS
from ccrepro.errors import ConfigError
from ccrepro.recipes import PRESETS, departures
from ccrepro.runs import finished
from ccrepro.runs.finished import Record
from ccrepro.runtime import storage

METRICS = ("nmi", "acc", "ari")


def load_records(
    preset: str, results_dir: str | Path = "", datasets: Sequence[str] = (), seeds: Sequence[int] = ()
) -> list[Record]:
    """The records of a preset by data set, variant, departures from the recipe (none first) and seed.

    results_dir: whose; "" is ``results/``. datasets: only these, in this order; seeds: only these. ``streaming`` holds
    what was measured of a run on a stream. Names what is refused on standard error (`finished.accepted`); raises
    `ConfigError` where no record is left.
    """
    root = storage.place(results_dir, "results")
    records = [r for r in _all(root, preset) if r["dataset"] in (datasets or [r["dataset"]])]
    records = [r for r in records if r["seed"] in (seeds or [r["seed"]])]
    if not records:
        what = f"There is no such run of preset {preset} below {root}"
        raise ConfigError(f"{what}. Run `ccrepro reproduce --preset {preset}`.")
    return sorted(records, key=lambda r: list(datasets).index(r["dataset"])) if datasets else records


def by_preset(results_dir: str | Path = "") -> dict[str, list[Record]]:
    """The records of each preset that has any, in the order of `PRESETS`."""
    root = storage.place(results_dir, "results")
    return {preset: records for preset in PRESETS if (records := _all(root, preset))}


def _all(root: Path, preset: str) -> list[Record]:
    runs, streams = root / "runs" / preset, root / "streaming" / preset
    found = finished.accepted(storage.listing(runs, "*", "*.json"))
    records = [r | finished.streaming(streams / path.relative_to(runs), r) for path, r in found.items()]
    return sorted(records, key=lambda r: (r["dataset"], r["variant"], departs(r), r["seed"]))


def departs(record: Record) -> str:
    """The settings in which a run departs from its recipe, as in its name; "" for none."""
    return departures(record["overrides"])


def as_runs(records: list[Record]) -> pd.DataFrame:
    """One row per run: dataset, variant, departs, backbone, seed, nmi, acc, ari, kmeans_acc (ACC of k-means on the
    features, for the full method), epochs, seconds, hours (of one core or one GPU), n_images."""
    lines = []
    for r in records:
        more = {"departs": departs(r), "backbone": r["config"]["backbone"]}
        used = r["hardware"]["threads"] if r["hardware"]["gpu"] is None else r["hardware"].get("ranks", 1)
        more["seconds"] = seconds(r)
        more["hours"] = used * more["seconds"] / 3600
        more["kmeans_acc"] = r.get("scores_kmeans_on_features", {}).get("acc")
        lines.append({**r, **r["scores"], **more})
    columns = ["dataset", "variant", "departs", "backbone", "seed", *METRICS, "kmeans_acc"]
    return pd.DataFrame(lines, columns=[*columns, "epochs", "seconds", "hours", "n_images"])


def seconds(record: Record) -> float:
    """What a run took. Every epoch counts as the median one, since a machine may sleep, or have much else to do, for a
    while."""
    each = record["history"].get("seconds")
    return len(each) * float(np.median(each)) if each else record["seconds"]


def find_records(records: list[Record], variant: str) -> list[Record]:
    """The records of a variant on the first data set that has any, by seed; those by the recipe, if there are any."""
    own = [r for r in records if r["variant"] == variant]
    return [r for r in own if (r["dataset"], departs(r)) == (own[0]["dataset"], departs(own[0]))]


@functools.cache
def reported() -> pd.DataFrame:
    """Every number that the paper prints: table, method, dataset, variant, metric, value, sources, confidence. All
    callers share the frame: do not change it."""
    return pd.read_csv(Path(__file__).with_name("reported.csv"), dtype=str, keep_default_na=False)


@functools.cache
def printed(table: str, metric: str) -> pd.DataFrame:
    """What a table of the paper prints in one metric, as text: a row per method (per variant, where all are CC), a
    column per data set, "" where it prints nothing. All callers share the frame: do not change it."""
    paper = reported().query("table == @table and metric == @metric.upper()")
    paper = paper.assign(row=paper.variant.where(paper.variant != "", paper.method))
    return paper.pivot(index="row", columns="dataset", values="value").reindex(paper.row.unique()).fillna("")


def data_sets() -> pd.DataFrame:
    """Table 1 of the paper beside the counts that loading a data set insists on."""
    paper, lines = reported(), []
    for facts in DATASETS.values():
        printed = paper[(paper.table == "1") & (paper.dataset == facts.title)].set_index("metric")["value"]
        line = {"data set": facts.title, "split": printed.get("split", "–")}
        line |= {f"{name} reported": printed.get(name, "–") for name in ("samples", "classes")}
        lines.append(line | {"images ours": facts.images, "classes ours": facts.classes, "unlabeled": facts.unlabeled})
    return pd.DataFrame(lines)


def provenance(records: list[Record]) -> str:
    """One sentence: the number of runs, their seconds, machines and commits."""
    kinds = {"with training": [seconds(r) for r in records if r["epochs"]]}
    kinds["without training"] = [seconds(r) for r in records if not r["epochs"]]
    parts = [_told(name, s) for name, s in kinds.items() if s]
    commits = sorted({r["commit"][:10] + r["commit"][40:] for r in records})
    return f"{' and '.join(parts)} on {', '.join(sorted(set(map(machine, records))))}; commit {', '.join(commits)}."


def _told(kind: str, each: list[float]) -> str:
    if len(each) == 1:
        return f"1 run {kind} ({each[0]:,.0f} s)"
    return f"{len(each)} runs {kind} ({min(each):,.0f} to {max(each):,.0f} s each)"


def machine(record: Record) -> str:
    """The GPU or the CPU of a run, and the number of ranks if several trained together."""
    hardware = record["hardware"]
    name = hardware["gpu"] or f"{hardware['threads']} of {hardware['cores']} cores of {hardware['cpu']}"
    ranks = hardware.get("ranks", 1)  # older records have none
    return f"{ranks} × {name}" if ranks > 1 else name
