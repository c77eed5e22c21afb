"""What the commands that play share on the command line: their options, and the kinds of numbers that these take."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from styleinv.runtime.manifest_fields import PRECISIONS
from styleinv.runtime.motion import LARGEST_FRAME_INDEX
from styleinv.runtime.rollout import Rollout
from styleinv.runtime.sessions import ENGINES
from styleinv.runtime.sinks import FORMATS, choose_sink

DEFAULT_FRAMES = 250


def add_playing(parser: argparse.ArgumentParser) -> None:
    """Adds what says where frames go, how many, at which times and what computes them."""
    add = parser.add_argument
    positive = real_number("a number above 0", lambda number: number > 0.0)
    moving = real_number("a number other than 0", lambda number: number != 0.0)
    frame_index = real_number("a number from 0 to 2^53", lambda number: 0.0 <= number <= LARGEST_FRAME_INDEX)
    add(
        "--out",
        required=True,
        metavar="TARGET",
        help="video file (.mp4, .mkv, .mov, .webm), folder for pictures (ending in /), - for raw bytes on standard "
        "output (a file or named pipe with --format), or window",
    )
    add(
        "--format",
        choices=FORMATS,
        help="of pictures: png (default) or jpeg; of raw bytes: rgb24 (default), nv12 or y4m, which says size and rate",
    )
    add(
        "--crf",
        type=whole_number(0),
        metavar="N",
        help="quality of a video: 0 is best and largest, 51 (.webm: 63) worst (default: 18, .webm: 24)",
    )
    add(
        "--frames",
        type=whole_number(0),
        metavar="N",
        help="how many frames to write (default 250; with --loop one round); 0 is without end, for pipes and windows",
    )
    add(
        "--fps",
        type=positive,
        metavar="RATE",
        help="frames per second of the video; the clip keeps its pace, so more of them are smoother (default: the rate "
        "of the clips that the model learned from)",
    )
    add(
        "--start",
        type=frame_index,
        default=0.0,
        metavar="T",
        help="where in the clip to begin, in frames of the model (default 0)",
    )
    add(
        "--speed",
        type=moving,
        default=1.0,
        metavar="X",
        help="0.5 is slow motion, 2 is twice as fast, -1 is backwards from --start (default 1)",
    )
    add(
        "--loop",
        type=whole_number(1),
        metavar="ANCHORS",
        help="close the clip behind so many anchors, which stand as far apart as the model learned (`styleinv inspect` "
        "says how many frames): played again and again, it has no seam",
    )
    add(
        "--latent-stride",
        type=latent_stride,
        default=1,
        metavar="K",
        help="run the encoder for every K-th frame only, and draw those between from a curve through its latents: "
        "faster and close; auto takes the largest K that export found good enough (default 1: for every frame)",
    )
    add(
        "--batch",
        type=whole_number(1),
        metavar="N",
        help="frames to compute at a time (default 1, with --latent-stride 2); more of them give more frames per "
        "second, each of them later",
    )
    add(
        "--engine",
        choices=["auto", *ENGINES],
        default="auto",
        help="what computes the frames (default auto: the fastest that this machine has; onnxruntime-tensorrt and "
        "onnxruntime-rtx, which compile for minutes, only by name)",
    )
    add(
        "--trust",
        action="store_true",
        help="with --engine auto: use compiled engines of the bundle, too; --engine tensorrt, rtx and inductor always "
        "do. They are native code, which can do anything, so trust only bundles of your own or of people you trust",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="what they are computed in: fp32 is exact (default), bf16 twice as fast where the CPU has it, and close; "
        "fp16, fp8 and int8 are for GPUs",
    )
    add(
        "--no-verify-hash",
        action="store_true",
        help="open the bundle without reading every file to compare its SHA-256: faster, but damage goes unseen",
    )
    add("--threads", type=whole_number(1), metavar="N", help="CPU threads to use (default: all cores)")


def parse_playing(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parses arguments, the options of `add_playing` among them; leaves as argparse does where they are bad. Raises
    StyleInVError where there is no sink for the target and its options."""
    arguments = parser.parse_args(argv)
    if arguments.speed < 0 and arguments.start == 0:
        parser.error("--speed below 0 plays backwards to the beginning: give --start, too")
    if arguments.frames == 0 and arguments.out not in ("-", "window") and not Path(arguments.out).is_fifo():
        parser.error("--frames 0 plays without end, which only --out -, --out window and named pipes can take")
    choose_sink(arguments.out, arguments.format, arguments.crf)
    return arguments


def frame_count(arguments: argparse.Namespace, rollout: Rollout, fps: float) -> int | None:
    """How many frames the options of `add_playing` ask for; None is without end."""
    if arguments.frames is not None:
        return arguments.frames or None
    if arguments.loop is None:
        return DEFAULT_FRAMES
    seconds = arguments.loop * rollout.anchor_distance / rollout.bundle.frame_rate / abs(arguments.speed)
    return max(1, round(seconds * fps))


def whole_number(lowest: int, highest: int | None = None) -> Callable[[str], int]:
    """An argument's type: a whole number from `lowest` to `highest`."""

    def parse(text: str) -> int:
        with suppress(ValueError):
            number = int(text)
            if lowest <= number and (highest is None or number <= highest):
                return number
        upper = "" if highest is None else f" and at most {highest}"
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of at least {lowest}{upper}")

    return parse


def real_number(expected: str, holds: Callable[[float], bool]) -> Callable[[str], float]:
    """An argument's type: a finite number for which `holds` does; `expected` says so in words."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            number = float(text)
            if math.isfinite(number) and holds(number):
                return number
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}")

    return parse


seed_number = whole_number(0, 2**64 - 1)


def latent_stride(text: str) -> int | str:
    """An argument's type: 'auto' or a whole number of at least 1."""
    return text if text == "auto" else whole_number(1)(text)
