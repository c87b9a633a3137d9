"""One function per figure: data in, matplotlib `Figure` out. Nothing here computes a result."""

import functools
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ccrepro import files
from ccrepro.config import DATASETS
from ccrepro.results import TABLES

STYLE = {
    **sns.axes_style("whitegrid"),
    "figure.dpi": 110,
    "figure.facecolor": "white",  # figures keep a light ground, so they read on dark pages too
    "savefig.dpi": 160,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "svg.hashsalt": "ccrepro",  # the same figure gives the same file
}
Pictures = Any  # float (N, C, S, S), an array or a tensor
COLORS = sns.color_palette("colorblind")


def figure(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Give a plotting function the house style, keep pyplot from showing its figure a second time, and show
    *not run* where it is asked for an empty list of records."""

    @functools.wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> Figure:
        with plt.rc_context(STYLE):
            result = _not_run() if args[0] == [] else draw(*args, **kwargs)
            result.canvas.draw()  # lay out while the style holds
        plt.close(result)
        return result

    return styled


def _not_run() -> Figure:
    result, axis = plt.subplots(figsize=(3, 1))
    axis.text(0.5, 0.5, "not run", ha="center", va="center", transform=axis.transAxes)
    axis.set_axis_off()
    return result


def save(drawn: Figure, name: str, profile: str, results_dir: str | Path = "results") -> Figure:
    """Write a figure as PNG and SVG under ``results/figures/<profile>/``, and return it."""
    with plt.rc_context(STYLE):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            drawn.savefig(buffer, format=kind, metadata=metadata)
            files.atomic_write(files.ROOT / results_dir / "figures" / profile / f"{name}.{kind}", buffer.getvalue())
    return drawn


@figure
def view_pairs(title: str, images: Pictures, view_a: Pictures, view_b: Pictures, n: int = 10) -> Figure:
    """The first n images, each above its two views; all float (N, C, S, S) in [0, 1]."""
    result, axes = plt.subplots(3, n, figsize=(0.8 * n + 0.8, 2.8))
    for row, (name, pictures) in zip(axes, {"image": images, "view a": view_a, "view b": view_b}.items(), strict=True):
        for axis, picture in zip(row, np.asarray(pictures)[:n], strict=True):
            _picture(axis, picture)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    result.suptitle(title)
    return result


def _picture(axis: plt.Axes, picture: np.ndarray) -> None:
    """Show a float (C, S, S) picture without ticks."""
    axis.imshow(picture.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])


@figure
def samples(title: str, images: np.ndarray, labels: np.ndarray | None, names: Sequence[str], n: int = 8) -> Figure:
    """n pictures of each class (of at most 20), drawn at random; all uint8 (N, C, S, S), without labels one row."""
    labels = np.zeros(len(images), dtype=int) if labels is None else labels
    kinds = np.unique(labels)[:20]
    rng = np.random.default_rng(0)
    result, axes = plt.subplots(len(kinds), n, figsize=(0.7 * n + 1.6, 0.7 * len(kinds) + 0.5), squeeze=False)
    for row, kind in zip(axes, kinds, strict=True):
        for axis, number in zip(row, rng.permutation(np.flatnonzero(labels == kind))[:n], strict=False):
            _picture(axis, images[number] / 255)
        for axis in row:
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(names[kind] if names else "", rotation=0, ha="right", va="center")
    result.suptitle(title)
    return result


@figure
def losses(records: Sequence[dict[str, Any]]) -> Figure:
    """Loss, its two parts, and the entropy of the mean assignment by epoch, one line per run."""
    panels = {
        "loss": "total loss",
        "instance_loss": "instance loss",
        "cluster_loss": "cluster loss",
        "entropy": "entropy of the mean\nassignment (nats)",
    }
    result, axes = plt.subplots(1, len(panels), figsize=(11, 2.9), sharex=True)
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        for color, r in zip(COLORS, records, strict=False):
            if r["history"]:
                label = f"seed {r['seed']}" if axis is axes[0] else None
                axis.plot(r["history"]["epoch"], r["history"][name], color=color, label=label)
        axis.set(xlabel="epoch", title=title)
    if any(r["history"] for r in records):
        axes[-1].axhline(np.log(records[0]["config"]["n_clusters"]), color="0.5", ls="--", lw=1, label="log K")
        axes[0].legend(fontsize=8)
        axes[-1].legend(fontsize=8, loc="center right")
    else:
        axes[0].text(0.5, 0.5, "nothing was trained", transform=axes[0].transAxes, ha="center")
    return result


@figure
def confusion(records: Sequence[dict[str, Any]]) -> Figure:
    """Counts of images by class and matched cluster, of the first record."""
    record = records[0]
    counts, names = np.array(record["contingency"]), record["class_names"]
    side = 1.8 + 0.38 * min(len(names), 20)
    result, axis = plt.subplots(figsize=(side + 1, side))
    unmatched = [f"+{i + 1}" for i in range(counts.shape[1] - len(names))]
    shown = pd.DataFrame(counts, index=names, columns=[*names, *unmatched][: counts.shape[1]])
    few = len(names) <= 20
    sns.heatmap(shown, annot=few, fmt="d", cmap="Blues", ax=axis, cbar_kws={"label": "images"}, square=True,
                xticklabels=few, yticklabels=few)  # fmt: skip
    axis.set(xlabel="cluster, under the name of its matched class", ylabel="class")
    axis.set_title(f"{_run_title(record)}: ACC {record['scores']['acc']:.3f}")
    axis.tick_params(axis="y", rotation=0)
    return result


@figure
def feature_space(records: Sequence[dict[str, Any]]) -> Figure:
    """t-SNE of the instance head's output (pixels for a baseline), by class and by cluster, of the first record."""
    record = records[0]
    points, names = record["tsne"], record["class_names"]
    result, axes = plt.subplots(1, 2, figsize=(10, 4.6))
    for axis, by in zip(axes, ("label", "cluster"), strict=True):
        kinds = sorted(set(points[by]))
        palette = sns.color_palette("tab10" if len(kinds) <= 10 else "husl", len(kinds))
        sns.scatterplot(x=points["x"], y=points["y"], hue=points[by], palette=palette, s=9, lw=0, ax=axis, legend=False)
        for kind in kinds if len(kinds) <= 20 else ():
            rows = np.array(points[by]) == kind
            x, y = np.median(np.array(points["x"])[rows]), np.median(np.array(points["y"])[rows])
            text = names[kind] if by == "label" else str(kind)
            axis.text(x, y, text, ha="center", va="center", weight="bold", bbox={"fc": "w", "ec": "0.6", "pad": 1.5})
        axis.set(xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
        axis.set_title(f"coloured by {'class (not seen in training)' if by == 'label' else 'cluster'}")
    space = "pixels" if record["config"]["baseline"] else "output of the instance head"
    result.suptitle(f"{_run_title(record)}: {space}, {len(points['x'])} images")
    return result


@figure
def ablation(name: str, runs: pd.DataFrame) -> Figure:
    """ACC of each variant of a table's rows: a dot per seed, a bar for the mean; one panel per data set we ran."""
    rows = TABLES[name].rows
    labels = {row.variant: row.label for row in rows}
    shown = runs[runs.variant.isin(labels)]
    datasets = [d for d in DATASETS if d in set(shown.dataset)] or [""]
    result, axes = plt.subplots(1, len(datasets), figsize=(1.2 + 4.4 * len(datasets), 3.4), squeeze=False)
    for axis, dataset in zip(axes[0], datasets, strict=True):
        part = shown[shown.dataset == dataset].assign(method=lambda f: f.variant.map(labels))
        order = list(labels.values())
        if len(part):
            sns.barplot(part, x="method", y="acc", order=order, errorbar=None, color="0.85", width=0.6, ax=axis)
            sns.swarmplot(part, x="method", y="acc", order=order, hue="method", palette=COLORS[: len(order)],
                          hue_order=order, size=6, legend=False, ax=axis)  # fmt: skip
        title = DATASETS[dataset].title if dataset else "no run yet"
        axis.set(xlabel="", ylabel="ACC (a dot per seed, bar: mean)", ylim=(0, 1), title=title)
    return result


@figure
def bench(result: dict[str, Any]) -> Figure:
    """What `ccrepro.bench.run` measured: how many times as fast as the authors' way; how the losses and a step grow."""
    drawn, axes = plt.subplots(1, 3, figsize=(14, 4.6), width_ratios=(1.5, 1, 1))
    _ratios(axes[0], [row for name in ("augmentation", "losses", "scores", "step") for row in result.get(name, [])])
    for kind, color in (("instance", COLORS[0]), ("cluster", COLORS[1])):
        for way, style in (("authors", ":"), ("ours", "-")):
            pattern = rf"{kind} loss, N = (\d+), D" if kind == "instance" else rf"{kind} loss, N = 256, K = (\d+)"
            found = [(re.match(pattern, row["what"]), row["seconds"].get(way)) for row in result.get("losses", [])]
            points = [(int(match[1]), 1e3 * t["median"]) for match, t in found if match and t]
            label = f"{kind}, {way}: by {'N, D = 128' if kind == 'instance' else 'K, N = 256'}"
            axes[1].plot(*np.array(points).reshape(-1, 2).T, style, marker="o", ms=4, color=color, label=label)
    axes[1].set(xscale="log", yscale="log", xlabel="N or K", ylabel="ms, forward and backward", title="losses")
    rates = [r for r in result.get("rates", []) if (r["backbone"], r["stem"]) != ("small", "cifar")]
    for network in dict.fromkeys((r["backbone"], r["stem"]) for r in rates):
        points = sorted(
            (r["image_size"], 1e3 / r["images_per_second"]) for r in rates if (r["backbone"], r["stem"]) == network
        )
        axes[2].plot(*np.array(points).T, "-o", ms=4, label=", ".join(network) + " stem")
    axes[2].set(
        xscale="log",
        yscale="log",
        xlabel="side of a view, pixels",
        ylabel="ms per image (two views)",
        title="training step, ours",
    )
    for axis in axes[1:]:
        if axis.lines:
            axis.legend(fontsize=8)
    axes[2].set_xticks([32, 96, 224], ["32", "96", "224"], minor=False)
    axes[2].minorticks_off()
    drawn.suptitle(f"{result['hardware']['gpu'] or result['hardware']['cpu']}, torch {result['versions']['torch']}")
    return drawn


def _ratios(axis: plt.Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Speed as a multiple of the authors' way, one bar per measurement; the compiled views beside the plain ones."""
    bars = []
    for row in (row for row in rows if "authors" in row["seconds"]):
        for way in (way for way in ("ours", "compiled") if way in row["seconds"]):
            bars.append((row["what"], row["seconds"]["authors"]["median"] / row["seconds"][way]["median"], way))
    for place, (_, ratio, way) in enumerate(bars):
        axis.barh(place, ratio, color=COLORS[0] if way == "ours" else COLORS[2])
        axis.text(ratio, place, f" {ratio:.3g}", va="center", fontsize=8)
    names = [what + (", compiled" if way == "compiled" else "") for what, _, way in bars]
    axis.set_yticks(range(len(bars)), names, fontsize=7)
    axis.axvline(1, color="0.3", lw=1)
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel="times as fast as the authors' way", title="ours against the authors' way")
    axis.margins(x=0.15)


def _run_title(record: dict[str, Any]) -> str:
    return f"{DATASETS[record['dataset']].title}, {record['variant']}, seed {record['seed']}"
