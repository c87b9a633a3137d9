"""The paper's tables: what it reports, what we measured, the difference, and a verdict by a rule fixed beforehand."""

import functools
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ccrepro.data.registry import DATASETS
from ccrepro.errors import unknown
from ccrepro.metrics import mean_sd
from ccrepro.recipes import RECIPES
from ccrepro.reproduce.records import METRICS, Record, as_runs, departs, load_records, reported
from ccrepro.runtime import storage


class Row(NamedTuple):
    """One row per data set: its label, where the paper prints it (if it does), our variant, and its backbone where
    that is what the row is about."""

    label: str
    table: str
    method: str
    reported_variant: str
    variant: str
    backbone: str = ""


class Table(NamedTuple):
    """A table of the paper: caption, the paper's data sets in it, rows."""

    caption: str
    datasets: tuple[str, ...]
    rows: tuple[Row, ...]


TABLES = {
    "main_results": Table(
        "Clustering quality (Table 2 of the paper)",
        tuple(RECIPES["paper"]),
        (
            Row("k-means on pixels", "2", "K-means", "", "kmeans-pixels"),
            Row("spectral on pixels", "2", "SC", "", "spectral-pixels"),
            Row("agglomerative on pixels", "2", "AC", "", "agglomerative-pixels"),
            Row("NMF and k-means on pixels", "2", "NMF", "", "nmf-pixels"),
            Row("CC", "2", "CC", "", "cc"),
        ),
    ),
    "augmentation": Table(
        "Which views are augmented (Table 3 of the paper)",
        ("cifar10", "imagenet10"),
        (
            Row("T(x) and T(x)", "3", "CC", "Ta(x)+Tb(x)", "cc"),
            Row("T(x) and x", "3", "CC", "Ta(x)+x", "views-one"),
            Row("x and x", "3", "CC", "x+x", "views-none"),
        ),
    ),
    "heads": Table(
        "Which heads are trained (Table 4 of the paper; it has no numbers for the last two rows)",
        ("cifar10", "imagenet10"),
        (
            Row("both heads", "4", "CC", "ICH+CCH", "cc"),
            Row("instance head, k-means", "4", "CC", "ICH only (k-means on instance features)", "instance-only"),
            Row("cluster head", "4", "CC", "CCH only", "cluster-only"),
            Row("one shared head", "", "", "", "shared-head"),
            Row("no entropy term", "", "", "", "no-entropy"),
        ),
    ),
    "backbones": Table(
        "Which backbone is trained (Table 5 of the paper)",
        ("cifar10", "imagenet10"),
        (
            Row("small (ours, for 8×8 pixels)", "", "", "", "cc", "small"),
            Row("fast-s (ours, for small images)", "", "", "", "cc", "fast-s"),
            Row("fast-m (ours, for small images)", "", "", "", "cc", "fast-m"),
            Row("ResNet18", "5", "CC", "ResNet18", "resnet18", "resnet18"),
            Row("ResNet34", "5", "CC", "ResNet34", "cc", "resnet34"),
            Row("ResNet50", "5", "CC", "ResNet50", "resnet50", "resnet50"),
        ),
    ),
}

NEAR = 0.01
RULE = (
    f"Verdict, by a rule fixed beforehand: ours *agrees* where it differs from the reported number by at most {NEAR}, "
    "or by at most two standard errors of the difference, for which the paper's one number counts as one run with our "
    "spread. Otherwise it is *above* or *below*. With fewer than two seeds there are *not enough runs*; where the "
    "paper prints no number there is no verdict (–)."
)


class Cell(NamedTuple):
    """A row of a table on one data set: its label, what the paper prints (or nothing), and our runs, all by the recipe
    or all with the same departures from it, which the label names then."""

    dataset: str
    row: Row
    label: str
    printed: str
    runs: pd.DataFrame


def cells(name: str, runs: pd.DataFrame, metric: str = "acc") -> list[Cell]:
    """All cells of a table, in one metric: of the data sets that are not the paper's first, then of those that are;
    of each first the runs by the recipe, then those that depart from it."""
    spec, found = TABLES[name], []
    for dataset in sorted(DATASETS, key=spec.datasets.__contains__):
        own, title = runs[runs.dataset == dataset], DATASETS[dataset].title
        for group, row in itertools.product(sorted({"", *own.departs}), spec.rows):
            printed = _numbers().get((row.table, row.method, title, row.reported_variant, metric.upper()), "")
            part = own[(own.variant == row.variant) & (own.departs == group)]
            part = part[part.backbone == row.backbone] if row.backbone else part
            label = f"{row.label} ({group})" if group else row.label
            if len(part) or not group:
                found.append(Cell(dataset, row, label, printed, part))
    return found


@functools.cache
def _numbers() -> dict[tuple[str, ...], str]:
    """The paper's numbers by table, method, data set, variant and metric."""
    keys = reported()[["table", "method", "dataset", "variant", "metric"]].itertuples(index=False, name=None)
    return dict(zip(keys, reported().value, strict=True))


def table(name: str, runs: pd.DataFrame, metric: str = "acc") -> pd.DataFrame:
    """The rows of a table of the paper that we ran, in one metric, for its data sets and others: data set, method,
    reported, ours as mean ± sd (n), difference, verdict."""
    lines = []
    for cell in cells(name, runs, metric):
        values = cell.runs[metric].to_numpy(dtype=float)
        if len(values):
            ours = counted(values, _sampled(cell.runs, cell.dataset))
            line = (DATASETS[cell.dataset].title, cell.label, cell.printed or "–", ours)
            away = f"{values.mean() - float(cell.printed):+.3f}".replace("-", "−") if cell.printed else "–"
            lines.append((*line, away, verdict(float(cell.printed), values) if cell.printed else "–"))
    return pd.DataFrame(lines, columns=["data set", "method", "reported", "ours", "difference", "verdict"])


def missing(name: str, runs: pd.DataFrame) -> str:
    """What of a table the paper prints and nobody here has run, in one line; nothing where all was run, or none."""
    parts, printed = [], [cell for cell in cells(name, runs) if cell.printed]
    for dataset in dict.fromkeys(cell.dataset for cell in printed):
        own = [cell for cell in printed if cell.dataset == dataset]
        run = {cell.row.label for cell in own if len(cell.runs)}
        open_ = [cell.row.label for cell in own if cell.row.label not in run]
        if open_:
            parts.append(f"{DATASETS[dataset].title} ({', '.join(open_) if run else 'all'})")
    return f"Without a run here: {'; '.join(parts)}." if parts and any(len(cell.runs) for cell in printed) else ""


def counted(values: np.ndarray, note: str = "") -> str:
    """Mean ± sd with the number of seeds behind it: 0.972 ± 0.005 (3); – for none."""
    return f"{mean_sd(values)} ({len(values)}{note})" if len(values) else "–"


def _sampled(part: pd.DataFrame, dataset: str) -> str:
    """A remark where our runs saw a sample of the data set only."""
    images = set(part.n_images) - {DATASETS[dataset].images}
    return f"; {max(images):,} of {DATASETS[dataset].images:,} images" if images else ""


def verdict(printed: float, values: np.ndarray) -> str:
    """*agrees*, *above*, *below* or *not enough runs*, by `RULE`."""
    if len(values) < 2:
        return "not enough runs"
    difference = values.mean() - printed
    error = values.std(ddof=1) * math.sqrt(1 + 1 / len(values))
    if abs(difference) <= max(NEAR, 2 * error) + 1e-12:  # 0.01 itself is near, whatever its last bit
        return "agrees"
    return "above" if difference > 0 else "below"


def overview(runs: pd.DataFrame, metric: str = "acc") -> pd.DataFrame:
    """Table 2 as the paper lays it out: a row per method, all 18 of them, and below each that we ran its row by us."""
    paper, spec, runs = reported(), TABLES["main_results"], runs[runs.departs == ""]
    paper = paper[(paper.table == "2") & (paper.metric == metric.upper())]
    ours = {row.method: row for row in spec.rows}
    own = [d for d in DATASETS if d in set(runs.dataset) and d not in spec.datasets]
    titles = {dataset: DATASETS[dataset].title for dataset in (*spec.datasets, *own)}
    lines = []
    for method in dict.fromkeys(paper.method):
        printed = paper[paper.method == method].set_index("dataset")["value"]
        lines.append({"method": method} | {title: printed.get(title) or "–" for title in titles.values()})
        if method in ours:
            own = runs[runs.variant == ours[method].variant]
            parts = {title: mean_sd(own[own.dataset == dataset][metric]) for dataset, title in titles.items()}
            lines.append({"method": f"{method}, ours"} | parts)
    return pd.DataFrame(lines)


def heads_against_kmeans(records: list[Record]) -> pd.DataFrame:
    """The cluster head's assignments beside k-means on the instance head's output of the same network, trained and
    untrained: ACC as mean ± sd (n), by data set."""
    lines, groups = [], {}
    for r in records:
        groups.setdefault((r["dataset"], departs(r), r["variant"]), []).append(r)
    for (dataset, departing, variant), parts in sorted(groups.items(), key=lambda group: group[0][:2]):
        network = {"cc": "trained", "untrained": "untrained"}.get(variant)
        if network:
            note = _sampled(pd.DataFrame(parts), dataset)
            network += f" ({departing})" if departing else ""
            line = {"data set": DATASETS[dataset].title, "network": network}
            for name, key in (("cluster head", "scores"), ("k-means on features", "scores_kmeans_on_features")):
                line[f"ACC, {name}"] = counted(np.array([r[key]["acc"] for r in parts]), note)
            lines.append(line)
    return pd.DataFrame(lines)


def save_table(name: str, records: list[Record], preset: str, results_dir: str | Path = "results") -> str:
    """Write a table in every metric as Markdown and CSV under ``results/tables/<preset>/``; returns the Markdown."""
    folder, runs = storage.ROOT / results_dir / "tables" / preset, as_runs(records)
    frames = [table(name, runs, metric).assign(metric=metric.upper()) for metric in METRICS]
    storage.atomic_write(folder / f"{name}.csv", pd.concat(frames).to_csv(index=False))
    text = page(name, runs)
    storage.atomic_write(folder / f"{name}.md", text)
    return text


def page(name: str, runs: pd.DataFrame) -> str:
    """A table in every metric as Markdown, what is missing of it, and the rule of its verdicts."""
    parts = [*(formatted(name, runs, metric) for metric in METRICS), missing(name, runs), RULE]
    return "\n\n".join(filter(None, parts)) + "\n"


def formatted(name: str, runs: pd.DataFrame, metric: str = "acc", kind: str = "markdown") -> str:
    """A table in one metric, as "markdown", "latex" or "csv"."""
    frame, caption = table(name, runs, metric), f"{TABLES[name].caption}: {metric.upper()}"
    if kind == "latex":
        return frame.style.hide(axis="index").to_latex(hrules=True, caption=caption)
    return frame.to_csv(index=False) if kind == "csv" else f"**{caption}**\n\n{as_markdown(frame)}"


def printed(name: str, preset: str, kind: str, results_dir: str) -> str:
    """A table in ACC as `formatted` has it, or all of them where ``name`` is empty. Raises `ConfigError` for another
    name, and where there is no run."""
    if name and name not in TABLES:
        raise unknown("table", name, TABLES)
    runs = as_runs(load_records(preset, results_dir))
    return "\n\n".join(formatted(each, runs, kind=kind) for each in ([name] if name else TABLES)) + "\n"


def as_markdown(frame: pd.DataFrame) -> str:
    """A data frame of texts as a Markdown table, with every digit it came with."""
    return frame.to_markdown(index=False, disable_numparse=True) if len(frame) else "*No run yet.*"


def comparison(yours: list[Record], published: list[Record]) -> str:
    """Your ACC beside the published one and the paper's, a line for each data set and variant, as text."""
    lines, runs = [], as_runs(yours)
    printed = {(c.dataset, c.row.variant): c.printed for name in reversed(TABLES) for c in cells(name, runs)}
    of = {id(r): (r["dataset"], r["variant"], departs(r)) for r in (*yours, *published)}
    for key in dict.fromkeys(of[id(r)] for r in yours):
        line = {"data set": DATASETS[key[0]].title, "variant": f"{key[1]} ({key[2]})" if key[2] else key[1]}
        for name, records in (("yours", yours), ("published", published)):
            line[name] = counted(np.array([r["scores"]["acc"] for r in records if of[id(r)] == key]))
        lines.append(line | {"paper": printed.get(key[:2]) or "–"})
    return pd.DataFrame(lines).to_string(index=False)
