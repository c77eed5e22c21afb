"""A video file that can be played whatever happens while it is written.

It lies under its own name from the first frame on, and what is encoded goes to disk at once: MP4 and MOV in fragments,
one for each frame, MKV and WebM in clusters of a tenth of a second. At the end, also after an error or Ctrl-C, the
encoder gives what it still holds, so that the file has all frames written. MP4 and MOV are then rewritten, without
encoding again, as players and the web like them best: in one piece, the index first. This takes the room of a second
copy; where that is not to be had, the fragments stay.

A process that is killed outright (SIGKILL) loses what the encoder holds to compress it well. Measured at 25 frames per
second, from 64 to 1024 pixels: 12 frames of MP4 and MOV, 13 to 15 of MKV, 10 or 11 of WebM; at 50 per second, 19 of MKV
and 14 of WebM. A machine that loses its power loses, besides, what its system has not yet put on disk, as of any file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from styleinv.runtime.closing import Closing
from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.frames import Frame
from styleinv.runtime.pyav import import_av
from styleinv.runtime.sinks.colour import BT709, LIMITED_RANGE, limited_420
from styleinv.runtime.sinks.interrupts import uninterrupted
from styleinv.runtime.sinks.sink import check_place, exact_rate, reported

KEYFRAME_SECONDS = 2  # between pictures that stand alone, where a player can jump to


@dataclass(frozen=True)
class Codec:
    """An encoder, how its quality is counted, and options that keep few frames waiting in it."""

    name: str
    crf: int
    highest_crf: int
    options: dict[str, str]


# WebM carries no H.264; crf 24 of VP9 looks about like 18 of H.264.
H264 = Codec("libx264", 18, 51, {"rc-lookahead": "10", "threads": "4"})
VP9 = Codec("libvpx-vp9", 24, 63, {"b:v": "0", "cpu-used": "4", "lag-in-frames": "10"})
CODECS = {".mp4": H264, ".mov": H264, ".mkv": H264, ".webm": VP9}

ONE_PIECE = (".mp4", ".mov")  # written in fragments, and rewritten at the end
FRAGMENTS = {"movflags": "empty_moov+default_base_moof+frag_every_frame", "flush_packets": "1"}
CLUSTERS = {"cluster_time_limit": "100", "flush_packets": "1"}  # milliseconds


class VideoSink(Closing):
    """A video file: H.264 (VP9 in WebM), yuv420p, BT.709 of limited range, by default nearly lossless to the eye.

    Odd heights and widths grow by one repeated row or column, since yuv420p halves both. Until the first frame comes,
    an earlier file of the name stays as it is.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int], crf: int | None = None) -> None:
        self._av = import_av("video files", ", or write a folder of PNG pictures")
        self._path = path
        self._suffix = path.suffix.lower()
        self._codec = CODECS[self._suffix]
        self._crf = self._codec.crf if crf is None else crf
        self._rate = exact_rate(fps)
        self._height, self._width = (length + length % 2 for length in size)
        self._container: Any = None
        self._video: Any = None
        self._whole_bytes: int | None = None  # of the file, once it is open, up to the last frame that is whole in it
        self._count = 0
        if path.exists() and not path.is_file():
            raise StyleInVError(f"{path}: found something that is no file, expected a file or a new name")
        check_place(path)
        try:
            self._av.codec.Codec(self._codec.name, "w")
        except ValueError as error:
            raise StyleInVError(
                f"{path}: found no encoder {self._codec.name} in PyAV, expected one; its wheels have it: "
                "`pip install --force-reinstall av`"
            ) from error

    def write(self, frame: Frame) -> None:
        """Encodes the frame, uint8 [H, W, 3]; the first one opens the file."""
        planes = limited_420(self._av, frame, BT709)
        stacked = np.concatenate([plane.reshape(-1) for plane in planes]).reshape(-1, self._width)
        picture = self._av.VideoFrame.from_ndarray(stacked, format="yuv420p")
        with self._writing():
            if self._container is None:
                self._open()
            self._mux(picture)
            self._count += 1

    def close(self) -> None:
        """Finishes the file with all frames written. Closing twice is allowed.

        Raises: StyleInVError where they are not all in it.
        """
        if self._container is None:
            return
        with self._writing():
            self._mux(None)
            self._container.close()
            self._check(self._path)
            self._container = None
        if self._suffix in ONE_PIECE:
            with self._reported("; it stays in fragments, which can be played"):
                self._rewrite()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What goes wrong inside ends the file behind the last frame that was written whole."""
        with uninterrupted():
            try:
                with self._reported("; what was written before can be played" if self._count else ""):
                    yield
            except StyleInVError:
                with suppress(OSError, self._av.FFmpegError):
                    if self._container is not None:
                        self._container.close()
                with suppress(OSError):  # behind it lies a piece of another, over which players may stumble
                    if self._whole_bytes is not None:
                        os.truncate(self._path, self._whole_bytes)
                self._container = None
                raise

    def _open(self) -> None:
        options = FRAGMENTS if self._suffix in ONE_PIECE else CLUSTERS
        self._container = container = self._av.open(_as_file(self._path), "w", options=options)
        self._video = video = container.add_stream(self._codec.name, rate=self._rate)
        video.height, video.width, video.pix_fmt = self._height, self._width, "yuv420p"
        keyframe_interval = max(1, round(KEYFRAME_SECONDS * self._rate))
        video.options = {**self._codec.options, "crf": str(self._crf), "g": str(keyframe_interval)}
        context = video.codec_context
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED_RANGE
        container.start_encoding()  # or else the file would appear with the first packet, some frames later
        self._whole_bytes = self._path.stat().st_size

    def _mux(self, picture: Any) -> None:
        """Writes what the encoder gives for one more picture, or for the end, None."""
        for packet in self._video.encode(picture):
            self._container.mux(packet)
            self._whole_bytes = self._path.stat().st_size

    def _check(self, path: Path) -> None:
        """Raises OSError where a file has not all frames: of the last fragment, libav does not tell that it failed."""
        with self._av.open(_as_file(path)) as container:
            count = sum(1 for packet in container.demux(video=0) if packet.size and not packet.is_corrupt)
        if count != self._count:
            raise OSError(f"found {count} whole frames in it, expected {self._count}; its disk may be full")

    def _rewrite(self) -> None:
        """Puts the packets of the fragments into a file beside them, in one piece, which then takes their place."""
        target = self._path.resolve()
        part = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
        try:
            with (
                self._av.open(_as_file(target)) as fragments,
                self._av.open(_as_file(part), "w", options={"movflags": "faststart"}) as whole,
            ):
                source = fragments.streams.video[0]
                copy = whole.add_stream_from_template(source)
                first: int | None = None
                for packet in fragments.demux(source):
                    if packet.dts is None:  # which marks the end
                        continue
                    first = packet.pts if first is None else first
                    # Fragments begin late by the reordering of frames, since their times cannot be negative.
                    packet.pts, packet.dts = packet.pts - first, packet.dts - first
                    packet.stream = copy
                    whole.mux(packet)
            self._check(part)
            with part.open("rb") as file:
                os.fsync(file.fileno())  # or else a power failure could leave the new name without the contents
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def _reported(self, note: str) -> AbstractContextManager[None]:
        return reported(self._path, self._av.FFmpegError, note=note)


def _as_file(path: Path) -> str:
    """The path as FFmpeg takes it for one: 'a:b.mp4' alone would be an address."""
    return f"file:{path}"
