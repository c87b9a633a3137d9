"""The paper's tables: the reported numbers, ours, the difference, and a verdict by a rule fixed beforehand."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from ccrepro.data.registry import DATASETS
from ccrepro.errors import unknown
from ccrepro.metrics import mean_sd
from ccrepro.recipes import departures
from ccrepro.reproduce.records import METRICS, Record, as_runs, load_records, printed
from ccrepro.runtime import storage

Format = Literal["markdown", "latex", "csv"]


class Row(NamedTuple):
    """A row: label, our variant, the paper's name for it ("" where the paper has none), and the backbone that its runs
    must have ("" for any)."""

    label: str
    variant: str
    printed: str = ""
    backbone: str = ""


class Table(NamedTuple):
    """A table of the paper: number, caption, rows."""

    number: str
    caption: str
    rows: tuple[Row, ...]


TABLES = {
    "main_results": Table("2", "Clustering quality (Table 2 of the paper)", (
        Row("k-means on pixels", "kmeans-pixels", "K-means"),
        Row("spectral on pixels", "spectral-pixels", "SC"),
        Row("agglomerative on pixels", "agglomerative-pixels", "AC"),
        Row("NMF and k-means on pixels", "nmf-pixels", "NMF"),
        Row("CC", "cc", "CC"),
    )),
    "augmentation": Table("3", "Which views are augmented (Table 3 of the paper)", (
        Row("T(x) and T(x)", "cc", "Ta(x)+Tb(x)"),
        Row("T(x) and x", "views-one", "Ta(x)+x"),
        Row("x and x", "views-none", "x+x"),
    )),
    "heads": Table("4", "Which heads are trained (Table 4 of the paper; it has no numbers for the last two rows)", (
        Row("both heads", "cc", "ICH+CCH"),
        Row("instance head, k-means", "instance-only", "ICH only (k-means on instance features)"),
        Row("cluster head", "cluster-only", "CCH only"),
        Row("one shared head", "shared-head"),
        Row("no entropy term", "no-entropy"),
    )),
    "backbones": Table("5", "Which backbone is trained (Table 5 of the paper)", (
        Row("small (ours, for 8×8 pixels)", "cc", backbone="small"),
        Row("fast-s (ours, for small images)", "cc", backbone="fast-s"),
        Row("fast-m (ours, for small images)", "cc", backbone="fast-m"),
        Row("fast-m (ours, for small images)", "fast-m"),
        Row("ResNet18", "resnet18", "ResNet18", "resnet18"),
        Row("ResNet34", "cc", "ResNet34", "resnet34"),
        Row("ResNet50", "resnet50", "ResNet50", "resnet50"),
    )),
}  # fmt: skip

NEAR = 0.01
RULE = (
    f"Verdict, by a rule fixed beforehand: ours *agrees* where it differs from the reported number by at most {NEAR}, "
    "or by at most two standard errors of the difference, for which the paper's one number counts as one run with our "
    "spread. Otherwise it is *above* or *below*. With fewer than two seeds there are *not enough runs*; where the "
    "paper prints no number there is no verdict (–)."
)
KIND = ["dataset", "departs", "variant"]  # what runs have in common that differ in the seed alone


def row_label(variant: str) -> str:
    """What the first table with a row for a variant calls it. Any other text stays as it is."""
    rows = (row for table in TABLES.values() for row in table.rows)
    return next((row.label for row in rows if row.variant == variant), variant)


def cells(name: str, runs: pd.DataFrame, metric: str = "acc") -> pd.DataFrame:
    """The runs that a table shows, with the ``label`` of their row, which names departures from the recipe, and the
    number that the paper has there (``printed``, "" for none). The paper's data sets come last.

    In Table 2 a method has the runs by its recipe, and others only where there are none. The ablations show kinds of
    runs in which something was ablated, and so leave out full trainings of other lengths.
    """
    paper, parts = printed(TABLES[name].number, metric), [runs[:0].assign(label="", printed="")]
    for dataset in sorted(DATASETS, key=lambda dataset: DATASETS[dataset].title in paper):
        numbers, own = paper.get(DATASETS[dataset].title, {}), runs[runs.dataset == dataset]
        for departs, group in (_by_recipe(own) if name == "main_results" else own).groupby("departs"):
            ablated = set(group.variant) & {row.variant for row in TABLES[name].rows} - {"cc"}
            for row in TABLES[name].rows:
                if ablated or name == "main_results":
                    label, number = _named(row.label, departs), numbers.get(row.printed, "")
                    parts.append(_of_row(row, group).assign(label=label, printed=number))
    return pd.concat([part for part in parts if len(part)] or parts)


def _by_recipe(runs: pd.DataFrame) -> pd.DataFrame:
    """Without the runs that depart from a recipe which others, of the same data set and variant, follow."""
    follows = runs.departs == ""
    return runs[follows | ~follows.groupby([runs.dataset, runs.variant]).transform("any").astype(bool)]


def _named(name: str, departs: str) -> str:
    return f"{name} ({departs})" if departs else name


def _of_row(row: Row, runs: pd.DataFrame) -> pd.DataFrame:
    own = runs[runs.variant == row.variant]
    return own[own.backbone == row.backbone] if row.backbone else own


def table(name: str, runs: pd.DataFrame, metric: str = "acc") -> pd.DataFrame:
    """The rows of a table of the paper that we ran, in one metric, for its data sets and others: data set, method,
    reported, ours as mean ± sd (n), difference, verdict."""
    lines = []
    groups = cells(name, runs, metric).groupby(["dataset", "label", "printed"], sort=False)
    for (dataset, label, number), part in groups:
        values, compared = part[metric].to_numpy(dtype=float), ("–", "–")
        if number:
            difference = f"{values.mean() - float(number):+.3f}".replace("-", "−")
            compared = (difference, verdict(float(number), values))
        lines.append((DATASETS[dataset].title, label, number or "–", counted(values, _sampled(part)), *compared))
    return pd.DataFrame(lines, columns=["data set", "method", "reported", "ours", "difference", "verdict"])


def missing(name: str, runs: pd.DataFrame) -> str:
    """One line that names what the paper prints and nobody here has run; "" where all of it was run, or none."""
    spec, parts = TABLES[name], []
    rows, titles = [row for row in spec.rows if row.printed], printed(spec.number, "acc").columns
    for dataset in (dataset for dataset in DATASETS if DATASETS[dataset].title in titles):
        open_ = [row.label for row in rows if _of_row(row, runs[runs.dataset == dataset]).empty]
        if open_:
            parts.append(f"{DATASETS[dataset].title} ({'all' if len(open_) == len(rows) else ', '.join(open_)})")
    some = parts and sum(part.endswith("(all)") for part in parts) < len(titles)
    return f"Without a run here: {'; '.join(parts)}." if some else ""


def counted(values: Sequence[float], note: str = "") -> str:
    """Mean ± sd and the number of seeds: 0.972 ± 0.005 (3); – without a value."""
    return f"{mean_sd(values)} ({len(values)}{note})" if len(values) else "–"


def _sampled(runs: pd.DataFrame) -> str:
    """A remark where runs of one data set used only a sample of it."""
    total = DATASETS[runs.dataset.iloc[0]].images
    used = set(runs.n_images) - {total}
    return f"; {max(used):,} of {total:,} images" if used else ""


def verdict(printed: float, values: np.ndarray) -> str:
    """*agrees*, *above*, *below* or *not enough runs*, by `RULE`."""
    if len(values) < 2:
        return "not enough runs"
    difference = values.mean() - printed
    error = values.std(ddof=1) * math.sqrt(1 + 1 / len(values))
    if abs(difference) <= max(NEAR, 2 * error) + 1e-12:  # 1e-12: exactly 0.01 is near
        return "agrees"
    return "above" if difference > 0 else "below"


def overview(runs: pd.DataFrame, metric: str = "acc") -> pd.DataFrame:
    """Table 2 as the paper lays it out: a row for each of its 18 methods, and a row of ours below each that we have."""
    paper, runs = printed("2", metric), runs[runs.departs == ""]
    titles = {dataset: facts.title for dataset, facts in DATASETS.items()}
    names = {row.variant: f"{row.printed}, ours" for row in TABLES["main_results"].rows}
    ours = runs.groupby(["variant", "dataset"])[metric].agg(mean_sd).unstack().rename(names).rename(columns=titles)
    order = [name for method in paper.index for name in (method, f"{method}, ours")]
    index = [name for name in order if name in paper.index or name in names.values()]
    columns = sorted({*paper, *ours}, key=lambda title: (title not in paper, [*titles.values()].index(title)))
    lines = pd.concat([paper, ours]).reindex(index=index, columns=columns)
    return lines.replace("", "–").fillna("–").rename_axis("method").reset_index()


def heads_against_kmeans(records: list[Record]) -> pd.DataFrame:
    """ACC of the cluster head beside k-means on the instance head's output of the same network: mean ± sd (n). Runs
    that depart from the recipe are shown where none follows it."""
    runs, lines = _by_recipe(as_runs(records)), []
    networks = {"cc": "trained", "untrained": "untrained"}
    for (dataset, departs, variant), part in runs[runs.variant.isin(networks)].groupby(KIND):
        accs = (counted(part[column], _sampled(part)) for column in ("acc", "kmeans_acc"))
        lines.append((DATASETS[dataset].title, _named(networks[variant], departs), *accs))
    return pd.DataFrame(lines, columns=["data set", "network", "ACC, cluster head", "ACC, k-means on features"])


def cost(runs: pd.DataFrame) -> pd.DataFrame:
    """What an hour buys: one row for each network and length of training of the full method, shortest first. Columns
    dataset, backbone, epochs, hours (median, of one core or one GPU), acc (mean) and ours (mean ± sd (n))."""
    plain = runs.departs.isin(["", *(f"{epochs}ep" for epochs in runs.epochs.unique())])
    own = runs[plain & runs.variant.isin(["cc", *(row.variant for row in TABLES["backbones"].rows)])]
    groups = own.groupby(["dataset", "backbone", "epochs"])
    result = groups.agg(hours=("hours", "median"), acc=("acc", "mean"), ours=("acc", counted)).reset_index()
    return result.sort_values(["dataset", "hours"], ignore_index=True)


def on_unseen(records: list[Record]) -> pd.DataFrame:
    """ACC on images that a run left out, assigned one by one, beside ACC on those it was trained on: mean ± sd (n)."""
    groups: dict[str, list[tuple[Record, dict[str, float]]]] = {}
    for r in records:
        if found := r.get("streaming", {}).get("unseen"):
            groups.setdefault(_named(DATASETS[r["dataset"]].title, departures(r["overrides"])), []).append((r, found))
    lines = []
    for name, group in groups.items():
        trained, parts = group[0][0]["n_images"], [found for _, found in group]
        seen, unseen = (counted(np.array([part[key] for part in parts])) for key in ("acc_seen", "acc"))
        rate = np.median([part["images_per_second"] for part in parts])
        lines.append((name, f"{trained:,}", seen, f"{parts[0]['n_images']:,}", unseen, f"{rate:,.0f}"))
    columns = ["data set", "images seen", "ACC", "never seen", "ACC, never seen", "of these, images per second"]
    return pd.DataFrame(lines, columns=columns)


def save_table(name: str, records: list[Record], preset: str, results_dir: str | Path = "") -> str:
    """Write a table in every metric as Markdown and CSV below ``tables/<preset>/`` in a folder of results,
    ``results/local/`` unless another is given; returns the Markdown."""
    folder, runs = storage.place(results_dir, "results/local") / "tables" / preset, as_runs(records)
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
    """A table in one metric; kind: "markdown", "latex" or "csv"."""
    frame, caption = table(name, runs, metric), f"{TABLES[name].caption}: {metric.upper()}"
    if kind == "latex":
        return frame.style.hide(axis="index").to_latex(hrules=True, caption=caption)
    return frame.to_csv(index=False) if kind == "csv" else f"**{caption}**\n\n{as_markdown(frame)}"


def show(name: str = "", /, *, preset: str = "demo", format: Format = "markdown", results_dir: str = "") -> None:
    """Print a table of the paper: reported numbers beside ours.

    Args:
        name: Name of the table; else all of them.
        preset: Whose runs: demo, laptop, fast or paper.
        format: How to write it.
        results_dir: Folder of results; else results/. results/local has what you have run.
    """
    if name and name not in TABLES:
        raise unknown("table", name, TABLES)
    runs = as_runs(load_records(preset, results_dir))
    for each in [name] if name else TABLES:
        print(formatted(each, runs, kind=format), end="\n\n")


def as_markdown(frame: pd.DataFrame) -> str:
    """A data frame of texts as a Markdown table, with all digits."""
    return frame.to_markdown(index=False, disable_numparse=True) if len(frame) else "*No run yet.*"


def comparison(yours: list[Record], published: list[Record]) -> str:
    """Your ACC beside the published one and the paper's, one line per data set and variant, as text."""
    runs, lines, paper = as_runs(yours), [], {}
    for spec in reversed(TABLES.values()):
        numbers = printed(spec.number, "acc")
        for row, (dataset, facts) in itertools.product(spec.rows, DATASETS.items()):
            if number := numbers.get(facts.title, {}).get(row.printed):
                paper[dataset, row.variant] = number
    own, others = (frame.groupby(KIND, sort=False).acc.agg(counted) for frame in (runs, as_runs(published)))
    for (dataset, departs, variant), acc in own.items():
        name, number = _named(variant, departs), paper.get((dataset, variant)) or "–"
        lines.append((DATASETS[dataset].title, name, acc, others.get((dataset, departs, variant), "–"), number))
    frame = pd.DataFrame(lines, columns=["data set", "variant", "yours", "published", "paper"])
    return frame.to_markdown(index=False, tablefmt="simple", disable_numparse=True)
