"""Latents from the encoder at every k-th frame only, and a smooth curve through them in between.

A latent costs as much as the picture that is drawn of it, or more, and moves smoothly: so most of them can be had from
their neighbours. How large k may be depends on the model. `styleinv export` measures it, and the bundle's manifest
holds, for each stride, how near its frames come to those without.

Shapes: W size of a latent.
"""

from __future__ import annotations

import functools
import math
import numbers
import operator
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from styleinv.runtime.bundle import Bundle
from styleinv.runtime.errors import BundleError

Latent = npt.NDArray[np.float32]  # [W]

CACHED_KEYS = 16  # playing needs 4; the rest serves seeking nearby
PSNR_DB = 40.0  # from here on hardly anyone sees a difference
STRIDED_BATCH = 2  # frames at a time by default: keyframes come in bursts anyhow, and two runs at once waste less time


class StridedLatents:
    """w_t as a pure function of t: the encoder's own where k divides t, else a cubic Hermite curve through its own.

    The curve between two keyframes has, at each, the slope of the line through that one's neighbours (Catmull and Rom,
    1974), so a latent depends on its own four keyframes alone; these are computed one by one, whatever is asked for.

    Args:
        latent: the encoder's own latent, float32 [W], at a frame index.
        stride: k, in frames of the model.
    """

    def __init__(self, latent: Callable[[int], Latent], stride: int) -> None:
        self._stride = stride
        self._key = functools.lru_cache(CACHED_KEYS)(lambda number: latent(number * stride))

    def __call__(self, t: int | float) -> Latent:
        """The latent at frame index t >= 0: float32 [W]."""
        key, offset = divmod(t, self._stride)
        number = int(key)
        left = self._key(number)
        if offset == 0:
            return left
        right, after = self._key(number + 1), self._key(number + 2)
        before = self._key(number - 1) if number else 2.0 * left - right  # the clip's begin has no left neighbour
        return hermite(before, left, right, after, offset / self._stride)


def hermite(before: Latent, left: Latent, right: Latent, after: Latent, share: float) -> Latent:
    """The cubic curve from `left` (share 0) to `right` (share 1), with the slopes of its neighbours' lines there."""
    x, x2, x3 = share, share**2, share**3
    curve = (
        np.multiply(left, 2 * x3 - 3 * x2 + 1, dtype=np.float64)
        + np.multiply(right, 3 * x2 - 2 * x3, dtype=np.float64)
        + np.subtract(right, before, dtype=np.float64) * (0.5 * (x3 - 2 * x2 + x))
        + np.subtract(after, left, dtype=np.float64) * (0.5 * (x3 - x2))
    )
    return curve.astype(np.float32)


def checked_stride(bundle: Bundle, stride: int | str, psnr_db: float = PSNR_DB) -> int:
    """The stride that the argument `latent_stride` stands for: 'auto' is the largest one that keeps to `psnr_db`.

    Raises: ValueError where it is neither 'auto' nor a whole number of at least 1, or `psnr_db` is no number;
    BundleError where 'auto' is asked of a bundle for which no strides were measured.
    """
    if isinstance(psnr_db, bool) or not isinstance(psnr_db, numbers.Real) or math.isnan(psnr_db):
        raise ValueError(f"latent_psnr_db: found {psnr_db!r}, expected a number of decibels")
    if stride == "auto":
        return largest_stride(bundle, float(psnr_db))
    if isinstance(stride, (bool, str)) or not hasattr(stride, "__index__") or operator.index(stride) < 1:
        raise ValueError(f"latent_stride: found {stride!r}, expected a whole number of at least 1, or 'auto'")
    return operator.index(stride)


def largest_stride(bundle: Bundle, psnr_db: float) -> int:
    """The largest measured stride of which every probed frame was within `psnr_db` of the exact one, or else 1.

    Raises: BundleError where the bundle's manifest holds no such measurement.
    """
    if bundle.kind == "image":
        return 1
    measured = bundle.manifest.get("latent_strides")
    if not measured:
        raise BundleError(
            f"{bundle.path}: latent_strides: found nothing, expected the quality of each stride, which latent_stride="
            "'auto' goes by: export again with `styleinv export`, or give a number"
        )
    return stride_within(measured["least_psnr_db"], psnr_db)


def stride_within(least_psnr_db: Mapping[str, float], psnr_db: float) -> int:
    """The largest stride whose PSNR, in decibels and by stride, is not below the bound; 1 if there is none."""
    return max((int(stride) for stride, psnr in least_psnr_db.items() if psnr >= psnr_db), default=1)
