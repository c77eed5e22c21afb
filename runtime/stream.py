"""`styleinv stream`: plays a bundle into a video file, a folder of pictures, a pipe or a window."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

import numpy as np

from styleinv.runtime.arguments import (
    add_playing,
    frame_count,
    parse_playing,
    real_number,
    seed_number,
    whole_number,
)
from styleinv.runtime.bundle import Bundle
from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.frames import Frame
from styleinv.runtime.progress import write_frames
from styleinv.runtime.rollout import Rollout
from styleinv.runtime.sessions import Sessions

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
  styleinv stream sky.bundle --decompose --grid 3x4 --out decomposed.mp4
      three motions (rows), each of them moving the same four pictures (columns)
  styleinv stream faces.bundle --transfer arcane --side-by-side --out styles.mp4
      a clip, and on its right the same clip in the style arcane, which the bundle holds
  styleinv stream sky.bundle --loop 4 --out loop.mp4
      a clip that closes: its last frame leads back to its first one
  styleinv stream sky.bundle --precision bf16 --latent-stride auto --out rollout.mp4
      as fast as a CPU with bfloat16 can, and close to exact
  styleinv stream sky.bundle --frames 0 --out window
      without end, in a window; Escape, q or closing it end the clip
  styleinv stream sky.bundle --out - --format y4m | ffmpeg -i - rollout.mp4
      into another program, which learns size and rate from the stream
  styleinv stream sky.bundle --frames 0 --out - | ffplay -f rawvideo -pixel_format rgb24 -video_size 256x256 -
      without end and as raw RGB, into a player; the video size is the model's
"""


def main(argv: list[str]) -> int:
    """Runs `styleinv stream`; returns the exit status. Raises StyleInVError where the bundle or target is bad."""
    arguments = _parsed(argv)
    bundle = Bundle.open(arguments.bundle, verify_hashes=not arguments.no_verify_hash)
    fps = arguments.fps or bundle.frame_rate
    rows, columns = arguments.grid
    transfers = [None, arguments.transfer] if arguments.side_by_side else [arguments.transfer]
    with Sessions(
        bundle,
        engine=arguments.engine,
        precision=arguments.precision,
        threads=arguments.threads,
        trust=arguments.trust,
    ) as sessions:
        rollouts = _rollouts(sessions, arguments)
        engine = rollouts[0].engine
        stride = rollouts[0].latent_stride
        strided = f", the encoder every {stride} frames" if stride > 1 else ""
        print(f"{arguments.bundle}: playing on {engine}{strided}", file=sys.stderr)
        for rollout in rollouts:
            rollout.warm_up(arguments.start)  # loads the graphs, so that the timings are those of steady playing
        count = frame_count(arguments, rollouts[0], fps)
        plays = [
            rollout.renderings(rollout.times(fps, arguments.start, arguments.speed, count), transfers, arguments.batch)
            for rollout in rollouts
        ]
        frames = (_tiled([np.hstack(tile) for tile in tiles], rows, columns) for tiles in zip(*plays, strict=True))
        height, width = rollouts[0].size
        size = height * rows, width * len(transfers) * columns
        write_frames(
            frames,
            arguments.out,
            fps=fps,
            size=size,
            count=count,
            engine=engine,
            format=arguments.format,
            crf=arguments.crf,
        )
    return 0


def _rollouts(sessions: Sessions, arguments: argparse.Namespace) -> list[Rollout]:
    """The clips of the grid, row by row."""
    try:
        rollouts = [
            Rollout(
                sessions,
                seed,
                motion_seed=motion_seed,
                truncation=arguments.truncation,
                label=arguments.label,
                transfer=arguments.transfer,
                latent_stride=arguments.latent_stride,
            )
            for seed, motion_seed in _seeds(arguments)
        ]
    except ValueError as error:  # what the parser cannot know: the label's range, the last seed of a grid
        raise StyleInVError(str(error)) from error
    return rollouts if arguments.loop is None else [rollout.loop(arguments.loop) for rollout in rollouts]


def _seeds(arguments: argparse.Namespace) -> list[tuple[int, int | None]]:
    """Seed and motion seed of each tile, row by row: counted through, or content by column and motion by row."""
    rows, columns = arguments.grid
    if not arguments.decompose:
        return [(arguments.seed + tile, arguments.motion_seed) for tile in range(rows * columns)]
    motion_seed = arguments.seed if arguments.motion_seed is None else arguments.motion_seed
    return [(arguments.seed + column, motion_seed + row) for row in range(rows) for column in range(columns)]


def _tiled(tiles: Sequence[Frame], rows: int, columns: int) -> Frame:
    """Frames [H, W, 3], row by row -> one picture [rows * H, columns * W, 3]."""
    height, width, _ = tiles[0].shape
    grid = np.stack(tiles).reshape(rows, columns, height, width, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)


def _parsed(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="styleinv stream",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="folder of the bundle, such as sky.bundle")
    add("--seed", type=seed_number, default=0, metavar="N", help="which clip (default 0)")
    add("--motion-seed", type=seed_number, metavar="N", help="which motion; by default each seed has its own")
    add("--label", type=whole_number(0), metavar="N", help="class to play, for models trained with classes")
    add(
        "--truncation",
        type=real_number("a finite number", math.isfinite),
        default=1.0,
        metavar="PSI",
        help="below 1: less variety, often better pictures; 0.7 is a common choice (default 1)",
    )
    add(
        "--transfer",
        metavar="NAME",
        help="play in another style: one of the bundle's transfers, which `styleinv export --transfer` puts in",
    )
    add(
        "--side-by-side",
        action="store_true",
        help="with --transfer: the original on the left, the other style on the right",
    )
    add(
        "--grid",
        type=_grid,
        default=(1, 1),
        metavar="RxC",
        help="R rows and C columns of clips in one picture, of the seeds N, N+1, ... (default 1x1)",
    )
    add(
        "--decompose",
        action="store_true",
        help="with --grid: the clips of a column share their content (seeds N, N+1, ... from left to right), those of "
        "a row their motion (motion seeds from top to bottom, counted from --motion-seed, or else from --seed)",
    )
    add_playing(parser)
    arguments = parse_playing(parser, argv)
    if arguments.side_by_side and arguments.transfer is None:
        parser.error("--side-by-side shows a style beside the original: give --transfer NAME, too")
    if arguments.decompose and arguments.grid == (1, 1):
        parser.error("--decompose compares the clips of a grid: give --grid RxC, too, such as --grid 3x4")
    return arguments


def _grid(text: str) -> tuple[int, int]:
    rows, _, columns = text.lower().partition("x")
    if rows.isdecimal() and columns.isdecimal() and int(rows) * int(columns) > 0:
        return int(rows), int(columns)
    raise argparse.ArgumentTypeError(f"found {text!r}, expected rows x columns, such as 4x4")
