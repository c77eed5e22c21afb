"""Clips as training sees them: decoded once into a memory-mapped cache, then drawn from by counting.

Sampling keeps no state. Sample number n is a pure function of (clips, seed, n), so a position in the data is an
integer, a run resumes anywhere, and what is drawn does not depend on the batch size.

Shapes: N frames, T frames of one clip, B samples; H, W pixels of a frame, both the resolution.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from styleinv.runtime.errors import DataError
from styleinv.training.clip_files import find_files, open_clips
from styleinv.training.clip_frames import square_frames

_CACHE_VERSION = 1  # of what a cache holds: raise it when a decoded frame would come out differently
_ABANDONED_AFTER = 24 * 3600  # seconds without a write, after which an unfinished cache has lost its writer
_FRAME_STREAM, _CLIP_STREAM = 0, 1  # streams of one seed that share no random numbers


@dataclass(frozen=True, eq=False)
class ClipSet:
    """Clips of any lengths, all frames in one array that is usually mapped from disk and must not be written to."""

    names: tuple[str, ...]
    lengths: NDArray[np.int64]  # [clips] frames
    offsets: NDArray[np.int64]  # [clips] row of `frames` where a clip starts
    frames: NDArray[np.uint8]  # [N,H,W,3] RGB; may also hold clips that are not in this set

    def __len__(self) -> int:
        """The number of clips."""
        return len(self.names)

    @property
    def total_frames(self) -> int:
        """Frames over all clips of this set."""
        return int(self.lengths.sum())

    def clip(self, index: int) -> NDArray[np.uint8]:
        """The frames [T,H,W,3] of one clip, a view."""
        start = self.offsets[index]
        return self.frames[start : start + self.lengths[index]]

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in `frames` the frames numbered 0 to total_frames - 1 over all clips lie."""
        ends = np.cumsum(self.lengths)
        clips = np.searchsorted(ends, indices, side="right")
        return self.offsets[clips] + self.lengths[clips] - (ends[clips] - indices)


def load_clips(
    path: Path | str,
    resolution: int,
    *,
    cache: Path | str | None = None,
    frame_rate: float | None = None,
    minimum_frames: int = 1,
    progress: bool = True,
) -> ClipSet:
    """The clips at a path, cropped to the centred square and resized to `resolution` pixels.

    The path is a video, a folder of videos or of folders of pictures (searched recursively), or a zip of these; see
    `clip_files`. Everything is decoded on the first call, into a folder of `cache` (default: `$XDG_CACHE_HOME/styleinv`
    or `~/.cache/styleinv`), and mapped from there as long as names, sizes and times of the files stay the same.

    frame_rate: 1/s to which videos are resampled by nearest presentation time; None keeps every frame.
    minimum_frames: shorter clips are skipped, with one warning that names them.
    DataError for a path without usable clips, and for any file below it that cannot be decoded.
    """
    if resolution < 1 or not (frame_rate is None or (math.isfinite(frame_rate) and frame_rate > 0)):
        raise ValueError(f"found resolution {resolution} and frame_rate {frame_rate}, expected positive numbers")
    path = Path(path)
    folder = _default_cache() if cache is None else Path(cache)
    try:
        clips = _cached_clips(path, resolution, frame_rate, folder, progress)
    except OSError as error:
        raise DataError(f"{path}: cannot be read, or not cached in {folder}: {error}") from error
    return _long_enough(clips, minimum_frames, path)


def frame_batch(clips: ClipSet, seed: int, start: int, count: int, mirror: bool) -> NDArray[np.uint8]:
    """Frames number `start` to `start + count - 1` of an endless shuffled stream, uint8 [count,H,W,3] RGB.

    Each epoch shows every frame once, in an order of its own that follows from `seed` (0 to 2**64 - 1). With
    `mirror` an epoch shows every frame and its horizontal flip, 2N items.
    """
    total = clips.total_frames
    items = 2 * total if mirror else total
    places = (divmod(index, items) for index in range(start, start + count))
    chosen = np.fromiter((_shuffled(seed, epoch, items)[place] for epoch, place in places), np.int64, count)
    batch = np.asarray(clips.frames[clips.rows(chosen % total)])
    flipped = chosen >= total
    batch[flipped] = batch[flipped, :, ::-1]
    return batch


def clip_batch(
    clips: ClipSet, seed: int, start: int, count: int, *, max_span: int, mirror: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Sparse real clips number `start` to `start + count - 1` of an endless stream, for the motion stage.

    Each takes a clip, all equally likely, whole relative times from `sample_times` (within the clip where it is
    shorter than `max_span`), and any first frame from which they fit. With `mirror`, half of the samples are flipped.

    Returns frames uint8 [count,4,H,W,3] RGB and their times float64 [count,4], in frames after the first.
    DataError if a clip has fewer than 3 frames.
    """
    shortest = int(clips.lengths.argmin())
    if clips.lengths[shortest] < 3:
        raise DataError(
            f"{clips.names[shortest]}: found a clip of {clips.lengths[shortest]} frames, expected at least 3 to learn "
            "motion from"
        )
    rows = np.empty((count, 4), np.int64)
    times = np.empty((count, 4))
    flipped = np.zeros(count, bool)
    for place in range(count):
        generator = _generator(seed, start + place, _CLIP_STREAM)
        clip = generator.integers(len(clips))
        length = int(clips.lengths[clip])
        times[place] = sample_times(generator, 1, min(max_span, length), fractional=False)[0]
        whole = times[place].astype(np.int64)
        rows[place] = clips.offsets[clip] + generator.integers(length - whole[-1]) + whole
        flipped[place] = mirror and generator.random() < 0.5
    batch = np.asarray(clips.frames[rows])
    batch[flipped] = batch[flipped, :, :, ::-1]
    return batch, times


def sample_times(generator: np.random.Generator, count: int, max_span: int, fractional: bool) -> NDArray[np.float64]:
    """Draw times (0, a, b, c) of `count` sparse clips, 0 < a <= b <= c <= max_span - 1, float64 [count,4] in frames.

    This is the first-frame-aware sparse training of StyleInV section 3.3: every clip shows the first frame, and three
    frames of a window somewhere after it. The window's span c - a is a power of two, all equally likely that leave
    room for the first frame; its offset a is uniform over what fits, and b is uniform inside the window.
    Whole times put b strictly between a and c, except for a span of 1, where b is either of them.
    `fractional` draws a and b from the real numbers. ValueError if max_span is below 3.
    """
    if max_span < 3:
        raise ValueError(f"found max_span {max_span}, expected at least 3, for the first frame and a span of 1")
    spans = 2 ** generator.integers(0, (max_span - 2).bit_length(), count)
    last_offsets = max_span - 1 - spans
    offsets: NDArray[Any]
    middles: NDArray[Any]
    if fractional:
        offsets = generator.uniform(1, last_offsets)
        middles = generator.uniform(offsets, offsets + spans)
    else:
        margins = spans > 1
        offsets = generator.integers(1, last_offsets, endpoint=True)
        middles = generator.integers(offsets + margins, offsets + spans - margins, endpoint=True)
    return np.stack([np.zeros(count), offsets, middles, offsets + spans], axis=1)


def _generator(seed: int, number: int, stream: int) -> np.random.Generator:
    """Random numbers that depend on nothing but the arguments."""
    key = np.array([seed, number], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], np.uint64)))


@functools.lru_cache(maxsize=2)  # a batch may lie across two epochs
def _shuffled(seed: int, epoch: int, items: int) -> NDArray[np.int64]:
    return _generator(seed, epoch, _FRAME_STREAM).permutation(items)


def _long_enough(clips: ClipSet, minimum_frames: int, path: Path) -> ClipSet:
    kept = np.flatnonzero(clips.lengths >= minimum_frames)
    if len(kept) == 0:
        raise DataError(
            f"{path}: found {len(clips)} clips, the longest of {clips.lengths.max()} frames, expected at least one "
            f"of {minimum_frames} frames or more"
        )
    if len(kept) < len(clips):
        short = [f"{clips.names[i]} ({clips.lengths[i]})" for i in np.flatnonzero(clips.lengths < minimum_frames)]
        warnings.warn(
            f"{path}: skipped {len(short)} of {len(clips)} clips that are shorter than {minimum_frames} frames: "
            f"{', '.join(short)}",
            stacklevel=3,
        )
    names = tuple(clips.names[i] for i in kept)
    return ClipSet(names, clips.lengths[kept], clips.offsets[kept], clips.frames)


def _default_cache() -> Path:
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (configured if configured.is_absolute() else Path.home() / ".cache") / "styleinv"


def _cached_clips(path: Path, resolution: int, frame_rate: float | None, cache: Path, progress: bool) -> ClipSet:
    """Map the cache of these files, after building it where it is missing, damaged or out of date."""
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


def _open_entry(entry: Path, stamp: dict[str, Any]) -> ClipSet | None:
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
    return ClipSet(names, lengths, np.cumsum(lengths) - lengths, frames)


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
