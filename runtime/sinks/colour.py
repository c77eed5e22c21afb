"""From RGB to luma and chroma as videos store them.

Shapes: H height and W width of a frame, in pixels; h = H / 2 and w = W / 2, both rounded up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from styleinv.runtime.frames import Frame

Plane = npt.NDArray[np.uint8]

LIMITED_RANGE = 1  # luma from 16 to 235, which every player expects of a video
FULL_RANGE = 2  # 0 to 255, of JPEG
BT709 = 1  # matrix of high definition; the number is FFmpeg's, here and below
BT601 = 5  # matrix of standard definition, and of JPEG


def limited_420(av: Any, frame: Frame, matrix: int) -> tuple[Plane, Plane, Plane]:
    """A frame [H, W, 3] -> luma [2h, 2w] and the chroma planes Cb and Cr [h, w], in the limited range.

    Odd heights and widths grow by one repeated row or column. FFmpeg computes the colours of every pixel, but halving
    them is done here: it would place the halves in the middle between two columns, while a video that says nothing (and
    Y4M's C420mpeg2) means the left of them, where they are weighed 1, 2, 1.
    """
    rows, columns = frame.shape[0] % 2, frame.shape[1] % 2
    even = np.pad(frame, ((0, rows), (0, columns), (0, 0)), "edge") if rows or columns else frame
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
    y, cb, cr = picture.reformat(format="yuv444p", dst_colorspace=matrix, dst_color_range=LIMITED_RANGE).to_ndarray()
    return y, _halved(cb), _halved(cr)


def _halved(plane: Plane) -> Plane:
    """[2h, 2w] -> [h, w], between the rows and on the even columns."""
    rows = plane[0::2].astype(np.uint16) + plane[1::2]
    even, odd = rows[:, 0::2], rows[:, 1::2]
    before = np.concatenate([even[:, :1], odd[:, :-1]], axis=1)
    halved: Plane = ((before + 2 * even + odd + 4) >> 3).astype(np.uint8)
    return halved
