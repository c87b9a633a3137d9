"""Run records, and the tables made of them: what the paper reports beside what we measured.

A run's record is one JSON file. It is written to ``runs/<cell>/run.json`` (ignored by git; its presence means that the
run is done here) and, for a recipe without overrides, to ``results/runs/<cell>.json``, from which every table and
figure is built.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from ccrepro.checkpoint import atomic_write, save_weights
from ccrepro.config import DATASETS, RECIPES, Config
from ccrepro.datasets import ImageSet
from ccrepro.errors import DataError
from ccrepro.evaluate import Clustering, score, tsne
from ccrepro.metrics import contingency
from ccrepro.model import ContrastiveClusteringModel
from ccrepro.train import Epoch

ROOT = Path(__file__).resolve().parents[1]  # of the clone: relative folders are taken from here
METRICS = ("nmi", "acc", "ari")
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "openTSNE")

# ---------------------------------------------------------------------------------------------------- one run


class RunLog:
    """Keeps one JSON line per epoch in the run's folder and prints a line now and then, with rate and time left."""

    def __init__(self, config: Config, runs_dir: str | Path = "runs", every_seconds: float = 10):
        self.config, self.every, self.printed = config, every_seconds, -math.inf
        self.folder = run_folder(config, runs_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "log.jsonl"
        self.path.write_text("")
        self.start = time.monotonic()

    def __call__(self, epoch: Epoch) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(epoch) + "\n")
        now, done, total = time.monotonic(), epoch["epoch"], self.config.epochs
        if now - self.printed < self.every and done < total:
            return
        self.printed = now
        rate = (now - self.start) / done
        print(
            f"{self.config.cell}  epoch {done}/{total}  loss {epoch['loss']:.3f}  "
            f"{rate:.2f} s/epoch  {rate * (total - done):.0f} s left",
            flush=True,
        )


def run_folder(config: Config, runs_dir: str | Path = "runs") -> Path:
    """Folder of a run below ``runs_dir``; overridden settings have a folder of their own."""
    overrides = config.overrides()
    suffix = "".join(f"+{name}={_file_name(value)}" for name, value in overrides.items())
    return ROOT / runs_dir / (config.cell + suffix)


def _file_name(value: Any) -> str:
    return re.sub(r"[^\w.,-]", "", str(value))


def record(
    config: Config,
    data: ImageSet,
    model: ContrastiveClusteringModel | None,
    clustering: Clustering,
    history: list[Epoch],
) -> dict[str, Any]:
    """Everything the tables and figures need of a run, as plain JSON values."""
    return {
        "dataset": config.dataset,
        "variant": config.variant,
        "profile": config.profile,
        "seed": config.seed,
        "overrides": config.overrides(),
        **score(config, data, clustering),
        "epochs": len(history),
        "seconds": round(sum(epoch["seconds"] for epoch in history), 1),
        "n_images": len(data.images),
        "n_clusters_used": len(np.unique(clustering.labels_pred)),
        "config": dataclasses.asdict(config),
        "data_sha256": data.sha256,
        "hardware": hardware(model),
        "versions": versions(),
        "commit": commit(),
        "class_names": data.class_names,
        "contingency": contingency(data.labels, clustering.labels_pred, config.n_clusters).tolist(),
        "history": {name: [_short(e[name]) for e in history] for name in (history[0] if history else ())},
        "tsne": tsne(clustering, data.labels),
    }


def save(
    result: dict[str, Any],
    config: Config,
    model: ContrastiveClusteringModel | None,
    clustering: Clustering,
    runs_dir: str | Path = "runs",
    results_dir: str | Path = "results",
) -> Path:
    """Write weights, assignments and record; the record in the run's folder last. Returns its path."""
    folder = run_folder(config, runs_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if model is not None:
        save_weights(model, folder / "model.safetensors")
    np.savez_compressed(folder / "clustering.npz", labels_pred=clustering.labels_pred, features=clustering.features)
    text = "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in result.items()) + "\n}\n"
    if not config.overrides():
        atomic_write(ROOT / results_dir / "runs" / f"{config.cell}.json", text)
    return atomic_write(folder / "run.json", text)


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def hardware(model: ContrastiveClusteringModel | None) -> dict[str, Any]:
    """Names of what the run ran on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = re.findall(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
        cpu = names[0] if names else cpu
    on_gpu = model is not None and next(model.parameters()).is_cuda
    gpu = torch.cuda.get_device_name() if on_gpu else None
    return {"cpu": cpu, "cores": os.cpu_count(), "gpu": gpu, "threads": torch.get_num_threads()}


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def commit() -> str:
    """The clone's commit, with "-dirty" where the code differs from it; "unknown" outside a clone."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return "unknown"
    changed = _git("status", "--porcelain", "--", "ccrepro", "notebooks", "pyproject.toml", "Makefile")
    return head.strip() + ("-dirty" if changed else "")


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


# ------------------------------------------------------------------------------------------------- many runs


def load_records(profile: str, results_dir: str | Path = "results") -> list[dict[str, Any]]:
    """All published records of a profile, by data set, variant and seed. Raises `DataError` for a damaged file."""
    records = []
    for path in sorted((ROOT / results_dir / "runs" / profile).glob("*/*.json")):
        try:
            records.append(json.loads(path.read_text()))
        except ValueError:
            fix = "Remove it, or run its cell again"
            raise DataError(f"{path.name} is not JSON", str(path), "Run records are JSON", fix) from None
    return sorted(records, key=lambda r: (r["dataset"], r["variant"], r["seed"]))


def load_runs(profile: str, results_dir: str | Path = "results") -> pd.DataFrame:
    """One row per published run: dataset, variant, seed, nmi, acc, ari, epochs, seconds."""
    columns = ["dataset", "variant", "seed", *METRICS, "epochs", "seconds"]
    return pd.DataFrame([{**r, **r["scores"]} for r in load_records(profile, results_dir)], columns=columns)


def find_record(records: list[dict[str, Any]], dataset: str, variant: str) -> dict[str, Any] | None:
    """The record of the lowest seed of a data set and variant, or None where none was run."""
    return next((r for r in records if (r["dataset"], r["variant"]) == (dataset, variant)), None)


def reported() -> pd.DataFrame:
    """Every number the paper prints: table, method, dataset, variant, metric, value, sources, confidence."""
    return pd.read_csv(Path(__file__).with_name("reported.csv"), dtype=str, keep_default_na=False)


# ---------------------------------------------------------------------------------------------------- tables


class Row(NamedTuple):
    """One row per data set: its label, where the paper prints it, and our variant."""

    label: str
    table: str
    method: str
    reported_variant: str
    variant: str


class Table(NamedTuple):
    """A table of the paper: caption, data sets of the paper, rows, and pairs of variants (higher ACC, lower ACC)."""

    caption: str
    datasets: tuple[str, ...]
    rows: tuple[Row, ...]
    order: tuple[tuple[str, str], ...]


TABLES = {
    "main_results": Table(
        "Clustering quality (Table 2 of the paper)",
        tuple(RECIPES["paper"]),
        (Row("k-means on pixels", "2", "K-means", "", "kmeans-pixels"), Row("CC", "2", "CC", "", "cc")),
        (("cc", "kmeans-pixels"),),
    ),
    "augmentation": Table(
        "Which views are augmented (Table 3 of the paper)",
        ("cifar10", "imagenet10"),
        (
            Row("T(x) and T(x)", "3", "CC", "Ta(x)+Tb(x)", "cc"),
            Row("T(x) and x", "3", "CC", "Ta(x)+x", "views-one"),
            Row("x and x", "3", "CC", "x+x", "views-none"),
        ),
        (("cc", "views-one"), ("views-one", "views-none")),
    ),
    "heads": Table(
        "Which heads are trained (Table 4 of the paper)",
        ("cifar10", "imagenet10"),
        (
            Row("both heads", "4", "CC", "ICH+CCH", "cc"),
            Row("instance head, k-means", "4", "CC", "ICH only (k-means on instance features)", "instance-only"),
            Row("cluster head", "4", "CC", "CCH only", "cluster-only"),
        ),
        (("cc", "instance-only"), ("cc", "cluster-only")),
    ),
}


def table(name: str, runs: pd.DataFrame) -> pd.DataFrame:
    """A table of the paper: its data sets and ours, reported numbers and ours as mean ± sd, *not run* where we have none.

    The standard deviation is the sample's (n - 1); with one seed none is shown.
    """
    spec, paper = TABLES[name], reported()
    own = [d for d in DATASETS if d in set(runs.dataset) and d not in spec.datasets]
    lines = []
    for dataset in (*own, *spec.datasets):
        title = DATASETS[dataset].title
        for row in spec.rows:
            printed = paper[
                (paper.table == row.table)
                & (paper.method == row.method)
                & (paper.dataset == title)
                & (paper.variant == row.reported_variant)
            ].set_index("metric")["value"]
            ours = _select(runs, dataset, row.variant)
            lines.append(
                {"data set": title, "method": row.label}
                | {f"{m.upper()} reported": printed.get(m.upper(), "–") for m in METRICS}
                | {f"{m.upper()} ours": mean_sd(ours[m]) for m in METRICS}
                | {"seeds": str(len(ours))}
            )
    return pd.DataFrame(lines)


def _select(runs: pd.DataFrame, dataset: str, variant: str) -> pd.DataFrame:
    return runs[(runs.dataset == dataset) & (runs.variant == variant)]


def mean_sd(values: Iterable[float]) -> str:
    """"0.972 ± 0.005"; without spread for one value, "not run" for none."""
    values = np.asarray(list(values), dtype=float)
    if len(values) == 0:
        return "not run"
    return f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else "")


def heads_against_kmeans(records: list[dict[str, Any]]) -> pd.DataFrame:
    """The full method's own assignments beside k-means on its features: ACC as mean ± sd over seeds, by data set."""
    own = [r for r in records if r["variant"] == "cc"]
    lines = []
    for dataset in dict.fromkeys(r["dataset"] for r in own):
        parts = [r for r in own if r["dataset"] == dataset]
        lines.append(
            {
                "data set": DATASETS[dataset].title,
                "ACC, cluster head": mean_sd(r["scores"]["acc"] for r in parts),
                "ACC, k-means on features": mean_sd(r["scores_kmeans_on_features"]["acc"] for r in parts),
                "seeds": len(parts),
            }
        )
    return pd.DataFrame(lines)


ORDER_RULE = (
    "Rule, fixed beforehand: one mean ACC is above another when their difference exceeds two standard errors of the "
    "difference, which takes two seeds or more of each."
)


def order_notes(name: str, runs: pd.DataFrame) -> list[str]:
    """For each pair that the paper puts in an order, whether our runs do too, with the numbers; and the rule."""
    spec = TABLES[name]
    labels = {row.variant: row.label for row in spec.rows}
    notes = []
    for dataset in (d for d in DATASETS if d in set(runs.dataset)):
        for high, low in spec.order:
            a, b = (_select(runs, dataset, variant).acc for variant in (high, low))
            text = f"{DATASETS[dataset].title}: ACC of {labels[high]} {mean_sd(a)}, of {labels[low]} {mean_sd(b)}"
            notes.append(f"{text}: {_compared(a, b)}.")
    return [*notes, ORDER_RULE] if notes else ["No run of this table yet."]


def _compared(high: pd.Series, low: pd.Series) -> str:
    """The order of two samples, in words, by `ORDER_RULE`."""
    if min(len(high), len(low)) < 2:
        return "not enough runs"
    difference = high.mean() - low.mean()
    error = math.sqrt(high.var(ddof=1) / len(high) + low.var(ddof=1) / len(low))
    if abs(difference) <= 2 * error:
        return "not told apart by these seeds"
    return "in the order of the paper" if difference > 0 else "NOT in the order of the paper"


def save_table(name: str, runs: pd.DataFrame, profile: str, results_dir: str | Path = "results") -> pd.DataFrame:
    """Write the table as Markdown, CSV and LaTeX under ``results/tables/<profile>/``, and return it."""
    frame, folder = table(name, runs), ROOT / results_dir / "tables" / profile
    atomic_write(folder / f"{name}.md", markdown(name, runs))
    atomic_write(folder / f"{name}.csv", frame.to_csv(index=False))
    latex = frame.style.hide(axis="index").to_latex(hrules=True, caption=TABLES[name].caption)
    atomic_write(folder / f"{name}.tex", latex.replace("±", r"$\pm$").replace("–", "--"))
    return frame


def markdown(name: str, runs: pd.DataFrame) -> str:
    """Caption, table and the notes on its order, as Markdown."""
    notes = "\n".join(f"- {note}" for note in order_notes(name, runs))
    return f"**{TABLES[name].caption}**\n\n{table(name, runs).to_markdown(index=False)}\n\n{notes}\n"


# -------------------------------------------------------------------------------------- README and comparison

BEGIN, END = "<!-- results: made by `make tables`, do not edit -->", "<!-- end of results -->"


def readme_with_results(text: str, results_dir: str | Path = "results", profile: str = "demo") -> str:
    """The README's text with its results section made anew from the published records."""
    runs = load_runs(profile, results_dir)
    tables = "\n".join(markdown(name, runs) for name in TABLES)
    section = f"{BEGIN}\n\n{provenance(profile, results_dir)}\n\n{tables}\n{END}"
    before, rest = text.split(BEGIN)
    return before + section + rest.split(END)[1]


def provenance(profile: str, results_dir: str | Path = "results") -> str:
    """One sentence on what the published runs of a profile ran on, and for how long."""
    records = [r for r in load_records(profile, results_dir) if r["epochs"]]
    if not records:
        return f"Profile `{profile}`: no run yet."
    machines = sorted({r["hardware"]["gpu"] or f"one core of {r['hardware']['cpu']}" for r in records})
    seconds = [r["seconds"] for r in records]
    commits = sorted({r["commit"][:10] + r["commit"][40:] for r in records})
    return (
        f"Profile `{profile}`: {len(records)} training runs, {min(seconds):.0f} to {max(seconds):.0f} s each on "
        f"{', '.join(machines)}; code at commit {', '.join(commits)}."
    )


def compare(profile: str, results_dir: str | Path = "results") -> str:
    """The ACC of each record in ``results/`` beside that of the same record in the last commit, as a text table."""
    lines = []
    for r in load_records(profile, results_dir):
        cell = f"{profile}/{r['dataset']}/{r['variant']}-seed{r['seed']}"
        committed = _git("show", f"HEAD:results/runs/{cell}.json")
        before = json.loads(committed)["scores"] if committed else None
        line = {"cell": cell, "ACC here": f"{r['scores']['acc']:.4f}"}
        line["ACC committed"] = f"{before['acc']:.4f}" if before else "–"
        line["difference"] = f"{r['scores']['acc'] - before['acc']:+.4f}" if before else "–"
        lines.append(line)
    return pd.DataFrame(lines).to_string(index=False) if lines else f"No runs of profile {profile} yet."
