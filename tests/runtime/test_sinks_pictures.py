"""Folders of pictures: PNG is lossless, JPEG nearly, and every file is whole."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.sinks import encode_jpeg, encode_png, open_sink

COLOURS = [(220, 30, 40), (20, 200, 60), (30, 60, 210), (128, 128, 128), (255, 255, 255), (0, 0, 0), (255, 0, 0)]


def noise_frame(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth_frame(height, width):
    y, x = np.mgrid[0:height, 0:width]
    return (np.stack([np.sin(x / 9), np.sin(y / 7), np.cos((x + y) / 11)], axis=-1) * 100 + 128).astype(np.uint8)


def as_pillow_reads(content):
    image = pytest.importorskip("PIL.Image")
    with image.open(io.BytesIO(content)) as picture:
        assert picture.mode == "RGB"
        return picture.format, np.asarray(picture)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 48)])
def test_png_is_lossless(shape):
    frame = noise_frame(*shape)
    format, pixels = as_pillow_reads(encode_png(frame))
    assert format == "PNG"
    np.testing.assert_array_equal(pixels, frame)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 48), (33, 47)])
def test_jpeg_keeps_every_pixel(shape):
    pytest.importorskip("av")
    frame = smooth_frame(*shape)
    format, pixels = as_pillow_reads(encode_jpeg(frame))
    assert format == "JPEG" and pixels.shape == frame.shape
    assert np.abs(pixels.astype(int) - frame).max() <= 8


def test_jpeg_keeps_colours_and_their_range():
    pytest.importorskip("av")
    for colour in COLOURS:
        _, pixels = as_pillow_reads(encode_jpeg(np.full((16, 24, 3), colour, np.uint8)))
        assert np.abs(pixels.astype(int) - colour).max() <= 3, (colour, pixels[0, 0])


def test_jpeg_keeps_colours_at_full_resolution():
    pytest.importorskip("av")
    frame = np.zeros((32, 32, 3), np.uint8)
    frame[:, 0::2] = (200, 60, 60)  # stripes one pixel wide, of about the same luma
    frame[:, 1::2] = (60, 120, 60)
    _, pixels = as_pillow_reads(encode_jpeg(frame, 100))
    assert np.abs(pixels.astype(int) - frame).max() <= 16  # half the colours would be 70 off


def test_jpeg_quality_decides_size():
    pytest.importorskip("av")
    frame = noise_frame(64, 64)
    sizes = [len(encode_jpeg(frame, quality)) for quality in (1, 20, 50, 80, 95)]
    assert sizes == sorted(sizes) and sizes[-1] > 3 * sizes[0] and len(set(sizes)) == 5
    assert encode_jpeg(frame) == encode_jpeg(frame, 95)
    for quality in (0, 101):
        with pytest.raises(ValueError, match=f"quality: found {quality}, expected a whole number from 1 to 100"):
            encode_jpeg(frame, quality)


def test_jpeg_in_many_threads():
    pytest.importorskip("av")
    frames = [noise_frame(40, 56, seed) for seed in range(64)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(encode_jpeg, frames)) == [encode_jpeg(frame) for frame in frames]


@pytest.mark.parametrize("name", ["pictures", "pictures/", "new/deep/"])
def test_folder_of_pictures(tmp_path, name):
    frames = [noise_frame(8, 6, seed) for seed in range(3)]
    with open_sink(f"{tmp_path}/{name}", 25.0, (8, 6)) as sink:
        for frame in frames:
            sink.write(frame)
    written = sorted((tmp_path / name).iterdir())
    assert [file.name for file in written] == ["frame_000000.png", "frame_000001.png", "frame_000002.png"]
    assert [file.read_bytes() for file in written] == [encode_png(frame) for frame in frames]


def test_folder_of_jpeg_pictures(tmp_path):
    pytest.importorskip("av")
    with open_sink(f"{tmp_path}/run.1", 25.0, (8, 6), format="jpeg") as sink:
        sink.write(noise_frame(8, 6))
    (written,) = (tmp_path / "run.1").iterdir()
    assert written.name == "frame_000000.jpg" and written.read_bytes() == encode_jpeg(noise_frame(8, 6))


@pytest.mark.parametrize("earlier", ["frame_000000.png", "frame_000007.jpg"])
def test_frames_of_an_earlier_rollout_are_kept(tmp_path, earlier):
    pytest.importorskip("av")
    (tmp_path / earlier).write_bytes(b"earlier")
    for format in ("png", "jpeg"):
        with pytest.raises(StyleInVError, match="found frames of an earlier rollout, expected a folder without"):
            open_sink(str(tmp_path), 25.0, (8, 6), format=format)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [(earlier, b"earlier")]


def test_existing_folder_with_a_dot_takes_pictures(tmp_path):
    (tmp_path / "run.1").mkdir()
    (tmp_path / "run.1" / "notes.txt").touch()
    with open_sink(str(tmp_path / "run.1"), 25.0, (8, 6)) as sink:
        sink.write(noise_frame(8, 6))
    assert (tmp_path / "run.1" / "frame_000000.png").is_file()


def test_pictures_that_cannot_be_written(tmp_path):
    with open_sink(str(tmp_path / "pictures"), 25.0, (8, 6)) as sink:
        (tmp_path / "pictures").rmdir()
        with pytest.raises(StyleInVError, match=r"frame_000000\.png: cannot be written: No such file or directory"):
            sink.write(noise_frame(8, 6))


def test_a_picture_is_whole_or_not_there(tmp_path, monkeypatch):
    def cut_short(path, content):
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    with open_sink(str(tmp_path / "pictures"), 25.0, (8, 6)) as sink:
        monkeypatch.setattr("pathlib.Path.write_bytes", cut_short)
        with pytest.raises(StyleInVError, match=r"frame_000000\.png: cannot be written: no space left on its disk"):
            sink.write(noise_frame(8, 6))
    assert not list((tmp_path / "pictures").iterdir())
