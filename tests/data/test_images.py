import os

import numpy as np
import pytest
from PIL import Image

from ccrepro.data.images import BadImage, decode, image_files, is_image, size_of, visible_files

RED = [255, 0, 0]


@pytest.fixture
def halves():
    """Left half red, right half blue, 40 wide and 20 high."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20, 0] = pixels[:, 20:, 2] = 255
    return Image.fromarray(pixels)


def test_an_image_keeps_its_pixels_unless_it_is_too_long(halves, tmp_path):
    halves.save(tmp_path / "a.png")
    image = decode(tmp_path / "a.png")
    assert np.array_equal(image.transpose(1, 2, 0), np.asarray(halves))
    assert size_of(tmp_path / "a.png") == (20, 40, False)
    image = decode(tmp_path / "a.png", longest=25)
    assert image.shape == (3, 12, 25)
    assert size_of(tmp_path / "a.png", longest=25) == (12, 25, True)
    assert image[:, 6, 2].tolist() == RED
    assert image[:, 6, 22].tolist() == [0, 0, 255]
    assert 60 < image[0, 6, 12] < 195  # antialiased where the halves meet


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_exif_rotation_is_applied(halves, tmp_path, ending):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees to be upright: the left side comes on top
    halves.save(tmp_path / f"a.{ending}", exif=exif, quality=95, **({"lossless": True} if ending == "webp" else {}))
    image = decode(tmp_path / f"a.{ending}")
    assert image.shape == (3, 40, 20)
    assert size_of(tmp_path / f"a.{ending}") == (40, 20, False)
    assert image[:, 3, 10] == pytest.approx(RED, abs=12)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(halves, tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    halves.convert(mode).save(path)
    expected = halves.convert(mode).convert("RGB")
    assert decode(path)[:, 10, 2] == pytest.approx(np.asarray(expected)[10, 2].astype(int), abs=6)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(tmp_path, mode):
    if mode == "P":
        image = Image.new("P", (8, 8), 0)
        image.putpalette([*RED, 0, 255, 0])
        image.save(tmp_path / "a.png", transparency=0)
    else:
        Image.new(mode, (8, 8), (255, 0, 0, 0) if mode == "RGBA" else (0, 0)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").min() == 255


@pytest.mark.parametrize(("top", "kind"), [(65535, np.uint16), (1.0, np.float32), (255.0, np.float32)])
def test_grey_of_16_bits_or_in_fractions_is_scaled(tmp_path, top, kind):
    values = np.linspace(0, top, 64).reshape(8, 8).astype(kind)
    if kind is np.float32:
        values[0, 0] = np.nan  # what was not measured
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.abs(decode(tmp_path / "a.tif")[1] - np.nan_to_num(values) * (255 / top)).max() <= 0.51


def test_what_is_no_image_says_why(tmp_path):
    path = tmp_path / "a.png"
    for content, reason in (
        (b"", "^empty file$"),
        (b"hello", "^not an image$"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 40, "not an image|damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadImage, match=reason):
            decode(path)
    with pytest.raises(BadImage, match=r"^cannot be read: Is a directory$"):
        decode(tmp_path, 8)


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_truncated_file_is_damaged(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(BadImage, match=r"damaged.*truncated"):
        decode(path)


@pytest.mark.parametrize(("side", "says"), [(9000, "9000×9000 pixels"), (15000, "pixels")])  # ours, and Pillow's limit
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, side, says):
    Image.new("1", (side, side)).save(tmp_path / "a.png")  # 12 kB that would be 243 MB
    with pytest.raises(BadImage, match=says):
        decode(tmp_path / "a.png", 8)


def test_images_of_a_folder_are_found_once_wherever_they_lie(tmp_path):
    """Hidden ones left out; links to folders followed, and round in a circle only once."""
    shown, hidden = ("b.PNG", "c/d.jfif", "c/notes.txt", "outside/f.avif", "c/g.heic"), ("c/.h.png", ".thumbs/i.png")
    for name in (*shown, *hidden):
        path = tmp_path / ("elsewhere" if "outside" in name else "in") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    base = tmp_path / "in"
    for link, target in (("a", "../elsewhere/outside"), ("b", "c"), ("c/up", ".."), ("lost.png", "nowhere.png")):
        (base / link).symlink_to(target)
    found = [str(path.relative_to(base)) for path in visible_files(base) if is_image(path)]
    assert found == ["a/f.avif", "b.PNG", "c/d.jfif"]
    assert [path.name for path in image_files(base)] == ["b.PNG"]
