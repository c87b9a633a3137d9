import os

import numpy as np
import pytest
import torch

from ccrepro.data import ImageSet, load
from ccrepro.recipes import recipe

torch.set_num_threads(1)

# Neither the tests nor the processes they start may depend on who starts them, or from where.
for name in [name for name in os.environ if name.startswith(("GIT_", "MAKE", "MFLAGS"))]:
    del os.environ[name]
os.environ |= {"COLUMNS": "80", "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}


@pytest.fixture(scope="session")
def digits():
    return load("digits")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.fixture
def photos(generator):
    """Six textured colour images without symmetry, 20 by 26 pixels: uint8 (6, 3, 20, 26)."""
    smooth = torch.nn.functional.interpolate(torch.rand(6, 3, 5, 7, generator=generator), (20, 26), mode="bicubic")
    noise = 0.2 * torch.rand(6, 3, 20, 26, generator=generator)
    return ((smooth + noise).clamp(0, 1) * 255).byte()


@pytest.fixture
def patterns(generator):
    """Three classes of 8×8 images that anyone can tell apart, 32 of each, with noise."""
    row, column = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    kinds = torch.stack([row % 4 < 2, column % 4 < 2, (row - 3.5) ** 2 + (column - 3.5) ** 2 < 8]).float()
    labels = torch.arange(96) % 3
    noise = 0.15 * torch.randn(96, 1, 8, 8, generator=generator)
    images = ((0.1 + 0.7 * kinds[labels][:, None] + noise).clamp(0, 1) * 255).byte()
    names = ("rows", "columns", "disc")
    return ImageSet("digits", images.numpy(), labels.numpy().astype(np.int64), names, "made here")


@pytest.fixture
def tiny():
    """Settings that train `patterns` in a second or two."""
    return recipe("digits", "demo", n_clusters=3, batch_size=32, epochs=2)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder that stands for the clone."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
