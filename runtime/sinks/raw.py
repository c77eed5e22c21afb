"""Raw bytes for other programs, on standard output or in a file or named pipe: RGB24, NV12 or Y4M."""

from __future__ import annotations

import sys
from io import FileIO
from pathlib import Path

import numpy as np

from styleinv.runtime.closing import Closing
from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.frames import Frame
from styleinv.runtime.pyav import import_av
from styleinv.runtime.sinks.colour import BT601, limited_420
from styleinv.runtime.sinks.sink import check_place, exact_rate, reported


class RawSink(Closing):
    """Frames as raw bytes, one after the other. A reader that goes away raises BrokenPipeError from `write`.

    RGB24 has 3 * H * W bytes a frame. NV12 (luma, then Cb and Cr in turn) and Y4M (the planes Y, Cb, Cr behind a header
    that says size and rate) are 4:2:0 of the limited range; as neither can say by which matrix, they take BT.601, which
    readers assume. Odd heights and widths grow by one repeated row or column in both.
    """

    def __init__(self, out: str, format: str, fps: float, size: tuple[int, int]) -> None:
        if format != "rgb24":
            self._av = import_av(f"{format} frames", ", or write rgb24")
        self._format = format
        self._out = out
        self._target = "standard output" if out == "-" else out
        self._header = b""
        if format == "y4m":
            rate = exact_rate(fps)
            height, width = (length + length % 2 for length in size)
            self._header = (
                f"YUV4MPEG2 W{width} H{height} F{rate.numerator}:{rate.denominator} Ip A1:1 C420mpeg2 "
                "XYSCSS=420MPEG2 XCOLORRANGE=LIMITED\n"
            ).encode()
        self._stream: FileIO | None = None
        if out != "-":
            check_place(Path(out))
        elif sys.stdout.isatty():
            raise StyleInVError("-: found a terminal, expected a pipe or a file: raw bytes are not for reading")

    def write(self, frame: Frame) -> None:
        """Writes all bytes of the frame; the first one opens the target, whose earlier contents are gone then."""
        with reported(self._target):
            if self._stream is None:
                # Unbuffered, so that frames arrive at once and nothing is left to flush when the pipe breaks.
                target: int | str = sys.stdout.fileno() if self._out == "-" else self._out
                self._stream = open(target, "wb", buffering=0, closefd=self._out != "-")  # noqa: SIM115
                self._put(self._stream, self._header)
            self._put(self._stream, self._packed(frame))

    def _packed(self, frame: Frame) -> bytes | memoryview:
        if self._format == "rgb24":
            return np.ascontiguousarray(frame).reshape(-1).data
        y, cb, cr = limited_420(self._av, frame, BT601)
        if self._format == "nv12":
            return y.tobytes() + np.stack([cb, cr], axis=-1).tobytes()
        return b"FRAME\n" + y.tobytes() + cb.tobytes() + cr.tobytes()

    @staticmethod
    def _put(stream: FileIO, content: bytes | memoryview) -> None:
        left = memoryview(content)
        while left:
            left = left[stream.write(left) :]

    def close(self) -> None:
        """Closes the target, where it is not standard output."""
        if self._stream is not None:
            with reported(self._target):
                self._stream.close()
