import hashlib
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets as tv

from ccrepro import datasets
from ccrepro.config import Facts
from ccrepro.datasets import catalog, own, sources
from ccrepro.errors import ConfigError, DataError

ROOT = Path(__file__).parents[1]
DATA = os.environ.get("CCREPRO_DATA", "")


def has(folder):
    return pytest.mark.skipif(not DATA or not Path(DATA, folder).is_dir(), reason=f"needs $CCREPRO_DATA/{folder}")


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def facts(monkeypatch):
    """Let a data set have other counts than the paper's."""
    return lambda name, *counts: monkeypatch.setitem(datasets.DATASETS, name, Facts(name, *counts))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_digits_are_scikit_learns(digits):
    pixels, labels = load_digits(return_X_y=True)
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.images.dtype == np.uint8
    assert np.array_equal(np.round(digits.images.reshape(-1, 64) * (16 / 255)), pixels)
    assert np.array_equal(digits.labels, labels)
    assert digits.unlabeled is None
    assert digits.sha256 == "0b7e9c3202d7bcd255d6a19a238d3743bf5e320ba74812a6679958a017c55382"


def test_superclasses_are_20_of_5():
    assert np.bincount(sources.CIFAR100_SUPERCLASS).tolist() == [5] * 20
    assert len(sources.CIFAR100_SUPERCLASS_NAMES) == 20


def test_subsets_are_the_papers_and_the_stand_ins_are_not():
    assert len(sources.IMAGENET10) == 10
    assert len(sources.IMAGENET_DOGS) == 15
    assert set(sources.IMAGENET10) & set(sources.IMAGENET_DOGS) == {"n02085936"}  # Maltese dog
    assert "n02097130" in sources.IMAGENET_DOGS  # giant schnauzer; another list that goes round has n02097209
    assert not set(sources.IMAGENETTE) & set(sources.IMAGENET10)


def test_every_known_data_set_has_a_source():
    assert {"digits", *sources.SOURCES} == set(datasets.DATASETS)


def test_unknown_name():
    with pytest.raises(ConfigError, match="unknown data set 'mnist'"):
        datasets.load("mnist")


@has("cifar-10-batches-py")
def test_a_damaged_cifar_file_is_refused(tmp_path):
    shutil.copytree(Path(DATA, "cifar-10-batches-py"), tmp_path / "cifar-10-batches-py")
    path = tmp_path / "cifar-10-batches-py/data_batch_3"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="CIFAR10 is incomplete or damaged"):
        datasets.load("cifar10", tmp_path)
    assert not (tmp_path / "packed/cifar10").exists()


def test_packed_data_outlives_its_source(tmp_path, facts):
    facts("tiny-imagenet", 6, 3)
    made_classes(tmp_path / "tiny-imagenet-200/train", ["n1", "n2", "n3"], 2, "images")
    before = datasets.load("tiny-imagenet", tmp_path)
    shutil.rmtree(tmp_path / "tiny-imagenet-200")
    assert datasets.load("tiny-imagenet", tmp_path).sha256 == before.sha256


def made_cifar(root, monkeypatch, kind, files, meta, folder, key):
    """Write small files in CIFAR's own format, and teach torchvision their checksums."""
    rng, lists = np.random.default_rng(0), {"train_list": [], "test_list": []}
    (root / folder).mkdir()
    for name, n, split in files:
        content = {"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), key: rng.integers(0, 100, n).tolist()}
        if key == "labels":
            content[key] = (np.arange(n) % 10).tolist()
        (root / folder / name).write_bytes(pickle.dumps(content))
        lists[split].append([name, md5(root / folder / name)])
    (root / folder / meta["filename"]).write_bytes(pickle.dumps(meta["content"]))
    for name, value in lists.items():
        monkeypatch.setattr(kind, name, value)
    path = root / folder / meta["filename"]
    monkeypatch.setattr(kind, "meta", {"filename": meta["filename"], "key": meta["key"], "md5": md5(path)})


def test_cifar10_reads_the_pickles_in_order(tmp_path, monkeypatch, facts):
    facts("cifar10", 70, 10)
    names = [f"class {i}" for i in range(10)]
    meta = {"filename": "batches.meta", "key": "label_names", "content": {"label_names": names}}
    files = [*((f"data_batch_{i}", 10, "train_list") for i in range(1, 6)), ("test_batch", 20, "test_list")]
    made_cifar(tmp_path, monkeypatch, tv.CIFAR10, files, meta, "cifar-10-batches-py", "labels")
    data = datasets.load("cifar10", tmp_path)
    second = pickle.loads((tmp_path / "cifar-10-batches-py/data_batch_2").read_bytes())
    assert np.array_equal(data.images[10:20], second["data"].reshape(10, 3, 32, 32))
    assert data.labels.tolist() == list(range(10)) * 7
    assert data.class_names == tuple(names)
    again = datasets.load("cifar10", tmp_path)
    assert isinstance(again.images, np.memmap)
    assert again.sha256 == data.sha256


def test_cifar100_maps_fine_labels_to_superclasses(tmp_path, monkeypatch, facts):
    facts("cifar100", 50, 20)
    meta = {"filename": "meta", "key": "fine_label_names", "content": {"fine_label_names": ["x"] * 100}}
    files = [("train", 30, "train_list"), ("test", 20, "test_list")]
    made_cifar(tmp_path, monkeypatch, tv.CIFAR100, files, meta, "cifar-100-python", "fine_labels")
    data = datasets.load("cifar100", tmp_path)
    fine = pickle.loads((tmp_path / "cifar-100-python/train").read_bytes())["fine_labels"]
    assert data.labels[:30].tolist() == [sources.CIFAR100_SUPERCLASS[f] for f in fine]


def test_stl10_reads_the_binaries_and_keeps_the_unlabeled_apart(tmp_path, monkeypatch, facts, rng):
    facts("stl10", 30, 10, 5)
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    written = {}
    for part, n in (("train", 20), ("test", 10), ("unlabeled", 5)):
        # the format is column by column: each picture (3, width, height)
        written[part] = rng.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8)
        (folder / f"{part}_X.bin").write_bytes(written[part].tobytes())
        (folder / f"{part}_y.bin").write_bytes((np.arange(n) % 10 + 1).astype(np.uint8).tobytes())
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)) + "\n")
    (folder / "fold_indices.txt").write_text("")
    lists = {"train_list": ("train_X.bin", "train_y.bin", "unlabeled_X.bin"), "test_list": ("test_X.bin", "test_y.bin")}
    for attribute, names in lists.items():
        monkeypatch.setattr(tv.STL10, attribute, [[name, md5(folder / name)] for name in names])
    data = datasets.load("stl10", tmp_path)
    assert np.array_equal(data.images[:20], written["train"].transpose(0, 1, 3, 2))
    assert np.array_equal(data.unlabeled, written["unlabeled"].transpose(0, 1, 3, 2))
    assert data.labels.tolist() == [*range(10), *range(10), *range(10)]


def picture(path, size=(8, 6), color=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def made_classes(base, names, n, inner=""):
    for number, name in enumerate(names):
        for i in range(n):
            picture(base / name / inner / f"{name}_{i}.png", size=(8 + number, 6 + i))


def test_imagenet10_takes_its_synsets_and_no_others(tmp_path, monkeypatch, facts):
    facts("imagenet10", 20, 10)
    monkeypatch.setitem(sources.SOURCES, "imagenet10", sources.synsets("imagenet-10", sources.IMAGENET10, 16, 2))
    made_classes(tmp_path / "imagenet-10", [*sources.IMAGENET10, "n00000001"], 2)
    data = datasets.load("imagenet10", tmp_path)
    assert data.images.shape == (20, 3, 16, 16)
    assert data.class_names[0] == "king penguin"
    assert data.labels.tolist() == [i for i in range(10) for _ in "ab"]
    assert data.sizes[:4].tolist() == [[6, 8], [7, 8], [6, 9], [7, 9]]  # height, width


def test_missing_synsets_and_wrong_counts_are_all_named(tmp_path):
    made_classes(tmp_path / "imagenet-10", list(sources.IMAGENET10)[2:], 1)
    with pytest.raises(DataError) as caught:
        datasets.load("imagenet10", tmp_path)
    message = str(caught.value)
    assert "n02056570 (king penguin): missing, n02085936 (Maltese dog): missing" in message
    assert "n02128757 (snow leopard): 1" in message
    assert "1,300 images in each" in message


def test_tiny_imagenet_reads_the_training_part(tmp_path, facts):
    facts("tiny-imagenet", 6, 3)
    made_classes(tmp_path / "tiny-imagenet-200/train", ["n3", "n1", "n2"], 2, "images")
    data = datasets.load("tiny-imagenet", tmp_path)
    assert data.images.shape == (6, 3, 64, 64)
    assert data.class_names == ("n1", "n2", "n3")


def test_wrong_count_names_the_classes_that_lack_pictures(tmp_path, facts):
    facts("tiny-imagenet", 8, 4)
    made_classes(tmp_path / "tiny-imagenet-200/train", ["n1", "n2", "n3", "n4"], 2, "images")
    (tmp_path / "tiny-imagenet-200/train/n3/images/n3_0.png").unlink()
    with pytest.raises(DataError, match=r"7 images, 4 classes.*2 in each class, but n3: 1 .*Expected 8 images"):
        datasets.load("tiny-imagenet", tmp_path)


def test_missing_classes_are_refused(tmp_path):
    made_classes(tmp_path / "tiny-imagenet-200/train", ["n1"], 2, "images")
    with pytest.raises(DataError, match=r"2 images, 1 classes.*Expected 100,000 images, 200 classes"):
        datasets.load("tiny-imagenet", tmp_path)


def test_a_folder_of_classes_has_labels(tmp_path):
    made_classes(tmp_path / "mine", ["cats", "dogs"], 2)
    (tmp_path / "mine/notes").mkdir()
    (tmp_path / "mine/notes/read.me").write_text("no class")
    data = datasets.load(f"folder:{tmp_path / 'mine'}", tmp_path)
    assert data.class_names == ("cats", "dogs")
    assert data.labels.tolist() == [0, 0, 1, 1]


def test_a_flat_folder_has_none(tmp_path):
    for i in range(3):
        picture(tmp_path / f"mine/{i}.jpg")
    data = datasets.load(f"folder:{tmp_path / 'mine'}", tmp_path)
    assert data.labels is None
    assert len(data.images) == 3


def test_of_several_processes_one_packs_and_all_get_the_same(tmp_path):
    for i in range(40):
        place = tmp_path / "mine" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(place / f"{i}.png")
    code = f"""
from ccrepro import datasets
from ccrepro.datasets import pack
write = pack.write
pack.write = lambda *arguments: print("packs") or write(*arguments)
print(datasets.load("folder:{tmp_path}/mine", {str(tmp_path)!r}).sha256)
"""
    command = [sys.executable, "-c", code]
    several = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    lines = [line for each in several for line in each.communicate(timeout=300)[0].splitlines()]
    assert [each.returncode for each in several] == [0] * 3
    assert lines.count("packs") == 1
    assert len({line for line in lines if len(line) == 64}) == 1
    assert sum(len(line) == 64 for line in lines) == 3


@pytest.mark.parametrize("path", ["nowhere", "empty"])
def test_a_folder_without_pictures_is_an_error(tmp_path, path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"(no folder|no pictures).*{path}"):
        datasets.load(f"folder:{tmp_path / path}", tmp_path)


def test_data_root_is_what_is_given_or_set_or_in_the_clone(monkeypatch):
    assert datasets.data_root("given") == Path("given")
    monkeypatch.setenv("CCREPRO_DATA", "set")
    assert datasets.data_root() == Path("set")
    monkeypatch.delenv("CCREPRO_DATA")
    assert datasets.data_root() == ROOT / "data"


def test_catalog_names_every_data_set_and_its_state(tmp_path):
    made_classes(tmp_path / "tiny-imagenet-200/train", ["n1"], 2, "images")
    shown = catalog.catalog(tmp_path).set_index("name")
    assert list(shown.index) == list(datasets.DATASETS)
    assert shown.loc["digits", "state"] == "ships with scikit-learn"
    assert shown.loc["tiny-imagenet", "state"] == "present, not packed: 2 files"
    assert shown.loc["imagenet10", "state"] == "absent"
    assert shown.loc["cifar10", "images"] == "60,000"


def test_documentation_has_the_catalog():
    text = (ROOT / "docs/datasets.md").read_text()
    assert catalog.markdown() in text


@has("cifar-10-batches-py")
def test_cifar10_is_train_and_test_in_order():
    data = datasets.load("cifar10", DATA)
    assert np.bincount(data.labels).tolist() == [6000] * 10
    assert data.class_names[data.labels[0]] == "frog"  # the first training image
    assert data.class_names[data.labels[50_000]] == "cat"  # the first test image
    assert data.images[0, :, 0, 0].tolist() == [59, 62, 63]
    assert hashlib.sha256(data.images).hexdigest() == "2ae5d6db0453753867541f0ccce0b648fcd0aaf596c0ca67c33dc03b3deaf283"


@has("cifar-100-python")
def test_cifar100_superclasses_are_the_coarse_labels_in_the_files():
    data = datasets.load("cifar100", DATA)
    assert np.bincount(data.labels).tolist() == [3000] * 20
    assert hashlib.sha256(data.images).hexdigest() == "7fd4455e5b9d53c182a9fa503560af0f9ff2a1ffdb3eda6fa331650c16fb15b0"
    path = Path(DATA, "cifar-100-python/train")
    assert md5(path) == tv.CIFAR100.train_list[0][1]  # so it may be unpickled
    coarse = pickle.loads(path.read_bytes(), encoding="latin1")["coarse_labels"]
    assert np.array_equal(data.labels[:50_000], coarse)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@has("cifar-10-batches-py")
def test_reading_packed_cifar10_takes_less_than_400_mb():
    datasets.load("cifar10", DATA)
    program = f"""
from ccrepro import datasets
images = datasets.load("cifar10", {DATA!r}).images
total = sum(int(images[i : i + 500].sum()) for i in range(0, len(images), 500))
"""
    program += "print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True, text=True)
    peak_kb = int(re.search(r"VmHWM:\s*(\d+) kB", done.stdout)[1])
    assert peak_kb < 400_000


SAMPLES = {  # genuine pictures in their customary folders: classes, pictures
    "sample-imagenet10/train": (10, 130),
    "sample-imagenet_dogs/train": (15, 55),
    "sample-tiny-imagenet-200/train": (200, 1000),
    "sample-standin_imagenette2-160/train": (10, 500),
    "sample-standin_imagewoof2-320/train": (10, 300),
}


@pytest.mark.parametrize("place", SAMPLES)
@pytest.mark.skipif(not DATA or not Path(DATA, "samples").is_dir(), reason="needs $CCREPRO_DATA/samples")
def test_genuine_pictures_are_packed_as_pillow_reads_them(place, tmp_path):
    base = Path(DATA, "samples", place)
    data = datasets.load(f"folder:{base}", tmp_path)
    assert (len(data.class_names), len(data.images)) == SAMPLES[place]
    paths = [path for name in data.class_names for path in sources.image_files(base / name, deep=True)]
    for row in np.random.default_rng(0).permutation(len(paths))[:20]:
        with Image.open(paths[row]) as image:
            assert tuple(data.sizes[row]) == (image.height, image.width)
            expected = np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR))
        assert np.array_equal(data.images[row], expected.transpose(2, 0, 1))


def test_pictures_of_a_folder_are_found_once_wherever_they_lie(tmp_path):
    """Hidden ones left out; links to folders followed, and round in a circle only once."""
    shown, hidden = ("b.PNG", "c/d.jfif", "c/notes.txt", "outside/f.avif", "c/g.heic"), ("c/.h.png", ".thumbs/i.png")
    for name in (*shown, *hidden):
        path = tmp_path / ("elsewhere" if "outside" in name else "in") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    base = tmp_path / "in"
    for link, target in (("a", "../elsewhere/outside"), ("b", "c"), ("c/up", ".."), ("lost.png", "nowhere.png")):
        (base / link).symlink_to(target)
    found = [str(path.relative_to(base)) for path in sources.image_files(base, deep=True)]
    assert found == ["a/f.avif", "b.PNG", "c/d.jfif"]
    assert [path.name for path in sources.image_files(base)] == ["b.PNG"]
    assert own.look_through(base).left_out == "1 .heic, 1 .txt, 1 broken link"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.heic").write_text("")
    with pytest.raises(DataError, match=r"no pictures in .*other, but 1 \.heic \(pictures\)"):
        own.look_through(tmp_path / "other")


@has("samples/sample-stl10")
def test_genuine_stl10_pictures_are_read(tmp_path, monkeypatch, facts):
    """A sample in the real format: 40 training, 10 test and 248 unlabeled pictures; its checksums are its own."""
    facts("stl10", 50, 10, 248)
    shutil.copytree(Path(DATA, "samples/sample-stl10/stl10_binary"), tmp_path / "stl10_binary")
    for attribute in ("train_list", "test_list"):
        names = [name for name, _ in getattr(tv.STL10, attribute)]
        sums = [[name, md5(tmp_path / "stl10_binary" / name)] for name in names]
        monkeypatch.setattr(tv.STL10, attribute, sums)
    data = datasets.load("stl10", tmp_path)
    raw = np.fromfile(tmp_path / "stl10_binary/test_X.bin", np.uint8).reshape(-1, 3, 96, 96)
    assert np.array_equal(data.images[40:], raw.transpose(0, 1, 3, 2))
    assert data.class_names[0] == "airplane"
    # Pictures, not noise, and not turned: neighbours down and across are alike.
    smooth = [np.abs(np.diff(data.unlabeled.astype(int), axis=axis)).mean() for axis in (2, 3)]
    assert max(smooth) < 20
