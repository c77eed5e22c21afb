"""Where frames go: a video file, a folder of PNG pictures, or raw bytes on standard output."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.pyav import import_av

Frame = npt.NDArray[np.uint8]  # [H, W, 3], RGB

# Encoder and its options by the file's suffix. WebM carries no H.264; crf 24 of VP9 looks about like 18 of H.264.
H264 = ("libx264", {"crf": "18"})
VP9 = ("libvpx-vp9", {"crf": "24", "b:v": "0", "cpu-used": "4"})
CODECS = {".mp4": H264, ".mov": H264, ".mkv": H264, ".webm": VP9}
FAST_START = {".mp4": {"movflags": "+faststart"}, ".mov": {"movflags": "+faststart"}}  # index first, for the web
BT709 = 1  # its number among the primaries, transfer characteristics and matrices of a video
LIMITED_RANGE = 1  # luma from 16 to 235, which every player expects


class Sink(Protocol):
    """Takes frames one after the other, all of one size."""

    def write(self, frame: Frame) -> None:
        """Takes the next frame, uint8 [H, W, 3]. Raises StyleInVError where it cannot be written."""


def open_sink(out: str, fps: float, size: tuple[int, int]) -> AbstractContextManager[Sink]:
    """The sink that `out` names; enter it to write, leave it to finish.

    Args:
        out: '-' for raw RGB24 on standard output; a path ending in .mp4, .mkv, .mov or .webm for a video; a path that
            has no suffix, ends in '/' or is a folder for PNG pictures frame_000000.png, ...
        fps: frames per second of the video.
        size: height and width of a frame, in pixels.
    Raises: StyleInVError where the suffix is unknown, the target cannot be written or PyAV is missing.
    """
    if out == "-":
        return RawSink()
    path = Path(out)
    if out.endswith(("/", os.sep)) or path.is_dir() or not path.suffix:
        return PngSink(path)
    if path.suffix.lower() not in CODECS:
        raise StyleInVError(
            f"{out}: found the suffix {path.suffix}, expected {', '.join(CODECS)}, a folder (ending in /) or -"
        )
    return VideoSink(path, fps, size)


class RawSink(AbstractContextManager["RawSink"]):
    """Frames as raw RGB24 bytes on standard output. A reader that goes away raises BrokenPipeError from `write`."""

    def __init__(self) -> None:
        if sys.stdout.isatty():
            raise StyleInVError("-: found a terminal, expected a pipe or a file: raw RGB bytes are not for reading")
        # Unbuffered, so that frames arrive at once and nothing is left to flush when the pipe breaks.
        self._stream = open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)  # noqa: SIM115

    def write(self, frame: Frame) -> None:
        """Writes all bytes of the frame, H * W * 3."""
        left = np.ascontiguousarray(frame).reshape(-1).data
        with _reported("standard output"):
            while left:
                left = left[self._stream.write(left) :]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.close()


class PngSink(AbstractContextManager["PngSink"]):
    """One PNG file per frame in a folder, which is made where it is not there and must not hold frames yet."""

    def __init__(self, folder: Path) -> None:
        with _reported(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if next(folder.glob("frame_*.png"), None) is not None:
                raise StyleInVError(f"{folder}: found frames of an earlier rollout, expected a folder without")
        self._folder = folder
        self._count = 0

    def write(self, frame: Frame) -> None:
        """Writes the frame whole or not at all."""
        target = self._folder / f"frame_{self._count:06d}.png"
        part = target.with_suffix(".png.part")
        with _reported(target):
            try:
                part.write_bytes(encode_png(frame))
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Every frame is finished as it is written."""


def encode_png(frame: Frame) -> bytes:
    """The PNG file, 8-bit RGB, of a frame uint8 [H, W, 3]. Lossless."""
    height, width, _ = frame.shape
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = 1  # every row is stored as differences to the pixel on the left
    rows[:, 1:] = np.diff(frame, axis=1, prepend=np.zeros((height, 1, 3), np.uint8)).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


class VideoSink(AbstractContextManager["VideoSink"]):
    """A video file: H.264 (VP9 in WebM), yuv420p, BT.709, of nearly lossless quality.

    Odd heights and widths grow by one repeated row or column, since yuv420p halves both. The file is written beside the
    target and takes its name when it is whole; after an error nothing stays.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        av = import_av("video files", ", or write a folder of PNG pictures")
        self._av = av
        self._path = path
        self._part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        self._padding = (size[0] % 2, size[1] % 2)
        suffix = path.suffix.lower()
        codec, options = CODECS[suffix]
        with _reported(path, av.FFmpegError):
            if not path.parent.is_dir():
                raise StyleInVError(f"{path}: found no folder {path.parent}, expected one")
            self._container = av.open(str(self._part), "w", options=FAST_START.get(suffix, {}))
            self._video: Any = self._container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
            self._video.height = size[0] + self._padding[0]
            self._video.width = size[1] + self._padding[1]
            self._video.pix_fmt = "yuv420p"
            self._video.options = options
            context = self._video.codec_context
            context.color_primaries = context.color_trc = context.colorspace = BT709
            context.color_range = LIMITED_RANGE

    def write(self, frame: Frame) -> None:
        """Encodes the frame."""
        rows, columns = self._padding
        padded = np.pad(frame, ((0, rows), (0, columns), (0, 0)), "edge") if rows or columns else frame
        with _reported(self._path, self._av.FFmpegError):
            picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE)
            self._container.mux(self._video.encode(picture))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            with _reported(self._path, self._av.FFmpegError):
                if error is None:
                    self._container.mux(self._video.encode(None))
                self._container.close()
                if error is None:
                    self._part.replace(self._path)
        finally:
            self._part.unlink(missing_ok=True)


@contextmanager
def _reported(target: object, *kinds: type[Exception]) -> Iterator[None]:
    """Turns what the system or an encoder raises about a target into a StyleInVError that names it."""
    reported: tuple[type[Exception], ...] = (OSError, *kinds)
    try:
        yield
    except BrokenPipeError:  # the reader has seen enough: no error
        raise
    except reported as error:
        raise StyleInVError(f"{target}: cannot be written: {error}") from error
