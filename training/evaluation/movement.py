"""How much clips move, and how much pictures differ, on bytes: levels of 255 and pixels per frame.

Shapes: N frames, T frames of one clip, H W size of a frame.
"""

from __future__ import annotations

import itertools
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from styleinv.runtime.errors import EngineError

Frames = NDArray[np.uint8]

# Farneback's method (2003) with the values of OpenCV's tutorial: scale between pyramid levels, levels, window in
# pixels, iterations, neighbourhood of the polynomials and its deviation, both in pixels; no flags.
FARNEBACK = (0.5, 3, 15, 3, 5, 1.2, 0)
ROUNDING = 1 / 12  # squared levels, of bytes: equal frames are as close as bytes can tell, 58.9 dB


def absolute_difference(first: Frames, second: Frames) -> float:
    """The mean absolute difference of two arrays of bytes of one shape, in levels."""
    return float(np.abs(first.astype(np.int16) - second.astype(np.int16)).mean())


def mean_step(clip: Frames) -> float:
    """The mean absolute difference of neighbouring frames [T, H, W, 3], in levels."""
    return absolute_difference(clip[1:], clip[:-1])


def mean_flow(clip: Frames) -> float:
    """The mean length of the optical flow between neighbouring frames [T, H, W, 3], in pixels per frame.

    EngineError where OpenCV is not installed.
    """
    cv2 = require_opencv()
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in clip]
    flows = [cv2.calcOpticalFlowFarneback(a, b, None, *FARNEBACK) for a, b in itertools.pairwise(grey)]
    return float(np.mean([np.hypot(flow[..., 0], flow[..., 1]).mean() for flow in flows]))


def require_opencv() -> ModuleType:
    """OpenCV; EngineError where it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise EngineError(
            "optical flow is OpenCV's, which is not installed: `pip install 'styleinv[evaluate]'`"
        ) from error
    return cv2


def mean_squared_error(found: Frames, wanted: Frames) -> float:
    """The mean squared difference of two arrays of bytes of one shape, in squared levels."""
    return float(np.square(found.astype(np.float32) - wanted.astype(np.float32)).mean(dtype=np.float64))


def psnr(squared_error: float) -> float:
    """The peak signal-to-noise ratio in dB of bytes with this mean squared error."""
    return float(10 * np.log10(255**2 / max(squared_error, ROUNDING)))


def mean_pairwise(frames: Frames) -> float:
    """The mean absolute difference of all pairs of frames [N, H, W, 3], in levels; N at least 2."""
    return _pairwise_sum(frames) / (frames[0].size * _pairs(len(frames)))


def mean_pairwise_between(frames: Frames, groups: NDArray[np.int64]) -> float | None:
    """The same of the pairs of frames that belong to different groups [N]; None where there is but one group."""
    total, pairs = _pairwise_sum(frames), _pairs(len(frames))
    for group in np.unique(groups):
        members = frames[groups == group]
        total, pairs = total - _pairwise_sum(members), pairs - _pairs(len(members))
    return total / (frames[0].size * pairs) if pairs else None


def _pairwise_sum(frames: Frames) -> float:
    """Over all pairs and values: in sorted order, number i is subtracted from N - 1 - i others, and i from it."""
    weights = 2.0 * np.arange(len(frames)) - (len(frames) - 1)
    return float(weights @ np.sort(frames.reshape(len(frames), -1), axis=0).sum(axis=1, dtype=np.float64))


def _pairs(count: int) -> int:
    return count * (count - 1) // 2
