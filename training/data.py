"""Clips as training sees them: decoded once into a memory-mapped cache, then drawn from by counting.

Sampling keeps no state. Sample number n is a pure function of (clips, seed, n), so a position in the data is an
integer, a run resumes anywhere, and what is drawn depends neither on the batch size nor on how many processes share it.

Shapes: N frames, T frames of one clip, B samples; H, W pixels of a frame, both the resolution.
"""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from styleinv.runtime.errors import DataError
from styleinv.training.clip_cache import cached_clips, default_cache
from styleinv.training.clip_weights import weights_of

_FRAME_STREAM, _CLIP_STREAM, _OFFSET_STREAM = range(3)  # of one seed; they share no random numbers


@dataclass(frozen=True, eq=False)
class ClipSet:
    """Clips of any lengths, all frames in one array that is usually mapped from disk and must not be written to."""

    names: tuple[str, ...]
    lengths: NDArray[np.int64]  # [clips] frames
    offsets: NDArray[np.int64]  # [clips] row of `frames` where a clip starts
    frames: NDArray[np.uint8]  # [N,H,W,3] RGB; may also hold clips that are not in this set
    weights: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))  # [clips] above 0, relative; default: 1

    def __post_init__(self) -> None:
        """Let every clip have its weight."""
        if len(self.weights) == 0:
            object.__setattr__(self, "weights", np.ones(len(self.names)))

    def __len__(self) -> int:
        """The number of clips."""
        return len(self.names)

    @property
    def is_weighted(self) -> bool:
        """Whether some clips are to be seen more often than others."""
        return bool((self.weights != self.weights[0]).any())

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
    weights: Path | str | None = None,
    progress: bool = True,
) -> ClipSet:
    """The clips at a path, cropped to the centred square and resized to `resolution` pixels.

    The path is a video, a folder of videos or of folders of pictures (searched recursively), or a zip of these; see
    `clip_files`. Everything is decoded on the first call, into a folder of `cache` (default: `$XDG_CACHE_HOME/styleinv`
    or `~/.cache/styleinv`), and mapped from there as long as names, sizes and times of the files stay the same.

    frame_rate: 1/s to which videos are resampled by nearest presentation time; None keeps every frame.
    minimum_frames: shorter clips are skipped, with one warning that names them.
    weights: a file that says how often clips are seen, see `clip_weights`; default: `weights.csv` of the folder, where
        there is one. Clips of weight 0 are left out.
    DataError for a path without usable clips, for any file below it that cannot be decoded, and for wrong weights.
    """
    if resolution < 1 or not (frame_rate is None or (math.isfinite(frame_rate) and frame_rate > 0)):
        raise ValueError(f"found resolution {resolution} and frame_rate {frame_rate}, expected positive numbers")
    path = Path(path)
    folder = default_cache() if cache is None else Path(cache)
    try:
        names, lengths, frames = cached_clips(path, resolution, frame_rate, folder, progress)
    except OSError as error:
        raise DataError(f"{path}: cannot be read, or not cached in {folder}: {error}") from error
    weighted = weights_of(path, names, None if weights is None else Path(weights))
    clips = ClipSet(names, lengths, np.cumsum(lengths) - lengths, frames, weighted)
    return _long_enough(_subset(clips, np.flatnonzero(weighted)), minimum_frames, path)


def frame_batch(clips: ClipSet, seed: int, start: int, count: int, mirror: bool) -> NDArray[np.uint8]:
    """Frames number `start` to `start + count - 1` of an endless shuffled stream, uint8 [count,H,W,3] RGB.

    Each epoch shows every frame once, in an order of its own that follows from `seed` (0 to 2**64 - 1). With
    `mirror` an epoch shows every frame and its horizontal flip, 2N items.

    Where clips have weights that differ, an epoch is as long, and shows each frame (and each flip) as many times as the
    ratio of its weight to that of the mean frame says, rounded up or down: at random, so that epochs together show
    it exactly as often.
    """
    numbers, flipped = frame_numbers(clips, seed, start, count, mirror)
    return _flip(np.asarray(clips.frames[clips.rows(numbers)]), flipped)


def frame_numbers(
    clips: ClipSet, seed: int, start: int, count: int, mirror: bool
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Which frames `frame_batch` shows, 0 to total_frames - 1 over all clips [count], and which of them flipped."""
    total = clips.total_frames
    items = 2 * total if mirror else total
    shown, flipped = [], []
    for epoch in range(start // items, (start + count) // items + 1):
        places = slice(max(0, start - epoch * items), start + count - epoch * items)
        chosen = _shuffled(seed, epoch, items)[places]
        flipped.append(chosen >= total)
        numbers = chosen % total
        if clips.is_weighted:
            numbers = _weighted_numbers(clips, numbers, _generator(seed, epoch, _OFFSET_STREAM).random())
        shown.append(numbers)
    return np.concatenate(shown), np.concatenate(flipped)


def clip_batch(
    clips: ClipSet, seed: int, start: int, count: int, *, max_span: int, mirror: bool
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Sparse real clips number `start` to `start + count - 1` of an endless stream, for the motion stage.

    Each takes a clip, as likely as its weight is large, whole relative times from `sample_times` (within the clip where
    it is shorter than `max_span`), and any first frame from which they fit. With `mirror`, half of the samples are
    flipped.

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
    chances = np.cumsum(clips.weights / clips.weights.max()) if clips.is_weighted else None
    flipped = np.zeros(count, bool)
    for place in range(count):
        generator = _generator(seed, start + place, _CLIP_STREAM)
        if chances is None:
            clip = int(generator.integers(len(clips)))
        else:
            clip = int(np.searchsorted(chances, generator.random() * chances[-1], side="right"))
        length = int(clips.lengths[clip])
        times[place] = sample_times(generator, 1, min(max_span, length), fractional=False)[0]
        whole = times[place].astype(np.int64)
        rows[place] = clips.offsets[clip] + generator.integers(length - whole[-1]) + whole
        flipped[place] = mirror and generator.random() < 0.5
    return _flip(np.asarray(clips.frames[rows]), flipped), times


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


def _weighted_numbers(clips: ClipSet, places: NDArray[np.int64], offset: float) -> NDArray[np.int64]:
    """The frames, of 0 to total_frames - 1, at `places + offset` on a line of length total_frames, in which each frame
    takes up what its weight gives it; `places` are of 0 to total_frames - 1, and `offset` of 0 to 1.

    This is systematic sampling: all places together hit a frame as often as its share says, rounded up or down.
    """
    weights = clips.weights / clips.weights.max()  # so that no sum is infinite
    ends = np.cumsum(weights * clips.lengths)
    found = np.minimum((places + offset) * (ends[-1] / clips.total_frames), np.nextafter(ends[-1], 0))
    index = np.searchsorted(ends, found, side="right")
    from_end = np.ceil((ends[index] - found) / weights[index]).astype(np.int64)
    return np.cumsum(clips.lengths)[index] - np.clip(from_end, 1, clips.lengths[index])


def _flip(batch: NDArray[np.uint8], flipped: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Mirror some samples of a batch [B,...,H,W,3] in place; by channel, which is 4 times as fast as by pixel."""
    originals = batch[flipped]
    mirrored = np.empty_like(originals)
    for channel in range(3):
        mirrored[..., channel] = originals[..., ::-1, channel]
    batch[flipped] = mirrored
    return batch


def _subset(clips: ClipSet, kept: NDArray[np.int64]) -> ClipSet:
    names = tuple(clips.names[i] for i in kept)
    return ClipSet(names, clips.lengths[kept], clips.offsets[kept], clips.frames, clips.weights[kept])


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
    return _subset(clips, kept)
