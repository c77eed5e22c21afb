"""From frames to a target, with what a person wants to know meanwhile and at the end: how many, how fast."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from styleinv.runtime.frames import Frame
from styleinv.runtime.sinks import open_sink

TIMED_FRAMES = 10_000  # the newest ones, which the percentiles are of
PROGRESS_SECONDS = 0.5


def write_frames(
    frames: Iterator[Frame],
    out: str,
    *,
    fps: float,
    size: tuple[int, int],
    count: int | None,
    engine: str,
    format: str | None = None,
    crf: int | None = None,
) -> None:
    """Writes all frames to the target `out` and prints a closing line on standard error, after Ctrl-C, too.

    Args:
        fps, size, format, crf: as `sinks.open_sink` takes them.
        count: how many frames there will be, None if they do not end.
        engine: what computes them, for the closing line.
    Raises: as `open_sink`, and what computing the frames raises; the sink has finished with what it got, then. A reader
        that goes away is no error.
    """
    statistics = Statistics()
    try:
        with open_sink(out, fps, size, format=format, crf=crf) as sink, suppress(BrokenPipeError):
            for frame in statistics.watch(frames, count):
                sink.write(frame)
    except KeyboardInterrupt:
        print(f"interrupted: {statistics.summary()}; {engine}; written to {out}", file=sys.stderr)
        raise
    print(f"{statistics.summary()}; {engine}; written to {out}", file=sys.stderr)


class Statistics:
    """Counts frames and how long each took to compute, and shows progress where a person is watching. A frame counts
    once it is written."""

    def __init__(self) -> None:
        self._count = 0
        self._milliseconds: deque[float] = deque(maxlen=TIMED_FRAMES)
        self._begin = time.perf_counter()

    def watch(self, frames: Iterator[Frame], expected: int | None) -> Iterator[Frame]:
        """Passes the frames on, timing each; `expected` is how many there will be, None if they do not end."""
        interactive = sys.stderr.isatty()
        shown = self._begin
        while True:
            begin = time.perf_counter()
            frame = next(frames, None)
            if frame is None:
                break
            now = time.perf_counter()
            self._milliseconds.append(1000.0 * (now - begin))
            if interactive and now - shown > PROGRESS_SECONDS:
                shown = now
                print(
                    f"\r{self._count}/{expected or 'endless'} frames, {self._rate():.1f} frames/s ",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
            yield frame
            self._count += 1
        if interactive:
            print("\r", end="", file=sys.stderr)

    def summary(self) -> str:
        """Frames, frames per second with writing included, and percentiles of the milliseconds that one takes."""
        text = f"{self._count} frames, {self._rate():.1f} frames/s"
        if self._milliseconds:
            p50, p95, p99 = np.percentile(self._milliseconds, [50, 95, 99])
            text += f", {p50:.2f} / {p95:.2f} / {p99:.2f} ms per frame (p50 / p95 / p99)"
        return text

    def _rate(self) -> float:
        return self._count / max(time.perf_counter() - self._begin, 1e-9)
