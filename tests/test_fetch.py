import functools
import hashlib
import http.server
import io
import tarfile
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets as tv
from torchvision.datasets import imagenette

from ccrepro import datasets
from ccrepro.config import Facts
from ccrepro.datasets import fetch
from ccrepro.errors import ConfigError, DataError


class Server(http.server.SimpleHTTPRequestHandler):
    """A file server that can resume, can break off, and writes down what it was asked for."""

    breaks_after = None

    def do_GET(self):
        content = (self.root / self.path.lstrip("/")).read_bytes()
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.breaks_after])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    handler = type("Handler", (Server,), {"root": tmp_path / "host", "asked": []})
    (tmp_path / "host").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=tmp_path)) as here:
        threading.Thread(target=here.serve_forever, daemon=True).start()
        handler.url = f"http://127.0.0.1:{here.server_port}"
        yield handler
        here.shutdown()


def picture():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def tiny(server, monkeypatch):
    """Tiny-ImageNet of two pictures on the local host, with its true hash."""
    with zipfile.ZipFile(server.root / "tiny-imagenet-200.zip", "w") as archive:
        for name in ("n1", "n2"):
            archive.writestr(f"tiny-imagenet-200/train/{name}/images/{name}_0.png", picture())
    content = (server.root / "tiny-imagenet-200.zip").read_bytes()
    known = f"sha256:{hashlib.sha256(content).hexdigest()}"
    archive = fetch.Archive(f"{server.url}/tiny-imagenet-200.zip", known, "tiny-imagenet-200")
    monkeypatch.setitem(fetch.ARCHIVES, "tiny-imagenet", archive)
    monkeypatch.setitem(datasets.DATASETS, "tiny-imagenet", Facts("Tiny-ImageNet", 2, 2))
    return content


def test_checksums_are_torchvisions():
    for name, kind in (("cifar10", tv.CIFAR10), ("cifar100", tv.CIFAR100), ("stl10", tv.STL10)):
        assert fetch.ARCHIVES[name] == (kind.url, f"md5:{kind.tgz_md5}", kind.base_folder)
    url, md5 = imagenette.Imagenette._ARCHIVES["full"]
    assert fetch.ARCHIVES["imagenette"] == (url, f"md5:{md5}", "imagenette2")


def test_an_absent_data_set_is_fetched_verified_unpacked_and_packed(tiny, server, tmp_path):
    root = tmp_path / "data"
    data = datasets.load("tiny-imagenet", root)
    assert data.images.shape == (2, 3, 64, 64)
    assert server.asked == [None]
    assert not list(root.glob(".unpacking*"))
    datasets.load("tiny-imagenet", root)
    assert server.asked == [None]


def test_an_interrupted_download_goes_on_where_it_stopped(tiny, server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "BLOCK", 1000)
    server.breaks_after = 5000
    with pytest.raises(DataError, match=r"tiny-imagenet-200.zip could not be fetched"):
        fetch.fetch("tiny-imagenet", tmp_path)
    assert (tmp_path / "downloads/tiny-imagenet-200.zip.part").stat().st_size == 5000
    assert not (tmp_path / "tiny-imagenet-200").exists()
    server.breaks_after = None
    fetch.fetch("tiny-imagenet", tmp_path)
    assert server.asked == [None, "bytes=5000-"]
    assert (tmp_path / "downloads/tiny-imagenet-200.zip").read_bytes() == tiny


def test_a_download_that_was_whole_is_not_fetched_again(tiny, server, tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/tiny-imagenet-200.zip.part").write_bytes(tiny)
    fetch.fetch("tiny-imagenet", tmp_path)
    assert server.asked == [f"bytes={len(tiny)}-"]


def test_an_archive_put_there_by_hand_is_taken(tiny, server, tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/tiny-imagenet-200.zip").write_bytes(tiny)
    fetch.fetch("tiny-imagenet", tmp_path)
    assert server.asked == []


def test_an_archive_with_another_hash_is_never_unpacked(tiny, server, tmp_path):
    (server.root / "tiny-imagenet-200.zip").write_bytes(tiny[:-1] + b"x")
    with pytest.raises(DataError, match=r"hash.*does not match"):
        fetch.fetch("tiny-imagenet", tmp_path)
    assert not (tmp_path / "tiny-imagenet-200").exists()
    assert not (tmp_path / "downloads/tiny-imagenet-200.zip").exists()


@pytest.mark.parametrize("name", fetch.ARCHIVES)
def test_without_network_the_error_says_what_to_put_where(name, tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("requests.get", offline)
    with pytest.raises(DataError) as caught:
        datasets.load(name, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("no network", fetch.ARCHIVES[name].url, fetch.ARCHIVES[name].known_hash, str(tmp_path / "downloads")):
        assert part in message
    assert caught.value.exit_code == 3


def made_tar(path, *members):
    with tarfile.open(path, "w:gz") as archive:
        for name, kind, target in (("good/a.txt", tarfile.REGTYPE, ""), *members):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return path


@pytest.mark.parametrize(
    "member",
    [
        ("../evil", tarfile.REGTYPE, ""),
        ("good/../../evil", tarfile.REGTYPE, ""),
        ("good/link", tarfile.SYMTYPE, "../../evil"),
        ("good/link", tarfile.SYMTYPE, "/etc/passwd"),
        ("good/link", tarfile.LNKTYPE, "../evil"),
        ("good/device", tarfile.CHRTYPE, ""),
        ("good/pipe", tarfile.FIFOTYPE, ""),
    ],
    ids=str,
)
def test_a_tar_that_leaves_its_folder_is_refused(tmp_path, member):
    path = made_tar(tmp_path / "a.tgz", member)
    with pytest.raises(DataError, match="cannot be unpacked"):
        fetch.unpack(path, tmp_path / "deep/root", "good")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a.tgz"]


@pytest.mark.parametrize("name", ["../evil", "/evil", "good/../../evil", "..\\evil", "link"])
def test_a_zip_that_leaves_its_folder_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good/a.txt", "a")
        info = zipfile.ZipInfo(name)
        info.external_attr = (0o120777 if name == "link" else 0o100644) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="would leave the folder"):
        fetch.unpack(tmp_path / "a.zip", tmp_path / "deep/root", "good")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a.zip"]


def test_an_archive_of_something_else_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no imagenette2"):
        fetch.unpack(made_tar(tmp_path / "a.tgz"), tmp_path, "imagenette2")


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """A training folder with two classes as folders and one as a tar; the subset asks for two pictures of each."""
    names = {"n1": "one", "n2": "two", "n3": "three"}
    monkeypatch.setitem(fetch.SUBSETS, "imagenet10", ("imagenet-10", names))
    monkeypatch.setitem(datasets.SOURCES, "imagenet10", datasets.sources.synsets("imagenet-10", names, 16, 2))
    monkeypatch.setitem(datasets.DATASETS, "imagenet10", Facts("ImageNet-10", 6, 3))
    base = tmp_path / "ilsvrc"
    for synset in ("n1", "n2", "n9"):
        (base / synset).mkdir(parents=True)
        for i in "ab":
            (base / synset / f"{i}.png").write_bytes(picture())
    with tarfile.open(base / "n3.tar", "w") as archive:
        for i in "ab":
            archive.add(base / "n1" / f"{i}.png", f"n3_{i}.png")
    return base


def test_a_subset_is_built_from_folders_and_tars(imagenet, tmp_path):
    fetch.from_imagenet("imagenet10", imagenet, tmp_path / "data")
    data = datasets.load("imagenet10", tmp_path / "data")
    assert data.class_names == ("one", "two", "three")
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    moved = imagenet.rename(imagenet.with_name("moved"))
    fetch.from_imagenet("imagenet10", moved, tmp_path / "data")  # again, from another place
    assert (tmp_path / "data/imagenet-10/n1").resolve() == moved / "n1"


def test_every_missing_synset_is_named(imagenet, tmp_path):
    (imagenet / "n3.tar").unlink()
    (imagenet / "n1").rename(imagenet / "n7")
    with pytest.raises(DataError, match=r"2 of 3 synsets are missing: n1 \(one\), n3 \(three\)"):
        fetch.from_imagenet("imagenet10", imagenet, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_every_wrong_count_is_named(imagenet, tmp_path):
    (imagenet / "n2/a.png").unlink()
    fetch.from_imagenet("imagenet10", imagenet, tmp_path / "data")
    with pytest.raises(DataError, match=r"n2 \(two\): 1 "):
        datasets.load("imagenet10", tmp_path / "data")


@pytest.mark.parametrize(("name", "where"), [("cifar10", "."), ("imagenet10", "nowhere")])
def test_imagenet_is_for_its_subsets_and_must_exist(tmp_path, name, where):
    with pytest.raises(ConfigError, match="--imagenet"):
        fetch.from_imagenet(name, tmp_path / where, tmp_path)
