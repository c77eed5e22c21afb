"""Sinks: what is written can be read back, and nothing half-written stays."""

import subprocess
import sys

import numpy as np
import pytest

from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.sinks import encode_png, open_sink

COLOURS = [(220, 30, 40), (20, 200, 60), (30, 60, 210), (128, 128, 128), (255, 255, 255)]


def plain_frames(height=32, width=48):
    return [np.full((height, width, 3), colour, np.uint8) for colour in COLOURS]


def noise_frame(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def decoded(path):
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return stream, frames


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm", ".MP4"])
def test_video_is_read_back(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    with open_sink(str(path), 25.0, (32, 48)) as sink:
        for frame in plain_frames():
            sink.write(frame)
        assert not path.exists()
    stream, frames = decoded(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert stream.average_rate == 25 and stream.codec_context.pix_fmt == "yuv420p"
    assert stream.codec_context.name == ("vp9" if suffix == ".webm" else "h264")
    assert stream.codec_context.colorspace == 1 and stream.codec_context.color_range == 1
    assert len(frames) == len(COLOURS)
    for frame, colour in zip(frames, COLOURS, strict=True):
        assert frame.shape == (32, 48, 3)
        assert np.abs(frame.astype(int) - colour).max() <= 6, (frame[0, 0], colour)


def test_frame_rates(tmp_path):
    for fps, expected in ((30000 / 1001, "30000/1001"), (12.5, "25/2")):
        path = tmp_path / "clip.mp4"
        with open_sink(str(path), fps, (16, 16)) as sink:
            for _ in range(3):
                sink.write(noise_frame(16, 16))
        assert str(decoded(path)[0].average_rate) == expected


def test_odd_sizes_grow_to_even_ones(tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with open_sink(str(path), 25.0, (33, 47)) as sink:
        sink.write(np.full((33, 47, 3), COLOURS[0], np.uint8))
    frame = decoded(path)[1][0]
    assert frame.shape == (34, 48, 3) and np.abs(frame.astype(int) - COLOURS[0]).max() <= 6


def test_an_error_leaves_no_video_and_keeps_the_old_one(tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), open_sink(str(path), 25.0, (32, 48)) as sink:
        sink.write(plain_frames()[0])
        raise KeyError
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"] and path.read_bytes() == b"old"


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 48)])
def test_png_is_lossless(shape, tmp_path):
    image = pytest.importorskip("PIL.Image")
    frame = noise_frame(*shape)
    (tmp_path / "x.png").write_bytes(encode_png(frame))
    with image.open(tmp_path / "x.png") as picture:
        assert picture.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(picture), frame)


@pytest.mark.parametrize("name", ["pictures", "pictures/", "new/deep/"])
def test_folder_of_pictures(tmp_path, name):
    frames = [noise_frame(8, 6) for _ in range(3)]
    with open_sink(f"{tmp_path}/{name}", 25.0, (8, 6)) as sink:
        for frame in frames:
            sink.write(frame)
    written = sorted((tmp_path / name).iterdir())
    assert [file.name for file in written] == ["frame_000000.png", "frame_000001.png", "frame_000002.png"]
    assert written[0].read_bytes() == encode_png(frames[0])
    with pytest.raises(StyleInVError, match="found frames of an earlier rollout"):
        open_sink(f"{tmp_path}/{name}", 25.0, (8, 6))


def test_existing_folder_with_a_dot_takes_pictures(tmp_path):
    (tmp_path / "run.1").mkdir()
    with open_sink(str(tmp_path / "run.1"), 25.0, (8, 6)) as sink:
        sink.write(noise_frame(8, 6))
    assert (tmp_path / "run.1" / "frame_000000.png").is_file()


RAW = """
import sys, numpy
from styleinv.runtime.sinks import open_sink
with open_sink("-", 25.0, (4, 5)) as sink:
    for n in range(int(sys.argv[1])):
        sink.write(numpy.full((5, 4, 3), n % 256, numpy.uint8).transpose(1, 0, 2))
"""


def test_raw_bytes_on_standard_output():
    written = subprocess.run([sys.executable, "-c", RAW, "3"], capture_output=True, check=True).stdout
    assert written == bytes([0] * 60 + [1] * 60 + [2] * 60)


def test_closed_pipe_raises_broken_pipe_and_nothing_else():
    process = subprocess.Popen([sys.executable, "-c", RAW, "100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    complaint = process.stderr.read().decode().strip().splitlines()
    process.stderr.close()
    assert process.wait() == 1 and complaint[-1].startswith("BrokenPipeError") and "ignored" not in "".join(complaint)


def test_terminal_is_refused(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(StyleInVError, match="-: found a terminal, expected a pipe or a file"):
        open_sink("-", 25.0, (4, 5))


@pytest.mark.parametrize("name", ["clip.avi", "clip.gif", "clip.png"])
def test_unknown_suffix(tmp_path, name):
    with pytest.raises(StyleInVError, match=r"found the suffix \..*, expected .mp4, .mov, .mkv, .webm, a folder"):
        open_sink(str(tmp_path / name), 25.0, (8, 8))
    assert not list(tmp_path.iterdir())


def test_targets_that_cannot_be_written(tmp_path):
    pytest.importorskip("av")
    with pytest.raises(StyleInVError, match=r"clip\.mp4: found no folder .*nowhere, expected one"):
        open_sink(str(tmp_path / "nowhere" / "clip.mp4"), 25.0, (8, 8))
    (tmp_path / "file").touch()
    for name in ("file/clip.mp4", "file/pictures/", "file/"):
        with pytest.raises(StyleInVError, match="file"):
            open_sink(str(tmp_path / name), 25.0, (8, 8))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_pictures_that_cannot_be_written(tmp_path):
    with open_sink(str(tmp_path / "pictures"), 25.0, (8, 6)) as sink:
        (tmp_path / "pictures").rmdir()
        with pytest.raises(StyleInVError, match=r"frame_000000\.png: cannot be written: "):
            sink.write(noise_frame(8, 6))


def test_missing_av(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(StyleInVError, match=r"video files need PyAV .*pip install 'styleinv\[runtime-cpu\]'"):
        open_sink(str(tmp_path / "clip.mp4"), 25.0, (8, 8))
    with open_sink(str(tmp_path / "pictures/"), 25.0, (8, 6)) as sink:  # which needs none
        sink.write(noise_frame(8, 6))
