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
from ccrepro.results import reported
from ccrepro.tables import datasets_of, table_rows

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
            result = _text("not run") if args[0] == [] else draw(*args, **kwargs)
            result.canvas.draw()  # lay out while the style holds
        plt.close(result)
        return result

    return styled


def _text(text: str) -> Figure:
    result, axis = plt.subplots(figsize=(3, 1))
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)
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
    """ACC of each row of a table: a dot per seed, a bar for the mean, a diamond for the paper's number; one panel per
    data set we ran."""
    datasets = [d for d in datasets_of(name, runs) if d in set(runs.dataset)] or [""]
    frames = [table_rows(name, runs, dataset) for dataset in datasets]
    high = max(len(frame) for frame in frames)
    size = (2.2 + 4.0 * len(datasets), 1.1 + 0.38 * high)
    result, axes = plt.subplots(1, len(datasets), figsize=size, squeeze=False)
    for axis, dataset, frame in zip(axes[0], datasets, frames, strict=True):
        for y, row in enumerate(frame.itertuples()):
            if row.values:
                axis.barh(y, np.mean(row.values), color="0.87", height=0.7)
            else:
                x, side = (0.99, "right") if row.reported < 0.3 else (0.01, "left")  # clear of the diamond
                axis.text(x, y, "not run", ha=side, va="center", color="0.45", fontsize=9)
            axis.plot(row.values, [y] * len(row.values), "o", color=COLORS[0], ms=5, label="ours, a dot per seed")
            axis.plot(row.reported, y, "D", color=COLORS[1], ms=6, mfc="none", mew=1.5, label="reported by the paper")
        axis.set(yticks=range(len(frame)), yticklabels=frame.method, ylim=(len(frame) - 0.5, -0.5), xlim=(0, 1))
        axis.set(xlabel="ACC (bar: mean)", title=DATASETS[dataset].title if dataset else "no run yet")
        axis.grid(axis="y", visible=False)
    _legend_once(result)
    return result


def _legend_once(drawn: Figure) -> None:
    """One legend below all panels, with each label once, and none of what is not there."""
    lines = [line for axis in drawn.axes for line in axis.lines if np.isfinite(line.get_xdata()).any()]
    if lines:
        labels, handles = zip(*sorted({line.get_label(): line for line in lines}.items()), strict=True)
        drawn.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)


PAIRS = {"positive": "positive pairs", "negative": "negative pairs"}


@figure
def cosines(records: Sequence[dict[str, Any]]) -> Figure:
    """Fig. 3: mean cosine of positive and negative pairs for both heads by epoch. Above ours, a line per seed and a
    band of ± the standard deviation of the pairs; below the paper's, read off its plot."""
    result, axes = plt.subplots(2, 2, figsize=(9, 5.6), sharey=True)
    paper = reported()
    paper = paper[paper.table == "fig3"]
    for column, head in enumerate(("instance", "cluster")):
        for color, (kind, label) in zip(COLORS, PAIRS.items(), strict=False):
            for r in records:
                axes[0, column].plot(
                    r["history"]["epoch"], r["history"][f"{head}_{kind}"], color=color, lw=1, label=label
                )
            mean, sd = (
                np.mean([r["history"][f"{head}_{kind}{part}"] for r in records], axis=0) for part in ("", "_sd")
            )
            band = (np.maximum(mean - sd, -1), np.minimum(mean + sd, 1))
            axes[0, column].fill_between(records[0]["history"]["epoch"], *band, color=color, alpha=0.2, lw=0)
            points = paper[paper.variant.str.startswith(f"{kind} {head} pairs")]
            epochs = points.variant.str.extract(r"epoch (\d+)")[0].astype(int)
            axes[1, column].plot(epochs, points.value.astype(float), "o-", color=color, ms=4, lw=1, label=label)
        ours = f"{head} head: {DATASETS[records[0]['dataset']].title}, {len(records)} seed{'s' * (len(records) > 1)}"
        for axis, title in zip(axes[:, column], (ours, f"{head} head: ImageNet-10, the paper"), strict=True):
            axis.set(xlabel="epoch", ylabel="cosine of a pair", title=title, ylim=(-0.4, 1.05))
    handles, labels = axes[1, 1].get_legend_handles_labels()
    axes[1, 1].legend(handles, labels, fontsize=9, loc="upper right")
    return result


@figure
def evolution(records: Sequence[dict[str, Any]]) -> Figure:
    """Fig. 4: the same images at several epochs, all in one t-SNE embedding, coloured by their cluster at the time;
    of the first record."""
    record = records[0]
    shown = [at for at in record["evolution"] if "x" in at]
    columns = min(3, len(shown))
    size = (3.3 * columns, 3.4 * -(-len(shown) // columns))
    result, axes = plt.subplots(
        -(-len(shown) // columns), columns, figsize=size, squeeze=False, sharex=True, sharey=True
    )
    palette = sns.color_palette(
        "tab10" if record["config"]["n_clusters"] <= 10 else "husl", record["config"]["n_clusters"]
    )
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis, at in zip(axes.flat, shown, strict=False):
        axis.scatter(at["x"], at["y"], c=[palette[k] for k in at["cluster"]], s=7, lw=0)
        axis.set(xticks=[], yticks=[], title=f"epoch {at['epoch']}: NMI {at['scores']['nmi']:.3f}")
        axis.set(xlabel="t-SNE 1", ylabel="t-SNE 2")
    result.suptitle(f"{_run_title(record)}: output of the instance head, coloured by cluster")
    return result


@figure
def scores_by_epoch(records: Sequence[dict[str, Any]]) -> Figure:
    """NMI, ACC and ARI over the epochs, a line per seed, and the number of clusters in use."""
    result, axes = plt.subplots(1, 4, figsize=(11, 2.9), sharex=True)
    for color, r in zip(COLORS, records, strict=False):
        epochs = [at["epoch"] for at in r["evolution"]]
        for axis, name in zip(axes, ("nmi", "acc", "ari"), strict=False):
            axis.plot(epochs, [at["scores"][name] for at in r["evolution"]], color=color, label=f"seed {r['seed']}")
            axis.set(xlabel="epoch", title=name.upper(), ylim=(-0.02, 1.02))
        axes[3].plot(epochs, [at["n_clusters_used"] for at in r["evolution"]], color=color)
    axes[3].set(xlabel="epoch", title="clusters in use", ylim=(0, None))
    axes[0].legend(fontsize=8)
    return result


@figure
def cases(records: Sequence[dict[str, Any]], kind: str, images: np.ndarray | None) -> Figure:
    """The images of one kind among the first record's cases; uint8 (N, C, S, S), all of the data set, or of its
    sample; None where it is not at hand."""
    if images is None:
        return _text("the data set is not at hand")
    shown, names = pd.DataFrame(records[0]["cases"]), records[0]["class_names"]
    shown = shown[shown.kind == kind]
    columns = min(10, max(1, len(shown)))
    lines = max(1, -(-len(shown) // columns))
    result, axes = plt.subplots(lines, columns, figsize=(1.15 * columns, 1.62 * lines), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, case in zip(axes.flat, shown.itertuples(), strict=False):
        axis.imshow(images[case.image].transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=255)
        axis.set_title(f"class {names[case.label]}\ncluster {case.cluster}\n{case.confidence:.3f}", fontsize=8)
    return result


@figure
def online(records: Sequence[dict[str, Any]]) -> Figure:
    """A stream: time to an assignment, NMI along the stream beside refitted k-means, and training on batches seen
    once; a line per seed. Takes records that hold ``online``."""
    result, axes = plt.subplots(1, 3, figsize=(11, 3.5))
    for number, r in enumerate(records):
        assign, stream, once = (r["online"][name] for name in ("assign", "stream", "once"))
        first = number == 0
        axes[0].plot(
            assign["batch_size"], assign["milliseconds"], "o-", color=COLORS[number], label=f"seed {r['seed']}"
        )
        for color, name, label in ((0, "nmi", "cluster head"), (1, "nmi_kmeans", "k-means, refitted")):
            axes[1].plot(stream["images"], stream[name], color=COLORS[color], label=label if first else None)
        for color, (steps, curve) in zip((2, 4), once.items(), strict=False):
            label = f"{steps} step{'s' if steps != '1' else ''} on each batch" if first else None
            axes[2].plot(curve["images"], curve["nmi"], color=COLORS[color], label=label)
        label = "all epochs" if first else None
        axes[2].axhline(r["scores"]["nmi"], color="0.5", ls="--", lw=1, label=label)
    axes[0].set(xlabel="images that arrive at once", ylabel="milliseconds to all their clusters (median)")
    axes[0].set(title="assignment", xscale="log", yscale="log")
    axes[1].set(xlabel="images so far", ylabel="NMI of these", title="along the stream", ylim=(0.5, 1.01))
    axes[2].set(
        xlabel="images seen, each once", ylabel="NMI of all images", title="training on the stream", ylim=(0, 1)
    )
    for axis in axes:
        axis.legend(fontsize=8, loc="best")
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
            axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16))
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


@figure
def cluster_numbers(suggested: int, measured: pd.DataFrame) -> Figure:
    """What a sweep over K measured without labels, with the ``product`` that decides, and the K that it suggests."""
    result, axes = plt.subplots(1, 2, figsize=(9, 4.2))
    names = {
        "agreement": "clusters of two augmented views",
        "with_kmeans": "clusters and k-means on the features",
        "product": "product of the two: its largest value decides",
    }
    for color, (name, label) in zip([*COLORS[:2], "black"], names.items(), strict=True):
        axes[0].plot(measured.n_clusters, measured[name], "o-", color=color, label=label)
    axes[0].set(ylabel="adjusted mutual information", title="agreement (1 always, 0 by chance)")
    axes[0].set_ylim(min(0, axes[0].get_ylim()[0]), 1)
    axes[1].plot(measured.n_clusters, measured.largest, "o-", color=COLORS[2], label="largest cluster")
    axes[1].plot(measured.n_clusters, measured.smallest, "o-", color=COLORS[3], label="smallest cluster")
    axes[1].set(ylabel="pictures", title="sizes of the clusters")
    axes[1].set_ylim(bottom=0)
    for axis in axes:
        axis.axvline(suggested, color="0.5", ls="--", lw=1, label=f"suggested: K = {suggested}")
        axis.set(xlabel="number of clusters K")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    return result
