"""From frame indices to latents: of one clip, along one timeline.

Shapes: B batch, W size of a latent, V size of the time code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from styleinv.runtime.clip import Clip, joined_conditions
from styleinv.runtime.errors import BundleError
from styleinv.runtime.latent_stride import StridedLatents
from styleinv.runtime.motion import FrameIndex, as_frame_index
from styleinv.runtime.timeline import Timeline

if TYPE_CHECKING:
    from styleinv.runtime.sessions import Sessions
    from styleinv.runtime.sessions.base import Arrays

Latents = npt.NDArray[np.float32]  # [B, W]


class ClipLatents:
    """The latents w_t of a clip.

    Args:
        timeline: None where the bundle does not move; then there is t = 0 alone.
        stride: 1, or how many frames lie between two latents of the encoder's own.
    """

    def __init__(self, sessions: Sessions, clip: Clip, timeline: Timeline | None, stride: int) -> None:
        self._sessions, self._clip, self._timeline = sessions, clip, timeline
        self._strided = StridedLatents(lambda t: self._exact([t])[0], stride) if stride > 1 else None
        self._repeated: tuple[int, Arrays] | None = None

    def at(self, ts: Sequence[FrameIndex]) -> Latents:
        """The latents at these frame indices: float32 [B, W].

        Raises: TypeError or ValueError where one is no frame index; BundleError where it is not 0, of a bundle that
        does not move.
        """
        if self._timeline is None:
            return self._still(ts)
        moments = [self._timeline.moment(t) for t in ts]
        if self._strided is not None:
            return np.stack([self._strided(t) for t in moments])
        return self._exact(moments)

    def encoder_inputs(self, ts: Sequence[FrameIndex]) -> Arrays:
        """What the encoder takes to find the latents at these frame indices itself: the inputs of the graphs `latent`
        and `frame`. Of a bundle that moves; raises as `at`."""
        assert self._timeline is not None
        return self._inputs([self._timeline.moment(t) for t in ts])

    def _still(self, ts: Sequence[FrameIndex]) -> Latents:
        moving = [t for t in map(as_frame_index, ts) if t != 0]
        if moving:
            raise BundleError(
                f"{self._sessions.bundle.path}: found t = {moving[0]}, expected 0: "
                "a bundle of an image model plays single pictures"
            )
        return np.repeat(self._clip.first_latent[None], len(ts), axis=0)

    def _exact(self, moments: Sequence[int | float]) -> Latents:
        """The encoder's latents at frame indices of the motion: float32 [B, W]."""
        return self._sessions.session("latent").run(self._inputs(moments), ["w"])["w"]

    def _inputs(self, moments: Sequence[int | float]) -> Arrays:
        assert self._timeline is not None
        v = np.stack([self._timeline.motion.time_code(t) for t in moments]).astype(np.float32)
        return {**self._conditions(len(moments)), "v": v}

    def _conditions(self, batch: int) -> Arrays:
        """The clip's conditions, repeated for each of the batch; always the same arrays, which sessions bind once."""
        repeated = self._repeated
        if repeated is None or repeated[0] != batch:
            self._repeated = repeated = batch, joined_conditions([self._clip] * batch)
        return repeated[1]
