"""Frames as arrays: the caller's own, or written where the caller says."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]  # [H, W, 3], RGB


def owned(frame: Frame, out: Frame | None = None) -> Frame:
    """A copy of the frame, so that keeping it does not keep a batch; or `out`, with the frame written into it."""
    if out is None:
        return np.array(frame, order="C")
    np.copyto(out, frame)
    return out


def check_out(out: Frame | None, shape: tuple[int, ...]) -> None:
    """Raises ValueError where `out` is not an array of this shape, of uint8, that can be written to."""
    if out is None:
        return
    if not isinstance(out, np.ndarray):
        raise ValueError(f"out: found {type(out).__name__}, expected a numpy array uint8 {list(shape)}")
    if out.shape != shape or out.dtype != np.uint8 or not out.flags.writeable:
        kind = "" if out.flags.writeable else "read-only "
        raise ValueError(
            f"out: found {kind}{out.dtype} {list(out.shape)}, expected uint8 {list(shape)} that can be written"
        )
