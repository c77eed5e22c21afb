"""How far an array is from its reference, in the measures that its precision's tolerance bounds.

Shapes: B batch, H W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from styleinv.export.tolerances import TOLERANCES
from styleinv.runtime.errors import BundleError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Comparison:
    """One output, or one whole frame, of one way of computing it.

    Errors are in the output's own unit (levels for bytes); `relative` is the largest over the largest value. PSNR (dB,
    infinite where both are equal) and SSIM are of pictures only.
    """

    way: str
    what: str
    precision: str
    is_bytes: bool
    max_error: float
    mean_error: float
    relative: float
    cosine: float
    psnr: float | None = None
    ssim: float | None = None

    @property
    def share(self) -> float:
        """How much of the allowed largest error is used up, where there is a bound on it: 1 is all of it."""
        allowed = TOLERANCES[self.precision]
        if not self.is_bytes:
            return self.relative / allowed.relative
        return 0.0 if allowed.levels is None else self.max_error / allowed.levels

    @property
    def failures(self) -> list[str]:
        """Each bound that does not hold, in words; one that is not a number holds none."""
        allowed = TOLERANCES[self.precision]
        failures = []
        if self.is_bytes:
            if allowed.levels is not None and not self.max_error <= allowed.levels:
                failures.append(f"an error of {self.max_error:g} levels, expected at most {allowed.levels}")
        elif not self.relative <= allowed.relative:
            failures.append(f"an error of {self.relative:.3g}, expected at most {allowed.relative:g}")
        if not self.is_bytes and not self.cosine >= allowed.cosine:
            failures.append(f"a cosine of {self.cosine:.6g}, expected at least {allowed.cosine:g}")
        if self.psnr is not None and not self.psnr >= allowed.psnr:
            failures.append(f"a PSNR of {self.psnr:.1f} dB, expected at least {allowed.psnr:g}")
        if self.ssim is not None and not self.ssim >= allowed.ssim:
            failures.append(f"an SSIM of {self.ssim:.4f}, expected at least {allowed.ssim:g}")
        return failures


def compare(way: str, what: str, precision: str, found: Array, expected: Array, *, picture: bool = False) -> Comparison:
    """Compares two arrays [B, ...]. A picture is [B, 3, H, W] in about [-1, 1], or uint8 [B, H, W, 3].

    Raises: BundleError where the shapes differ.
    """
    if found.shape != expected.shape:
        raise BundleError(f"{way}: {what}: found shape {list(found.shape)}, expected {list(expected.shape)}")
    a, b = found.astype(np.float64), expected.astype(np.float64)
    error = np.abs(a - b)
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return Comparison(
        way,
        what,
        precision,
        expected.dtype == np.uint8,
        max_error=float(error.max()),
        mean_error=float(error.mean()),
        relative=float(error.max() / max(np.abs(b).max(), 1e-30)),
        cosine=float(np.sum(a * b) / lengths) if lengths > 0 else 1.0 if not error.any() else 0.0,
        psnr=peak_signal_to_noise(a, b, expected.dtype) if picture else None,
        ssim=structural_similarity(a, b, expected.dtype) if picture else None,
    )


def peak_signal_to_noise(found: Array, expected: Array, dtype: npt.DTypeLike) -> float:
    """PSNR in dB, of bytes or of pictures in [-1, 1]; infinite where they are equal."""
    error = float(np.mean((found.astype(np.float64) - expected.astype(np.float64)) ** 2))
    return math.inf if error == 0.0 else 10.0 * math.log10(_range(dtype) ** 2 / error)


def structural_similarity(found: Array, expected: Array, dtype: npt.DTypeLike) -> float:
    """The mean SSIM (Wang et al. 2004) of pictures [B, 3, H, W], or bytes [B, H, W, 3]."""
    from skimage import metrics

    ssim: Callable[..., float] = metrics.structural_similarity
    channels = 2 if dtype == np.uint8 else 0
    pairs = zip(found, expected, strict=True)
    return float(np.mean([ssim(a, b, data_range=_range(dtype), channel_axis=channels) for a, b in pairs]))


def _range(dtype: npt.DTypeLike) -> float:
    """From the lowest value of a picture to the highest."""
    return 255.0 if dtype == np.uint8 else 2.0
