"""Where frames go: a video file, a folder of pictures, raw bytes in a pipe or file, or a window.

with open_sink("clip.mp4", fps=25, size=(256, 256)) as sink:
    sink.write(frame)   # uint8 [256, 256, 3], as often as you like
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.sinks.pictures import PictureSink, encode_jpeg, encode_png
from styleinv.runtime.sinks.raw import RawSink
from styleinv.runtime.sinks.sink import Sink
from styleinv.runtime.sinks.video import CODECS, VideoSink
from styleinv.runtime.sinks.window import WindowSink

__all__ = ["FORMATS", "Sink", "choose_sink", "encode_jpeg", "encode_png", "open_sink"]

# What a kind of sink can write; its first format is the default. A video's follows from its suffix.
KINDS: dict[str, tuple[str, ...]] = {
    "pictures": ("png", "jpeg"),
    "raw": ("rgb24", "nv12", "y4m"),
    "video": (),
    "window": (),
}
FORMATS = KINDS["pictures"] + KINDS["raw"]


def open_sink(
    out: str, fps: float, size: tuple[int, int], *, format: str | None = None, crf: int | None = None
) -> AbstractContextManager[Sink]:
    """The sink that `out` names; enter it to write, leave it to finish.

    Args:
        out: a path ending in .mp4, .mkv, .mov or .webm for a video; '-' for raw bytes on standard output, and a path
            with a raw format, or ending in .y4m, for the same in a file or named pipe; 'window' for a window; a path
            that ends in '/', is a folder or has no suffix for pictures frame_000000.png, ...
        fps: frames per second, of a video, of Y4M and of a window.
        size: height and width of a frame, in pixels.
        format: 'png' (default) or 'jpeg' for pictures; 'rgb24' (default), 'nv12' or 'y4m' for raw bytes.
        crf: quality of a video, 0 (best) to 51, or 63 of WebM; None is nearly lossless to the eye.
    Raises: StyleInVError where options do not go together, the suffix is unknown, the target cannot be written, or what
        writes it is missing.
    """
    kind, format = choose_sink(out, format, crf)
    if kind == "raw":
        return RawSink(out, format, fps, size)
    if kind == "pictures":
        return PictureSink(Path(out), format)
    if kind == "window":
        return WindowSink(fps, size)
    return VideoSink(Path(out), fps, size, crf)


def choose_sink(out: str, format: str | None = None, crf: int | None = None) -> tuple[str, str]:
    """The kind of sink, one of `KINDS`, and the format in it, '' where the kind has none. Arguments as `open_sink`.

    Raises: StyleInVError where the suffix is unknown or options do not go together. Touches no file.
    """
    path = Path(out)
    suffix = path.suffix.lower()
    formats: tuple[str, ...] | None = None
    if out == "-":
        kind = "raw"
    elif out == "window":
        kind = "window"
    elif out.endswith(("/", os.sep)) or path.is_dir():
        kind = "pictures"
    elif suffix in CODECS:
        kind = "video"
    elif suffix == ".y4m":
        kind, formats = "raw", ("y4m",)
    elif format in KINDS["raw"]:
        kind = "raw"
    elif format in KINDS["pictures"] or not suffix:
        kind = "pictures"
    else:
        raise StyleInVError(
            f"{out}: found the suffix {path.suffix}, expected {', '.join(CODECS)}, .y4m, a folder (ending in /), "
            "- or window"
        )
    formats = KINDS[kind] if formats is None else formats
    if format is not None and format not in formats:
        expected = " or ".join(formats) or f"none: a {kind} has no formats"
        raise StyleInVError(f"{out}: found the format {format}, expected {expected}")
    if crf is not None and kind != "video":
        raise StyleInVError(f"{out}: found the quality crf {crf}, expected none: only videos have one")
    if crf is not None and not 0 <= crf <= CODECS[suffix].highest_crf:
        raise StyleInVError(
            f"{out}: found the quality crf {crf}, expected a whole number from 0 to {CODECS[suffix].highest_crf}"
        )
    return kind, format or (formats[0] if formats else "")
