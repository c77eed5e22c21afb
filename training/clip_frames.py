"""Decodes a clip into square pictures of one size.

Shapes: H, W pixels of a frame, both the resolution.
"""

from __future__ import annotations

import lzma
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import IO

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image, ImageOps

from styleinv.runtime.errors import DataError
from styleinv.training.clip_files import VIDEO_SUFFIXES, SourceClip, SourceFile

# FFmpeg recognises a file by its contents; play lists and the like would make it open further files.
_VIDEO_OPTIONS = {"format_whitelist": "mov,avi,gif,matroska"}
_PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")

# Seconds. A longer pause between frames is a damaged time stamp, and would be filled with as many copies.
_LONGEST_FRAME = 60

# What the decoders raise for damaged contents.
_UNREADABLE = (
    av.FFmpegError,
    Image.DecompressionBombError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    SyntaxError,  # Pillow, for a broken PNG
    RuntimeError,  # zipfile, for an encrypted member or an unknown compression
)


def square_frames(clip: SourceClip, resolution: int, frame_rate: float | None) -> Iterator[NDArray[np.uint8]]:
    """Decode a clip into frames [H,W,3] uint8 RGB: the centred square, resized once.

    With a `frame_rate` (1/s), a video shows at k / frame_rate the frame whose presentation time is nearest. Pictures,
    and videos that do not tell their rate, are taken as they are. Transparency is composited on black; the rotation
    that a file asks for is applied. DataError, naming the file, for contents that cannot be decoded to the end.
    """
    if clip.files[0].suffix in VIDEO_SUFFIXES:
        pictures = _read_video(clip.files[0], frame_rate)
    else:
        pictures = map(_read_picture, clip.files)
    for picture in pictures:
        yield np.asarray(_square(picture, resolution))


@contextmanager
def _reading(file: SourceFile, expected: str) -> Iterator[IO[bytes]]:
    """The opened file; what its decoder raises becomes a DataError that names it."""
    if file.size == 0:
        raise DataError(f"{file.label}: found an empty file, expected {expected}")
    try:
        with file.open() as stream:
            yield stream
    except _UNREADABLE as error:
        raise DataError(f"{file.label}: found a damaged or unknown file ({error}), expected {expected}") from error


def _read_picture(file: SourceFile) -> Image.Image:
    with _reading(file, "a picture") as stream, Image.open(stream, formats=_PICTURE_FORMATS) as picture:
        return _to_rgb(ImageOps.exif_transpose(picture))


def _read_video(file: SourceFile, frame_rate: float | None) -> Iterator[Image.Image]:
    with (
        _reading(file, "a video") as stream,
        av.open(stream, mode="r", options=_VIDEO_OPTIONS) as container,
    ):
        video = container.streams.best("video")
        if not isinstance(video, av.VideoStream):
            raise DataError(f"{file.label}: found no pictures in it, expected a video")
        video.thread_type = "AUTO"
        frames = _all_frames(container.decode(video), video.frames, file.label)
        if frame_rate is not None and video.average_rate:
            duration = 1 / Fraction(video.average_rate.numerator, video.average_rate.denominator)
            frames = _resample(_with_times(frames, duration, file.label), duration, 1 / Fraction(frame_rate))
        reformatter = VideoReformatter()  # one for all: setting it up takes longer than converting a small frame
        yield from (_to_picture(frame, reformatter) for frame in frames)


def _all_frames(frames: Iterable[av.VideoFrame], promised: int, label: str) -> Iterator[av.VideoFrame]:
    """Pass the frames on, and see that there is one and that none of those the header promises is lost unnoticed."""
    count = 0
    for frame in frames:
        count += 1
        yield frame
    if count == 0:
        raise DataError(f"{label}: found a video without a single frame, expected at least one")
    if count < promised:
        warnings.warn(f"{label}: found {count} frames, its header promises {promised}", stacklevel=2)


def _with_times(
    frames: Iterable[av.VideoFrame], duration: Fraction, label: str
) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """The presentation time of each frame, in seconds; a frame that has none follows its neighbour by `duration`."""
    time = Fraction(0)
    for number, frame in enumerate(frames):
        previous, time = time, time + duration
        if frame.pts is not None and frame.time_base:
            time = Fraction(frame.pts * frame.time_base.numerator, frame.time_base.denominator)
        shown = duration if number == 0 else time - previous
        if not 0 <= shown <= _LONGEST_FRAME:
            raise DataError(
                f"{label}: found a frame that is shown for {float(shown):g} s, expected 0 to {_LONGEST_FRAME} s "
                "(without a frame rate, times are ignored)"
            )
        yield time, frame


def _resample(
    timed_frames: Iterator[tuple[Fraction, av.VideoFrame]], duration: Fraction, interval: Fraction
) -> Iterator[av.VideoFrame]:
    """The frame nearest to each multiple of `interval` (s) after the first; the last one lasts for `duration` (s)."""
    time, frame = next(timed_frames)
    target = time
    for next_time, next_frame in timed_frames:
        while target <= (time + next_time) / 2:
            yield frame
            target += interval
        time, frame = next_time, next_frame
    while target < time + duration:
        yield frame
        target += interval


def _to_picture(frame: av.VideoFrame, reformatter: VideoReformatter) -> Image.Image:
    has_alpha = any(component.is_alpha for component in frame.format.components)
    pixels = reformatter.reformat(frame, format="rgba" if has_alpha else "rgb24").to_ndarray()
    return _to_rgb(Image.fromarray(np.rot90(pixels, round(frame.rotation / 90))))  # both turn counter-clockwise


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    visible = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", visible.size, "black"), visible).convert("RGB")


def _square(picture: Image.Image, resolution: int) -> Image.Image:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    if side % resolution == 0:
        return picture.reduce(side // resolution, box)  # the mean of whole pixels; at other ratios that would alias
    return picture.resize((resolution, resolution), Image.Resampling.LANCZOS, box)
