import hashlib
import json
import os
import shutil
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
from PIL import Image

from ccrepro.data import cache
from ccrepro.data.images import decode, image_files
from ccrepro.data.readers import Arrays, Bundle, Files
from ccrepro.errors import DataError

SIZES = [[8, 24], [9, 24], [10, 24], [12, 24], [13, 24], [14, 24], [16, 24], [17, 23], [18, 22], [19, 21], [20, 20]]


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Eleven images of two classes, of eleven sizes, packed four at a time."""
    monkeypatch.setattr(cache, "CHUNK", 4)
    rng = np.random.default_rng(0)
    for i in range(11):
        place = tmp_path / "mine" / ("cats" if i < 5 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10 + i, 30 - i, 3), dtype=np.uint8)).save(place / f"{i:02}.png")
    return tmp_path / "mine"


def folder(path, longest=24):
    """Class folders as a source."""
    paths = [file for place in sorted(path.iterdir()) for file in image_files(place)]
    classes = sorted({file.parent.name for file in paths})
    return Files(paths, np.array([classes.index(file.parent.name) for file in paths]), classes, longest)


@pytest.fixture
def place(tmp_path):
    return tmp_path / "packed" / "mine"


def test_packed_images_are_the_decoded_ones_and_are_read_back_mapped(images, place):
    source = folder(images)
    packed = cache.write(place, source)
    for path, image in zip(source.paths, packed.images, strict=True):
        assert np.array_equal(image, decode(path, 24))
    assert packed.images.sizes.tolist() == SIZES
    assert packed.reduced == 6  # those that were wider than 24
    assert str(packed) == "11 images of 8×24 to 20×20 pixels, 6 of them reduced"
    assert packed.labels.tolist() == [0] * 5 + [1] * 6
    assert packed.class_names == ("cats", "dogs")
    assert sorted(p.name for p in place.iterdir()) == ["index.json", "labels.npy", "pixels.npy", "sizes.npy"]
    assert list(place.parent.iterdir()) == [place]
    found = cache.read(place, cache.fingerprint(source))
    assert all(isinstance(array, np.memmap) for array in (found.images.pixels, found.labels))
    assert np.array_equal(packed.images.pixels, found.images.pixels)
    digests = {"pixels.npy": hashlib.sha256((place / "pixels.npy").read_bytes()).hexdigest()}
    about = json.dumps([digests, packed.labels.tolist(), packed.images.sizes.tolist()])
    assert packed.sha256 == found.sha256 == hashlib.sha256(about.encode()).hexdigest()


def test_images_of_one_size_are_one_array(tmp_path, place):
    for i in range(3):
        Image.new("RGB", (7, 5), (i, 0, 0)).save(tmp_path / f"{i}.png")
    packed = cache.write(place, Files(image_files(tmp_path), None, []))
    assert packed.images.shape == (3, 3, 5, 7)
    assert packed.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert (str(packed), packed.reduced) == ("3 images of 5×7 pixels", 0)


def test_arrays_keep_their_unlabeled_part(tmp_path, place):
    (tmp_path / "raw").write_bytes(b"x")
    images, rest = np.arange(48, dtype=np.uint8).reshape(4, 1, 3, 4), np.ones((2, 1, 3, 4), np.uint8)
    arrays = Arrays(images, np.array([0, 1, 0, 1]), ["a", "b"], rest)
    packed = cache.write(place, Bundle([tmp_path / "raw"], lambda: arrays))
    assert np.array_equal(packed.images, images)
    assert np.array_equal(packed.unlabeled, rest)
    assert str(packed) == "4 images of 3×4 pixels"


CHANGES = {
    "new file": lambda images, place: (images / "cats/new.png").write_bytes((images / "cats/00.png").read_bytes()),
    "file changed": lambda images, place: Image.new("RGB", (5, 5)).save(images / "cats/00.png"),
    "array cut": lambda images, place: os.truncate(place / "pixels.npy", 1000),
    "array gone": lambda images, place: (place / "labels.npy").unlink(),
    "index cut": lambda images, place: os.truncate(place / "index.json", 100),
}


@pytest.mark.parametrize("change", [*CHANGES, "bit flipped", "longest", "version"])
def test_a_stale_or_damaged_folder_is_noticed_and_made_anew(images, place, change, monkeypatch):
    cache.write(place, folder(images))
    if change in CHANGES:
        CHANGES[change](images, place)
    elif change == "bit flipped":
        content = bytearray((place / "pixels.npy").read_bytes())
        content[500] ^= 1
        (place / "pixels.npy").write_bytes(content)
    elif change == "version":
        monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    source = folder(images, longest=23 if change == "longest" else 24)
    assert cache.read(place, cache.fingerprint(source)) is None
    cache.write(place, source)
    assert len(cache.read(place, cache.fingerprint(source)).images) == len(source.paths)


def test_a_packing_that_is_interrupted_leaves_nothing_to_be_used_and_can_be_made_again(images, place, monkeypatch):
    source = folder(images)
    whole = cache.write(place, source)
    shutil.rmtree(place)

    def interrupted(*names):
        raise KeyboardInterrupt

    for call in ("ccrepro.data.cache.decode", "ccrepro.data.cache.atomic_write", "os.replace"):
        with monkeypatch.context() as patched:
            patched.setattr(call, interrupted)
            with pytest.raises(KeyboardInterrupt):
                cache.write(place, source)
        assert cache.read(place) is None
    assert cache.write(place, source).sha256 == whole.sha256
    assert list(place.parent.iterdir()) == [place]


def test_a_decoder_that_is_killed_is_told_in_a_line(images, place, monkeypatch):
    def killed(*args, **more):
        raise BrokenProcessPool

    monkeypatch.setattr(cache.ProcessPoolExecutor, "map", killed)
    with pytest.raises(DataError, match=r"^A decoding process was killed, .* Run it again\.$"):
        cache.write(place, folder(images))


def test_bad_images_are_all_listed_before_anything_is_used_and_can_be_left_out(images, place, capsys):
    before = cache.write(place, folder(images))
    shutil.rmtree(place)
    (images / "cats/00.png").write_bytes(b"")
    (images / "dogs/07.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2 of 11 images are bad.*--skip-bad"):
        cache.write(place, folder(images))
    listed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bad image")]
    assert [line.rpartition("/")[2] for line in listed] == [
        "00.png: empty file",
        "07.png: not an image: it begins with b'no image'",
    ]
    assert not place.exists()
    packed, rows = cache.write(place, folder(images), skip_bad=True), [1, 2, 3, 4, 5, 6, 8, 9, 10]
    assert np.array_equal(packed.labels, before.labels[rows])
    assert all(np.array_equal(image, before.images[row]) for image, row in zip(packed.images, rows, strict=True))
    assert np.load(place / "rows.npy").tolist() == rows
    assert "2 bad images are left out, 9 remain" in capsys.readouterr().err
