"""The paper's tables: what it reports, what we measured, the difference, and a verdict by a rule fixed beforehand."""

import functools
import itertools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ccrepro import files
from ccrepro.config import DATASETS, RECIPES
from ccrepro.files import atomic_write
from ccrepro.results import METRICS, Record, differences, machine, mean_sd, reported


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


def table(name: str, runs: pd.DataFrame, metric: str = "acc", only_run: bool = False) -> pd.DataFrame:
    """A table of the paper in one metric, for its data sets and those we ran: data set, method, reported, ours as
    mean ± sd (n) or *not run*, difference, verdict. ``only_run`` leaves out the rows that nobody ran."""
    spec = TABLES[name]
    lines = []
    for dataset in datasets_of(name, runs):
        for row in spec.rows:
            printed, part = _printed(row, dataset, metric), _select(runs, dataset, row)
            expected = not only_run and (printed or (dataset not in spec.datasets and not row.backbone))
            if len(part) or expected:
                line = {"data set": DATASETS[dataset].title, "method": row.label, "reported": printed or "–"}
                lines.append(line | _ours(printed, part, dataset, metric))
    return pd.DataFrame(lines, columns=["data set", "method", "reported", "ours", "difference", "verdict"])


def datasets_of(name: str, runs: pd.DataFrame) -> list[str]:
    """The data sets of a table: others that one of its rows was run on, then the paper's."""
    spec = TABLES[name]
    run_on = {dataset for row in spec.rows for dataset in _of_row(runs, row).dataset}
    return [*(d for d in DATASETS if d in run_on and d not in spec.datasets), *spec.datasets]


def table_rows(name: str, runs: pd.DataFrame, dataset: str, metric: str = "acc") -> pd.DataFrame:
    """The rows of a table for one data set, as numbers: method, reported (nan where nothing is), list of ours."""
    lines = []
    for row in TABLES[name].rows:
        printed, part = _printed(row, dataset, metric) if dataset else "", _select(runs, dataset, row)
        if len(part) or printed or not row.backbone:
            values = part[metric].tolist()
            lines.append({"method": row.label, "reported": float(printed or "nan"), "values": values})
    return pd.DataFrame(lines, columns=["method", "reported", "values"])


def _printed(row: Row, dataset: str, metric: str) -> str:
    """The paper's number as it stands there, or nothing."""
    return _numbers().get((row.table, row.method, DATASETS[dataset].title, row.reported_variant, metric.upper()), "")


@functools.cache
def _numbers() -> dict[tuple[str, ...], str]:
    """The paper's numbers by table, method, data set, variant and metric."""
    keys = reported()[["table", "method", "dataset", "variant", "metric"]].itertuples(index=False, name=None)
    return dict(zip(keys, reported().value, strict=True))


def _select(runs: pd.DataFrame, dataset: str, row: Row) -> pd.DataFrame:
    return _of_row(runs[runs.dataset == dataset], row)


def _of_row(runs: pd.DataFrame, row: Row) -> pd.DataFrame:
    part = runs[runs.variant == row.variant]
    return part[part.backbone == row.backbone] if row.backbone else part


def _ours(printed: str, part: pd.DataFrame, dataset: str, metric: str) -> dict[str, str]:
    values = part[metric].to_numpy(dtype=float)
    compared = printed and len(values)
    return {
        "ours": counted(values, _sampled(part, dataset)),
        "difference": f"{values.mean() - float(printed):+.3f}".replace("-", "−") if compared else "–",
        "verdict": verdict(float(printed), values) if compared else "–" if len(values) or not printed else "not run",
    }


def counted(values: np.ndarray, note: str = "") -> str:
    """Mean ± sd with the number of seeds behind it: 0.972 ± 0.005 (3)."""
    return f"{mean_sd(values)} ({len(values)}{note})" if len(values) else "not run"


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
    paper, spec = reported(), TABLES["main_results"]
    paper = paper[(paper.table == "2") & (paper.metric == metric.upper())]
    ours = {row.method: row for row in spec.rows}
    own = [d for d in DATASETS if d in set(runs.dataset) and d not in spec.datasets]
    titles = {dataset: DATASETS[dataset].title for dataset in (*spec.datasets, *own)}
    lines = []
    for method in dict.fromkeys(paper.method):
        printed = paper[paper.method == method].set_index("dataset")["value"]
        lines.append({"method": method} | {title: printed.get(title) or "–" for title in titles.values()})
        if method in ours:
            parts = {title: _select(runs, dataset, ours[method])[metric] for dataset, title in titles.items()}
            lines.append({"method": f"{method}, ours"} | {title: mean_sd(part) for title, part in parts.items()})
    return pd.DataFrame(lines)


def heads_against_kmeans(records: list[Record]) -> pd.DataFrame:
    """The cluster head's assignments beside k-means on the instance head's output of the same network, trained and
    untrained: ACC as mean ± sd (n), by data set."""
    lines = []
    for dataset in dict.fromkeys(r["dataset"] for r in records):
        for variant, network in (("cc", "trained"), ("short", "small, trained briefly"), ("untrained", "untrained")):
            parts = [r for r in records if (r["dataset"], r["variant"]) == (dataset, variant)]
            note = _sampled(pd.DataFrame(parts), dataset) if parts else ""
            line = {"data set": DATASETS[dataset].title, "network": network}
            for name, key in (("cluster head", "scores"), ("k-means on features", "scores_kmeans_on_features")):
                line[f"ACC, {name}"] = counted(np.array([r[key]["acc"] for r in parts]), note)
            lines += [line] if parts else []
    return pd.DataFrame(lines)


def evolution(records: list[Record]) -> pd.DataFrame:
    """NMI on the way (Fig. 4): the paper's on ImageNet-10, and ours on one data set after equal shares of training."""
    paper = reported()
    fig4 = paper[paper.table == "fig4"]
    printed = dict(zip(fig4.variant.str.removeprefix("epoch ").astype(int) / 1000, fig4.value, strict=True))
    found: dict[int, list[Record]] = {}
    for at in (at for r in records for at in r.get("evolution", ()) if "x" in at):
        found.setdefault(at["epoch"], []).append(at)
    lines = []
    for epoch, parts in found.items():
        share = epoch / max(found)
        line = {
            "share of all epochs": f"{share:.0%}",
            "epoch, paper": f"{1000 * share:.0f}" if share in printed else "–",
        }
        line |= {"NMI reported (ImageNet-10)": printed.get(share, "–"), "epoch, ours": str(epoch)}
        nmi, used = ([at["scores"]["nmi"] for at in parts], [at["n_clusters_used"] for at in parts])
        lines.append(line | {"NMI ours": counted(np.array(nmi)), "clusters in use": f"{np.mean(used):.1f}"})
    return pd.DataFrame(lines)


def tried(records: list[Record]) -> pd.DataFrame:
    """Runs with other settings than their recipe's, by data set, variant and settings: what differs, our scores as
    mean ± sd (n), what the paper prints for that variant, and the minutes of which machine one run took."""
    lines = []
    for key, own in itertools.groupby(records, key=lambda r: (r["dataset"], r["variant"], differences(r))):
        parts = list(own)
        line = {"data set": DATASETS[key[0]].title, "variant": key[1], "differs (recipe)": key[2]}
        for metric in ("acc", "nmi", "ari"):
            printed = _paper_number(key[0], key[1], metric)
            values = counted(np.array([r["scores"][metric] for r in parts]))
            line[metric.upper()] = f"{values}; reported {printed}" if printed else values
        minutes = (
            np.mean([sum(p["seconds"] for p in r["pieces"]) if "pieces" in r else r["seconds"] for r in parts]) / 60
        )
        machines = ", ".join(sorted({machine(r) for r in parts}))
        lines.append(line | {"minutes of a run": f"{minutes:.1f}, {machines}"})
    return pd.DataFrame(lines)


def _paper_number(dataset: str, variant: str, metric: str) -> str:
    """What the paper prints for a variant, wherever it does first; else nothing."""
    rows = [row for spec in TABLES.values() for row in spec.rows if row.variant == variant]
    return next((printed for row in rows if (printed := _printed(row, dataset, metric))), "")


def online(records: list[Record]) -> pd.DataFrame:
    """What `ccrepro.online` measured of assigning a stream, by how many images arrive at once; means over seeds."""
    lines = []
    for parts in zip(*(pd.DataFrame(r["online"]["assign"]).itertuples() for r in records), strict=True):
        median = np.median([p.milliseconds for p in parts])
        rate = np.median([p.images_per_second for p in parts])
        lines.append(
            {
                "images at once": str(parts[0].batch_size),
                "same cluster as offline": f"{np.mean([p.same for p in parts]):.2%}",
                "milliseconds, median": f"{median:.1f}",
                "images per second": f"{rate:,.0f}",
                "seeds": str(len(parts)),
            }
        )
    return pd.DataFrame(lines)


def refits(records: list[Record]) -> pd.DataFrame:
    """What refitting k-means along a stream costs and changes (`ccrepro.online.follow`); means over seeds."""
    lines = []
    for parts in zip(*(pd.DataFrame(r["online"]["stream"]).itertuples() for r in records), strict=True):
        lines.append(
            {
                "images so far": f"{parts[0].images:,}",
                "seconds of the refit, median": f"{np.median([p.seconds_kmeans for p in parts]):.2f}",
                "earlier images moved": f"{np.mean([p.changed for p in parts]):.2%}",
                "NMI, cluster head": counted(np.array([p.nmi for p in parts])),
                "NMI, k-means refitted": counted(np.array([p.nmi_kmeans for p in parts])),
            }
        )
    return pd.DataFrame(lines)


def save_table(name: str, runs: pd.DataFrame, profile: str, results_dir: str | Path = "results") -> str:
    """Write the table in every metric as Markdown, CSV and LaTeX under ``results/tables/<profile>/``; returns the
    Markdown."""
    folder = files.ROOT / results_dir / "tables" / profile
    frames = {metric: table(name, runs, metric) for metric in METRICS}
    long = pd.concat([frame.assign(metric=metric.upper()) for metric, frame in frames.items()])
    atomic_write(folder / f"{name}.csv", long.to_csv(index=False))
    atomic_write(folder / f"{name}.tex", "\n".join(_latex(name, metric, frame) for metric, frame in frames.items()))
    text = with_rule(name, runs)
    atomic_write(folder / f"{name}.md", text)
    return text


def with_rule(name: str, runs: pd.DataFrame) -> str:
    """The table in every metric as Markdown, and the rule of its verdicts."""
    return "\n".join([*(markdown(name, runs, metric) for metric in METRICS), RULE + "\n"])


def _latex(name: str, metric: str, frame: pd.DataFrame) -> str:
    caption = f"{TABLES[name].caption}: {metric.upper()}"
    text = frame.style.hide(axis="index").to_latex(hrules=True, caption=caption)
    for sign, command in {"±": r"$\pm$", "–": "--", "−": "$-$", "×": r"$\times$"}.items():
        text = text.replace(sign, command)
    return text


def markdown(name: str, runs: pd.DataFrame, metric: str = "acc", only_run: bool = False) -> str:
    """Caption and table in one metric, as Markdown."""
    return f"**{TABLES[name].caption}: {metric.upper()}**\n\n{as_markdown(table(name, runs, metric, only_run))}\n"


def as_markdown(frame: pd.DataFrame) -> str:
    """A data frame of texts as a Markdown table, with every digit it came with."""
    return frame.to_markdown(index=False, disable_numparse=True) if len(frame) else "*No run yet.*"
