"""When which frame is due: the arithmetic of playing. It knows no threads, and is told what time it is.

A tick is a beat of playing, of which there are fps in a second. Ticks are numbered 0, 1, 2, ... all the while that a
player plays: through pauses, jumps and changes of speed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Frame indices at an even pace from one point on: at `tick`, the frame at `t` is due at `time`.

    Args:
        period: seconds from one tick to the next.
        step: frame indices from one tick to the next; below 0 plays backwards.
        time: in seconds of the clock; infinite until playing begins, when nothing is due yet.
    """

    period: float
    step: int | float
    tick: int
    t: int | float
    time: float = math.inf

    @property
    def running(self) -> bool:
        """Whether playing has begun, so that ticks have times."""
        return math.isfinite(self.time)

    def frame_index(self, tick: int) -> int | float:
        """The frame index played at a tick; below 0 where playing backwards has passed the beginning."""
        return self.t + (tick - self.tick) * self.step  # multiplied, so that no error adds up

    def due(self, tick: int) -> float:
        """When the tick's frame is due, in seconds of the clock; infinite until playing begins."""
        return self.time + (tick - self.tick) * self.period

    def tick_at(self, now: float) -> int:
        """The newest tick that is due at this time. Playing must have begun."""
        return self.tick + math.floor((now - self.time) / self.period)

    def tick_after(self, now: float) -> int:
        """The first tick that is due at this time or later. Playing must have begun."""
        return self.tick + math.ceil((now - self.time) / self.period)
