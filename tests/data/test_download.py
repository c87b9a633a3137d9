import hashlib
import http.server
import io
import shutil
import tarfile
import threading
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets as tv
from torchvision.datasets import imagenette

from ccrepro.data import download, load, readers
from ccrepro.data.registry import DATASETS, Archive
from ccrepro.errors import ConfigError, DataError

FETCHED = {name: facts.archive for name, facts in DATASETS.items() if facts.archive}


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one file, can break off, and writes down what it was asked for."""

    def do_GET(self):
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[: self.breaks_after])

    def log_message(self, *args):
        pass


def image():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def tiny(monkeypatch):
    """Tiny-ImageNet of two images on a local host, with its true hash."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("n1", "n2"):
            archive.writestr(f"tiny-imagenet-200/train/{name}/images/{name}_0.png", image())
    server = type("Handler", (Server,), {"content": buffer.getvalue(), "asked": [], "breaks_after": None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), server) as here:
        threading.Thread(target=here.serve_forever, args=(0.02,), daemon=True).start()
        known = f"sha256:{hashlib.sha256(server.content).hexdigest()}"
        archive = Archive(f"http://127.0.0.1:{here.server_port}/tiny-imagenet-200.zip", known, "1 kB")
        reader = partial(readers.tiny_imagenet, classes=2, per_class=1)
        facts = DATASETS["tiny-imagenet"]._replace(images=2, classes=2, archive=archive, reader=reader)
        monkeypatch.setitem(DATASETS, "tiny-imagenet", facts)
        yield server
        here.shutdown()


def test_checksums_are_torchvisions():
    for name, kind in (("cifar10", tv.CIFAR10), ("cifar100", tv.CIFAR100), ("stl10", tv.STL10)):
        assert FETCHED[name][:2] == (kind.url, f"md5:{kind.tgz_md5}")
        assert DATASETS[name].folder == kind.base_folder
    url, md5 = imagenette.Imagenette._ARCHIVES["full"]
    assert FETCHED["imagenette"][:2] == (url, f"md5:{md5}")


def test_an_absent_data_set_is_fetched_verified_unpacked_and_packed_once(tiny, tmp_path):
    for _ in "ab":
        assert load("tiny-imagenet", tmp_path).images.shape == (2, 3, 64, 64)
    assert tiny.asked == ["/tiny-imagenet-200.zip"]
    assert not list(tmp_path.glob(".unpacking*"))


def test_an_interrupted_download_leaves_nothing_half(tiny, tmp_path):
    tiny.breaks_after = 5000
    archive = DATASETS["tiny-imagenet"].archive
    says = rf"^Cannot fetch {archive.url} \({archive.known_hash}\): .* Put it into {tmp_path}/downloads, or its folder"
    with pytest.raises(DataError, match=says):
        download.fetch("tiny-imagenet", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    tiny.breaks_after = None
    download.fetch("tiny-imagenet", tmp_path)
    assert (tmp_path / "downloads/tiny-imagenet-200.zip").read_bytes() == tiny.content


def test_without_a_connection_the_error_is_short(tiny, tmp_path, monkeypatch):
    gone = DATASETS["tiny-imagenet"].archive._replace(url="http://127.0.0.1:1/tiny-imagenet-200.zip")
    monkeypatch.setitem(DATASETS, "tiny-imagenet", DATASETS["tiny-imagenet"]._replace(archive=gone))
    with pytest.raises(DataError, match=r"^Cannot fetch http\S+ \(\S+\): no connection\. Put it into "):
        download.fetch("tiny-imagenet", tmp_path)


def test_an_archive_that_was_put_there_by_hand_is_taken(tiny, tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/tiny-imagenet-200.zip").write_bytes(tiny.content)
    download.fetch("tiny-imagenet", tmp_path)
    assert (tmp_path / "tiny-imagenet-200").is_dir()
    assert tiny.asked == []


def test_an_archive_with_another_hash_is_never_unpacked(tiny, tmp_path):
    tiny.content = tiny.content[:-1] + b"x"
    with pytest.raises(DataError, match=r"hash.*does not match"):
        download.fetch("tiny-imagenet", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [
        ("../evil", tarfile.REGTYPE, ""),
        ("good/link", tarfile.SYMTYPE, "../../evil"),
        ("good/link", tarfile.SYMTYPE, "/etc/passwd"),
        ("good/link", tarfile.LNKTYPE, "../evil"),
        ("good/device", tarfile.CHRTYPE, ""),
    ],
)
def test_a_tar_that_leaves_its_folder_is_refused_as_a_whole(tmp_path, name, kind, target):
    path = tmp_path / "a"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("good/a.txt"))
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        archive.addfile(info)
    with pytest.raises(DataError, match="cannot be unpacked"):
        download.unpack(path, tmp_path / "deep/root", "good")
    assert [p for p in tmp_path.rglob("*") if p.is_file() or p.is_symlink()] == [path]


@pytest.mark.parametrize("kind", ["zip", "gztar", "xztar"])
def test_a_damaged_archive_is_told_whatever_its_reader_raises(tmp_path, kind):
    (tmp_path / "good").mkdir()
    (tmp_path / "good/a.bin").write_bytes(bytes(range(256)) * 20)
    sound, rng = Path(shutil.make_archive(tmp_path / "a", kind, tmp_path, "good")), np.random.default_rng(0)
    content, told = sound.read_bytes(), 0
    for at in rng.integers(len(content), size=100):
        sound.write_bytes(content[:at] + bytes(rng.integers(256, size=3, dtype=np.uint8)) + content[at + 3 :])
        try:
            download.unpack(sound, tmp_path / "root", "good")  # where the bytes are of no account
        except DataError:
            told += 1
    assert told > 10
    sound.write_bytes(content)
    download.unpack(sound, tmp_path / "root", "good")
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["good"]


def test_a_zip_cannot_leave_its_folder(tmp_path):
    path, root = tmp_path / "a", tmp_path / "deep/root"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("good/a.txt", "../evil", "good/../../evil", "/evil", "..\\evil", "good/link"):
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if name == "good/link" else 0o100644) << 16
            archive.writestr(info, "/etc/passwd")
    download.unpack(path, root, "good")
    assert {p for p in tmp_path.rglob("*") if not p.is_dir()} == {path, root / "good/a.txt", root / "good/link"}
    assert not (root / "good/link").is_symlink()
    with pytest.raises(DataError, match="holds no folder other"):
        download.unpack(path, root, "other")


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """A training folder with two classes as folders and one as a tar; the subset asks for two images of each."""
    names = {"n1": "one", "n2": "two", "n3": "three"}
    changes = {"images": 6, "classes": 3, "synsets": names, "reader": readers.synsets("imagenet-10", names, 2)}
    monkeypatch.setitem(DATASETS, "imagenet10", DATASETS["imagenet10"]._replace(**changes))
    base = tmp_path / "ilsvrc"
    for synset in ("n1", "n2", "n9"):
        (base / synset).mkdir(parents=True)
        for i in "ab":
            (base / synset / f"{i}.png").write_bytes(image())
    with tarfile.open(base / "n3.tar", "w") as archive:
        for i in "ab":
            archive.add(base / "n1" / f"{i}.png", f"n3_{i}.png")
    return base


def test_a_subset_is_built_from_folders_and_tars_of_which_each_missing_one_is_named(imagenet, tmp_path):
    download.from_imagenet("imagenet10", imagenet, tmp_path / "data")
    data = load("imagenet10", tmp_path / "data")
    assert data.class_names == ("one", "two", "three")
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    moved = imagenet.rename(imagenet.with_name("moved"))
    download.from_imagenet("imagenet10", moved, tmp_path / "data")  # again, from another place
    assert (tmp_path / "data/imagenet-10/n1").resolve() == moved / "n1"
    (moved / "n3.tar").unlink()
    (moved / "n1").rename(moved / "n7")
    with pytest.raises(DataError, match=r"lacks 2 of 3 synsets: n1 \(one\), n3 \(three\)"):
        download.from_imagenet("imagenet10", moved, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("name", "says"), [("cifar10", "Unknown subset"), ("imagenet10", "There is no folder")])
def test_imagenet_is_for_its_subsets_and_must_exist(tmp_path, name, says):
    with pytest.raises(ConfigError, match=says):
        download.from_imagenet(name, tmp_path / "nowhere", tmp_path)
