"""What the commands that play share on the command line: their options, and the kinds of numbers that these take."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from contextlib import suppress

from styleinv.runtime.manifest import PRECISIONS
from styleinv.runtime.motion import LARGEST_FRAME_INDEX
from styleinv.runtime.sessions import ENGINES


def add_playing(parser: argparse.ArgumentParser) -> None:
    """Adds what says where frames go, how many, at which times and what computes them."""
    add = parser.add_argument
    positive = real_number("a number above 0", lambda number: number > 0.0)
    frame_index = real_number("a number from 0 to 2^53", lambda number: 0.0 <= number <= LARGEST_FRAME_INDEX)
    add(
        "--out",
        required=True,
        metavar="TARGET",
        help="video file (.mp4, .mkv, .mov, .webm), folder for PNG pictures (ending in /), or - for raw RGB24 bytes on "
        "standard output",
    )
    add(
        "--frames",
        type=whole_number(0),
        default=250,
        metavar="N",
        help="how many frames to write (default 250); 0 is without end, for --out -",
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
    add("--speed", type=positive, default=1.0, metavar="X", help="0.5 is slow motion, 2 is twice as fast (default 1)")
    add("--engine", choices=["auto", *ENGINES], default="auto", help="what computes the frames (default auto)")
    add(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="what they are computed in: fp32 is exact (default), bf16 twice as fast where the CPU has it, and close; "
        "fp16 is for GPUs",
    )
    add(
        "--no-verify-hash",
        action="store_true",
        help="open the bundle without reading every file to compare its SHA-256: faster, but damage goes unseen",
    )
    add("--threads", type=whole_number(1), metavar="N", help="CPU threads to use (default: all cores)")


def parse_playing(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parses arguments, the options of `add_playing` among them; leaves as argparse does where they are bad."""
    arguments = parser.parse_args(argv)
    if arguments.frames == 0 and arguments.out != "-":
        parser.error("--frames 0 plays without end, which only --out - can take")
    return arguments


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
