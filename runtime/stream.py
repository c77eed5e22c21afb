"""`styleinv stream`: plays a bundle into a video file, a folder of pictures or a pipe."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from styleinv.runtime.bundle import Bundle
from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.motion import LARGEST_FRAME_INDEX
from styleinv.runtime.rollout import Rollout
from styleinv.runtime.sessions import ENGINES, Sessions
from styleinv.runtime.sinks import open_sink

Frame = npt.NDArray[np.uint8]  # [H, W, 3], RGB

TIMED_FRAMES = 10_000  # the newest ones, which the percentiles are of
PROGRESS_SECONDS = 0.5

DESCRIPTION = """\
Plays a bundle: a folder, made by `styleinv export`, that holds a video model ready to run.
Every seed is another clip without end. Frames are computed one by one, so memory does not
grow, and any of them can be the first.
"""
EXAMPLES = """\
examples:
  styleinv stream sky.bundle --out rollout.mp4
      ten seconds (250 frames at 25 per second) of the clip with seed 0
  styleinv stream sky.bundle --seed 3 --start 100000 --frames 50 --out pictures/
      a piece from far inside a clip, as PNG files; no frame before it is computed
  styleinv stream sky.bundle --grid 4x4 --speed 0.5 --out grid.mp4
      sixteen clips side by side, in slow motion
  styleinv stream sky.bundle --frames 0 --out - | ffplay -f rawvideo -pixel_format rgb24 -video_size 256x256 -
      without end, into a player; the video size is the model's
"""


def main(argv: list[str]) -> int:
    """Runs `styleinv stream`; returns the exit status. Raises StyleInVError where the bundle or target is bad."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.frames == 0 and arguments.out != "-":
        parser.error("--frames 0 plays without end, which only --out - can take")
    bundle = Bundle.open(arguments.bundle)
    fps = arguments.fps or bundle.frame_rate
    rows, columns = arguments.grid
    with Sessions(bundle, engine=arguments.engine, threads=arguments.threads) as sessions:
        rollouts = _rollouts(sessions, arguments, rows * columns)
        engine = rollouts[0].engine
        print(f"{arguments.bundle}: playing on {engine}", file=sys.stderr)
        for rollout in rollouts:
            rollout.latents([arguments.start])  # loads the graphs, so that the timings are those of steady playing
        count = arguments.frames or None
        plays = [rollout.play(fps, arguments.start, arguments.speed, count) for rollout in rollouts]
        frames = (_tiled(tiles, rows, columns) for tiles in zip(*plays, strict=True))
        height, width = rollouts[0].size
        statistics = Statistics()
        with open_sink(arguments.out, fps, (height * rows, width * columns)) as sink, suppress(BrokenPipeError):
            for frame in statistics.watch(frames, count):
                sink.write(frame)
        print(f"{statistics.summary()}; {engine}; written to {arguments.out}", file=sys.stderr)
    return 0


def _rollouts(sessions: Sessions, arguments: argparse.Namespace, count: int) -> list[Rollout]:
    """Rollouts of the seeds from arguments.seed on."""
    try:
        return [
            Rollout(
                sessions,
                arguments.seed + tile,
                motion_seed=arguments.motion_seed,
                truncation=arguments.truncation,
                label=arguments.label,
            )
            for tile in range(count)
        ]
    except ValueError as error:  # what the parser cannot know: the label's range, the last seed of a grid
        raise StyleInVError(str(error)) from error


class Statistics:
    """Counts frames and how long each took to compute, and shows progress where a person is watching."""

    def __init__(self) -> None:
        self._count = 0
        self._milliseconds: deque[float] = deque(maxlen=TIMED_FRAMES)
        self._begin = time.perf_counter()

    def watch(self, frames: Iterator[Frame], expected: int | None) -> Iterator[Frame]:
        """Passes the frames on, timing each; `expected` is how many there will be, None if they do not end."""
        interactive = sys.stderr.isatty()
        shown = self._begin
        while True:
            begin = time.perf_counter()
            frame = next(frames, None)
            if frame is None:
                break
            now = time.perf_counter()
            self._milliseconds.append(1000.0 * (now - begin))
            self._count += 1
            if interactive and now - shown > PROGRESS_SECONDS:
                shown = now
                print(
                    f"\r{self._count}/{expected or 'endless'} frames, {self._rate():.1f} frames/s ",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
            yield frame
        if interactive:
            print("\r", end="", file=sys.stderr)

    def summary(self) -> str:
        """Frames, frames per second with writing included, and percentiles of the milliseconds that one takes."""
        text = f"{self._count} frames, {self._rate():.1f} frames/s"
        if self._milliseconds:
            p50, p95, p99 = np.percentile(self._milliseconds, [50, 95, 99])
            text += f", {p50:.2f} / {p95:.2f} / {p99:.2f} ms per frame (p50 / p95 / p99)"
        return text

    def _rate(self) -> float:
        return self._count / max(time.perf_counter() - self._begin, 1e-9)


def _tiled(tiles: tuple[Frame, ...], rows: int, columns: int) -> Frame:
    """Frames [H, W, 3], row by row -> one picture [rows * H, columns * W, 3]."""
    height, width, _ = tiles[0].shape
    grid = np.stack(tiles).reshape(rows, columns, height, width, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="styleinv stream",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    positive = _number("a number above 0", lambda number: number > 0.0)
    frame_index = _number("a number from 0 to 2^53", lambda number: 0.0 <= number <= LARGEST_FRAME_INDEX)
    add("bundle", metavar="BUNDLE", help="folder of the bundle, such as sky.bundle")
    add(
        "--out",
        required=True,
        metavar="TARGET",
        help="video file (.mp4, .mkv, .mov, .webm), folder for PNG pictures (ending in /), or - for raw RGB24 bytes on "
        "standard output",
    )
    add("--seed", type=_whole(0, 2**64 - 1), default=0, metavar="N", help="which clip (default 0)")
    add("--motion-seed", type=_whole(0, 2**64 - 1), metavar="N", help="which motion; by default each seed has its own")
    add("--label", type=_whole(0), metavar="N", help="class to play, for models trained with classes")
    add(
        "--truncation",
        type=_number("a finite number", math.isfinite),
        default=1.0,
        metavar="PSI",
        help="below 1: less variety, often better pictures; 0.7 is a common choice (default 1)",
    )
    add(
        "--frames",
        type=_whole(0),
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
    add(
        "--grid",
        type=_grid,
        default=(1, 1),
        metavar="RxC",
        help="R rows and C columns of clips in one picture, of the seeds N, N+1, ... (default 1x1)",
    )
    add("--engine", choices=["auto", *ENGINES], default="auto", help="what computes the frames (default auto)")
    add("--threads", type=_whole(1), metavar="N", help="CPU threads to use (default: all cores)")
    return parser


def _whole(lowest: int, highest: int | None = None) -> Callable[[str], int]:
    def parse(text: str) -> int:
        with suppress(ValueError):
            number = int(text)
            if lowest <= number and (highest is None or number <= highest):
                return number
        upper = "" if highest is None else f" and at most {highest}"
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of at least {lowest}{upper}")

    return parse


def _number(expected: str, holds: Callable[[float], bool]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        with suppress(ValueError):
            number = float(text)
            if math.isfinite(number) and holds(number):
                return number
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}")

    return parse


def _grid(text: str) -> tuple[int, int]:
    rows, _, columns = text.lower().partition("x")
    if rows.isdecimal() and columns.isdecimal() and int(rows) * int(columns) > 0:
        return int(rows), int(columns)
    raise argparse.ArgumentTypeError(f"found {text!r}, expected rows x columns, such as 4x4")
