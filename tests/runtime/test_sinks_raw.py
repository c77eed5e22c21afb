"""Raw bytes: RGB24 as it is, NV12 and Y4M as readers understand them, and what happens when nobody reads."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.sinks import open_sink
from styleinv.runtime.sinks.colour import BT601, BT709, limited_420

COLOURS = [(220, 30, 40), (20, 200, 60), (30, 60, 210), (128, 128, 128), (255, 255, 255), (0, 0, 0)]

RAW = """
import sys, numpy
from styleinv.runtime.sinks import open_sink
with open_sink("-", 25.0, (4, 5), format=sys.argv[2]) as sink:
    for n in range(int(sys.argv[1])):
        sink.write(numpy.full((5, 4, 3), n % 256, numpy.uint8).transpose(1, 0, 2))
"""


def written_to(path, format, fps=25.0, size=(32, 48)):
    with open_sink(str(path), fps, size, format=format) as sink:
        for colour in COLOURS:
            sink.write(np.full((*size, 3), colour, np.uint8))
    return path.read_bytes()


def expected_planes(frame, red, blue):
    """Luma and chroma of the limited range in float64; chroma between the rows and on the left columns."""
    R, G, B = np.moveaxis(frame.astype(np.float64) / 255.0, -1, 0)
    y = red * R + (1.0 - red - blue) * G + blue * B
    planes = [16.0 + 219.0 * y]
    for difference in ((B - y) / (2.0 - 2.0 * blue), (R - y) / (2.0 - 2.0 * red)):
        padded = np.pad(128.0 + 224.0 * difference, ((0, 0), (1, 1)), "edge")
        weighed = (padded[:, :-2] + 2.0 * padded[:, 1:-1] + padded[:, 2:])[:, ::2] / 4.0
        planes.append((weighed[0::2] + weighed[1::2]) / 2.0)
    return planes


@pytest.mark.parametrize(("matrix", "red", "blue"), [(BT601, 0.299, 0.114), (BT709, 0.2126, 0.0722)])
def test_luma_and_chroma(matrix, red, blue):
    av = pytest.importorskip("av")
    frame = np.random.default_rng(3).integers(0, 256, (34, 46, 3), np.uint8)
    for found, expected in zip(limited_420(av, frame, matrix), expected_planes(frame, red, blue), strict=True):
        assert found.dtype == np.uint8 and found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1.5


@pytest.mark.parametrize("shape", [(1, 1), (5, 8), (6, 9)])
def test_odd_sizes_repeat_a_row_or_column(shape):
    av = pytest.importorskip("av")
    frame = np.random.default_rng(4).integers(0, 256, (*shape, 3), np.uint8)
    even = np.pad(frame, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), "edge")
    for found, expected in zip(limited_420(av, frame, BT709), limited_420(av, even, BT709), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_rgb24_on_standard_output():
    written = subprocess.run([sys.executable, "-c", RAW, "3", "rgb24"], capture_output=True, check=True).stdout
    assert written == bytes([0] * 60 + [1] * 60 + [2] * 60)


def test_rgb24_in_a_file(tmp_path):
    written = written_to(tmp_path / "clip.bin", "rgb24")
    assert written == b"".join(bytes(colour) * (32 * 48) for colour in COLOURS)


def test_nv12_is_read_back(tmp_path):
    av = pytest.importorskip("av")
    written = np.frombuffer(written_to(tmp_path / "clip.nv12", "nv12"), np.uint8)
    for colour, frame in zip(COLOURS, written.reshape(len(COLOURS), 48, 48), strict=True):
        rgb = av.VideoFrame.from_ndarray(frame, format="nv12").to_ndarray(format="rgb24", src_colorspace=BT601)
        assert np.abs(rgb.astype(int) - colour).max() <= 4, (colour, rgb[0, 0])


@pytest.mark.parametrize(("fps", "rate"), [(25.0, "25/1"), (30000 / 1001, "30000/1001"), (12.5, "25/2"), (0.5, "1/2")])
def test_y4m_is_read_back(tmp_path, fps, rate):
    av = pytest.importorskip("av")
    written = written_to(tmp_path / "clip.y4m", None, fps, (33, 47))
    header, _, rest = written.partition(b"\n")
    assert header.split()[:6] == [b"YUV4MPEG2", b"W48", b"H34", b"F" + rate.replace("/", ":").encode(), b"Ip", b"A1:1"]
    assert {b"C420mpeg2", b"XCOLORRANGE=LIMITED"} <= set(header.split())
    assert len(rest) == len(COLOURS) * (len("FRAME\n") + 34 * 48 * 3 // 2)
    with av.open(str(tmp_path / "clip.y4m")) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert str(stream.average_rate) == rate.removesuffix("/1")
    assert len(frames) == len(COLOURS)
    for frame, colour in zip(frames, COLOURS, strict=True):
        assert frame.format.name == "yuv420p" and frame.color_range == 1
        assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - colour).max() <= 4


def test_named_pipe(tmp_path):
    pytest.importorskip("av")
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    with open_sink(str(tmp_path / "pipe"), 25.0, (4, 6), format="nv12") as sink:
        sink.write(np.full((4, 6, 3), 255, np.uint8))
    reader.join()
    assert read == [bytes([235] * 24 + [128] * 12)]


def test_an_earlier_file_stays_until_the_first_frame(tmp_path):
    (tmp_path / "clip.bin").write_bytes(b"earlier")
    with open_sink(str(tmp_path / "clip.bin"), 25.0, (4, 6), format="rgb24"):
        pass
    assert (tmp_path / "clip.bin").read_bytes() == b"earlier"


@pytest.mark.parametrize("format", ["rgb24", "nv12", "y4m"])
def test_closed_pipe_raises_broken_pipe_and_nothing_else(format):
    pytest.importorskip("av")
    command = [sys.executable, "-c", RAW, "100000", format]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    complaint = process.stderr.read().decode().strip().splitlines()
    process.stderr.close()
    assert process.wait() == 1 and complaint[-1].startswith("BrokenPipeError") and "ignored" not in "".join(complaint)


@pytest.mark.parametrize("format", ["rgb24", "nv12", "y4m"])
def test_full_disk(format):
    pytest.importorskip("av")
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with (
        pytest.raises(StyleInVError, match="/dev/full: cannot be written: no space left on its disk"),
        open_sink("/dev/full", 25.0, (4, 6), format=format) as sink,
    ):
        sink.write(np.zeros((4, 6, 3), np.uint8))


@pytest.mark.parametrize("format", [None, "y4m"])
def test_terminal_is_refused(monkeypatch, format):
    pytest.importorskip("av")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(StyleInVError, match="-: found a terminal, expected a pipe or a file"):
        open_sink("-", 25.0, (4, 5), format=format)
