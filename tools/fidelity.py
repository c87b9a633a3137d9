"""How close are our views to those of the authors' code, which PIL and OpenCV make of the image files?

``python tools/fidelity.py FOLDER …`` takes all image files of folders but those too large to keep all pixels. Both
sides crop the same boxes and use the same parameters. Energies are mean squares: of edges, the differences of
neighbours; of fine detail, the Laplacian.
"""

import dataclasses
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from ccrepro import augmentations
from ccrepro.augmentations import Parameters
from ccrepro.data import as_tensor
from ccrepro.data.images import decode, image_files, measure
from ccrepro.recipes import recipe
from ccrepro.runtime.ragged import sizes_of, stacked

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference import augment  # the authors' order of operations, with parameters that are given

SIDE = 224
SHARES = {"8 to 20 %": (0.08, 0.2), "20 to 50 %": (0.2, 0.5), "50 to 100 %": (0.5, 1.0)}
DRAWS = 4  # crops of each class, and whole views, of each image
LAPLACE = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]


def edges(views: Tensor) -> Tensor:
    """(N, 3, S, S) → (N,)."""
    return (views.diff(dim=2) ** 2).mean((1, 2, 3)) + (views.diff(dim=3) ** 2).mean((1, 2, 3))


def laplacian(views: Tensor) -> Tensor:
    """(N, 3, S, S) → (N,)."""
    return (F.conv2d(views.flatten(0, 1)[:, None], LAPLACE) ** 2).mean((1, 2, 3)).view(-1, 3).mean(1)


def line(ours: Tensor, theirs: Tensor) -> dict[str, str]:
    """Ratios of energies, and differences in levels: the largest, and the mean with its standard error."""
    energies = {name: of(ours).sum() / of(theirs).sum() for name, of in (("edges", edges), ("Laplacian", laplacian))}
    apart, brighter = 255 * (ours - theirs), 255 * (ours - theirs).mean((1, 2, 3))
    return {
        "views": f"{len(ours):,}",
        **{f"{name}, ours ÷ theirs": f"{ratio:.4f}" for name, ratio in energies.items()},
        "furthest apart": f"{apart.abs().max():.0f} levels",
        "more than 1 level apart": f"{(apart.abs() > 1.01).float().mean():.3%}",
        "ours brighter by": f"{brighter.mean():+.3f} ± {brighter.std() / len(brighter) ** 0.5:.3f} levels",
    }


def blurred(view: Image.Image, sigma: float) -> Image.Image:
    """As the authors' code blurs."""
    size = (augmentations.BLUR_KERNEL,) * 2
    return Image.fromarray(cv2.GaussianBlur(np.array(view), size, sigma)) if sigma else view


def authors(files: list[Path], parameters: Parameters) -> Tensor:
    """Their views of the files, the i-th with parameters i: (N, 3, S, S)."""
    sharp, views = dataclasses.replace(parameters, sigma=None), []
    for i, file in enumerate(files):
        with Image.open(file) as image:
            view = augment(image.convert("RGB"), sharp, i, SIDE)
        views.append(TF.to_tensor(blurred(view, 0 if parameters.sigma is None else parameters.sigma[i].item())))
    return torch.stack(views)


def table(files: list[Path]) -> pd.DataFrame:
    """One line per kind of view."""
    found, generator = [], torch.Generator().manual_seed(0)
    images = as_tensor(stacked([decode(file) for file in files]))
    sizes = torch.from_numpy(sizes_of(images))
    crop_only = {"jitter": 0, "grayscale": 0, "blur": 0}
    configs = {f"all of {name}'s operations": recipe(name, "paper") for name in ("cifar10", "imagenet10")}
    for name, share in SHARES.items():
        configs[f"crop of {name}"] = recipe("imagenet10", "paper", crop_scale=share, **crop_only)
    for name, config in configs.items():
        drawn = [augmentations.draw(generator, sizes, config) for _ in range(DRAWS)]
        theirs = torch.cat([authors(files, parameters) for parameters in drawn])
        for quantize in (True, False):
            ours = torch.cat([augmentations.apply(images, parameters, SIDE, quantize) for parameters in drawn])
            found.append({"view": name + ", not rounded" * (not quantize)} | line(ours, theirs))
    whole = [TF.to_tensor(TF.resize(Image.open(file).convert("RGB"), [SIDE, SIDE])) for file in files]
    ours = augmentations.eval_view(images, SIDE, quantize=True)
    return pd.DataFrame([{"view": "evaluation"} | line(ours, torch.stack(whole)), *found])


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        found = [file for place in [Path(folder), *sorted(Path(folder).rglob("*/"))] for file in image_files(place)]
        files = [file for file in found if not measure(file).reduced]
        sizes = pd.Series([f"{w}×{h}" for w, h in (Image.open(file).size for file in files)]).value_counts()
        print(f"\n{folder}: {len(files)} of {len(found)} images, most often of {sizes.index[0]} pixels\n")
        print(table(files).to_markdown(index=False))
