"""Run records, read back: what was measured, what the paper reports, and where our numbers come from.

Nothing here needs torch, so tables and figures come fast.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ccrepro import files
from ccrepro.config import DATASETS, Config, recipe
from ccrepro.errors import DataError

METRICS = ("nmi", "acc", "ari")
Record = dict[str, Any]


def load_records(
    profile: str, results_dir: str | Path = "results", datasets: Sequence[str] = (), seeds: Sequence[int] = ()
) -> list[Record]:
    """The published records of a profile, by data set, variant and seed; only of some ``datasets``, then in their
    order, or ``seeds``, where these are given. Under ``online`` what `ccrepro.online` measured of the same run, if it
    did. Raises `DataError` for a damaged file."""
    root, records = files.ROOT / results_dir, []
    for path in sorted((root / "runs" / profile).glob("*/*.json")):
        record, online = _read(path), root / "online" / profile / path.parent.name / path.name
        if record["dataset"] in (datasets or [record["dataset"]]) and record["seed"] in (seeds or [record["seed"]]):
            records.append(record | ({"online": _read(online)} if online.exists() else {}))
    order = list(datasets).index if datasets else str
    return sorted(records, key=lambda r: (order(r["dataset"]), r["variant"], r["seed"]))


def load_tried(profile: str, results_dir: str | Path = "results") -> list[Record]:
    """The published records of a profile's recipes with other settings, by data set, variant, settings and seed: they
    are shown by themselves, with what differs, and are part of no table of the paper."""
    records = [_read(path) for path in (files.ROOT / results_dir / "tried" / profile).glob("*/*.json")]
    return sorted(records, key=lambda r: (r["dataset"], r["variant"], differences(r), r["seed"]))


def differences(record: Record) -> str:
    """What differs from today's recipe, as in ``epochs 180 (400)``, the recipe's value in brackets."""
    config = Config(**record["config"])
    own = recipe(config.dataset, config.profile, config.variant, config.seed)
    return ", ".join(f"{name} {value} ({getattr(own, name)})" for name, value in config.overrides().items())


def _read(path: Path) -> Record:
    try:
        return json.loads(path.read_text())
    except ValueError:
        fix = "Remove it, or run its cell again"
        raise DataError(f"{path.name} is not JSON", str(path), "Run records are JSON", fix) from None


def load_runs(profile: str, results_dir: str | Path = "results") -> pd.DataFrame:
    """One row per published run: dataset, variant, backbone, seed, nmi, acc, ari, epochs, seconds, n_images."""
    return as_runs(load_records(profile, results_dir))


def as_runs(records: list[Record]) -> pd.DataFrame:
    """Records as a data frame, one row per run."""
    columns = ["dataset", "variant", "backbone", "seed", *METRICS, "epochs", "seconds", "n_images"]
    lines = [{**r, **r["scores"], "backbone": r["config"]["backbone"]} for r in records]
    return pd.DataFrame(lines, columns=columns)


def find_records(records: list[Record], variant: str) -> list[Record]:
    """The records of a variant by seed, on the first data set that it was run on."""
    own = [r for r in records if r["variant"] == variant]
    return [r for r in own if r["dataset"] == own[0]["dataset"]]


@functools.cache
def reported() -> pd.DataFrame:
    """Every number the paper prints: table, method, dataset, variant, metric, value, sources, confidence. Read once,
    so not to be changed."""
    return pd.read_csv(Path(__file__).with_name("reported.csv"), dtype=str, keep_default_na=False)


def data_sets() -> pd.DataFrame:
    """Table 1 of the paper beside the counts that loading a data set insists on."""
    paper, lines = reported(), []
    for facts in DATASETS.values():
        printed = paper[(paper.table == "1") & (paper.dataset == facts.title)].set_index("metric")["value"]
        line = {"data set": facts.title, "split": printed.get("split", "–")}
        line |= {f"{name} reported": printed.get(name, "–") for name in ("samples", "classes")}
        lines.append(line | {"images ours": facts.images, "classes ours": facts.classes, "unlabeled": facts.unlabeled})
    return pd.DataFrame(lines)


def mean_sd(values: Iterable[float]) -> str:
    """Mean and spread as in 0.972 ± 0.005; without spread for one value, *not run* for none.

    The standard deviation is the sample's (n - 1).
    """
    values = np.asarray(list(values), dtype=float)
    if len(values) == 0:
        return "not run"
    return f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else "")


def provenance(profile: str, results_dir: str | Path = "results") -> str:
    """One sentence on what the published runs of a profile ran on, and for how long."""
    records = load_records(profile, results_dir)
    trained = [r for r in records if r["epochs"]]
    others = [r for r in records if not r["epochs"]]
    kinds = {"training run{}": trained, "run{} without training": others}
    parts = [_counted(name, [r["seconds"] for r in kind]) for name, kind in kinds.items() if kind]
    commits = sorted({short_commit(r["commit"]) for r in records})
    machines = sorted({machine(r) for r in records})
    return f"Profile `{profile}`: {'; '.join(parts)}, on {', '.join(machines)}; code at commit {', '.join(commits)}."


def _counted(name: str, seconds: list[float]) -> str:
    """How many runs took how long; ``name`` has a place for the plural's s."""
    if len(seconds) == 1:
        return f"1 {name.format('')}, {seconds[0]:,.0f} s"
    return f"{len(seconds)} {name.format('s')}, {min(seconds):,.0f} to {max(seconds):,.0f} s each"


def machine(record: Record) -> str:
    """The GPU of a run, or what it used of a CPU; how many of these, where several ranks trained together."""
    hardware, config = record["hardware"], record["config"]
    name = hardware["gpu"] or f"{hardware['threads']} of {hardware['cores']} cores of {hardware['cpu']}"
    ranks = config.get("devices", 1) * config.get("nodes", 1)  # records of the first days have neither
    return f"{ranks} × {name}" if ranks > 1 else name


def short_commit(commit: str) -> str:
    """Ten digits, and what stands behind the forty."""
    return commit[:10] + commit[40:]


def origins(records: list[Record]) -> pd.DataFrame:
    """Where every number comes from, one row per run: commit, hash of all settings, hardware, seconds and energy."""
    lines = [
        {
            "run": f"{r['dataset']}/{r['variant']}-seed{r['seed']}",
            "commit": short_commit(r["commit"]),
            "settings": hashlib.sha256(json.dumps(r["config"], sort_keys=True).encode()).hexdigest()[:10],
            "images": f"{r['n_images']:,}",
            "epochs": str(r["epochs"]),
            "seconds": f"{r['seconds']:,.0f}",
            "energy": f"{r['energy_joules'] / 3.6e6:.3g} kWh" if r.get("energy_joules") else "not measured",
            "hardware": machine(r),
        }
        for r in records
    ]
    return pd.DataFrame(lines)


def compare(profile: str, results_dir: str | Path = "results") -> str:
    """The ACC of each record in ``results/`` beside that of the same record in the last commit, as a text table."""
    lines = []
    for r in load_records(profile, results_dir):
        cell = f"{profile}/{r['dataset']}/{r['variant']}-seed{r['seed']}"
        committed = files.git("show", f"HEAD:results/runs/{cell}.json")
        before = json.loads(committed)["scores"] if committed else None
        line = {"cell": cell, "ACC here": f"{r['scores']['acc']:.4f}"}
        line["ACC committed"] = f"{before['acc']:.4f}" if before else "–"
        line["difference"] = f"{r['scores']['acc'] - before['acc']:+.4f}" if before else "–"
        lines.append(line)
    return pd.DataFrame(lines).to_string(index=False) if lines else f"No runs of profile {profile} yet."
