"""Tables made of run records: what the paper reports beside what we measured, and whether the order holds.

Nothing here needs torch, so tables and figures come fast.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ccrepro import files
from ccrepro.config import DATASETS, RECIPES
from ccrepro.errors import DataError
from ccrepro.files import atomic_write

METRICS = ("nmi", "acc", "ari")


def load_records(profile: str, results_dir: str | Path = "results") -> list[dict[str, Any]]:
    """All published records of a profile, by data set, variant and seed. Raises `DataError` for a damaged file."""
    records = []
    for path in sorted((files.ROOT / results_dir / "runs" / profile).glob("*/*.json")):
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


def find_records(records: list[dict[str, Any]], variant: str, dataset: str = "") -> list[dict[str, Any]]:
    """The records of a variant on one data set, by seed; without a name, on the first data set that was run."""
    own = [r for r in records if r["variant"] == variant and dataset in ("", r["dataset"])]
    return [r for r in own if r["dataset"] == own[0]["dataset"]]


def reported() -> pd.DataFrame:
    """Every number the paper prints: table, method, dataset, variant, metric, value, sources, confidence."""
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
    """A table of the paper, for its data sets and those we ran: reported numbers, and ours as mean ± sd or *not run*.

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
    """Mean and spread as in 0.972 ± 0.005; without spread for one value, *not run* for none."""
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
    frame, folder = table(name, runs), files.ROOT / results_dir / "tables" / profile
    atomic_write(folder / f"{name}.md", markdown(name, runs))
    atomic_write(folder / f"{name}.csv", frame.to_csv(index=False))
    latex = frame.style.hide(axis="index").to_latex(hrules=True, caption=TABLES[name].caption)
    atomic_write(folder / f"{name}.tex", latex.replace("±", r"$\pm$").replace("–", "--"))
    return frame


def markdown(name: str, runs: pd.DataFrame) -> str:
    """Caption, table and the notes on its order, as Markdown."""
    notes = "\n".join(f"- {note}" for note in order_notes(name, runs))
    cells = table(name, runs).to_markdown(index=False, disable_numparse=True)  # 0.030 must not become 0.03
    return f"**{TABLES[name].caption}**\n\n{cells}\n\n{notes}\n"


READMES = ("README.md", "README.ko.md")  # both hold the same generated results
BEGIN, END = "<!-- results: made by `make tables`, do not edit -->", "<!-- end of results -->"


def readme_with_results(text: str, results_dir: str | Path = "results") -> str:
    """The README's text with its results section made anew from the published records of every profile."""
    profiles = [p for p in RECIPES if load_records(p, results_dir)]
    parts = [f"{provenance(p, results_dir)}\n\n{_all_tables(p, results_dir)}" for p in profiles] or ["No run yet.\n"]
    before, rest = text.split(BEGIN)
    return "\n".join((before + BEGIN, *parts, END + rest.split(END)[1]))


def _all_tables(profile: str, results_dir: str | Path) -> str:
    runs = load_runs(profile, results_dir)
    return "\n".join(markdown(name, runs) for name in TABLES)


def provenance(profile: str, results_dir: str | Path = "results") -> str:
    """One sentence on what the published runs of a profile ran on, and for how long."""
    records = [r for r in load_records(profile, results_dir) if r["epochs"]]
    if not records:
        return f"Profile `{profile}`: nothing was trained."
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
        committed = files.git("show", f"HEAD:results/runs/{cell}.json")
        before = json.loads(committed)["scores"] if committed else None
        line = {"cell": cell, "ACC here": f"{r['scores']['acc']:.4f}"}
        line["ACC committed"] = f"{before['acc']:.4f}" if before else "–"
        line["difference"] = f"{r['scores']['acc'] - before['acc']:+.4f}" if before else "–"
        lines.append(line)
    return pd.DataFrame(lines).to_string(index=False) if lines else f"No runs of profile {profile} yet."
