"""One function per figure: data in, matplotlib `Figure` out. Nothing here computes a result."""

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ccrepro.data.registry import DATASETS
from ccrepro.figure_style import COLORS, STYLE, draw_image, figure, small_png
from ccrepro.reproduce.records import reported
from ccrepro.reproduce.tables import Cell, cells
from ccrepro.runtime import storage

Images = Any  # float (N, C, S, S), an array or a tensor


def of_runs(draw: Callable[..., Figure]) -> Callable[..., Figure | None]:
    """A figure of run records; None where there are none, or an argument is missing: what nobody ran is not shown as an
    empty image."""
    styled = figure(draw)

    @functools.wraps(draw)
    def drawn(records: Sequence[dict[str, Any]], *args: Any) -> Figure | None:
        return styled(records, *args) if len(records) and all(a is not None for a in args) else None

    return drawn


def save(drawn: Figure | None, name: str, preset: str, results_dir: str | Path = "results") -> Figure | None:
    """Write a figure, if there is one, as PNG under ``results/figures/<preset>/``, and return it."""
    if drawn is not None:
        buffer = io.BytesIO()
        with plt.rc_context(STYLE):
            drawn.savefig(buffer, format="png", metadata={"Software": None})
        storage.atomic_write(
            storage.ROOT / results_dir / "figures" / preset / f"{name}.png", small_png(buffer.getvalue())
        )
    return drawn


@figure
def view_pairs(title: str, images: Images, view_a: Images, view_b: Images, n: int = 10) -> Figure:
    """The first n images, each above its two views; all float (N, C, S, S) in [0, 1]."""
    result, axes = plt.subplots(3, n, figsize=(0.8 * n + 0.8, 2.8))
    for row, (name, shown) in zip(axes, {"image": images, "view a": view_a, "view b": view_b}.items(), strict=True):
        for axis, image in zip(row, np.asarray(shown)[:n], strict=True):
            draw_image(axis, image)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    result.suptitle(title)
    return result


@figure
def samples(title: str, images: np.ndarray, labels: np.ndarray | None, names: Sequence[str], n: int = 8) -> Figure:
    """n images of each class (of at most 20), drawn at random; all uint8 (N, C, S, S), without labels one row."""
    labels = np.zeros(len(images), dtype=int) if labels is None else labels
    kinds = np.unique(labels)[:20]
    rng = np.random.default_rng(0)
    result, axes = plt.subplots(len(kinds), n, figsize=(0.7 * n + 1.6, 0.7 * len(kinds) + 0.5), squeeze=False)
    for row, kind in zip(axes, kinds, strict=True):
        for axis, number in zip(row, rng.permutation(np.flatnonzero(labels == kind))[:n], strict=False):
            draw_image(axis, images[number] / 255)
        for axis in row:
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(names[kind] if names else "", rotation=0, ha="right", va="center")
    result.suptitle(title)
    return result


@of_runs
def losses(records: Sequence[dict[str, Any]]) -> Figure:
    """Loss, its two parts, and the entropy of the mean assignment by epoch, one line per run that was trained."""
    panels = {
        "loss": "total loss",
        "instance_loss": "instance loss",
        "cluster_loss": "cluster loss",
        "entropy": "entropy of the mean\nassignment (nats)",
    }
    result, axes = plt.subplots(1, len(panels), figsize=(11, 2.9), sharex=True)
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        for color, r in zip(COLORS, records, strict=False):
            label = f"seed {r['seed']}" if axis is axes[0] else None
            axis.plot(r["history"]["epoch"], r["history"][name], color=color, label=label)
        axis.set(xlabel="epoch", title=title)
    axes[-1].axhline(np.log(records[0]["config"]["n_clusters"]), color="0.5", ls="--", lw=1, label="log K")
    axes[0].legend(fontsize=8)
    axes[-1].legend(fontsize=8, loc="center right")
    return result


@of_runs
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


@of_runs
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
    """ACC of each row of a table that we ran: a dot per seed, a bar for the mean, a diamond for the paper's number; one
    panel per data set."""
    panels: dict[str, list[Cell]] = {}
    for cell in cells(name, runs):
        if len(cell.runs):
            panels.setdefault(DATASETS[cell.dataset].title, []).append(cell)
    size = (2.2 + 4.0 * len(panels), 1.1 + 0.38 * max(map(len, panels.values())))
    result, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False)
    for axis, (title, rows) in zip(axes[0], panels.items(), strict=True):
        for y, cell in enumerate(rows):
            axis.barh(y, cell.runs.acc.mean(), color="0.87", height=0.7)
            axis.plot(cell.runs.acc, [y] * len(cell.runs), "o", color=COLORS[0], ms=5, label="ours, a dot per seed")
            reported_ = float(cell.printed or "nan")
            axis.plot(reported_, y, "D", color=COLORS[1], ms=6, mfc="none", mew=1.5, label="reported by the paper")
        axis.set(yticks=range(len(rows)), yticklabels=[cell.label for cell in rows], ylim=(len(rows) - 0.5, -0.5))
        axis.set(xlim=(0, 1), xlabel="ACC (bar: mean)", title=title)
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


@of_runs
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


@of_runs
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


@of_runs
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


@of_runs
def examples(records: Sequence[dict[str, Any]], kind: str, images: np.ndarray | None) -> Figure:
    """The images of one kind among the first record's examples; uint8 (N, C, S, S), all of the data set, or of its
    sample; None where it is not at hand."""
    shown, names = pd.DataFrame(records[0]["examples"]), records[0]["class_names"]
    shown = shown[shown.kind == kind]
    columns = min(10, max(1, len(shown)))
    lines = max(1, -(-len(shown) // columns))
    result, axes = plt.subplots(lines, columns, figsize=(1.15 * columns, 1.62 * lines), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, example in zip(axes.flat, shown.itertuples(), strict=False):
        axis.imshow(images[example.image].transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=255)
        axis.set_title(f"class {names[example.label]}\ncluster {example.cluster}\n{example.confidence:.3f}", fontsize=8)
    return result


@of_runs
def streaming(records: Sequence[dict[str, Any]]) -> Figure:
    """A stream: time to an assignment, and training on batches seen once; a line per seed. Takes records that hold
    ``streaming``."""
    result, axes = plt.subplots(1, 2, figsize=(8.5, 3.5))
    for number, r in enumerate(records):
        assign, once = (r["streaming"][name] for name in ("assign", "once"))
        label = f"seed {r['seed']}"
        axes[0].plot(assign["batch_size"], assign["milliseconds"], "o-", color=COLORS[number], label=label)
        for color, (steps, curve) in zip((2, 4), once.items(), strict=False):
            label = None if number else f"{steps} step{'s' if steps != '1' else ''} on each batch"
            axes[1].plot(curve["images"], curve["nmi"], color=COLORS[color], label=label)
        label = None if number else "all epochs"
        axes[1].axhline(r["scores"]["nmi"], color="0.5", ls="--", lw=1, label=label)
    axes[0].set(xlabel="images that arrive at once", ylabel="milliseconds to all their clusters (median)")
    axes[0].set(title="assignment", xscale="log", yscale="log")
    axes[1].set(xlabel="images seen, each once", ylabel="NMI of the stream's images", title="training on the stream")
    axes[1].set_ylim(0, 1)
    for axis in axes:
        axis.legend(fontsize=8, loc="best")
    return result


def _run_title(record: dict[str, Any]) -> str:
    return f"{DATASETS[record['dataset']].title}, {record['variant']}, seed {record['seed']}"
