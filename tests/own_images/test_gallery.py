"""The page of a gallery holds every image once, with what is known of it, and nothing that is not known."""

import base64
import io
import os
import re
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from ccrepro.data import ImageSet
from ccrepro.own_images import gallery
from ccrepro.runtime.ragged import stacked

ODD = [
    "</script><b>.png",
    "a'b&amp;.png",
    'a"b.png',
    "100%.png",
    "new\nline.png",
    "\u2028\r.png",
    "=1+1.png",
    "日本 😀.png",
]


def image_set(images):
    return ImageSet("made", images, None, (), "made here")


def made(n, n_clusters, seed=0):
    """n images of one colour each, a table in which clusters grow with their number, and features of 8 dimensions."""
    rng = np.random.default_rng(seed)
    images = np.broadcast_to(rng.integers(0, 256, (n, 3, 1, 1), dtype=np.uint8), (n, 3, 4, 4))
    cluster = np.sort(np.arange(n) % (n_clusters * (n_clusters + 1) // 2))
    cluster = np.digitize(cluster, np.cumsum(np.arange(1, n_clusters)))
    names = [f"some/{i:05d}.png" for i in range(n)]
    table = pd.DataFrame({"path": names, "cluster": cluster, "confidence": rng.uniform(0.2, 1, n)})
    z = (np.eye(8)[cluster % 8] + rng.normal(0, 0.2, (n, 8))).astype(np.float32)
    return image_set(images), table, z / np.linalg.norm(z, axis=1, keepdims=True)


@pytest.fixture
def write(tmp_path, embedded):
    def write(data, table, z, notes=()):
        return embedded(gallery.write(tmp_path / "out", tmp_path / "photos <1>", data, table, z, notes))

    return write


def colours(page):
    """The colour in the middle of each thumbnail, (S, 3)."""
    thumbs = [Image.open(io.BytesIO(base64.b64decode(thumb))) for thumb in page["thumb"]]
    return np.array([thumb.convert("RGB").getpixel((thumb.width // 2, thumb.height // 2)) for thumb in thumbs])


def test_every_image_of_a_real_result_is_there_once_and_linked(folder, clustered, embedded):
    page, found = embedded(clustered / "index.html"), pd.read_csv(clustered / "clusters.csv")
    assert page["shown"] == [*range(48)]
    for column in ("path", "cluster", "confidence"):
        assert page[column] == found[column].tolist()
    assert {(clustered / unquote(link)).resolve() for link in page["url"]} == {
        p.resolve() for p in folder.rglob("*.png")
    }
    assert [unquote(link).endswith(path) for link, path in zip(page["url"], page["path"], strict=True)] == [True] * 48
    assert len({*page["thumb"]}) == 48
    assert not (clustered / "thumbs").exists()


def test_rows_thumbnails_and_clusters_belong_together(write):
    data, table, z = made(42, 6)
    page = write(data, table.set_index(np.arange(42)[::-1]), z, ["Ten starts agree to 0.84.", "A & B."])
    assert page["clusters"] == [[k, 2 * (k + 1)] for k in range(5, -1, -1)], "the largest first"
    assert page["images"] == 42
    assert page["cluster"] == table.cluster.tolist()
    assert page["confidence"] == pytest.approx(table.confidence, abs=5e-5)
    np.testing.assert_array_equal(colours(page), data.images[:, :, 0, 0])
    assert page["folder"] == "photos <1>"
    assert page["notes"] == ["Ten starts agree to 0.84.", "A & B."]


def test_changes_by_hand_are_not_taken_over_by_other_clusters(write):
    data, table, z = made(12, 2)
    first = write(data, table, z)["id"]
    assert write(data, table, z)["id"] == first
    assert write(data, table.assign(cluster=1 - table.cluster), z)["id"] != first
    assert write(data, table.assign(path=table.path[::-1].to_numpy()), z)["id"] != first


def test_typical_images_are_those_nearest_to_the_mean_of_their_cluster():
    _, table, z = made(60, 3)
    typical = gallery.typicality(z, table.cluster.to_numpy())
    for k in range(3):
        rows = np.flatnonzero(table.cluster == k)
        away = np.linalg.norm(z[rows] - (mean := z[rows].mean(0)) / np.linalg.norm(mean), axis=1)
        assert np.argsort(away).tolist() == np.argsort(-typical[rows]).tolist()
    opposite = np.array([[1, 0], [-1, 0]], np.float32)
    assert gallery.typicality(opposite, np.zeros(2)).tolist() == [0, 0], "of a mean at zero, none is nearer"


def test_names_of_any_kind_are_safe_in_the_page(write, tmp_path):
    names = [*ODD, os.fsdecode(b"caf\xe9.png")]
    data, table, z = made(len(names), 2)
    page = write(data, table.assign(path=pd.Series(names, dtype=object)), z, ["<script>alert(1)</script>"])
    assert page["path"] == [*ODD, "caf\\xe9.png"]
    assert [unquote_to_bytes(link) for link in page["url"]] == [b"../photos <1>/" + os.fsencode(name) for name in names]
    text = (tmp_path / "out/index.html").read_text()
    assert text.count("<script") == text.count("</script>") == 2
    assert "<b>.png" not in text


def test_the_page_needs_no_network(clustered):
    text = (clustered / "index.html").read_text()
    assert set(re.findall(r"https?://[^\"' ]*", text)) == set()
    assert re.findall(r"""(?:src|href)=["'](?!data:)|@import|url\(|\bimport\b|fetch\(|XMLHttp""", text) == []


@pytest.mark.parametrize(("height", "width"), [(100, 200), (200, 100), (320, 320), (40, 20)])
def test_images_are_shown_undistorted(height, width):
    """A disc in an image of any proportions is round in its thumbnail, in the same proportions."""
    picture, r = Image.new("RGB", (width, height)), min(height, width) / 4
    ImageDraw.Draw(picture).ellipse((width / 2 - r, height / 2 - r, width / 2 + r, height / 2 + r), "white")
    small = Image.open(io.BytesIO(gallery.thumbnail(np.asarray(picture).transpose(2, 0, 1))))
    assert max(small.size) == gallery.THUMB
    assert small.width / small.height == pytest.approx(width / height, rel=0.02)
    disc = np.asarray(small.convert("L")) > 128
    assert abs(int(disc.any(1).sum()) - int(disc.any(0).sum())) <= 2
    assert disc.any(1).sum() == pytest.approx(min(small.size) / 2, rel=0.1)


def test_each_pixel_of_a_tiny_image_becomes_a_square():
    image = np.random.default_rng(0).integers(0, 256, (3, 28, 20), dtype=np.uint8)
    small = np.asarray(Image.open(io.BytesIO(gallery.thumbnail(image))))
    np.testing.assert_array_equal(small, image.transpose(1, 2, 0).repeat(4, 0).repeat(4, 1))


def test_thumbnails_of_images_of_several_sizes(write):
    sizes = [(320, 10), (1, 1), (9, 300), (64, 64)]
    _, table, z = made(4, 2)
    page = write(image_set(stacked([np.full((3, *size), 99, np.uint8) for size in sizes])), table, z)
    found = [Image.open(io.BytesIO(base64.b64decode(thumb))).size for thumb in page["thumb"]]
    assert found == [(4, 120), (120, 120), (120, 4), (64, 64)]


@pytest.mark.parametrize("n", [2, 3, 9, 10, 11, 40])
@pytest.mark.parametrize("same", [False, True])
def test_a_map_of_few_images_lies_within_its_frame(n, same):
    z = made(n, 2)[2]
    places = gallery.layout(z[:1].repeat(n, 0) if same else z)
    assert places.shape == (n, 2)
    assert np.isfinite(places).all()
    assert places.min() >= -1e-6
    assert places.max() <= 1 + 1e-6
    assert same or np.ptp(places, axis=0).max() == pytest.approx(1)


@pytest.mark.parametrize("n", [8, 60])
def test_images_that_are_alike_lie_together_in_the_map(n):
    cluster = np.arange(n) % 2
    z = np.eye(4, dtype=np.float32)[cluster] + np.random.default_rng(0).normal(0, 0.05, (n, 4)).astype(np.float32)
    places = gallery.layout(z)
    away = np.linalg.norm(places[:, None] - places, axis=2) + 9 * np.eye(n)
    assert (cluster[away.argmin(1)] == cluster).all()


def test_of_many_images_the_page_shows_the_most_typical_and_the_least_sure(write, monkeypatch):
    monkeypatch.setattr(gallery, "SHOWN", 12)
    data, table, z = made(60, 3)
    page = write(data, table, z)
    assert len(page["shown"]) == len(page["thumb"]) == len(page["url"]) == 12
    assert page["path"] == table.path.tolist(), "the CSV has all"
    typical = gallery.typicality(z, table.cluster.to_numpy())
    for k in range(3):
        rows = np.flatnonzero(table.cluster == k)
        shown = {row for row in page["shown"] if page["cluster"][row] == k}
        assert rows[np.argsort(-typical[rows])[0]] in shown
        assert rows[np.argsort(table.confidence.to_numpy()[rows])[0]] in shown
        assert 3 <= len(shown) <= 5, "of small and large clusters alike"
    np.testing.assert_array_equal(colours(page), data.images[page["shown"], :, 0, 0])
    assert page["typical"] == pytest.approx(typical[page["shown"]], abs=1e-4)
    assert page["clusters"] == [[2, 30], [1, 20], [0, 10]]


def test_of_very_many_images_the_csv_has_a_part_and_the_page_says_so(write, monkeypatch, tmp_path):
    monkeypatch.setattr(gallery, "SHOWN", 12)
    monkeypatch.setattr(gallery, "LISTED", 2_000)
    data, table, z = made(2_100, 3)
    page = write(data, table, z)
    assert len(page["path"]) == len(page["cluster"]) == len(page["confidence"]) == 2_000
    assert page["path"] == sorted({*page["path"]})
    np.testing.assert_array_equal(
        colours(page), data.images[[int(page["path"][row][5:10]) for row in page["shown"]], :, 0, 0]
    )
    text = " ".join((tmp_path / "out/index.html").read_text().split())
    assert "2,100 images in 3 clusters" in text
    assert "shows 12 of them, the most typical and the least sure of each cluster; the CSV has 2,000." in text
