"""The real clips, measured once: what drawn frames are compared with.

Shapes: N frames, T frames of one clip, H W size of a frame, F features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from styleinv.runtime.errors import DataError
from styleinv.training.data import ClipSet
from styleinv.training.evaluation.features import FeatureNetwork
from styleinv.training.evaluation.movement import mean_flow, mean_pairwise_between, mean_step

REAL_FRAMES = 10_000  # evenly spaced over all clips where there are more
SCENE_FRAMES = 1_184  # that are compared in pairs
STEPS = 2_000  # pairs of neighbouring frames


@dataclass(frozen=True, eq=False)
class Reference:
    """What is known of the real frames."""

    features: NDArray[np.float32]  # [N, F]
    step: float | None  # mean difference of neighbouring frames, in levels; None where all clips are single pictures


def measure_real(clips: ClipSet, network: FeatureNetwork) -> Reference:
    """Features of the real frames and how far they move; DataError where there are fewer than 4 frames."""
    features = [network(clips.frames[rows]) for rows in np.array_split(_rows(clips, REAL_FRAMES), 32) if len(rows)]
    if sum(map(len, features)) < 4:
        raise DataError(f"{clips.names[0]}: found {clips.total_frames} real frames, expected at least 4 to compare")
    moving = moving_parts(clips)
    step = float(np.average([mean_step(part) for part in moving], weights=_gaps(moving))) if moving else None
    return Reference(np.concatenate(features), step)


def real_flow(clips: ClipSet) -> float:
    """The mean optical flow of the real clips, in pixels per frame."""
    moving = moving_parts(clips)
    return float(np.average([mean_flow(part) for part in moving], weights=_gaps(moving)))


def real_spread(clips: ClipSet) -> float | None:
    """The mean absolute difference of frames of different clips, in levels; None where there is one clip only."""
    rows = _rows(clips, SCENE_FRAMES)
    owners = np.searchsorted(np.sort(clips.offsets), rows, side="right")
    return mean_pairwise_between(np.asarray(clips.frames[rows]), owners)


def moving_parts(clips: ClipSet) -> list[NDArray[np.uint8]]:
    """The first frames of every clip of 2 frames or more, about as many of each, [T, H, W, 3]."""
    longest = max(2, STEPS // len(clips) + 1)
    return [clips.clip(index)[:longest] for index in range(len(clips)) if clips.lengths[index] > 1]


def windows(clips: ClipSet, frames: int, stride: int, count: int) -> Iterator[NDArray[np.uint8]]:
    """At most `count` windows of `frames` frames that are `stride` apart, [T, H, W, 3].

    A clip gives as many as fit one after another; where there are more than `count`, they are evenly chosen.
    """
    span = (frames - 1) * stride + 1
    starts = [
        (index, start) for index in range(len(clips)) for start in range(0, clips.lengths[index] - span + 1, span)
    ]
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(count, len(starts))).round().astype(int)) if starts else ()
    for place in chosen:
        index, start = starts[place]
        yield clips.clip(index)[start : start + span : stride]


def _rows(clips: ClipSet, most: int) -> NDArray[np.int64]:
    total = clips.total_frames
    return clips.rows(np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(np.int64)))


def _gaps(parts: list[NDArray[np.uint8]]) -> list[int]:
    return [len(part) - 1 for part in parts]
