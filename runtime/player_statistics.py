"""What a player counts while it plays."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

TIMED_FRAMES = 10_000  # the newest ones, whose times are kept
RATE_FRAMES = 100  # the newest ones, which `fps` is measured over


class Percentiles(NamedTuple):
    """Of times in seconds; NaN where there are none yet."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class PlayerStatistics:
    """A player's counters at one moment.

    Args:
        delivered: frames that the consumer got.
        late: those of them that it got more than a tenth of a tick after they were due.
        dropped: ticks that were passed over, their frames stale or never computed; 0 with the policy 'every'.
        computed: frames that were computed, those included that were stale or made useless by a jump.
        queue_depth: frames that are computed and wait to be taken.
        fps: frames delivered per second, over the newest 100 since playing began or was resumed; 0 until there are two.
        compute_seconds: how long each of the newest 10,000 frames took to compute, the oldest first.
        lateness_seconds: how long after it was due each of the newest 10,000 was delivered, the oldest first.
    """

    delivered: int
    late: int
    dropped: int
    computed: int
    queue_depth: int
    fps: float
    compute_seconds: tuple[float, ...]
    lateness_seconds: tuple[float, ...]

    @property
    def compute(self) -> Percentiles:
        """Percentiles of `compute_seconds`."""
        return _percentiles(self.compute_seconds)

    @property
    def lateness(self) -> Percentiles:
        """Percentiles of `lateness_seconds`."""
        return _percentiles(self.lateness_seconds)


class Recorder:
    """Counts as playing goes on; `snapshot` reads it."""

    def __init__(self) -> None:
        self._delivered = self._late = self._dropped = self._computed = 0
        self._compute_seconds: deque[float] = deque(maxlen=TIMED_FRAMES)
        self._lateness_seconds: deque[float] = deque(maxlen=TIMED_FRAMES)
        self._delivery_times: deque[float] = deque(maxlen=RATE_FRAMES)

    def computed(self, seconds: float) -> None:
        """A frame was computed, in this time."""
        self._computed += 1
        self._compute_seconds.append(seconds)

    def delivered(self, now: float, lateness: float, late: bool, dropped: int) -> None:
        """A frame was delivered now, this many seconds after it was due; ticks since the last one were passed over."""
        self._delivered += 1
        self._late += late
        self._dropped += dropped
        self._lateness_seconds.append(lateness)
        self._delivery_times.append(now)

    def resumed(self) -> None:
        """Playing goes on after a pause, which is no part of the rate."""
        self._delivery_times.clear()

    def snapshot(self, queue_depth: int) -> PlayerStatistics:
        """The counters as they are now."""
        times = self._delivery_times
        span = times[-1] - times[0] if times else 0.0
        return PlayerStatistics(
            delivered=self._delivered,
            late=self._late,
            dropped=self._dropped,
            computed=self._computed,
            queue_depth=queue_depth,
            fps=(len(times) - 1) / span if span > 0 else 0.0,
            compute_seconds=tuple(self._compute_seconds),
            lateness_seconds=tuple(self._lateness_seconds),
        )


def _percentiles(seconds: Sequence[float]) -> Percentiles:
    return Percentiles(*map(float, np.percentile(seconds or [np.nan], [50, 95, 99])))
