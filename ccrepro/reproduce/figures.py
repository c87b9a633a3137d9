"""One function per figure: data in, matplotlib `Figure` out. Nothing here computes a result."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from adjustText import adjust_text
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ccrepro.data.registry import DATASETS
from ccrepro.drawing import COLORS, NEGATIVE, POSITIVE, draw_image, figure, image_rows, panels, small_png
from ccrepro.reproduce import tables
from ccrepro.reproduce.records import Record, printed, reported
from ccrepro.runtime import storage


def save(drawn: Figure | None, name: str, preset: str, results_dir: str | Path = "") -> Figure | None:
    """Write a figure, if there is one, as PNG below ``figures/<preset>/`` in a folder of results, ``results/local/``
    unless another is given, and return it."""
    if drawn is not None:
        buffer = io.BytesIO()
        drawn.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
        folder = storage.place(results_dir, "results/local") / "figures" / preset
        storage.atomic_write(folder / f"{name}.png", small_png(buffer.getvalue()))
    return drawn


@figure
def view_pairs(title: str, images: Any, view_a: Any, view_b: Any, n: int = 10) -> Figure:
    """The first n images, each above its two views; all float (N, C, S, S) in [0, 1]."""
    rows = [(name, np.asarray(of)[:n]) for name, of in (("image", images), ("view a", view_a), ("view b", view_b))]
    return image_rows(title, rows, n, 0.8)[0]


@figure
def samples(title: str, images: Any, labels: np.ndarray | None, names: Sequence[str], n: int = 8) -> Figure:
    """n images of each class (of at most 20), drawn at random, as `ImageSet` has them. Without labels, one row."""
    labels, rng = np.zeros(len(images), dtype=int) if labels is None else labels, np.random.default_rng(0)
    drawn = {kind: rng.permutation(np.flatnonzero(labels == kind))[:n] for kind in np.unique(labels)[:20]}
    rows = [(names[kind] if names else "", [image / 255 for image in images[shown]]) for kind, shown in drawn.items()]
    return image_rows(title, rows, n, 0.7)[0]


@figure
def losses(records: Sequence[Record]) -> Figure:
    """Total loss, instance loss, cluster loss and the entropy of the mean assignment by epoch, one line per run."""
    names = {"loss": "total loss", "instance_loss": "instance loss", "cluster_loss": "cluster loss"}
    names["entropy"] = "entropy of the mean\nassignment (nats)"
    frames = (pd.DataFrame(r["history"]).set_index("epoch")[list(names)].rename(columns=names) for r in records)
    result, axes = _by_epoch(records, frames)
    axes[3].axhline(np.log(records[0]["config"]["n_clusters"]), color="0.5", ls="--", lw=1, label="log K")
    axes[3].legend(handles=axes[3].lines[-1:], fontsize=8, loc="center right")
    return result


@figure
def scores_by_epoch(records: Sequence[Record]) -> Figure:
    """NMI, ACC and ARI over the epochs, a line per seed, and the number of clusters in use."""
    names = {"scores.nmi": "NMI", "scores.acc": "ACC", "scores.ari": "ARI", "n_clusters_used": "clusters in use"}
    frames = (pd.json_normalize(r["evolution"]).set_index("epoch")[list(names)].rename(columns=names) for r in records)
    result, axes = _by_epoch(records, frames)
    plt.setp(axes[:3], ylim=(-0.02, 1.02))
    axes[3].set_ylim(0, None)
    return result


def _by_epoch(records: Sequence[Record], frames: Iterable[pd.DataFrame]) -> tuple[Figure, Any]:
    """A panel per column of the records' frames, with a line per record; their index is the epoch."""
    result, axes = plt.subplots(1, 4, figsize=(11, 2.9), sharex=True)
    for color, r, frame in zip(COLORS, records, frames, strict=False):
        for axis, (title, values) in zip(axes, frame.items(), strict=True):
            axis.plot(values, color=color, label=f"seed {r['seed']}")
            axis.set(xlabel="epoch", title=title)
    axes[0].legend(fontsize=8)
    return result, axes


@figure
def heads() -> Figure:
    """A drawing: a batch of two views, the backbone, and what each head contrasts: rows or columns."""
    result, axis = plt.subplots(figsize=(9, 3))
    axis.set(xlim=(0, 18), ylim=(0, 6), aspect="equal")
    axis.set_axis_off()
    box = {"boxstyle": "round,pad=0.5", "fc": "0.93", "ec": "0.4"}
    texts = {
        (1.5, 3): "N images,\ntwo views each",
        (5.3, 3): "backbone",
        (8.6, 4.6): "instance\nhead",
        (8.6, 1.4): "cluster\nhead",
    }
    for (x, y), text in texts.items():
        axis.text(x, y, text, ha="center", va="center", bbox=box, fontsize=9)
    for begin, end in (
        ((2.9, 3), (4.3, 3)),
        ((6.3, 3), (7.7, 4.4)),
        ((6.3, 3), (7.7, 1.6)),
        ((9.5, 4.6), (10.6, 4.6)),
        ((9.5, 1.4), (10.6, 1.4)),
    ):
        axis.annotate("", end, begin, arrowprops={"arrowstyle": "->", "color": "0.3"})
    for (left, low, columns, by_row), text in (
        ((11, 3.4, 6, True), "z: a row is an image.\nIts other view attracts it,\nall other rows repel."),
        ((11, 0.2, 3, False), "p: a column is a cluster.\nIts other view attracts it,\nall other columns repel."),
    ):
        for row in range(4):
            for column in range(columns):
                color = COLORS[(row if by_row else column)]
                axis.add_patch(
                    plt.Rectangle((left + 0.6 * column, low + 0.6 * row), 0.55, 0.55, fc=color, alpha=0.35, ec=color)
                )
        axis.text(15, low + 1.2, text, va="center", fontsize=9)
    return result


@figure
def confusion(records: Sequence[Record]) -> Figure:
    """Number of images by class and matched cluster, for the first record."""
    record = records[0]
    counts, names = np.array(record["contingency"]), record["class_names"]
    columns = [*names, *(f"+{i + 1}" for i in range(counts.shape[1] - len(names)))][: counts.shape[1]]
    few, side = len(names) <= 20, 1.8 + 0.38 * min(len(names), 20)
    result, axis = plt.subplots(figsize=(side + 1, side))
    sns.heatmap(pd.DataFrame(counts, names, columns), annot=few, fmt="d", cmap="Blues", ax=axis, square=True,
                cbar_kws={"label": "images"}, xticklabels=few, yticklabels=few)  # fmt: skip
    axis.set(xlabel="cluster, under the name of its matched class", ylabel="class")
    axis.set_title(f"{_run_title(record)}: ACC {record['scores']['acc']:.3f}")
    axis.tick_params(axis="y", rotation=0)
    return result


@figure
def feature_space(records: Sequence[Record]) -> Figure:
    """t-SNE of the instance head's output (a baseline: of the pixels) by class and by cluster, for the first record."""
    record = records[0]
    points, names, clusters = record["tsne"], record["class_names"], range(record["config"]["n_clusters"])
    space = "pixels" if record["config"]["baseline"] else "output of the instance head"
    title = f"{_run_title(record)}: {space}, {len(points['x'])} images"
    result, axes = panels(title, 1, 2, figsize=(10, 4.6))
    _draw_map(axes[0], points, "label", "coloured by class (not seen in training)", len(names), names)
    _draw_map(axes[1], points, "cluster", "coloured by cluster", len(clusters), clusters)
    result.draw_without_rendering()  # names are moved apart by their size, which the layout decides
    for axis in axes:
        adjust_text(axis.texts, ax=axis, avoid_self=False, iter_lim=100)  # not seconds: the same on every machine
    return result


@figure
def evolution(records: Sequence[Record]) -> Figure:
    """Fig. 4: the same images at several epochs, each in its own t-SNE map, by cluster, for the first record."""
    record = records[0]
    shown = [at for at in record["evolution"] if "x" in at]
    title = f"{_run_title(record)}: output of the instance head, coloured by cluster"
    result, axes = _grid(title, len(shown), 3, (3.3, 3.4))
    for axis, at in zip(axes, shown, strict=True):
        heading = f"epoch {at['epoch']}: NMI {at['scores']['nmi']:.3f}"
        _draw_map(axis, at, "cluster", heading, record["config"]["n_clusters"])
    return result


@figure
def teaser(records: Sequence[Record], dark: bool = False) -> Figure | None:
    """Three of the first record's maps for the README: the untrained network, after a tenth of the epochs, the last.
    None where there are fewer. dark: for a page with a dark ground."""
    shown = [at for at in records[0]["evolution"] if "x" in at]
    if len(shown) < 3:
        return None
    ground, ink = ("#0d1117", "#e6edf3") if dark else ("white", "#1f2328")
    result, axes = plt.subplots(1, 3, figsize=(9, 3.2), facecolor=ground)
    for axis, at in zip(axes, (shown[0], shown[len(shown) // 2], shown[-1]), strict=True):
        axis.scatter(at["x"], at["y"], c=np.array(COLORS)[at["cluster"]], s=9, lw=0)
        axis.set_title(f"epoch {at['epoch']}: ACC {at['scores']['acc']:.2f}", color=ink, fontsize=12)
        axis.set_axis_off()
    return result


def _grid(title: str, n: int, columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    """n axes, each of ``size`` (width, height, in inches), at most so many in a row."""
    columns = min(columns, n) or 1
    rows = -(-n // columns) or 1
    result, axes = panels(title, rows, columns, figsize=np.multiply(size, (columns, rows)), squeeze=False)
    for axis in axes.flat[n:]:
        axis.remove()
    return result, axes.flat[:n]


def _draw_map(axis: plt.Axes, points: Mapping[str, Any], by: str, title: str, n: int, names: Sequence = ()) -> None:
    """A t-SNE map: ``x`` and ``y`` of each point, coloured by its number in ``points[by]``, which is below n. ``names``
    are written at the median of their points, if there are at most 20."""
    palette = np.array(COLORS if n <= 10 else sns.color_palette("husl", n))
    axis.scatter(points["x"], points["y"], c=palette[points[by]], s=8, lw=0)
    axis.set(xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[], title=title)
    axis.label_outer()
    frame = pd.DataFrame({name: points[name] for name in ("x", "y", by)})
    for number, x, y in frame.groupby(by).median().itertuples() if 0 < len(names) <= 20 else ():
        axis.text(
            x, y, names[number], ha="center", va="center", weight="bold", bbox={"fc": "w", "ec": "0.6", "pad": 1.5}
        )


@figure
def ablation(name: str, runs: pd.DataFrame) -> Figure | None:
    """ACC of each row of a table, a panel per data set: a dot per seed, a bar for the mean, a diamond for the paper.
    None where the table has no row."""
    shown = tables.cells(name, runs)
    if shown.empty:
        return None
    groups = [group for _, group in shown.groupby("dataset", sort=False)]
    size = (2.2 + 4.0 * len(groups), 1.1 + 0.38 * shown.groupby("dataset").label.nunique().max())
    result, axes = plt.subplots(1, len(groups), figsize=size, squeeze=False)
    for axis, group in zip(axes[0], groups, strict=True):
        means = group.groupby("label", sort=False).acc.mean()
        paper = group[group.printed != ""].drop_duplicates("label")
        axis.barh(means.index, means, color="0.87", height=0.7)
        axis.plot(group.acc, group.label, "o", color=COLORS[0], ms=5, label="ours, a dot per seed")
        if len(paper):
            label, style = "reported by the paper", {"ms": 6, "mfc": "none", "mew": 1.5}
            axis.plot(paper.printed.astype(float), paper.label, "D", color=COLORS[1], label=label, **style)
        title = DATASETS[group.dataset.iloc[0]].title
        axis.set(xlim=(0, 1), ylim=(len(means) - 0.5, -0.5), xlabel="ACC (bar: mean)", title=title)
        axis.grid(axis="y", visible=False)
    fullest = max(axes[0], key=lambda axis: len(axis.lines))
    result.legend(handles=fullest.lines, loc="outside lower center", ncols=2, fontsize=8)
    return result


@figure
def cost(runs: pd.DataFrame) -> Figure | None:
    """ACC by hours of training, a panel per data set on which one network was trained for different numbers of epochs,
    which stand beside the dots. Diamond: the paper. Dotted: k-means on the pixels. None without such a data set."""
    found, paper = tables.cost(runs), reported().query("metric == 'GPU-hours'").set_index("dataset").value
    shown = [dataset for dataset, own in found.groupby("dataset") if own.backbone.duplicated().any()]
    if not shown:
        return None
    result, axes = plt.subplots(1, len(shown), figsize=(5.6 * len(shown), 3.8), squeeze=False)
    for axis, dataset in zip(axes[0], shown, strict=True):
        title = DATASETS[dataset].title
        for color, (backbone, own) in zip(COLORS, found[found.dataset == dataset].groupby("backbone"), strict=False):
            axis.plot(own.hours, own.acc, "o-", color=color, label=f"ours, {backbone} (epochs)")
            for point in own.itertuples():
                where = {"xytext": (5, -11), "textcoords": "offset points", "fontsize": 8, "color": color}
                axis.annotate(str(point.epochs), (point.hours, point.acc), **where)
        if title in paper:
            acc = float(printed("2", "acc").loc["CC", title])
            axis.plot(float(paper[title]), acc, "D", color="0.3", mfc="none", label="the paper, ResNet34, on a GPU")
        pixels = runs[(runs.dataset == dataset) & (runs.variant == "kmeans-pixels")]
        if len(pixels):
            axis.axhline(pixels.acc.mean(), color="0.5", ls=":", label="k-means on pixels")
        axis.set(
            xscale="log", ylim=(0, 1), xlabel="hours of training, on one core or one GPU", ylabel="ACC", title=title
        )
        axis.xaxis.set_major_formatter("{x:g}")
        axis.legend(fontsize=8, loc="upper left")
    return result


@figure
def cosines(records: Sequence[Record]) -> Figure:
    """Fig. 3: mean cosine of positive and negative pairs by epoch, for both heads. Top: ours, a line per seed, and a
    band of ± the standard deviation of the pairs. Bottom: the paper's, read off its plot."""
    result, axes = plt.subplots(2, 2, figsize=(9, 5.6), sharey=True)
    paper, epochs = reported(), records[0]["history"]["epoch"]
    ours = f"{DATASETS[records[0]['dataset']].title}, {len(records)} seed{'s' * (len(records) > 1)}"
    for (top, bottom), head in zip(axes.T, ("instance", "cluster"), strict=True):
        for kind, color in (("positive", POSITIVE), ("negative", NEGATIVE)):
            means, sds = (np.array([r["history"][f"{head}_{kind}{part}"] for r in records]) for part in ("", "_sd"))
            top.plot(epochs, means.T, color=color, lw=1)
            mean, sd = means.mean(0), sds.mean(0)
            top.fill_between(epochs, *np.clip([mean - sd, mean + sd], -1, 1), color=color, alpha=0.2, lw=0)
            points = paper[(paper.table == "fig3") & paper.variant.str.startswith(f"{kind} {head} pairs")]
            at = points.variant.str.extract(r"epoch (\d+)")[0].astype(int)
            bottom.plot(at, points.value.astype(float), "o-", color=color, ms=4, lw=1, label=f"{kind} pairs")
        top.set_title(f"{head} head: {ours}")
        bottom.set_title(f"{head} head: ImageNet-10, the paper")
    plt.setp(axes, xlabel="epoch", ylabel="cosine of a pair", ylim=(-0.4, 1.05))
    axes[1, 1].legend(fontsize=9, loc="upper right")
    return result


@figure
def cosine_distributions(records: Sequence[Record]) -> Figure | None:
    """Fig. 3, in full: the cosines of all positive and of all negative pairs at some epochs, for the first record. None
    where it has no histograms of them."""
    record = records[0]
    found = [at for at in record["evolution"] if "cosines" in at]
    if not found:
        return None
    last = len(found) - 1
    shown = [found[i] for i in sorted({min(i, last) for i in (0, 1, 3, last)})]
    title = f"{_run_title(record)}: cosines of pairs"
    result, axes = panels(title, 2, len(shown), figsize=(2.6 * len(shown), 4.6), sharex=True, squeeze=False)
    for column, at in zip(axes.T, shown, strict=True):
        for axis, head in zip(column, ("instance", "cluster"), strict=True):
            for kind, color in (("positive", POSITIVE), ("negative", NEGATIVE)):
                counts = np.array(at["cosines"][f"{head}_{kind}"])
                edges = np.linspace(-1, 1, len(counts) + 1)
                style = {"fill": True, "color": color, "alpha": 0.6, "label": f"{kind} pairs"}
                axis.stairs(counts / counts.sum(), edges, **style)
            axis.set(yticks=[], xticks=[-1, 0, 1])
        column[0].set_title(f"epoch {at['epoch']}")
        column[1].set_xlabel("cosine of a pair")
    axes[0, 0].set_ylabel("instance head\nshare of the pairs")
    axes[1, 0].set_ylabel("cluster head\nshare of the pairs")
    axes[0, 0].legend(fontsize=8, loc="upper left")
    return result


@figure
def examples(records: Sequence[Record], kind: str, images: Any) -> Figure | None:
    """The first record's examples of one kind. images: all of the run's, as `ImageSet` has them; None: no figure."""
    if images is None:
        return None
    found, names = pd.DataFrame(records[0]["examples"]), records[0]["class_names"]
    right, shown = (found[found.kind == of] for of in ("right", kind))
    matched = {cluster: names[label] for cluster, label in zip(right.cluster, right.label, strict=True)}
    result, axes = _grid("", len(shown), 5, (1.8, 2.3))
    for axis, example in zip(axes, shown.itertuples(), strict=True):
        draw_image(axis, images[example.image] / 255)
        axis.set_axis_off()
        cluster = matched.get(example.cluster, f"cluster {example.cluster}")
        axis.set_title(f"{names[example.label]}\n→ {cluster}\n{example.confidence:.3f}", fontsize=9)
    return result


@figure
def streaming(records: Sequence[Record]) -> Figure:
    """Time to an assignment, and training on chunks that come once, a line per seed. Records have ``streaming``."""
    result, axes = plt.subplots(1, 2, figsize=(8.5, 3.5))
    for color, r in zip(COLORS, records, strict=False):
        assign, once = (r["streaming"][name] for name in ("assign", "once"))
        axes[0].plot(assign["batch_size"], assign["milliseconds"], "o-", color=color, label=f"seed {r['seed']}")
        for curve_color, curve in zip((COLORS[2], COLORS[4], "0.3"), once, strict=True):
            axes[1].plot(curve["images"], curve["nmi"], "o-", color=curve_color, ms=4)
    axes[0].set(xlabel="images that arrive at once", ylabel="milliseconds until all have a cluster (median)")
    axes[0].set(title="assignment", xscale="log", yscale="log")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_minor_formatter("")
    for axis in (axes[0].xaxis, axes[0].yaxis):
        axis.set_major_formatter("{x:g}")
    axes[0].legend(fontsize=8)
    axes[1].set(xlabel="images that have come", ylabel="NMI of the stream's images")
    axes[1].set(title="training on the stream", ylim=(0, 1))
    names = (f"{c['chunk']:,} images, {c['steps']} time{'s' * (c['steps'] > 1)}" for c in once)
    axes[1].legend([*names], title="chunks of", title_fontsize=8, fontsize=8)
    return result


def _run_title(record: Record) -> str:
    return f"{DATASETS[record['dataset']].title}, {tables.row_label(record['variant'])}, seed {record['seed']}"
