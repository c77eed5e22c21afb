"""Distances of whole clips over a network that takes clips: FVD where that network is I3D.

Shapes: N clips, T frames, H W size of a frame, F features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tqdm import tqdm

from styleinv.training.data import ClipSet
from styleinv.training.evaluation.distances import frechet
from styleinv.training.evaluation.features import FeatureNetwork
from styleinv.training.evaluation.generated import CLIPS, batches, draw_clips
from styleinv.training.evaluation.reference import windows
from styleinv.training.model import StyleInV

WINDOWS = {"16": (16, 1), "128": (128, 1), "16_of_every_8th": (16, 8)}  # name -> frames of a clip, frames between them
FEWEST = 8  # real clips; the distance of fewer means nothing


def clip_distances(
    model: StyleInV, clips: ClipSet, network: FeatureNetwork, count: int, progress: bool
) -> dict[str, Any]:
    """The Frechet distance of `count` clips from t = 0 on to as many real ones, or all there are, at each of `WINDOWS`.

    Where the real clips or the network allow none it is None, and 'NAME_skipped' says why.
    """
    found: dict[str, Any] = {"distance": network.distance}
    for name, (frames, stride) in WINDOWS.items():
        reason = _reason_to_skip(clips, network, frames, stride, count)
        if reason:
            found |= {name: None, f"{name}_skipped": reason}
            continue
        real = np.concatenate([network(window[None]) for window in windows(clips, frames, stride, count)])
        drawn = []
        seeds = list(batches(range(count), CLIPS))
        for some in tqdm(seeds, desc=f"clips of {name}", disable=not progress, leave=False):
            drawn.append(network(draw_clips(model, some, range(0, frames * stride, stride))[0]))
        found |= {name: frechet(real, np.concatenate(drawn)), f"{name}_real_clips": len(real)}
    return found


def _reason_to_skip(clips: ClipSet, network: FeatureNetwork, frames: int, stride: int, count: int) -> str:
    if network.frames not in (None, frames):
        return f"the network takes clips of {network.frames} frames"
    fitting = sum(1 for _ in windows(clips, frames, stride, count))
    if fitting < FEWEST:
        span = (frames - 1) * stride + 1
        return f"found {fitting} real clips of {span} frames, the longest of {clips.lengths.max()}, expected {FEWEST}"
    return ""
