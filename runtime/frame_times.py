"""Which frame indices are played: of `play`, of a slice, in batches."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Iterable, Iterator

from styleinv.runtime.motion import FrameIndex, as_frame_index

BELOW_ZERO = math.nextafter(0.0, -1.0)


def playing_times(
    frame_rate: float, fps: float | None, start: FrameIndex, speed: float, count: int | None
) -> Iterator[FrameIndex]:
    """t = start + n * speed * frame_rate / fps for n = 0, 1, ...: `count` of them, or without end; played backwards,
    they end before t would be below 0.

    Args:
        frame_rate: of the bundle, frames per second.
        fps: of the player; None for the same.
    Raises: ValueError where fps is not above 0, speed is 0, one of them is not finite, start is no frame index, or
    count is below 0.
    """
    if count is not None and count < 0:
        raise ValueError(f"count: found {count}, expected at least 0")
    step = step_of(speed, frame_rate, frame_rate if fps is None else checked_fps(fps))
    first = as_frame_index(start, "start")
    numbers_of_frames = itertools.count() if count is None else range(count)
    times = (first + n * step for n in numbers_of_frames)  # multiplied, so that no error adds up
    return times if step > 0 else itertools.takewhile(lambda t: t >= 0, times)


def step_of(speed: float, frame_rate: float, fps: float) -> int | float:
    """Frame indices from one tick to the next.

    Args:
        speed: 1 plays as the clip was filmed, 0.5 is slow motion, -1 plays backwards.
        frame_rate: frames per second of the clip.
        fps: ticks per second.
    Raises: ValueError where the speed is 0 or not finite.
    """
    if not math.isfinite(speed) or speed == 0:
        raise ValueError(f"speed: found {speed!r}, expected a finite number other than 0")
    step = float(speed) * (frame_rate / float(fps))  # not in float32, where one of them is a numpy number of that
    return int(step) if step.is_integer() else step  # integers keep t exact for ever


def checked_fps(fps: float) -> float:
    """Returns `fps`, frames per second. Raises ValueError where it is not a finite number above 0."""
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps: found {fps!r}, expected a finite number above 0")
    return fps


def slice_times(span: slice) -> list[int | float]:
    """Frame indices start, start + step, ... before stop; start is 0 and step is 1 where they are left out.

    Backwards, where step is negative, a start must be given, and without a stop t = 0 is the last one.
    Raises: ValueError where they do not say where to begin and end, or the step is 0.
    """
    step = _slice_step(span.step)
    if step > 0:
        if span.stop is None:
            raise ValueError("slice: found no stop, expected one; `play` yields frames without end")
        start = as_frame_index(0 if span.start is None else span.start, "slice start")
        stop = as_frame_index(span.stop, "slice stop")
    else:
        if span.start is None:
            raise ValueError("slice: found no start, expected one, from which to go back")
        start = as_frame_index(span.start, "slice start")
        stop = BELOW_ZERO if span.stop is None else as_frame_index(span.stop, "slice stop")
    count = max(0, math.ceil((stop - start) / step))  # give or take one, as it is rounded
    times = (start + n * step for n in range(count + 1))
    return [t for t in times if (t < stop if step > 0 else t > stop)]


def batches(ts: Iterable[FrameIndex], batch: int) -> Iterator[tuple[list[FrameIndex], int]]:
    """Frame indices in lists of `batch`, and how many of each list were asked for: the last list is filled up, so that
    every run of a graph has the same shape. Raises ValueError where `batch` is no whole number of at least 1."""
    if not isinstance(batch, numbers.Integral) or batch < 1:
        raise ValueError(f"batch: found {batch!r}, expected a whole number of at least 1")
    remaining = iter(ts)
    chunks = iter(lambda: list(itertools.islice(remaining, batch)), [])
    return ((chunk + chunk[-1:] * (batch - len(chunk)), len(chunk)) for chunk in chunks)


def _slice_step(step: FrameIndex | None) -> int | float:
    if step is None:
        return 1
    forward = step > 0
    size = as_frame_index(step if forward else -step, "slice step")
    if size == 0:
        raise ValueError("slice: found step 0, expected a step above or below 0")
    return size if forward else -size
