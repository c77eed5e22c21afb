"""A folder of pictures, one file per frame: PNG, which is lossless, or JPEG."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np

from styleinv.runtime.closing import Closing
from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.frames import Frame
from styleinv.runtime.pyav import import_av
from styleinv.runtime.sinks.colour import BT601, FULL_RANGE
from styleinv.runtime.sinks.sink import reported

JPEG_QUALITY = 95


class PictureSink(Closing):
    """One file per frame in a folder, which is made where it is not there and must not hold frames yet."""

    def __init__(self, folder: Path, format: str) -> None:
        if format == "jpeg":
            import_av("JPEG pictures", ", or write PNG pictures")
        self._suffix, self._encode = {"png": (".png", encode_png), "jpeg": (".jpg", encode_jpeg)}[format]
        with reported(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if any(path.suffix in (".png", ".jpg") for path in folder.glob("frame_*")):
                raise StyleInVError(f"{folder}: found frames of an earlier rollout, expected a folder without")
        self._folder = folder
        self._count = 0

    def write(self, frame: Frame) -> None:
        """Writes the frame whole or not at all."""
        target = self._folder / f"frame_{self._count:06d}{self._suffix}"
        part = target.with_suffix(f"{self._suffix}.part")
        with reported(target):
            try:
                part.write_bytes(self._encode(frame))
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
        self._count += 1

    def close(self) -> None:
        """Every frame is finished as it is written."""


def encode_png(frame: Frame) -> bytes:
    """The PNG file, 8-bit RGB, of a frame uint8 [H, W, 3]. Lossless."""
    height, width, _ = frame.shape
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = 1  # every row is stored as differences to the pixel on the left
    rows[:, 1:] = np.diff(frame, axis=1, prepend=np.zeros((height, 1, 3), np.uint8)).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def encode_jpeg(frame: Frame, quality: int = JPEG_QUALITY) -> bytes:
    """The JPEG file of a frame uint8 [H, W, 3], its colours at full resolution. Threads may call it at the same time.

    Args:
        quality: 1 (small) to 100 (best), about as other encoders count it.
    Raises: ValueError where the quality is out of range; StyleInVError without PyAV.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"quality: found {quality}, expected a whole number from 1 to 100")
    av = import_av("JPEG pictures")
    # FFmpeg counts quantizers, 1 to 31, of which 8 is about the table that others scale: as it is at quality 50.
    quantizer = min(31, max(1, round(400 / quality if quality < 50 else (100 - quality) * 0.16)))
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(
        format="yuvj444p", dst_colorspace=BT601, dst_color_range=FULL_RANGE
    )
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.height, encoder.width, _ = frame.shape
    encoder.pix_fmt, encoder.color_range = "yuvj444p", FULL_RANGE
    encoder.time_base = Fraction(1, 25)  # which it asks for, and a picture has no use for
    encoder.thread_count = 1  # starting threads would take longer than a picture does
    encoder.options = {"flags": "+qscale", "qmin": str(quantizer), "qmax": str(quantizer)}
    return b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode(None)])
