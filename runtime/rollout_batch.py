"""Several rollouts, each at a time of its own, stepped together: one run of each graph for all of them.

    batch = RolloutBatch([Rollout(sessions, seed) for seed in range(4)])
    frames = batch[10]                     # uint8 [B, H, W, 3]: all at t = 10
    frames = batch[10, 0, 7.5, 100]        # each at its own
    for frames in batch.play(fps=25): ...

Shapes: B rollouts, H W height and width, W size of a latent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from styleinv.runtime.clip import joined_conditions
from styleinv.runtime.frames import check_out
from styleinv.runtime.latents import Latents
from styleinv.runtime.motion import FrameIndex
from styleinv.runtime.rollout import Rollout
from styleinv.runtime.sessions import FUSED_GRAPH, Session
from styleinv.runtime.sessions.base import Arrays, Pending, one_ahead

Frames = npt.NDArray[np.uint8]  # [B, H, W, 3], RGB
FrameIndices = Sequence[FrameIndex] | npt.NDArray[np.integer[Any] | np.floating[Any]]  # one for each rollout


class RolloutBatch:
    """Rollouts of different seeds, pictures or motions. Its frames are those of the single rollouts, within one level,
    as an engine may add in another order for another batch size; the same batch size gives the same bytes.

    Args:
        rollouts: at least one; they share their sessions, and one transfer draws them all.
    Raises: ValueError where they do not.
    """

    def __init__(self, rollouts: Sequence[Rollout]) -> None:
        if not rollouts:
            raise ValueError("rollouts: found none, expected at least one")
        self.rollouts = tuple(rollouts)
        first = self.rollouts[0]
        if any(rollout.sessions is not first.sessions for rollout in self.rollouts):
            raise ValueError("rollouts: found some that were opened apart, expected shared sessions")
        transfers = {rollout.transfer for rollout in self.rollouts}
        if len(transfers) > 1:
            found = ", ".join(sorted(map(str, transfers)))
            raise ValueError(f"rollouts: found the transfers {found}, expected one for all")
        self.bundle = first.bundle
        self._sessions, self._transfer = first.sessions, first.transfer
        # Interpolated latents are each rollout's own; exact ones are computed together.
        self._together = first.bundle.kind == "styleinv" and all(
            rollout.latent_stride == 1 for rollout in self.rollouts
        )
        self._conditions: Arrays | None = None

    def __len__(self) -> int:
        return len(self.rollouts)

    def __getitem__(self, t: FrameIndex | FrameIndices) -> Frames:
        """The frames at t, or each rollout's at its own t: uint8 [B, H, W, 3]. Raises as `frames_at`."""
        return self.frames_at(t)

    def frames_at(self, ts: FrameIndex | FrameIndices, *, out: Frames | None = None) -> Frames:
        """Each rollout's frame at its own frame index, or all at one: uint8 [B, H, W, 3], a new array or `out`, written
        over.

        Raises: as `Rollout.frame`; ValueError where there is not one frame index for each.
        """
        check_out(out, (len(self), *self.rollouts[0].size, 3))
        return _written(self._submitted(ts), out)

    def latents(self, ts: FrameIndex | FrameIndices) -> Latents:
        """Each rollout's latent at its own frame index, or all at one: float32 [B, W]. Raises as `frames_at`."""
        pairs = list(zip(self.rollouts, self._one_for_each(ts), strict=True))
        if not self._together:
            return np.concatenate([rollout.latents([t]) for rollout, t in pairs])
        return self._sessions.session("latent").run(self._encoder_inputs(ts), ["w"])["w"]

    def play(
        self,
        fps: float | None = None,
        start: FrameIndex | FrameIndices = 0,
        speed: float = 1.0,
        count: int | None = None,
        *,
        out: Frames | None = None,
    ) -> Iterator[Frames]:
        """Yields frames uint8 [B, H, W, 3], of each rollout as `Rollout.play` does; backwards until the first of them
        is at its beginning. `start` is one frame index for all, or one for each. Raises as `Rollout.play`."""
        starts = self._one_for_each(start)
        times = [rollout.times(fps, t, speed, count) for rollout, t in zip(self.rollouts, starts, strict=True)]
        check_out(out, (len(self), *self.rollouts[0].size, 3))
        runs = (self._submitted(ts) for ts in zip(*times, strict=False))
        return (_written(run, out) for run in one_ahead(runs, lambda: self._drawing().overlaps))

    def _submitted(self, ts: FrameIndex | FrameIndices) -> Pending:
        inputs = self._encoder_inputs(ts) if self._fused else {"w": self.latents(ts)}
        return self._drawing().submit(inputs, ["frame"])

    def _drawing(self) -> Session:
        return (
            self._sessions.session(FUSED_GRAPH) if self._fused else self._sessions.session("synthesis", self._transfer)
        )

    @property
    def _fused(self) -> bool:
        return self._together and self._transfer is None and self._sessions.fused

    def _encoder_inputs(self, ts: FrameIndex | FrameIndices) -> Arrays:
        """What the encoder takes for all of them together."""
        pairs = zip(self.rollouts, self._one_for_each(ts), strict=True)
        v = np.concatenate([rollout.time_codes([t]) for rollout, t in pairs])
        if self._conditions is None:
            self._conditions = joined_conditions([rollout.clip for rollout in self.rollouts])
        return {**self._conditions, "v": v}

    def _one_for_each(self, ts: FrameIndex | FrameIndices) -> FrameIndices:
        """As many frame indices as rollouts, of one for all or of as many. Raises ValueError where there are not."""
        if not isinstance(ts, (Sequence, np.ndarray)):
            return [ts] * len(self)
        if len(ts) != len(self):
            raise ValueError(f"ts: found {len(ts)} frame indices, expected one for each of {len(self)} rollouts")
        return ts


def _written(run: Pending, out: Frames | None) -> Frames:
    """The frames of a run, or `out`, with them written into it."""
    frames: Frames = run.result()["frame"]
    if out is None:
        return frames
    np.copyto(out, frames)
    return out
