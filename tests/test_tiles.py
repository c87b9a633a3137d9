"""A packed data set goes through WebP tiles and comes out bit for bit, hash included."""

import numpy as np
import pytest

from ccrepro.datasets import pack, tiles
from ccrepro.datasets.sources import Arrays, Bundle
from ccrepro.errors import DataError


def packed(root, channels=3, unlabeled=None):
    """A packed folder of 300 pictures: noise, which keeps a codec honest, and flat ones."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, channels, 8, 8)).astype(np.uint8)
    images[::3] //= 200
    (root / "source").write_bytes(b"source")
    arrays = Arrays(images, np.arange(300) % 5, list("abcde"), unlabeled)
    pack.write(root / "packed", Bundle([root / "source"], lambda: arrays))
    return root / "packed"


@pytest.fixture
def sent(tmp_path):
    folder = tmp_path / "sent"
    folder.mkdir()
    for name, blob in tiles.write(packed(tmp_path)).items():
        (folder / name).write_bytes(blob)
    return folder


def test_packed_set_comes_back_bit_for_bit(sent, tmp_path):
    found, before = tiles.read(sent, tmp_path / "there"), pack.read(tmp_path / "packed")
    assert np.array_equal(found.images, before.images)
    assert np.array_equal(found.labels, before.labels)
    assert found.sha256 == before.sha256
    contents = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("there", "packed")]
    assert contents[0] == contents[1]
    assert contents[0].keys() == {"images.npy", "labels.npy", "sizes.npy", "index.json"}
    assert len(list(sent.glob("*.webp"))) == 2  # 256 pictures, and 44 with blank ones beside them


def test_one_wrong_pixel_is_found(sent, tmp_path):
    path = sent / "0000256.webp"
    pictures = tiles._decode(path.read_bytes()).copy()
    pictures[3, 1, 2, 2] ^= 1
    path.write_bytes(tiles._encode(pictures))
    with pytest.raises(DataError, match="differ from those that were sent"):
        tiles.read(sent, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_what_tiles_cannot_hold_is_refused(tmp_path):
    with pytest.raises(DataError, match="1 channels"):
        tiles.write(packed(tmp_path, channels=1))
