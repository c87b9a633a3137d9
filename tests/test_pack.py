import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import psutil
import pytest
from PIL import Image

from ccrepro.datasets import pack
from ccrepro.datasets.decode import decode
from ccrepro.datasets.sources import Arrays, Bundle, folder
from ccrepro.errors import DataError


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Eleven pictures of two classes, of eleven sizes, packed four at a time."""
    monkeypatch.setattr(pack, "CHUNK", 4)
    rng = np.random.default_rng(0)
    for i in range(11):
        place = tmp_path / "mine" / ("cats" if i < 5 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10 + i, 30 - i, 3), dtype=np.uint8)).save(place / f"{i:02}.png")
    return tmp_path / "mine"


@pytest.fixture
def place(tmp_path):
    return tmp_path / "packed" / "mine"


def test_packed_pictures_are_the_decoded_ones(pictures, place):
    source = folder(pictures, side=16)
    packed = pack.write(place, source)
    assert packed.images.shape == (11, 3, 16, 16)
    for row, path in enumerate(source.paths):
        square, size = decode(path, 16)
        assert np.array_equal(packed.images[row], square)
        assert tuple(packed.sizes[row]) == size
    assert packed.labels.tolist() == [0] * 5 + [1] * 6
    assert sorted(p.name for p in place.iterdir()) == ["images.npy", "index.json", "labels.npy", "sizes.npy"]
    index = json.loads((place / "index.json").read_text())
    each = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in source.paths)
    assert index["source_sha256"] == {"11 files": hashlib.sha256(each.encode()).hexdigest()}
    assert not place.with_name("mine.partial").exists()


def test_what_is_read_back_is_mapped_and_equal(pictures, place):
    source = folder(pictures, side=16)
    written, found = pack.write(place, source), pack.read(place, pack.fingerprint(source))
    assert all(isinstance(array, np.memmap) for array in (found.images, found.sizes, found.labels))
    assert np.array_equal(written.images, found.images)
    assert written.sha256 == found.sha256


def test_arrays_keep_their_unlabeled_part(tmp_path, place):
    (tmp_path / "raw").write_bytes(b"x")
    images, rest = np.arange(48, dtype=np.uint8).reshape(4, 1, 3, 4), np.ones((2, 1, 3, 4), np.uint8)
    arrays = Arrays(images, np.array([0, 1, 0, 1]), ["a", "b"], rest)
    packed = pack.write(place, Bundle([tmp_path / "raw"], lambda: arrays))
    assert np.array_equal(packed.images, images)
    assert np.array_equal(packed.unlabeled, rest)
    assert packed.sizes.tolist() == [[3, 4]] * 4
    index = json.loads((place / "index.json").read_text())
    assert index["source_sha256"] == {"raw": hashlib.sha256(b"x").hexdigest()}


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("n", [5, 2**16, 2**16 + 3])
def test_the_hash_of_a_set_is_that_of_its_json(labelled, n):
    """As in version 1, whose hashes run records hold: made piece by piece it is the same."""
    hashes, sizes = {"images.npy": "a" * 64, "unlabeled.npy": "b" * 64}, np.arange(2 * n).reshape(n, 2)
    labels = np.arange(n) % 7 if labelled else None
    whole = json.dumps([hashes, labels.tolist() if labelled else None, sizes.tolist()])
    found = pack._digest({**hashes, "labels.npy": "c" * 64, "sizes.npy": "d" * 64}, labels, sizes)
    assert found == hashlib.sha256(whole.encode()).hexdigest()


@pytest.mark.parametrize("change", ["new file", "file changed", "file gone", "side", "version"])
def test_a_stale_folder_is_noticed(pictures, place, change, monkeypatch):
    pack.write(place, folder(pictures, side=16))
    first = sorted(pictures.rglob("*.png"))[0]
    if change == "new file":
        (pictures / "cats/new.png").write_bytes(first.read_bytes())
    elif change == "file changed":
        Image.new("RGB", (5, 5)).save(first)
    elif change == "file gone":
        first.unlink()
    elif change == "version":
        monkeypatch.setattr(pack, "VERSION", pack.VERSION + 1)
    source = folder(pictures, side=17 if change == "side" else 16)
    assert pack.read(place, pack.fingerprint(source)) is None


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "index gone", "index cut", "array gone"])
def test_a_damaged_folder_is_noticed(pictures, place, damage):
    source = folder(pictures, side=16)
    pack.write(place, source)
    images, index = place / "images.npy", place / "index.json"
    if damage == "flipped bit":
        content = bytearray(images.read_bytes())
        content[500] ^= 1
        images.write_bytes(content)
    elif damage == "truncated":
        os.truncate(images, 1000)
    elif damage == "index cut":
        os.truncate(index, index.stat().st_size // 2)
    else:
        (index if damage == "index gone" else images).unlink()
    assert pack.read(place, pack.fingerprint(source)) is None
    assert pack.write(place, source).images.shape == (11, 3, 16, 16)


def test_an_interrupted_packing_goes_on_where_it_stopped(pictures, place, monkeypatch):
    source, whole = folder(pictures, side=16), pack.write(place, folder(pictures, side=16)).images.copy()
    place.rename(place.with_name("before"))
    real, jobs = pack._decode_chunk, []

    class InThisProcess:
        def __init__(self, cores, initializer):
            assert cores == len(os.sched_getaffinity(0))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return False

        def map(self, function, todo):
            for job in todo:
                jobs.append(job[1])
                if len(jobs) == 3:
                    raise KeyboardInterrupt
                yield real(job)

    monkeypatch.setattr(pack, "ProcessPoolExecutor", InThisProcess)
    with pytest.raises(KeyboardInterrupt):
        pack.write(place, source)
    assert not place.exists()
    done = [json.loads(line)[0] for line in (place.with_name("mine.partial") / "done.txt").read_text().splitlines()[1:]]
    assert done == [0, 4]
    again = pack.write(place, source)
    assert jobs == [0, 4, 8, 8]
    assert np.array_equal(again.images, whole)


def test_a_decoder_that_is_killed_is_told_in_a_line(pictures, place, monkeypatch):
    def killed(*args):
        raise BrokenProcessPool

    monkeypatch.setattr(pack, "_progress", killed)
    with pytest.raises(DataError, match=r"^a process that decodes was killed, .*mine\.partial\)\. .* Run it again"):
        pack.write(place, folder(pictures, side=16))


def test_decoders_end_with_a_process_that_is_killed():
    code = """
import time
from concurrent.futures import ProcessPoolExecutor
from ccrepro.datasets.pack import _end_with_parent
pool = ProcessPoolExecutor(2, initializer=_end_with_parent)
waiting = [pool.submit(time.sleep, 0.2) for _ in "ab"]
print([job.result() for job in waiting], flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    parent.stdout.readline()
    workers = psutil.Process(parent.pid).children()
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(workers, timeout=20)[1] == []


def test_an_interrupted_packing_of_something_else_is_dropped(pictures, place):
    scratch = place.with_name("mine.partial")
    scratch.mkdir(parents=True)
    (scratch / "done.txt").write_text("another source\n[0, [[1, 1], [1, 1], [1, 1], [1, 1]]]\n")
    assert pack.write(place, folder(pictures, side=16)).sizes[0].tolist() == [10, 30]


def test_all_bad_pictures_are_listed_before_anything_is_used(pictures, place, capsys):
    (pictures / "cats/00.png").write_bytes(b"")
    (pictures / "dogs/07.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"2 of 11 pictures are bad.*--skip-bad") as caught:
        pack.write(place, folder(pictures, side=16))
    assert caught.value.exit_code == 3
    listed = capsys.readouterr().err.splitlines()
    assert len(listed) == 2
    assert listed[0].endswith("00.png: empty file")
    assert listed[1].endswith("07.png: not an image")
    assert not place.exists()


def test_bad_pictures_can_be_left_out(pictures, place, capsys):
    before = pack.write(place, folder(pictures, side=16))
    (pictures / "cats/00.png").write_bytes(b"")
    packed = pack.write(place, folder(pictures, side=16), skip_bad=True)
    assert np.array_equal(packed.images, before.images[1:])
    assert packed.labels.tolist() == [0] * 4 + [1] * 6
    assert packed.sizes[0].tolist() == [11, 29]
    assert "1 bad pictures are left out, 10 remain" in capsys.readouterr().err


def test_a_stop_while_bad_pictures_are_left_out_costs_no_row(pictures, place, monkeypatch):
    before = pack.write(place, folder(pictures, side=16))
    (pictures / "cats/00.png").write_bytes(b"")
    real = os.replace

    def stopped(source, target):
        real(source, target)
        if str(source).endswith("kept.npy"):
            raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        pack.write(place, folder(pictures, side=16), skip_bad=True)
    monkeypatch.setattr("os.replace", real)
    packed = pack.write(place, folder(pictures, side=16), skip_bad=True)
    assert np.array_equal(packed.images, before.images[1:])
