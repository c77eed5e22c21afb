"""Decodes clips once, into a folder that is mapped from then on.

An entry of the cache is named after what decides its contents: the files' names, sizes and times, and how they are
decoded. It appears whole or not at all.

Shapes: N frames over all clips; H, W pixels of a frame, both the resolution.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from styleinv.training.clip_files import find_files, open_clips
from styleinv.training.clip_frames import square_frames

_CACHE_VERSION = 1  # of what a cache holds: raise it when a decoded frame would come out differently
_ABANDONED_AFTER = 24 * 3600  # seconds without a write, after which an unfinished cache has lost its writer


class DecodedClips(NamedTuple):
    """All clips at a path, one after the other."""

    names: tuple[str, ...]
    lengths: NDArray[np.int64]  # [clips] frames
    frames: NDArray[np.uint8]  # [N,H,W,3] RGB, mapped from disk, read-only


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/styleinv`, or `~/.cache/styleinv`."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (configured if configured.is_absolute() else Path.home() / ".cache") / "styleinv"


def cached_clips(path: Path, resolution: int, frame_rate: float | None, cache: Path, progress: bool) -> DecodedClips:
    """Map the cache of these files, after building it where it is missing, damaged or out of date.

    frame_rate: in 1/s, see `square_frames`. DataError for files that cannot be found or decoded; OSError.
    """
    files = find_files(path)
    root = path if path.is_dir() else path.parent
    stats = sorted((file.relative_to(root).as_posix(), file.stat()) for file in files)
    stamp = {
        "format_version": _CACHE_VERSION,
        "resolution": resolution,
        "frame_rate": None if frame_rate is None else float(frame_rate),
        "files": [{"name": name, "size": stat.st_size, "modified_ns": stat.st_mtime_ns} for name, stat in stats],
    }
    entry = cache / f"clips-{hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:32]}"
    clips = _open_entry(entry, stamp)
    if clips is None:
        _write_entry(entry, stamp, path, files, progress)
        clips = _open_entry(entry, stamp)
        assert clips is not None, f"{entry} was just written"
    return clips


def _open_entry(entry: Path, stamp: dict[str, Any]) -> DecodedClips | None:
    """The clips of a finished cache; None if there is none, or not what its index says."""
    try:
        index = json.loads((entry / "index.json").read_text())
        if any(index[name] != value for name, value in stamp.items()):
            return None
        names = tuple(str(clip["name"]) for clip in index["clips"])
        lengths = np.array([clip["frames"] for clip in index["clips"]], np.int64)
        shape = (int(lengths.sum()), stamp["resolution"], stamp["resolution"], 3)
        if lengths.min() < 1 or (entry / "frames.u8").stat().st_size != math.prod(shape):
            return None
        frames = np.memmap(entry / "frames.u8", np.uint8, "r", shape=shape)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return DecodedClips(names, lengths, frames)


def _write_entry(entry: Path, stamp: dict[str, Any], path: Path, files: list[Path], progress: bool) -> None:
    """Decode into a sibling that takes its place at the end, so that a killed run leaves nothing that could be used."""
    entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_abandoned(entry.parent)
    part = Path(tempfile.mkdtemp(prefix=f"{entry.name}-", suffix=".part", dir=entry.parent))
    try:
        clips = list(_decode(part / "frames.u8", path, files, stamp["resolution"], stamp["frame_rate"], progress))
        index = {**stamp, "source": str(path.resolve()), "clips": clips}
        (part / "index.json").write_text(json.dumps(index, indent=1))
        if _open_entry(entry, stamp) is None:  # else another process was faster
            shutil.rmtree(entry, ignore_errors=True)
            part.rename(entry)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _decode(
    target: Path, path: Path, files: list[Path], resolution: int, frame_rate: float | None, progress: bool
) -> Iterator[dict[str, str | int]]:
    """Append the frames of every clip to a file, and say what each clip was."""
    with (
        target.open("wb") as output,
        open_clips(path, files) as sources,
        tqdm(desc=path.name, unit=" frames", disable=not progress) as bar,
    ):
        for number, source in enumerate(sources, start=1):
            bar.set_postfix_str(f"clip {number} of {len(sources)}", refresh=False)
            length = 0
            for frame in square_frames(source, resolution, frame_rate):
                output.write(frame.tobytes())
                length += 1
                bar.update()
            yield {"name": source.name, "frames": length}


def _remove_abandoned(cache: Path) -> None:
    """Delete what killed runs have left behind."""
    for part in cache.glob("clips-*.part"):
        with contextlib.suppress(FileNotFoundError):  # another process may be renaming or deleting it
            last_write = max(file.stat().st_mtime for file in (part, *part.iterdir()))
            if time.time() - last_write > _ABANDONED_AFTER:
                shutil.rmtree(part, ignore_errors=True)
