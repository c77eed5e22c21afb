"""Finds the clips at a path and decodes them into square pictures.

A clip is a video (mp4, mov, avi, gif, mkv, webm), or a folder that directly holds pictures (png, jpg, jpeg, webp, bmp).
The path is one video, a folder that is searched all the way down, or a zip of either; a zip is read, never unpacked.

Shapes: H, W pixels of a frame, both the resolution once it is square.
"""

from __future__ import annotations

import functools
import lzma
import os
import re
import shutil
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image, ImageOps

from styleinv.runtime.errors import DataError

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".gif", ".mkv", ".webm"})
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
EXPECTED = (
    f"videos ({', '.join(sorted(VIDEO_SUFFIXES))}), folders of pictures ({', '.join(sorted(PICTURE_SUFFIXES))}) "
    "or a .zip of them"
)

# FFmpeg recognises a file by its contents; play lists and the like would make it open further files.
_VIDEO_OPTIONS = {"format_whitelist": "mov,avi,gif,matroska"}
_PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")

# Media hardly shrinks in a zip. What grows more than this, and beyond the allowance, is a zip bomb.
_ZIP_MAX_EXPANSION = 100
_ZIP_ALLOWANCE = 2**30  # bytes
_MEMORY_PER_MEMBER = 2**26  # bytes; a larger member of a zip is read through a temporary file

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


@dataclass(frozen=True)
class SourceFile:
    """A video or a picture that can be opened, on disk or inside a zip."""

    name: str  # relative to the path that was searched, with forward slashes
    label: str  # names it in messages
    size: int  # bytes
    open: Callable[[], IO[bytes]]

    @property
    def suffix(self) -> str:
        """The extension in lower case, with its dot."""
        return PurePosixPath(self.name).suffix.lower()


@dataclass(frozen=True)
class SourceClip:
    """The files of one clip: a single video, or its pictures in order."""

    name: str
    files: tuple[SourceFile, ...]


def find_files(path: Path) -> list[Path]:
    """The files that decide what clips a path holds: [path] for a file, else all videos and pictures below it.

    Folders are searched recursively, through links too; names that start with a dot are ignored.
    DataError if the path does not exist, is a file of another kind, or a folder without videos and pictures.
    """
    if path.is_file():
        if path.suffix.lower() not in VIDEO_SUFFIXES | {".zip"}:
            raise DataError(f"{path}: found a file of type {path.suffix or 'unknown'!r}, expected {EXPECTED}")
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: found {'no file' if path.exists() else 'nothing'} there, expected {EXPECTED}")
    found = list(_walk(path))
    media = [file for file in found if _is_media(file.name)]
    if not media:
        raise _no_clips(path, found)
    return media


@contextmanager
def open_clips(path: Path, files: list[Path]) -> Iterator[list[SourceClip]]:
    """The clips of `files = find_files(path)` in natural order, readable while the context lasts.

    DataError if the path is a zip that cannot be read, is unsafe, or holds no clips.
    """
    if path.suffix.lower() == ".zip" and path.is_file():
        with _open_zip(path) as archive:
            yield _group(_zip_members(path, archive), path.stem)
    else:
        root = path if path.is_dir() else path.parent
        yield _group((_on_disk(file, root) for file in files), path.resolve().name)


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


def _walk(root: Path) -> Iterator[Path]:
    visited = set()
    for folder, subfolders, names in os.walk(root, onerror=_refuse_folder, followlinks=True):
        if (real := Path(folder).resolve()) in visited:  # a link back up would be followed for ever
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (Path(folder, name) for name in names)


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{error.filename}: found a folder that cannot be listed ({error.strerror})") from error


def _is_media(name: str) -> bool:
    file = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in file.parts)
    return not hidden and file.suffix.lower() in VIDEO_SUFFIXES | PICTURE_SUFFIXES


def _no_clips(path: Path, found: Iterable[Path | PurePosixPath]) -> DataError:
    kinds = Counter(file.suffix.lower() or "no extension" for file in found)
    others = ", ".join(f"{count} of {kind}" for kind, count in kinds.most_common(5))
    return DataError(f"{path}: found no clip ({others or 'no files at all'}), expected {EXPECTED}")


def _on_disk(file: Path, root: Path) -> SourceFile:
    return SourceFile(file.relative_to(root).as_posix(), str(file), file.stat().st_size, lambda: file.open("rb"))


@contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(f"{path}: found a file that is no zip ({error}), expected a zip of clips") from error
    with archive:
        yield archive


def _zip_members(path: Path, archive: zipfile.ZipFile) -> list[SourceFile]:
    members = [member for member in archive.infolist() if not member.is_dir()]
    for member in members:
        name = PureWindowsPath(member.filename)  # knows both kinds of slash, and drives
        if name.anchor or ".." in name.parts:
            raise DataError(f"{path}: found a member {member.filename!r}, expected names that stay inside the zip")
    media = [member for member in members if _is_media(member.filename)]
    if not media:
        raise _no_clips(path, [PurePosixPath(member.filename) for member in members])
    total = sum(member.file_size for member in media)
    limit = max(_ZIP_ALLOWANCE, _ZIP_MAX_EXPANSION * path.stat().st_size)
    if total > limit:
        raise DataError(f"{path}: found {total} bytes when unpacked, expected at most {limit} for a zip of its size")
    return [
        SourceFile(m.filename, f"{path}/{m.filename}", m.file_size, functools.partial(_open_member, archive, m))
        for m in media
    ]


def _open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    """A member that can be searched fast. `zipfile` never reads more than the size that was checked above."""
    file = tempfile.SpooledTemporaryFile(max_size=_MEMORY_PER_MEMBER)  # noqa: SIM115
    with archive.open(member) as source:
        shutil.copyfileobj(source, file)
    file.seek(0)
    return file


def _group(files: Iterable[SourceFile], root_name: str) -> list[SourceClip]:
    """One clip for each video, and one for all pictures of a folder."""
    clips = []
    folders = defaultdict(list)
    for file in files:
        if file.suffix in VIDEO_SUFFIXES:
            clips.append(SourceClip(file.name, (file,)))
        else:
            folders[PurePosixPath(file.name).parent].append(file)
    for folder, pictures in folders.items():
        name = root_name if folder == PurePosixPath() else folder.as_posix()
        clips.append(SourceClip(name, tuple(sorted(pictures, key=lambda file: _natural_order(file.name)))))
    return sorted(clips, key=lambda clip: _natural_order(clip.name))


def _natural_order(name: str) -> tuple[list[str | int], str]:
    """Sorts frame2 before frame10."""
    words = re.split(r"(\d+)", name.casefold())
    return [int(word) if place % 2 else word for place, word in enumerate(words)], name


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
            frames = _resample(_with_times(frames, duration), duration, 1 / Fraction(frame_rate))
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


def _with_times(frames: Iterable[av.VideoFrame], duration: Fraction) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """The presentation time of each frame, in seconds; a frame that has none follows its neighbour by `duration`."""
    time = -duration
    for frame in frames:
        if frame.pts is None or not frame.time_base:
            time += duration
        else:
            time = Fraction(frame.pts * frame.time_base.numerator, frame.time_base.denominator)
        yield time, frame


def _resample(
    timed_frames: Iterator[tuple[Fraction, av.VideoFrame]], duration: Fraction, interval: Fraction
) -> Iterator[av.VideoFrame]:
    """The frame nearest to each multiple of `interval` after the first, the earlier of two; the last has `duration`."""
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
    # The mean of whole pixels is the exact area; at other ratios that would alias, and Lanczos does not.
    area = Image.Resampling.BOX if side % resolution == 0 else Image.Resampling.LANCZOS
    return picture.resize((resolution, resolution), area, box=(left, top, left + side, top + side))
