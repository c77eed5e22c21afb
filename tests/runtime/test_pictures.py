"""Pictures: every format and orientation is read as Pillow reads it, and brought to a size without aliasing."""

import sys

import numpy as np
import pytest

from styleinv.runtime.errors import DataError, StyleInVError
from styleinv.runtime.pictures import as_image, fit_picture, read_picture
from styleinv.runtime.sinks import encode_png

pytest.importorskip("av")


def smooth(height=61, width=91):
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 20), np.cos(y / 17), np.sin((x + y) / 25)]
    return (128 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def distance(found, expected):
    assert found.dtype == np.uint8 and found.shape == expected.shape
    return int(np.abs(found.astype(int) - expected).max())


def test_png_is_read_exactly(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    (tmp_path / "x.png").write_bytes(encode_png(picture))
    assert distance(read_picture(tmp_path / "x.png"), picture) == 0
    (tmp_path / "photo%03d.png").write_bytes(encode_png(picture))  # to FFmpeg, a pattern of many names
    assert distance(read_picture(str(tmp_path / "photo%03d.png")), picture) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("suffix", "tolerance"), [(".png", 0), (".jpg", 12), (".webp", 12)])
def test_orientation_is_followed(tmp_path, suffix, tolerance, orientation):
    image = pytest.importorskip("PIL.Image")
    ops = pytest.importorskip("PIL.ImageOps")
    path = tmp_path / f"x{suffix}"
    picture = image.fromarray(smooth())
    exif = picture.getexif()
    exif[0x010F] = "a maker"  # so that the orientation is not the only entry
    exif[0x0112] = orientation
    picture.save(path, exif=exif.tobytes(), quality=95)
    expected = np.asarray(ops.exif_transpose(image.open(path)))
    assert distance(read_picture(path), expected) <= tolerance  # decoders differ in how they enlarge colour


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA"])
def test_other_modes_become_rgb(tmp_path, mode):
    image = pytest.importorskip("PIL.Image")
    picture = image.fromarray(smooth()).convert(mode)
    picture.save(tmp_path / "x.png")
    assert distance(read_picture(tmp_path / "x.png"), np.asarray(picture.convert("RGB"))) == 0
    picture.convert("RGB").save(tmp_path / "x.bmp")
    assert distance(read_picture(tmp_path / "x.bmp"), np.asarray(picture.convert("RGB"))) == 0


def test_transparency_is_composited_on_black(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.array([[[200, 100, 50, 255], [200, 100, 50, 128], [200, 100, 50, 0]]], np.uint8)
    image.fromarray(pixels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "x.png"), [[[200, 100, 50], [100, 50, 25], [0, 0, 0]]])


@pytest.mark.parametrize("resolution", [1, 16, 30, 32, 61, 64, 128, 256])
def test_fitting_is_what_pillow_does(resolution):
    image = pytest.importorskip("PIL.Image")
    square = image.fromarray(smooth()[:, 15:76])
    if 61 % resolution:
        expected = square.resize((resolution, resolution), image.Resampling.LANCZOS)
    else:
        expected = square.reduce(61 // resolution)
    assert distance(fit_picture(smooth(), resolution), np.asarray(expected)) <= 1
    turned = fit_picture(smooth().transpose(1, 0, 2), resolution)
    assert distance(turned, np.asarray(expected).transpose(1, 0, 2)) <= 1


def test_fitting_takes_means_and_does_not_alias():
    stripes = np.zeros((60, 60, 3), np.uint8)
    stripes[:, ::2] = 254
    assert distance(fit_picture(stripes, 30), np.full((30, 30, 3), 127)) == 0
    assert distance(fit_picture(stripes, 16)[2:-2, 2:-2], np.full((12, 12, 3), 127)) <= 8
    plain = np.full((3, 9, 3), 77, np.uint8)
    assert distance(fit_picture(plain, 64), np.full((64, 64, 3), 77)) == 0


def test_images_lie_between_minus_one_and_one():
    image = as_image(np.array([[[0, 51, 102], [153, 204, 255]]], np.uint8))
    assert image.dtype == np.float32 and image.flags.c_contiguous
    np.testing.assert_allclose(image, [[[-1.0, 0.2]], [[-0.6, 0.6]], [[-0.2, 1.0]]], atol=1e-6)


def cut_short(tmp_path, suffix):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / f"x{suffix}"
    image.fromarray(smooth(300, 300)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_damaged_pictures(tmp_path, suffix):
    with pytest.raises(DataError, match=rf"x\{suffix}: found .*, expected a readable picture: PNG, JPEG, WebP or BMP"):
        read_picture(cut_short(tmp_path, suffix))


@pytest.mark.parametrize("content", [b"", b"a note\n" * 100, b"\xff" * 100])
def test_files_that_are_no_pictures(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.png: found .*, expected a readable picture"):
        read_picture(tmp_path / "x.png")


def test_other_files(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.png: found No such file or directory, expected a readable picture"):
        read_picture(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match="found Is a directory, expected a readable picture"):
        read_picture(tmp_path)
    image = pytest.importorskip("PIL.Image")
    image.fromarray(smooth()).save(tmp_path / "x.gif")
    with pytest.raises(DataError, match=r"x\.gif: found a file of type gif, expected a picture: PNG, JPEG, WebP or"):
        read_picture(tmp_path / "x.gif")


def test_broken_exif_is_ignored(tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "x.jpg"
    image.fromarray(smooth()).save(path, quality=95)
    expected, content = read_picture(path), path.read_bytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\0" * 12  # promises 65535 entries, has one
    path.write_bytes(content[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + content[2:])
    assert distance(read_picture(path), expected) == 0


def test_missing_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(StyleInVError, match=r"pictures need PyAV .*pip install 'styleinv\[runtime-cpu\]'"):
        read_picture(tmp_path / "x.png")
