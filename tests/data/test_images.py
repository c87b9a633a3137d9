import os

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ccrepro.data.images import BadImage, decode, image_files, is_image, joint_range, measure, read, visible_files

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
    assert measure(tmp_path / "a.png") == (20, 40, False, None, False)
    image = decode(tmp_path / "a.png", longest=25)
    assert image.shape == (3, 12, 25)
    assert measure(tmp_path / "a.png", longest=25)[:3] == (12, 25, True)
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
    assert measure(tmp_path / f"a.{ending}")[:3] == (40, 20, False)
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


DEEP = [
    (0, 200, np.uint16),
    (0, 4095, np.uint16),
    (0, 65535, np.uint16),
    (-1024, 3071, np.int32),
    (-2.5, 1.5, np.float32),
]


@pytest.mark.parametrize(("low", "high", "kind"), DEEP)
def test_deep_images_of_a_collection_have_one_black_and_white(tmp_path, low, high, kind):
    values = np.linspace(low, high, 64).reshape(8, 8).astype(kind)
    for name, some in (("a.tif", values), ("b.tif", values.clip(max=high // 2)), ("c.tif", values[4:, 4:])):
        Image.fromarray(some).save(tmp_path / name)
    assert joint_range([None, *(measure(tmp_path / f"{name}.tif").values for name in "abc")]) == (min(low, 0), high)
    for name, some in (("a.tif", values), ("b.tif", values.clip(max=high // 2))):
        expected = (some.astype(float) - min(low, 0)) * 255 / (high - min(low, 0))
        assert np.abs(decode(tmp_path / name, values=(min(low, 0), high))[1] - expected).max() <= 0.51


def test_a_deep_image_of_unknown_range_has_that_of_its_kind_and_is_cut_to_it(tmp_path):
    for top, kind in ((65535, np.uint16), (1, np.float32)):
        values = np.linspace(0, top, 64).reshape(8, 8).astype(kind)
        if kind is np.float32:
            values[0, :2] = np.nan, np.inf  # what was not measured
        Image.fromarray(values).save(tmp_path / "a.tif")
        found = decode(tmp_path / "a.tif")[1]
        assert np.abs(found - np.nan_to_num(values, posinf=0) * (255 / top)).max() <= 0.51
        assert (decode(tmp_path / "a.tif", values=(0, top / 2))[1, 4:] == 255).all()
    assert joint_range([None, None]) is None
    assert joint_range([(7.0, 7.0), (0.0, 0.0)]) == (0, 7)
    assert joint_range([(0.0, 0.0)]) == (0, 1)


NAMED = {
    "empty file": b"",
    "not an image: it begins with b'hello'": b"hello",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "SVG": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "HTML": b"\n<!doctype HTML>\n<title>404",
    "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
}


@pytest.mark.parametrize("reason", NAMED)
def test_what_is_no_image_says_what_it_is(tmp_path, reason):
    (tmp_path / "a.jpg").write_bytes(NAMED[reason])
    with pytest.raises(BadImage, match=reason):
        decode(tmp_path / "a.jpg")
    with pytest.raises(BadImage, match=r"^cannot be read: Is a directory$"):
        decode(tmp_path, 8)


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_truncated_file_cannot_be_read(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(BadImage, match=r"cannot be read: .*truncated"):
        decode(path)


@pytest.mark.parametrize("error", [RuntimeError("of libavif"), ZeroDivisionError(), MemoryError(), RecursionError("x")])
def test_whatever_a_decoder_raises_is_told_of_the_file(halves, tmp_path, monkeypatch, error):
    halves.save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: (_ for _ in ()).throw(error))
    assert str(read(tmp_path / "a.png")) == f"cannot be read: {str(error) or type(error).__name__}"


def test_metadata_do_no_harm_to_sound_pixels(halves, tmp_path):
    """A megabyte of text, of XMP and of a colour profile; EXIF that is damaged; several pages, of which one is."""
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b" * 2_000_000, zip=True)
    text.add_itxt("XML:com.adobe.xmp", "c" * 2_000_000)
    halves.save(tmp_path / "a.png", pnginfo=text, icc_profile=bytes(3_000_000))
    halves.save(tmp_path / "b.png", exif=b"Exif\0\0MM\0*" + b"\xff" * 40)
    halves.save(tmp_path / "c.tif", save_all=True, append_images=[halves, halves])
    os.truncate(tmp_path / "c.tif", (tmp_path / "c.tif").stat().st_size - 50)
    for name in ("a.png", "b.png", "c.tif"):
        assert np.array_equal(decode(tmp_path / name).transpose(1, 2, 0), np.asarray(halves))
        assert measure(tmp_path / name).more == (name == "c.tif")


@pytest.mark.parametrize(("side", "says"), [(9000, "9000×9000 pixels"), (15000, "bomb")])  # ours, and Pillow's limit
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
    errors = []
    found = [str(path.relative_to(base)) for path in visible_files(base, errors.append) if is_image(path)]
    assert found == ["a/f.avif", "b.PNG", "c/d.jfif"]
    assert [path.name for path in image_files(base)] == ["b.PNG"]
