"""Which sink a target names, which options go with it, and what is said of targets that cannot be had."""

import sys

import numpy as np
import pytest

from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.sinks import choose_sink, open_sink

FRAME = np.zeros((8, 6, 3), np.uint8)


@pytest.mark.parametrize(
    ("out", "format", "expected"),
    [
        ("-", None, ("raw", "rgb24")),
        ("-", "nv12", ("raw", "nv12")),
        ("clip.y4m", None, ("raw", "y4m")),
        ("CLIP.Y4M", "y4m", ("raw", "y4m")),
        ("pipe", "nv12", ("raw", "nv12")),
        ("clip.bin", "rgb24", ("raw", "rgb24")),
        ("window", None, ("window", "")),
        ("./window", None, ("pictures", "png")),
        ("clip.mp4", None, ("video", "")),
        ("clip.WebM", None, ("video", "")),
        ("clip.mp4/", None, ("pictures", "png")),
        ("pictures", "jpeg", ("pictures", "jpeg")),
        ("run.1", "png", ("pictures", "png")),
    ],
)
def test_targets(out, format, expected):
    assert choose_sink(out, format) == expected


@pytest.mark.parametrize(
    ("out", "format", "crf", "message"),
    [
        ("-", "png", None, "-: found the format png, expected rgb24 or nv12 or y4m"),
        ("window", "rgb24", None, "window: found the format rgb24, expected none: a window has no formats"),
        ("clip.mp4", "y4m", None, "clip.mp4: found the format y4m, expected none: a video has no formats"),
        ("clip.y4m", "nv12", None, "clip.y4m: found the format nv12, expected y4m"),
        ("pictures/", "y4m", None, "pictures/: found the format y4m, expected png or jpeg"),
        ("pictures", "bmp", None, "pictures: found the format bmp, expected png or jpeg"),
        ("pictures/", None, 18, "pictures/: found the quality crf 18, expected none: only videos have one"),
        ("-", None, 18, "-: found the quality crf 18, expected none"),
        ("clip.mp4", None, 52, "clip.mp4: found the quality crf 52, expected a whole number from 0 to 51"),
        ("clip.webm", None, -1, "clip.webm: found the quality crf -1, expected a whole number from 0 to 63"),
    ],
)
def test_options_that_do_not_go_together(out, format, crf, message):
    with pytest.raises(StyleInVError) as raised:
        choose_sink(out, format, crf)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("name", ["clip.avi", "clip.gif", "clip.png"])
def test_unknown_suffix(tmp_path, name):
    with pytest.raises(StyleInVError, match=r"found the suffix \..*, expected .mp4, .mov, .mkv, .webm, .y4m, a folder"):
        open_sink(str(tmp_path / name), 25.0, (8, 8))
    assert not list(tmp_path.iterdir())


def test_targets_that_cannot_be_written(tmp_path):
    pytest.importorskip("av")
    for name in ("clip.mp4", "clip.y4m"):
        with pytest.raises(StyleInVError, match=rf"{name}: found no folder .*nowhere, expected one"):
            open_sink(str(tmp_path / "nowhere" / name), 25.0, (8, 8))
    (tmp_path / "file").touch()
    for name in ("file/clip.mp4", "file/clip.mkv", "file/clip.y4m", "file/pictures/", "file/"):
        with pytest.raises(StyleInVError, match="file"):
            open_sink(str(tmp_path / name), 25.0, (8, 8))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_folder_that_takes_no_files():
    pytest.importorskip("av")
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux has a folder that takes no files from anybody, /proc")
    for name in ("clip.mp4", "clip.webm", "clip.y4m"):
        with pytest.raises(StyleInVError, match=f"/proc/{name}: cannot be written: "):
            open_sink(f"/proc/{name}", 25.0, (8, 8))


def test_missing_av(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    install = r".*pip install 'styleinv\[runtime-cpu\]'"
    for name, format, message in (
        ("clip.mp4", None, f"video files need PyAV {install}"),
        ("clip.y4m", None, f"y4m frames need PyAV {install}.*, or write rgb24"),
        ("pictures/", "jpeg", f"JPEG pictures need PyAV {install}.*, or write PNG pictures"),
    ):
        with pytest.raises(StyleInVError, match=message):
            open_sink(str(tmp_path / name), 25.0, (8, 8), format=format)
    assert not list(tmp_path.iterdir())
    for name, format in (("pictures/", None), ("clip.rgb", "rgb24")):  # which need none
        with open_sink(str(tmp_path / name), 25.0, (8, 6), format=format) as sink:
            sink.write(FRAME)
