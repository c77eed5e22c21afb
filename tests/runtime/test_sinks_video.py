"""Video files: what is written can be read back, with its colours and their tags, whatever happens on the way."""

import subprocess
import sys

import numpy as np
import pytest

from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.sinks import open_sink
from styleinv.runtime.sinks.video import VideoSink

av = pytest.importorskip("av")

COLOURS = [(220, 30, 40), (20, 200, 60), (30, 60, 210), (128, 128, 128), (255, 255, 255)]
SUFFIXES = [".mp4", ".mov", ".mkv", ".webm"]


def plain_frame(n, height=32, width=48):
    return np.full((height, width, 3), COLOURS[n % len(COLOURS)], np.uint8)


def noise_frame(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def decoded(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream, [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]


def assert_plain(frames, count):
    assert len(frames) == count
    for n, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - plain_frame(n)).max() <= 6, (n, frame[0, 0])


def boxes(path):
    """The names of an MP4 file's outermost boxes."""
    content, names, place = path.read_bytes(), [], 0
    while place < len(content):
        names.append(content[place + 4 : place + 8].decode())
        place += int.from_bytes(content[place : place + 4], "big")
    return names


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".MP4"])
def test_video_is_read_back(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    with open_sink(str(path), 25.0, (32, 48)) as sink:
        assert not path.exists()
        for n in range(5):
            sink.write(plain_frame(n))
            assert path.stat().st_size > 0 or suffix == ".mkv"  # whose header comes with the first cluster
    stream, frames = decoded(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert stream.average_rate == 25 and stream.codec_context.pix_fmt == "yuv420p"
    assert stream.codec_context.name == ("vp9" if suffix == ".webm" else "h264")
    assert stream.start_time == 0
    with av.open(str(path)) as container:
        assert container.duration == 200_000  # microseconds
    assert_plain(frames, 5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_colours_are_tagged(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    with open_sink(str(path), 25.0, (32, 48)) as sink:
        sink.write(plain_frame(0))
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context  # from the container, before anything is decoded
        tags = context.color_range, context.colorspace, context.color_primaries, context.color_trc
        assert tags == (1, 1, 1, 1)  # limited range, and BT.709 three times
        frame = next(container.decode(video=0))
        assert (frame.color_range, frame.colorspace) == (1, 1)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_index_comes_first(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    with open_sink(str(path), 25.0, (32, 48)) as sink:
        for n in range(60):
            sink.write(plain_frame(n))
        assert boxes(path).count("moof") > 20
    names = boxes(path)
    assert names.index("moov") < names.index("mdat") and "moof" not in names and names.count("mdat") == 1
    assert_plain(decoded(path)[1], 60)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_key_frames_every_two_seconds(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    with open_sink(str(path), 10.0, (32, 48)) as sink:
        for n in range(50):
            sink.write(noise_frame(32, 48) + np.uint8(n))
    with av.open(str(path)) as container:
        keys = [n for n, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    assert keys == [0, 20, 40]


def test_crf_decides_size(tmp_path):
    for suffix in (".mp4", ".webm"):
        sizes = []
        for crf in (None, 5, 45):
            path = tmp_path / f"clip{suffix}"
            with open_sink(str(path), 25.0, (64, 64), crf=crf) as sink:
                for n in range(5):
                    sink.write(noise_frame(64, 64, n))
            sizes.append(path.stat().st_size)
        assert sizes[1] > 1.2 * sizes[0] > 1.5 * sizes[2], sizes


@pytest.mark.parametrize(("fps", "rate"), [(30000 / 1001, "30000/1001"), (12.5, "25/2"), (0.0001, "1/1000")])
def test_frame_rates(tmp_path, fps, rate):
    for suffix in (".mp4", ".mkv"):
        path = tmp_path / f"clip{suffix}"
        with open_sink(str(path), fps, (16, 16)) as sink:
            for _ in range(3):
                sink.write(noise_frame(16, 16))
        stream, frames = decoded(path)
        assert str(stream.average_rate) == rate and len(frames) == 3


@pytest.mark.parametrize("size", [(33, 47), (1, 1)])
def test_odd_sizes_grow_to_even_ones(tmp_path, size):
    path = tmp_path / "clip.mp4"
    with open_sink(str(path), 25.0, size) as sink:
        sink.write(plain_frame(0, *size))
    (frame,) = decoded(path)[1]
    assert frame.shape == (size[0] + 1, size[1] + 1, 3) and np.abs(frame.astype(int) - COLOURS[0]).max() <= 6


@pytest.mark.parametrize("name", ["a:b.mp4", "http:x.mkv", "%03d.mov", "ä b.webm"])
def test_names_that_look_like_addresses_or_patterns(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with open_sink(name, 25.0, (32, 48)) as sink:
        sink.write(plain_frame(0))
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert_plain(decoded(f"file:{name}")[1], 1)


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "latest.mp4").symlink_to("clip.mp4")
    with open_sink(str(tmp_path / "latest.mp4"), 25.0, (32, 48)) as sink:
        sink.write(plain_frame(0))
    assert (tmp_path / "latest.mp4").is_symlink() and boxes(tmp_path / "clip.mp4").count("moof") == 0


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_error_before_the_first_frame_leaves_everything_as_it_was(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(b"earlier")
    for out in (path, tmp_path / f"new{suffix}"):
        with pytest.raises(KeyError), open_sink(str(out), 25.0, (32, 48)):
            raise KeyError
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [(path.name, b"earlier")]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_error_between_frames_finishes_the_file(tmp_path, suffix, error):
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(b"earlier" * 10_000)
    with pytest.raises(error), open_sink(str(path), 25.0, (32, 48)) as sink:
        for n in range(7):
            sink.write(plain_frame(n))
        raise error
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert_plain(decoded(path)[1], 7)
    assert suffix not in (".mp4", ".mov") or "moof" not in boxes(path)


INTERRUPTED = """
import os, signal, sys, numpy
from styleinv.runtime.sinks import open_sink

class Interrupted:
    def __init__(self, encoder):
        self.encoder = encoder

    def encode(self, picture):
        os.kill(os.getpid(), signal.SIGINT)
        return self.encoder.encode(picture)

try:
    with open_sink(sys.argv[1], 25.0, (32, 48)) as sink:
        sink.write(numpy.zeros((32, 48, 3), numpy.uint8))
        sink._video = Interrupted(sink._video)
        sink.write(numpy.zeros((32, 48, 3), numpy.uint8))
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_ctrl_c_while_a_frame_is_encoded_waits_for_it(tmp_path):
    path = tmp_path / "clip.mkv"
    assert subprocess.run([sys.executable, "-c", INTERRUPTED, path], check=False).returncode == 130
    assert len(decoded(path)[1]) == 2


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_fragments_stay_where_they_cannot_be_rewritten(tmp_path, monkeypatch, failure):
    path = tmp_path / "clip.mp4"

    def fail(descriptor):
        raise failure

    monkeypatch.setattr("os.fsync", fail)
    expected = StyleInVError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as raised, open_sink(str(path), 25.0, (32, 48)) as sink:
        for n in range(5):
            sink.write(plain_frame(n))
    if expected is StyleInVError:
        reason = "no space left on its disk; it stays in fragments, which can be played"
        assert str(raised.value) == f"{path}: cannot be written: {reason}"
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"] and "moof" in boxes(path)
    assert_plain(decoded(path)[1], 5)


def test_a_size_that_the_encoder_refuses_keeps_the_earlier_file(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"earlier")
    with pytest.raises(StyleInVError, match=r"clip\.mp4: cannot be written: "):  # noqa: SIM117
        with open_sink(str(path), 25.0, (2, 20_000)) as sink:
            sink.write(np.zeros((2, 20_000, 3), np.uint8))
    assert path.read_bytes() == b"earlier"


def test_missing_encoder(tmp_path, monkeypatch):
    from styleinv.runtime.sinks import video

    monkeypatch.setitem(video.CODECS, ".mp4", video.Codec("libxyz", 1, 2, {}))
    with pytest.raises(StyleInVError, match=r"clip\.mp4: found no encoder libxyz in PyAV"):
        VideoSink(tmp_path / "clip.mp4", 25.0, (32, 48))
