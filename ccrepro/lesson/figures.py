"""The figures of the lesson: data in, `Figure` out; the first argument of each is its title."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn import functional as F

from ccrepro import augmentations
from ccrepro.config import Config
from ccrepro.datasets import ImageSet
from ccrepro.evaluate import Clustering
from ccrepro.lesson.live import color_config
from ccrepro.plots import COLORS, _picture, figure

POSITIVE = COLORS[3]  # orange: what attracts
NEGATIVE = COLORS[0]  # blue: what repels
OFF = {"crop_scale": (1, 1), "crop_ratio": (1, 1), "flip": 0, "jitter": 0, "grayscale": 0, "blur": 0}
ALONE = {
    "resized crop": ("crop_scale", "crop_ratio"),
    "flip": ("flip",),
    "colour jitter": ("jitter",),
    "greyscale": ("grayscale",),
    "blur": ("blur",),
}
SHOWING = 109  # a seed with which three draws show each of these at work, and the rarer ones idle too


def _views(images: Tensor, config: Config, n: int, seed: int = 0) -> np.ndarray:
    """n views of the first image: uint8 (1, C, H, W) → float (n, C, S, S)."""
    sizes = torch.tensor(images.shape[2:]).expand(n, 2)
    drawn = augmentations.draw(torch.Generator().manual_seed(seed), sizes, tuple(images.shape[2:]), config)
    views = augmentations.apply(images.expand(n, -1, -1, -1), drawn, config.image_size, config.blur_kernel)
    return views.numpy()


@figure
def augmentation(title: str, image: Tensor, config: Config, n: int = 3) -> Figure:
    """One image uint8 (1, C, H, W) and n draws of each augmentation alone, then of all together."""
    kinds = {name: dataclasses.replace(config, **_alone(config, names)) for name, names in ALONE.items()}
    plain = augmentations.plain(image, config.image_size).numpy()[0]
    result, axes = plt.subplots(n, len(ALONE) + 2, figsize=(8.6, 1.2 * n + 0.7))
    for row in range(n):
        _picture(axes[row, 0], plain) if row == 0 else axes[row, 0].set_axis_off()
    for column, (name, changed) in zip(axes.T[1:], {**kinds, "all together": config}.items(), strict=True):
        for axis, picture in zip(column, _views(image, changed, n, SHOWING), strict=True):
            _picture(axis, picture)
        probability = getattr(config, ALONE[name][0]) if name in ALONE else None
        chance = "" if probability is None else f"\np = {probability:g}" if np.isscalar(probability) else "\nalways"
        column[0].set_title(name + chance, fontsize=10)
    axes[0, 0].set_title("image x", fontsize=10)
    result.suptitle(title)
    return result


def _alone(config: Config, names: Sequence[str]) -> dict[str, Any]:
    """Everything off but these settings."""
    return {**OFF, **{name: getattr(config, name) for name in names}}


@figure
def strength(title: str, image: Tensor, strength: float, smallest_crop: float, n: int = 5) -> Figure:
    """n pairs of views of one image uint8 (1, 3, H, W); the random numbers are the same for every strength."""
    pictures = _views(image, color_config(strength, smallest_crop), 2 * n)
    result, axes = plt.subplots(2, n, figsize=(1.35 * n + 0.3, 3.2))
    for axis, picture in zip(axes.T.flat, pictures, strict=True):
        _picture(axis, picture)
    for row, name in zip(axes, ("view a", "view b"), strict=True):
        row[0].set_ylabel(name)
    result.suptitle(title)
    return result


@figure
def tensors(title: str, pictures: Tensor, parts: dict[str, Tensor], n: int = 8) -> Figure:
    """The first pictures of a batch (N, C, S, S) beside its matrices (N, …), drawn with the same rows."""
    result, axes = plt.subplots(1, 1 + len(parts), figsize=(10.5, 3.8), width_ratios=[1.2, *([4] * len(parts))])
    axes[0].imshow(_strip(pictures[:n]), cmap="gray", vmin=0, vmax=1)
    axes[0].set(xticks=[], yticks=[], ylabel=f"the first {n} pictures of the batch")
    for axis, matrix in zip(axes[1:], parts.values(), strict=True):
        axis.imshow(matrix[:n].detach(), cmap="viridis", aspect="auto", interpolation="nearest")
        axis.set(yticks=[], xlabel="column (dark: small, light: large)")
        axis.grid(False)
    for axis, (name, matrix) in zip(axes, {"xᵃ": pictures, **parts}.items(), strict=True):
        axis.set_title(f"{name}\n{tuple(matrix.shape)}")
    result.suptitle(title)
    return result


def _strip(pictures: Tensor) -> np.ndarray:
    """Grey pictures (n, 1, S, S) one below the other, with a white frame."""
    return np.concatenate([np.pad(picture[0], 1, constant_values=1) for picture in pictures.numpy()])


@figure
def similarity(title: str, cosines: Tensor, pictures: Tensor | None = None, what: str = "picture") -> Figure:
    """Cosines of 2M vectors (2M, 2M), views a before views b: positives outlined, the diagonal left out.

    pictures: (2M, C, S, S), to be drawn at the rows. what: the vectors are of.
    """
    m = len(cosines) // 2
    result, axis = plt.subplots(figsize=(6.8, 5.8))
    _cosines(axis, cosines)
    labels = [f"{i}{view}" for view in "ab" for i in range(m)]
    axis.set_xticks(range(2 * m), labels)
    axis.set_yticks(range(2 * m), labels)
    axis.set_xlabel(f"number of the {what}, and view")
    axis.set_ylabel(f"number of the {what}, and view", labelpad=0 if pictures is None else 42)
    for i, picture in enumerate(() if pictures is None else pictures.numpy()):
        inset = axis.inset_axes([-0.185, 1 - (i + 0.95) / (2 * m), 0.9 / (2 * m), 0.9 / (2 * m)])
        _picture(inset, picture)
    axis.set_title(title)
    return result


def _cosines(axis: plt.Axes, cosines: Tensor) -> None:
    """A (2M, 2M) matrix of cosines, its numbers where there is room, with its positives outlined."""
    size = len(cosines)
    shown = np.ma.masked_array(cosines.detach().numpy(), np.eye(size, dtype=bool))
    image = axis.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1)
    axis.grid(False)
    axis.set_facecolor("0.85")
    for i in range(size):
        j = (i + size // 2) % size
        axis.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, ec="black", lw=2))
        for k in range(size if size <= 12 else 0):
            if k != i:
                value = shown[i, k]
                axis.text(k, i, f"{value:.2f}", ha="center", va="center", fontsize=8,
                          color="white" if abs(value) > 0.65 else "black")  # fmt: skip
    axis.figure.colorbar(image, ax=axis, label="cosine (outlined: positives; grey: with itself)", shrink=0.85)


@figure
def circle(title: str, z_a: Tensor, z_b: Tensor) -> Figure:
    """N pairs of unit vectors (N, 2) on the circle, beside the cosines of all 2N."""
    rows = torch.cat((z_a, z_b))
    result, axes = plt.subplots(1, 2, figsize=(10, 4.5), width_ratios=[1, 1.25])
    turn = np.linspace(0, 2 * np.pi, 200)
    axes[0].plot(np.cos(turn), np.sin(turn), color="0.8", lw=1)
    for i, (a, b) in enumerate(zip(z_a, z_b, strict=True)):
        axes[0].plot(*torch.stack((a, b)).T, color=COLORS[i], lw=3, alpha=0.6)
        for point, view, mark in ((a, "a", "o"), (b, "b", "s")):
            axes[0].plot(*point, mark, color=COLORS[i], ms=9)
            axes[0].annotate(f"z{'ᵃ' if view == 'a' else 'ᵇ'}$_{i}$", 1.17 * point, ha="center", va="center")
    axes[0].set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal", xlabel="dimension 1", ylabel="dimension 2")
    _cosines(axes[1], rows @ rows.T)
    labels = [f"z{view}$_{i}$" for view in "ᵃᵇ" for i in range(len(z_a))]
    axes[1].set_xticks(range(len(rows)), labels)
    axes[1].set_yticks(range(len(rows)), labels)
    result.suptitle(title)
    return result


@figure
def share(title: str, cosines: Tensor, i: int, temperatures: Sequence[float]) -> Figure:
    """Row i of (2M, 2M) cosines: exp(s/τ) of each other row as a share of their sum, one panel per temperature."""
    m = len(cosines) // 2
    others = [j for j in range(2 * m) if j != i]
    result, axes = plt.subplots(
        1, len(temperatures), figsize=(1.5 + 3.2 * len(temperatures), 3.1), sharey=True, squeeze=False
    )
    for axis, temperature in zip(axes[0], temperatures, strict=True):
        weight = F.softmax(cosines[i, others] / temperature, dim=0).tolist()
        colors = [POSITIVE if j == (i + m) % (2 * m) else NEGATIVE for j in others]
        axis.bar([f"{j % m}{'ab'[j // m]}" for j in others], weight, color=colors)
        loss = -np.log(weight[others.index((i + m) % (2 * m))])
        axis.set(xlabel="the other vector", ylim=(0, 1), title=f"τ = {temperature:g}: ℓ = {loss:.3f}")
        axis.grid(False, axis="x")
    axes[0, 0].set_ylabel("share of exp(s/τ)\norange: positive, blue: negatives")
    result.suptitle(title)
    return result


@figure
def temperature(title: str, cosines: Tensor, i: int, temperature: float) -> Figure:
    """Row i of (2M, 2M) cosines at one temperature: the shares, and how hard ℓ pulls at each cosine."""
    m, others = len(cosines) // 2, [j for j in range(len(cosines)) if j != i]
    weight = F.softmax(cosines[i, others] / temperature, dim=0)
    is_positive = torch.tensor([j == (i + m) % (2 * m) for j in others])
    names = [f"{j % m}{'ab'[j // m]}\n{cosines[i, j]:.2f}" for j in others]
    panels = {
        "share of exp(s/τ)": (weight, (0, 1.02)),
        "pull on the cosine, −∂ℓ/∂s": ((is_positive.float() - weight) / temperature, None),
    }
    result, axes = plt.subplots(1, 2, figsize=(8.6, 3.2))
    for axis, (name, (values, limits)) in zip(axes, panels.items(), strict=True):
        axis.bar(names, values.tolist(), color=[POSITIVE if p else NEGATIVE for p in is_positive])
        axis.set(ylabel=name, xlabel="the other vector and its cosine", ylim=limits)
        axis.grid(False, axis="x")
    result.suptitle(f"{title}, τ = {temperature:.2f}: ℓ = {-weight[is_positive].log().item():.3f}")
    return result


@figure
def rows_and_columns(title: str, pictures: Tensor, y: Tensor) -> Figure:
    """One matrix Y (N, M) twice: read by rows, a picture's assignment; read by columns, a cluster's pictures."""
    n, m = y.shape
    result, axes = plt.subplots(1, 4, figsize=(9, 5), width_ratios=[0.5, 3, 0.5, 3])
    for left, axis in ((axes[0], axes[1]), (axes[2], axes[3])):
        left.imshow(_strip(pictures), cmap="gray", vmin=0, vmax=1, aspect="auto")
        left.set(xticks=[], yticks=[])
        sns.heatmap(y.numpy(), annot=True, fmt=".2f", cmap="Greens", vmin=0, vmax=1, cbar=False, ax=axis)
        axis.set(xlabel="cluster", yticks=[])
    axes[0].set_ylabel("N pictures")
    for i in range(n):
        axes[1].add_patch(Rectangle((0.03, i + 0.06), m - 0.06, 0.88, fill=False, ec=COLORS[i % 10], lw=2.5))
    for j in range(m):
        axes[3].add_patch(Rectangle((j + 0.04, 0.06), 0.92, n - 0.12, fill=False, ec=COLORS[j], lw=3))
    axes[1].set_title("by rows: which clusters is\nthis picture in? Sums to 1")
    axes[3].set_title("by columns: which pictures\nare in this cluster?")
    result.suptitle(title)
    return result


@figure
def shares(title: str, cases: dict[str, Tensor]) -> Figure:
    """Mean assignments P (M,) as bars, with their entropy and what it lacks to log M."""
    result, axes = plt.subplots(1, len(cases), figsize=(3.1 * len(cases), 2.9), sharey=True)
    for axis, (name, p) in zip(axes, cases.items(), strict=True):
        entropy = torch.special.entr(p).sum().item()
        axis.bar(range(len(p)), p.tolist(), color=COLORS[2])
        axis.set(xlabel="cluster", title=f"{name}\nH = {entropy:.2f}, log M − H = {np.log(len(p)) - entropy:.2f}")
        axis.set_xticks(range(len(p)))
        axis.grid(False, axis="x")
    axes[0].set_ylabel("mean assignment P")
    result.suptitle(title)
    return result


@figure
def entropy(title: str, trials: Sequence[dict[str, Any]]) -> Figure:
    """Images per cluster, sorted, and entropy by epoch, of `live.entropy_trials`: with the term and without."""
    heads = list(dict.fromkeys(t["heads"] for t in trials))
    result, axes = plt.subplots(2, len(heads), figsize=(9.6, 5.6), sharey="row")
    for (top, bottom), name in zip(axes.T, heads, strict=True):
        for color, weight, word in ((COLORS[2], 1.0, "with"), (COLORS[1], 0.0, "without")):
            own = [t for t in trials if t["heads"] == name and t["entropy_weight"] == weight]
            for k, t in enumerate(own):
                offset = (k - (len(own) - 1) / 2) * 0.8 / len(own)
                label = f"{word} the entropy term" if k == 0 else None
                top.plot(np.arange(len(t["counts"])) + 1 + offset, t["counts"], "o-", color=color, label=label, ms=5)
                bottom.plot(np.arange(len(t["entropy"])) + 1, t["entropy"], ".-", color=color, label=label)
        top.axhline(t["counts"].mean(), color="0.5", ls="--", lw=1)
        bottom.axhline(np.log(len(t["counts"])), color="0.5", ls="--", lw=1)
        top.set(title=name, xlabel="cluster, the largest first (dashed: all equal)", xticks=range(1, 11))
        bottom.set(xlabel="epoch (dashed: log M)")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].set(ylabel="images assigned", ylim=(0, None))
    axes[1, 0].set_ylabel("entropy of the mean\nassignment (nats)")
    axes[0, 0].legend()
    result.suptitle(title)
    return result


@figure
def losses(title: str, history: Sequence[dict[str, float]], n: int, m: int) -> Figure:
    """Both losses and the cosines of both heads' pairs by epoch; dashed: what a network that knows nothing has."""
    table = pd.DataFrame(history)
    result, axes = plt.subplots(1, 3, figsize=(10.5, 3.1))
    axes[0].plot(table.epoch, table.instance_loss, color=COLORS[0], label="instance loss")
    axes[0].plot(table.epoch, table.cluster_loss, color=COLORS[2], label="cluster loss")
    for color, count in ((COLORS[0], n), (COLORS[2], m)):
        axes[0].axhline(np.log(2 * count - 1), color=color, ls="--", lw=1)
    axes[0].set(ylabel="loss (dashed: all alike)", ylim=(0, None))
    axes[0].legend(fontsize=8)
    for axis, head in zip(axes[1:], ("instance", "cluster"), strict=True):
        for color, kind in ((POSITIVE, "positive"), (NEGATIVE, "negative")):
            axis.plot(table.epoch, table[f"{head}_{kind}"], color=color, label=f"{kind} pairs")
        axis.set(ylabel=f"mean cosine, {head} head", ylim=(-0.2, 1.02))
    axes[1].legend(fontsize=8)
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    result.suptitle(title)
    return result


@figure
def epochs(title: str, maps: Sequence[dict[str, Any]]) -> Figure:
    """The same images after several epochs in one embedding, coloured by cluster; last, by class."""
    panels = [(f"epoch {m['epoch']}", m, m["cluster"]) for m in maps]
    panels.append(("the classes, not seen in training", maps[-1], maps[-1]["label"]))
    columns = (len(panels) + 1) // 2
    result, axes = plt.subplots(2, columns, figsize=(3.4 * columns, 6.6), sharex=True, sharey=True)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (name, points, by) in zip(axes.flat, panels, strict=False):
        palette = sns.color_palette("tab10", 10)
        axis.scatter(points["x"], points["y"], c=[palette[k] for k in by], s=8, lw=0)
        axis.set(title=name, xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
        axis.label_outer()
    last = axes.flat[len(panels) - 1]
    for kind in np.unique(maps[-1]["label"]):
        rows = maps[-1]["label"] == kind
        x, y = np.median(np.array(maps[-1]["x"])[rows]), np.median(np.array(maps[-1]["y"])[rows])
        last.text(x, y, str(kind), ha="center", va="center", weight="bold", bbox={"fc": "w", "ec": "0.6", "pad": 1.5})
    result.suptitle(title)
    return result


@figure
def matching(title: str, counts: np.ndarray, clusters: np.ndarray, names: Sequence[str]) -> Figure:
    """Images by class and cluster (classes, clusters), before and after each class's cluster is put under it."""
    result, axes = plt.subplots(1, 2, figsize=(10.5, 4.6))
    for axis, order, name in zip(axes, (range(counts.shape[1]), clusters), ("as they came", "matched"), strict=True):
        shown = counts[:, list(order)]
        sns.heatmap(shown, annot=True, fmt="d", cmap="Blues", cbar=False, ax=axis, xticklabels=list(order),
                    yticklabels=names, annot_kws={"fontsize": 8})  # fmt: skip
        for i in range(len(names)):
            axis.add_patch(Rectangle((i + 0.03, i + 0.03), 0.94, 0.94, fill=False, ec=POSITIVE, lw=1.5))
        axis.set(xlabel="cluster", ylabel="class")
        axis.set_title(f"clusters {name}: {np.trace(shown)} of {shown.sum()} on the diagonal")
        axis.tick_params(axis="y", rotation=0)
    result.suptitle(title)
    return result


@figure
def cases(title: str, data: ImageSet, clustering: Clustering, classes: np.ndarray, n: int = 12) -> Figure:
    """The surest right images, the surest wrong ones, and the least sure; classes: (M,) the class of each cluster."""
    named = classes[clustering.labels_pred]
    sure, right = np.argsort(-clustering.confidence, kind="stable"), named == data.labels
    kinds = {"surest, right": sure[right[sure]], "surest, wrong": sure[~right[sure]], "least sure": sure[::-1]}
    result, axes = plt.subplots(3, n, figsize=(0.85 * n + 1, 4.1))
    for row, (name, numbers) in zip(axes, kinds.items(), strict=True):
        for axis in row[len(numbers) :]:
            axis.set_axis_off()
        for axis, number in zip(row, numbers, strict=False):
            _picture(axis, data.images[number] / 255)
            color = "black" if right[number] else POSITIVE
            axis.set_title(f"{data.labels[number]} → {named[number]}\n{clustering.confidence[number]:.2f}", fontsize=9,
                           color=color)  # fmt: skip
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    result.suptitle(title)
    return result
