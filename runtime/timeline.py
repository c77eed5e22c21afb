"""What a rollout shows when: a motion, and the map from the rollout's frame indices to the motion's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from styleinv.runtime.motion import Array, FrameIndex, Motion, MotionCodes, as_frame_index
from styleinv.runtime.motion_editing import LoopedMotion, SplicedMotion
from styleinv.runtime.noise import check_word

TimeMap = Callable[[int | float], FrameIndex]


@dataclass(frozen=True, eq=False)
class Timeline:
    """A motion, seen through a map of time; None is time as it is. Edits give new timelines.

    Their errors are ValueErrors and, where a map is no function, TypeErrors.
    """

    motion: Motion
    time_map: TimeMap | None = None

    def moment(self, t: FrameIndex) -> int | float:
        """The motion's frame index that is shown at t, mapped and wrapped.

        Raises: TypeError or ValueError where t, or what the map makes of it, is no frame index.
        """
        moment = as_frame_index(t)
        if self.time_map is not None:
            moment = as_frame_index(self.time_map(moment), f"time map at {moment}")
        return self.motion.wrapped(moment)

    def time_code(self, t: FrameIndex) -> Array:
        """The time code, float64 [V], of what is shown at t. Raises as `moment`."""
        return self.motion.time_code(self.moment(t))

    def splice(self, motion_seed: int, anchor: int, fade: int) -> Timeline:
        """See `Rollout.splice`."""
        other = MotionCodes(self.motion.network, check_word("motion_seed", motion_seed))
        return replace(self, motion=SplicedMotion(self.motion, other, anchor, fade))

    def loop(self, anchors: int) -> Timeline:
        """See `Rollout.loop`."""
        return replace(self, motion=LoopedMotion(self.motion, anchors))

    def remap(self, time_map: TimeMap) -> Timeline:
        """See `Rollout.remap`."""
        if not callable(time_map):
            raise TypeError(f"time_map: found {time_map!r}, expected a function from frame indices to frame indices")
        inner = self.time_map
        if inner is None:
            return replace(self, time_map=time_map)
        return replace(self, time_map=lambda t: inner(as_frame_index(time_map(t), f"time map at {t}")))
