"""Finds the clips at a path.

A clip is a video (mp4, mov, avi, gif, mkv, webm), or a folder that directly holds pictures (png, jpg, jpeg, webp, bmp).
The path is one video, a folder that is searched all the way down, or a zip of either; a zip is read, never unpacked.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from styleinv.runtime.errors import DataError

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".gif", ".mkv", ".webm"})
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
EXPECTED = (
    f"videos ({', '.join(sorted(VIDEO_SUFFIXES))}), folders of pictures ({', '.join(sorted(PICTURE_SUFFIXES))}) "
    "or a .zip of them"
)

# Media hardly shrinks in a zip. What grows more than this, and beyond the allowance, is a zip bomb.
_ZIP_MAX_EXPANSION = 100
_ZIP_ALLOWANCE = 2**30  # bytes
_MEMORY_PER_MEMBER = 2**26  # bytes; a larger member of a zip is read through a temporary file


@dataclass(frozen=True)
class SourceFile:
    """A video or a picture that can be opened, on disk or inside a zip."""

    name: str  # relative to the path that was searched, with forward slashes
    label: str  # names it in messages
    size: int  # bytes
    open: Callable[[], AbstractContextManager[IO[bytes]]]

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
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
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


@contextmanager
def _open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
    """A copy in which a decoder can seek freely; `zipfile` never reads more than the size that was checked above."""
    with archive.open(member) as source, tempfile.SpooledTemporaryFile(_MEMORY_PER_MEMBER) as copy:
        shutil.copyfileobj(source, copy)
        copy.seek(0)
        yield copy


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


def _natural_order(name: str) -> tuple[str, str]:
    """Sorts frame2 before frame10."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(20), name.casefold()), name
