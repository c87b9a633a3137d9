"""The figures of the lesson: each function takes a title and data, and returns a `Figure`."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from torch import Tensor

from ccrepro import augmentations
from ccrepro.config import Config
from ccrepro.drawing import COLORS, NEGATIVE, POSITIVE, draw_image, figure, image_rows, panels
from ccrepro.lesson.demos import color_config

OFF = {"crop_scale": (1, 1), "flip": 0, "jitter": 0, "grayscale": 0, "blur": 0}
NAMES = dict(zip(OFF, ("resized crop", "flip", "colour jitter", "greyscale", "blur"), strict=True))


def _views(images: Tensor, config: Config, n: int) -> np.ndarray:
    """n views of the first image: uint8 (1, C, H, W) → float (n, C, S, S)."""
    sizes = torch.tensor(images.shape[2:]).expand(n, 2)
    drawn = augmentations.draw(torch.Generator().manual_seed(0), sizes, config)
    return augmentations.apply(images.expand(n, -1, -1, -1), drawn, config.image_size).numpy()


@figure
def augmentation(title: str, image: Tensor, config: Config, n: int = 6) -> Figure:
    """One image uint8 (1, C, H, W) and n draws of each augmentation alone, then of all together, in rows."""
    rows = [("image x", augmentations.eval_view(image, config.image_size).numpy())]
    for setting, name in NAMES.items():
        often = "always" if setting == "crop_scale" else f"p = {getattr(config, setting):g}"
        alone = config.replace(**{**OFF, setting: getattr(config, setting)})
        rows.append((f"{name}\n{often}", _views(image, alone, n)))
    return image_rows(title, [*rows, ("all together", _views(image, config, n))], n, 0.85)[0]


@figure
def strength(title: str, image: Tensor, strength: float, smallest_crop: float, n: int = 5) -> Figure:
    """n pairs of views of one image uint8 (1, 3, H, W), with the same random numbers for every strength."""
    views = _views(image, color_config(strength, smallest_crop), 2 * n)
    return image_rows(title, [("view a", views[::2]), ("view b", views[1::2])], n, 1.35)[0]


@figure
def tensors(title: str, images: Tensor, parts: dict[str, Tensor], n: int = 8) -> Figure:
    """The first images of a batch (N, C, S, S) beside its matrices (N, …), drawn with the same rows."""
    result, axes = panels(title, 1, 1 + len(parts), figsize=(10.5, 3.8), width_ratios=[1.2, *([4] * len(parts))])
    draw_image(axes[0], _strip(images[:n]))
    axes[0].set(ylabel=f"the first {n} pictures of the batch", title=f"xᵃ\n{tuple(images.shape)}")
    for axis, (name, matrix) in zip(axes[1:], parts.items(), strict=True):
        axis.imshow(matrix[:n].detach(), cmap="viridis", aspect="auto", interpolation="nearest")
        axis.set(yticks=[], xlabel="column (dark: small, light: large)", title=f"{name}\n{tuple(matrix.shape)}")
        axis.grid(False)
    return result


def _strip(images: Tensor) -> np.ndarray:
    """Grey images (n, 1, S, S) one below the other, with a white frame: (1, height, width)."""
    return np.concatenate([np.pad(image[0], 1, constant_values=1) for image in images.numpy()])[None]


@figure
def similarity(title: str, cosines: Tensor, images: Tensor | None = None, what: str = "picture") -> Figure:
    """Cosines (2M, 2M) of all views of M of ``what``, a before b; images: (2M, C, S, S), to be drawn at the rows."""
    size, rows = len(cosines), f"number of the {what}, and view"
    result, axis = plt.subplots(figsize=(6.8, 5.8))
    _cosines(axis, cosines, [f"{i}{view}" for view in "ab" for i in range(size // 2)])
    axis.set(xlabel=rows, title=title)
    axis.set_ylabel(rows, labelpad=0 if images is None else 42)
    for i, image in enumerate(() if images is None else images.numpy()):
        draw_image(axis.inset_axes([-0.185, 1 - (i + 0.95) / size, 0.9 / size, 0.9 / size]), image)
    return result


def _cosines(axis: plt.Axes, cosines: Tensor, names: Sequence[str]) -> None:
    """A (2M, 2M) matrix of cosines and their numbers, with its positives outlined, without its diagonal."""
    m, legend = len(cosines) // 2, {"label": "cosine (outlined: positives; grey: with itself)", "shrink": 0.85}
    sns.heatmap(
        cosines.detach(), mask=np.eye(2 * m, dtype=bool), vmin=-1, vmax=1, cmap="RdBu_r", annot=True, fmt=".2f",
        annot_kws={"fontsize": 8}, cbar_kws=legend, square=True, xticklabels=names, yticklabels=names, ax=axis,
    )  # fmt: skip
    axis.set_facecolor("0.85")
    axis.grid(False)
    axis.tick_params(axis="y", rotation=0)
    for i in range(2 * m):
        axis.add_patch(Rectangle(((i + m) % (2 * m), i), 1, 1, fill=False, ec="black", lw=2))


@figure
def circle(title: str, z_a: Tensor, z_b: Tensor) -> Figure:
    """N pairs of unit vectors (N, 2) on the circle, beside the cosines of all 2N."""
    rows = torch.cat((z_a, z_b))
    result, axes = panels(title, 1, 2, figsize=(10, 4.5), width_ratios=[1, 1.25])
    axes[0].add_patch(Circle((0, 0), 1, fill=False, ec="0.8", lw=1))
    for i, (a, b) in enumerate(zip(z_a, z_b, strict=True)):
        axes[0].plot(*torch.stack((a, b)).T, color=COLORS[i], lw=3, alpha=0.6)
        for point, view, mark in ((a, "ᵃ", "o"), (b, "ᵇ", "s")):
            axes[0].plot(*point, mark, color=COLORS[i], ms=9)
            axes[0].annotate(f"z{view}$_{i}$", 1.17 * point, ha="center", va="center")
    axes[0].set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal", xlabel="dimension 1", ylabel="dimension 2")
    _cosines(axes[1], rows @ rows.T, [f"z{view}$_{i}$" for view in "ᵃᵇ" for i in range(len(z_a))])
    return result


@figure
def share(title: str, cosines: Tensor, i: int, temperature: float | Sequence[float]) -> Figure:
    """Row i of (2M, 2M) cosines, a column per temperature. Top: exp(s/τ) of each other row as a share of their sum.
    Bottom: how hard ℓ pulls at its cosine, -∂ℓ/∂s."""
    m, others, temperatures = len(cosines) // 2, [j for j in range(len(cosines)) if j != i], np.atleast_1d(temperature)
    positive = torch.tensor(others) == (i + m) % (2 * m)
    names = [f"{j % m}{'ab'[j // m]}\n{cosines[i, j]:.2f}" for j in others]
    size = (1.5 + 3.2 * len(temperatures), 5)
    result, axes = panels(title, 2, len(temperatures), figsize=size, sharex=True, sharey="row", squeeze=False)
    for column, tau in zip(axes.T, temperatures, strict=True):
        share = (cosines[i, others] / tau).softmax(0)
        for axis, heights in zip(column, (share, (positive.float() - share) / tau), strict=True):
            axis.bar(names, heights.tolist(), color=[POSITIVE if p else NEGATIVE for p in positive])
            axis.grid(False, axis="x")
        column[0].set(ylim=(0, 1.02), title=f"τ = {tau:.2g}: ℓ = {-share[positive].log().item():.3f}")
        column[1].set_xlabel("the other vector and its cosine\n(orange: the positive)")
    axes[0, 0].set_ylabel("share of exp(s/τ)")
    axes[1, 0].set_ylabel("pull, −∂ℓ/∂s")
    return result


@figure
def rows_and_columns(title: str, images: Tensor, y: Tensor) -> Figure:
    """One matrix Y (N, M) twice: read by rows, an image's assignment; read by columns, a cluster's images."""
    n, m = y.shape
    result, axes = panels(title, 1, 4, figsize=(9, 5), width_ratios=[0.5, 3, 0.5, 3])
    for left, axis in ((axes[0], axes[1]), (axes[2], axes[3])):
        draw_image(left, _strip(images))
        left.set_aspect("auto")
        sns.heatmap(y.numpy(), annot=True, fmt=".2f", cmap="Greens", vmin=0, vmax=1, cbar=False, ax=axis)
        axis.set(xlabel="cluster", yticks=[])
    axes[0].set_ylabel("N pictures")
    for i in range(n):
        axes[1].add_patch(Rectangle((0.03, i + 0.06), m - 0.06, 0.88, fill=False, ec=COLORS[i % 10], lw=2.5))
    for j in range(m):
        axes[3].add_patch(Rectangle((j + 0.04, 0.06), 0.92, n - 0.12, fill=False, ec=COLORS[j], lw=3))
    axes[1].set_title("by rows: which clusters is\nthis picture in? Sums to 1")
    axes[3].set_title("by columns: which pictures\nare in this cluster?")
    return result


@figure
def shares(title: str, cases: dict[str, Tensor]) -> Figure:
    """Mean assignments P (M,) as bars, with their entropy H and log M - H."""
    result, axes = panels(title, 1, len(cases), figsize=(3.1 * len(cases), 2.9), sharey=True)
    for axis, (name, p) in zip(axes, cases.items(), strict=True):
        m, h = len(p), torch.special.entr(p).sum().item()
        axis.bar(range(m), p.tolist(), color=COLORS[2])
        axis.set(xlabel="cluster", xticks=range(m), title=f"{name}\nH = {h:.2f}, log M − H = {np.log(m) - h:.2f}")
        axis.grid(False, axis="x")
    axes[0].set_ylabel("mean assignment P")
    return result


@figure
def entropy(title: str, trials: pd.DataFrame) -> Figure:
    """Images per cluster, sorted, and entropy by epoch of `demos.entropy_trials`, with the entropy term and without."""
    result, axes = panels(title, 2, trials.trained.nunique(), figsize=(9.6, 5.6), sharey="row")
    for (top, bottom), (trained, part) in zip(axes.T, trials.groupby("trained", sort=False), strict=True):
        for term, sizes, entropy in zip(part["entropy term"], part.sizes, part.entropy, strict=True):
            style, label = {"color": COLORS[2 if term == "with" else 1]}, f"{term} the entropy term"
            top.plot(range(1, len(sizes) + 1), sizes, "o-", ms=5, label=label, **style)
            bottom.plot(range(1, len(entropy) + 1), entropy, ".-", **style)
        top.axhline(sizes.mean(), color="0.5", ls="--", lw=1)
        bottom.axhline(np.log(len(sizes)), color="0.5", ls="--", lw=1)
        top.set(title=trained, xlabel="cluster, the largest first (dashed: all equal)", xticks=range(1, 11))
        bottom.set_xlabel("epoch (dashed: log M)")
        bottom.locator_params("x", integer=True)
    axes[0, 0].set(ylabel="images assigned", ylim=(0, None))
    axes[1, 0].set_ylabel("entropy of the mean\nassignment (nats)")
    axes[0, 0].legend(handles=axes[0, 0].lines[:2])  # the lines of the first seed
    return result
