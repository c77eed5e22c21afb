"""Picture files, made ready for a network: read, cropped to the centred square and brought to its resolution.

Training prepares its frames in the same way, with another library that the runtime does without.

Shapes: H height and W width of the picture, R resolution, S source and T target size of one axis; in pixels.
"""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from styleinv.runtime.errors import DataError
from styleinv.runtime.pyav import import_av

Picture = npt.NDArray[np.uint8]  # [H, W, 3], RGB

FORMATS = ("png", "apng", "jpeg", "webp", "bmp")  # FFmpeg recognises far more by their contents, plain text included
LANCZOS_LOBES = 3

_EXIF_HEADER = re.compile(rb"(?:Exif\0\0|eXIf|EXIF....)(II\*\0|MM\0\*)", re.DOTALL)  # in JPEG, PNG, WebP
_ORIENTATION_TAG = 0x0112


def read_picture(path: str | Path) -> Picture:
    """Reads a PNG, JPEG, WebP or BMP file into uint8 [H, W, 3] RGB.

    Grey becomes RGB, transparency is composited on black, and the picture is turned as its EXIF orientation asks.
    Raises: DataError naming the file where it cannot be read or is no such picture; StyleInVError without PyAV.
    """
    av = import_av("pictures")
    try:
        content = Path(path).read_bytes()
        # From memory: FFmpeg takes a path for a pattern of names or an address, where it looks like one.
        with av.open(io.BytesIO(content)) as container:
            kind = container.format.name.removesuffix("_pipe")
            if kind not in FORMATS:
                raise DataError(f"{path}: found a file of type {kind}, expected a picture: PNG, JPEG, WebP or BMP")
            video = container.streams.video[0]
            if kind == "jpeg":  # of which FFmpeg would fill up a missing part; the others' it finds missing
                video.codec_context.options = {"err_detect": "explode"}
            frame = next(container.decode(video))
            rgba = frame.to_ndarray(format="rgba")
    except (OSError, av.FFmpegError, StopIteration, IndexError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "no picture in it"
        raise DataError(f"{path}: found {reason}, expected a readable picture: PNG, JPEG, WebP or BMP") from error
    opaque = (rgba[..., :3].astype(np.uint16) * rgba[..., 3:] + 127) // 255
    return _turned(opaque.astype(np.uint8), _orientation(content))


def fit_picture(picture: Picture, resolution: int) -> Picture:
    """The centred square of a picture [H, W, 3], resized to [R, R, 3].

    Whole multiples of the resolution take the mean of their pixels, all others Lanczos' filter, as wide as it takes not
    to alias.
    """
    height, width, _ = picture.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = picture[top : top + side, left : left + side]
    weights = _resampling_weights(side, resolution)
    planes = [weights @ square[..., channel].astype(np.float32) @ weights.T for channel in range(3)]
    return np.clip(np.rint(np.stack(planes, axis=-1)), 0, 255).astype(np.uint8)


def as_image(picture: Picture) -> npt.NDArray[np.float32]:
    """A picture uint8 [R, R, 3] as networks take it: float32 [3, R, R] in [-1, 1]."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32) / np.float32(127.5) - np.float32(1.0)


def _resampling_weights(source: int, target: int) -> npt.NDArray[np.float32]:
    """What each of S pixels adds to each of T, float32 [T, S]; rows sum to 1."""
    scale = max(source / target, 1.0)  # of the filter: enlarging interpolates, reducing must also take the mean
    centres = (np.arange(target) + 0.5) * (source / target) - 0.5
    distance = np.abs(np.arange(source) - centres[:, None]) / scale
    if source % target == 0:
        weights = (distance < 0.5).astype(np.float64)
    else:
        weights = np.where(distance < LANCZOS_LOBES, np.sinc(distance) * np.sinc(distance / LANCZOS_LOBES), 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _orientation(content: bytes) -> int:
    """The EXIF orientation that a picture file asks for, 1 to 8; 1, as it lies, where it asks for none."""
    header = _EXIF_HEADER.search(content)
    if header is None:
        return 1
    exif, order = content[header.start(1) :], "<" if header[1].startswith(b"II") else ">"
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, directory)
        for place in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, place)
            if tag == _ORIENTATION_TAG and 1 <= value <= 8:
                return int(value)
    except struct.error:  # a header that promises more than there is: not our business
        pass
    return 1


def _turned(picture: Picture, orientation: int) -> Picture:
    """The picture as an orientation asks: 2 to 4 mirror or turn it by half, 5 to 8 exchange height and width."""
    if orientation >= 5:
        picture = picture.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        picture = picture[:, ::-1]
    if orientation in (3, 4, 7, 8):
        picture = picture[::-1]
    return np.ascontiguousarray(picture)
