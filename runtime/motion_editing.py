"""Motions made of other motions: spliced and looped. As pure as what they are made of.

An edit changes motion codes, of which there is one at every anchor; between anchors the model's own time code leads
from one to the next (section 3.1 of StyleInV, ICCV 2023), so that edited clips move as smoothly as any other.
"""

from __future__ import annotations

import numbers

from styleinv.runtime.motion import Array, FrameIndex, Motion, as_frame_index

CALM_FROM = 0.75  # of the way from a loop's last anchor to its last frame
CALM = 0.5  # the share of the waves that is gone at the seam


class SplicedMotion(Motion):
    """One motion up to an anchor, then a cross-fade to another one.

    Codes are the first motion's up to `anchor`, the second's from `anchor + fade` on, and mixed in a straight line
    between. So frames before `anchor` are the first clip's, and frames behind the cross-fade the second's, to the byte.

    Args:
        anchor: where the first motion ends, 0 or later; it stands at frame anchor * d.
        fade: how many anchors further the second one has taken over, at least 1.
    Raises: ValueError where an argument is out of range, or the motions are of two networks.
    """

    def __init__(self, first: Motion, second: Motion, anchor: int, fade: int = 1) -> None:
        super().__init__(first.network)
        if first.network is not second.network:
            raise ValueError("splice: found motions of two bundles, expected two of one bundle")
        self._first, self._second = first, second
        self._anchor, self._fade = _at_least(0, "anchor", anchor), _at_least(1, "fade", fade)

    def code(self, anchor: int) -> Array:
        """As `Motion.code`."""
        behind = anchor - self._anchor
        if behind <= 0:
            return self._first.code(anchor)
        if behind >= self._fade:
            return self._second.code(anchor)
        share = behind / self._fade
        return (1.0 - share) * self._first.code(anchor) + share * self._second.code(anchor)

    def time_code(self, t: FrameIndex) -> Array:
        """As `Motion.time_code`: outside the cross-fade the motions' own, which may be edited themselves."""
        moment, distance = as_frame_index(t), self.network.anchor_distance
        if moment <= self._anchor * distance:
            return self._first.time_code(moment)
        if moment >= (self._anchor + self._fade) * distance:
            return self._second.time_code(moment)
        return super().time_code(moment)


class LoopedMotion(Motion):
    """The first anchors of a motion, again and again: the code after the last one is the first one.

    The time code at an anchor is that of its motion code alone, so the clip closes without a jump. The step there is
    like that at any other anchor, now and then a large one; so that it never stands out, the waves that the time code
    adds between anchors, and which end there, are calmed towards the end of the last stretch.

    Args:
        anchors: how many motion codes a round has, at least 1; it is anchors * d frames long.
    Raises: ValueError where there are fewer.
    """

    def __init__(self, motion: Motion, anchors: int) -> None:
        super().__init__(motion.network)
        self._motion = motion
        self._anchors = _at_least(1, "anchors", anchors)

    def code(self, anchor: int) -> Array:
        """As `Motion.code`."""
        return self._motion.code(anchor % self._anchors)

    def wrapped(self, t: int | float) -> int | float:
        """As `Motion.wrapped`."""
        return t % (self._anchors * self.network.anchor_distance)

    def time_code(self, t: FrameIndex) -> Array:
        """As `Motion.time_code`: the motion's own, but for the stretch that leads back to the beginning."""
        moment, distance = self.wrapped(as_frame_index(t)), self.network.anchor_distance
        anchor, offset = divmod(moment, distance)
        if anchor < self._anchors - 1:
            return self._motion.time_code(moment)
        time_code = super().time_code(moment)
        share = offset / max(distance - 1, 1)  # of the way to the last frame, from which the seam's step goes
        progress = min((share - CALM_FROM) / (1.0 - CALM_FROM), 1.0)
        if progress <= 0.0:
            return time_code
        last, first = (self.network.aligner(self.code(k)) for k in (self._anchors - 1, 0))
        alpha = offset / distance
        straight = (1.0 - alpha) * last + alpha * first  # without waves
        return time_code + CALM * progress**2 * (3.0 - 2.0 * progress) * (straight - time_code)


def _at_least(least: int, name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name}: found {value!r}, expected a whole number of at least {least}")
    return int(value)
