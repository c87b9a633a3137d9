import numpy as np
import pytest
from PIL import Image

from ccrepro.datasets.decode import BadImage, decode

RED = [255, 0, 0]


@pytest.fixture
def halves():
    """Left half red, right half blue, 40 wide and 20 high."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20, 0] = pixels[:, 20:, 2] = 255
    return Image.fromarray(pixels)


def test_a_picture_is_squeezed_and_keeps_its_size_in_mind(halves, tmp_path):
    halves.save(tmp_path / "a.png")
    square, size = decode(tmp_path / "a.png", 20)
    assert size == (20, 40)
    assert square.shape == (3, 20, 20)
    assert square[:, 10, 2].tolist() == RED
    assert square[:, 10, 17].tolist() == [0, 0, 255]


def test_a_square_of_the_right_size_is_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png", 16)[0], pixels.transpose(2, 0, 1))


def test_exif_rotation_is_applied(halves, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees to be upright: the left side comes on top
    halves.save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    square, size = decode(tmp_path / "a.jpg", 20)
    assert size == (40, 20)
    assert square[:, 3, 10] == pytest.approx(RED, abs=6)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(halves, tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    halves.convert(mode).save(path)
    square, _ = decode(path, 20)
    expected = np.asarray(halves.convert(mode).convert("RGB"))[10, 2]
    assert square[:, 10, 2] == pytest.approx(expected.astype(int), abs=6)


def test_black_and_white(tmp_path):
    Image.new("1", (8, 8), 1).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", 8)[0].min() == 255


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(tmp_path, mode):
    if mode == "P":
        image = Image.new("P", (8, 8), 0)
        image.putpalette([*RED, 0, 255, 0])
        image.save(tmp_path / "a.png", transparency=0)
    else:
        Image.new(mode, (8, 8), (255, 0, 0, 0) if mode == "RGBA" else (0, 0)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", 8)[0].min() == 255


def test_16_bit_grey_is_scaled(tmp_path):
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    square, _ = decode(tmp_path / "a.png", 8)
    assert np.abs(square[1] - values / 257.0).max() <= 0.5


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_grey_in_fractions_is_scaled(tmp_path, top):
    values = np.linspace(0, top, 64, dtype=np.float32).reshape(8, 8)
    values[0, 0] = np.nan  # what was not measured
    Image.fromarray(values).save(tmp_path / "a.tif")
    square, _ = decode(tmp_path / "a.tif", 8)
    assert np.abs(square[1] - np.nan_to_num(values) * (255 / top)).max() <= 0.51


def png(path):
    Image.new("RGB", (60, 60), "red").save(path, "PNG")
    return path.read_bytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda p: b"", "empty file"),
        (lambda p: b"hello", "not an image"),
        (lambda p: b"<html></html>", "not an image"),
        (lambda p: png(p)[:70], "damaged"),
        (lambda p: b"\xff\xd8\xff\xe0" + b"\0" * 40, "not an image|damaged"),
    ],
)
def test_what_is_no_picture_says_why(tmp_path, content, reason):
    path = tmp_path / "a.png"
    path.write_bytes(content(path))
    with pytest.raises(BadImage, match=reason):
        decode(path, 8)


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path):
    with pytest.raises(BadImage, match=r"^cannot be read: Is a directory$"):
        decode(tmp_path, 8)


def test_truncated_jpeg(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadImage, match=r"damaged.*truncated"):
        decode(tmp_path / "a.jpg", 8)


def test_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (9000, 9000)).save(tmp_path / "a.png")  # 12 kB that would be 243 MB
    with pytest.raises(BadImage, match="9000×9000 pixels"):
        decode(tmp_path / "a.png", 8)
    Image.new("1", (15000, 15000)).save(tmp_path / "b.png")
    with pytest.raises(BadImage, match="pixels"):
        decode(tmp_path / "b.png", 8)
