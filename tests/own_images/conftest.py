import json
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from ccrepro.own_images import cluster


def draw(kind, rng):
    """Red stripes, green stripes the other way, or a blue disc, with noise: 16 wide and 12 high."""
    row, column = np.mgrid[:12, :16]
    shape = [row // 2 % 2, column // 2 % 2, (row - 6) ** 2 + (column - 8) ** 2 < 20][kind]
    pixels = rng.normal(60, 10, (12, 16, 3))
    pixels[..., kind] += 130 * shape
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def save_images():
    """Writes one image of the three kinds in turn to each of the paths."""

    def save(paths, seed=0):
        rng = np.random.default_rng(seed)
        for i, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(i % 3, rng).save(path, "PNG")

    return save


@pytest.fixture(scope="session")
def folder(tmp_path_factory, save_images):
    """48 images in three sub-folders, one file with a name that needs quoting."""
    place = tmp_path_factory.mktemp("photos")
    save_images([place / "abc"[i % 3] / (f"<{i}> & #é?.png" if i == 4 else f"{i:02d}.png") for i in range(48)])
    return place


@pytest.fixture(scope="session", autouse=True)
def alone():
    """Starts are trained here and not in other processes, which would take seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ccrepro.own_images.starts.at_once", lambda: 1)
        yield


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file for timm's test_efficientnet, which is small; its weights are random."""
    file, rng = tmp_path_factory.mktemp("weights") / "w.safetensors", np.random.default_rng(0)
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet").train()
    images = [np.asarray(draw(i % 3, rng).resize((64, 64))) for i in range(30)]
    for _ in range(50):  # its statistics get those of such images: without them, all features are alike
        network(torch.tensor(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1)
    save_file(network.state_dict(), file)
    return file


@pytest.fixture(scope="session")
def clustered(folder, tmp_path_factory):
    """What clustering it into three writes."""
    out = tmp_path_factory.mktemp("out")
    cluster.run(folder, 3, out, settings={"epochs": 25})
    return out


@pytest.fixture(scope="session")
def embedded():
    """Reads what the page of a gallery holds."""

    def read(page):
        return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())[1])

    return read
