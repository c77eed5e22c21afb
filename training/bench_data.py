"""Times how fast real frames and clips can be drawn, on one thread, against what a trainer takes.

    python -m styleinv.training.bench_data --data DIR --resolution 64 --batch 16 --trainer-rate 100

What the image stage draws (`frame_batch`) and what the motion stage draws (`clip_batch`), with flips and without: cold,
as each frame of the cache is read for the first time, and warm, from memory. Decoding is not timed: it happens once.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from styleinv.kernels.bench_csv import Value, append_rows, check_header
from styleinv.runtime.errors import DataError, StyleInVError
from styleinv.training.data import ClipSet, clip_batch, frame_batch, load_clips
from styleinv.training.machine import processor

MARGIN = 20  # how many times the trainer's rate is enough: then drawing takes at most 5 % of a step
SEED = 0
COLUMNS = (
    "date", "data", "clips", "frames", "weighted", "resolution_pixels", "sampler", "max_span", "mirror", "start",
    "batch", "samples", "samples_per_s", "batch_ms_p20", "batch_ms_p50", "batch_ms_p80", "major_page_faults",
    "trainer_samples_per_s", "times_trainer", "styleinv", "numpy", "python", "processor", "logical_cores", "system",
    "load_average_before",
)  # fmt: skip
Row = dict[str, Value]
Draw = Callable[[ClipSet, int, bool], object]  # (clips, number of the first sample, mirror)


@dataclass(frozen=True)
class Setup:
    """What is timed."""

    load: Callable[[], ClipSet]  # maps the cache anew
    name: str  # of the data
    batch: int
    max_span: int  # frames
    seconds: float  # of each measurement
    trainer_rate: float | None  # samples/s


@dataclass(frozen=True)
class Timed:
    """The batches of one measurement."""

    seconds: list[float]
    major_faults: int  # pages that came from the disk while they were waited for

    def rate(self, batch: int) -> float:
        """Samples per second."""
        return batch * len(self.seconds) / sum(self.seconds)

    def milliseconds(self, percent: float) -> float:
        return 1e3 * float(np.percentile(self.seconds, percent))


def bench(setup: Setup, report: Callable[[Row], None]) -> None:
    """Times both samplers, with and without flips, cold and warm; `report` gets a row of each."""
    samplers: dict[str, tuple[Draw, int]] = {  # and how many frames a sample has
        "frame_batch": (lambda clips, number, mirror: frame_batch(clips, SEED, number, setup.batch, mirror), 1),
        "clip_batch": (
            lambda clips, number, mirror: clip_batch(
                clips, SEED, number, setup.batch, max_span=setup.max_span, mirror=mirror
            ),
            4,
        ),
    }
    for sampler, (draw, frames) in samplers.items():
        for mirror in (False, True):
            drop_from_memory(setup.load())
            clips = setup.load()
            once = max(1, clips.total_frames // (frames * setup.batch))
            cold = time_batches(draw, clips, setup.batch, mirror, setup.seconds, most=once)
            touch(clips)
            warm = time_batches(draw, clips, setup.batch, mirror, setup.seconds)
            for start, timed in (("cold", cold), ("warm", warm)):
                report(_row(setup, clips, sampler, mirror, start, timed))
            del clips  # a page that is mapped does not leave memory


def time_batches(
    draw: Draw, clips: ClipSet, batch: int, mirror: bool, seconds: float, most: int | None = None
) -> Timed:
    """Draw batch after batch, for some seconds or until there are `most`."""
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    found: list[float] = []
    while (not found or sum(found) < seconds) and (most is None or len(found) < most):
        before = time.perf_counter()
        draw(clips, batch * len(found), mirror)
        found.append(time.perf_counter() - before)
    return Timed(found, resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults)


def drop_from_memory(clips: ClipSet) -> None:
    """Ask the system to forget what it has read of the cache. It may keep what other processes have mapped."""
    if isinstance(clips.frames, np.memmap) and clips.frames.filename is not None and hasattr(os, "posix_fadvise"):
        with Path(clips.frames.filename).open("rb") as stream:
            os.fsync(stream.fileno())  # what was not written yet would stay
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def touch(clips: ClipSet) -> None:
    """Read every frame once."""
    for index in range(len(clips)):
        clips.clip(index).max()


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m styleinv.training.bench_data`: 0; 1 where warm rates are too low for the trainer; 2 for bad input."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    slow: list[Row] = []

    def load() -> ClipSet:
        return load_clips(
            arguments.data,
            arguments.resolution,
            cache=arguments.cache,
            frame_rate=arguments.frame_rate,
            minimum_frames=3,
            weights=arguments.weights,
        )

    def report(row: Row) -> None:
        if arguments.csv:
            append_rows(arguments.csv, [row])
        print(_line(row), flush=True)
        times = row["times_trainer"]
        if row["start"] == "warm" and isinstance(times, float) and times < MARGIN:
            slow.append(row)

    try:
        for name, least in (("resolution", 1), ("batch", 1), ("max_span", 3), ("seconds", 0), ("trainer_rate", 0.001)):
            found = getattr(arguments, name)
            if found is not None and not least <= found < float("inf"):
                raise DataError(f"--{name.replace('_', '-')}: found {found}, expected a number, at least {least}")
        if arguments.csv:
            check_header(arguments.csv, COLUMNS)
        name = arguments.data.resolve().name
        bench(Setup(load, name, arguments.batch, arguments.max_span, arguments.seconds, arguments.trainer_rate), report)
    except (StyleInVError, ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    if slow:
        print(f"found {len(slow)} warm rates of less than {MARGIN} times the trainer's", file=sys.stderr)
    return 1 if slow else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m styleinv.training.bench_data", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--data", type=Path, required=True, metavar="PATH", help="as of `styleinv train`")
    parser.add_argument("--resolution", type=int, default=64, metavar="N", help="pixels (default: 64)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="samples (default: 16)")
    parser.add_argument(
        "--frame-rate", type=float, metavar="N", help="1/s to resample videos to (default: as they are)"
    )
    parser.add_argument("--max-span", type=int, default=32, metavar="N", help="frames of a clip (default: 32)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="how often clips are seen, lines of name,weight "
                        "(default: weights.csv in the folder of the data, where there is one)")  # fmt: skip
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="of decoded clips (default: that of `styleinv train`)"
    )
    parser.add_argument("--seconds", type=float, default=1.0, metavar="N", help="of each measurement (default: 1)")
    parser.add_argument("--trainer-rate", type=float, metavar="N", help="images/s (motion: clips/s) that a trainer "
                        f"takes: the ratio is told, and less than {MARGIN} ends with status 1")  # fmt: skip
    parser.add_argument("--csv", type=Path, metavar="FILE", help="where rows are added (default: nowhere)")
    return parser


def _row(setup: Setup, clips: ClipSet, sampler: str, mirror: bool, start: str, timed: Timed) -> Row:
    rate = timed.rate(setup.batch)
    values: tuple[Value, ...] = (
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), setup.name, len(clips), clips.total_frames,
        "yes" if clips.is_weighted else "no", clips.frames.shape[1], sampler,
        setup.max_span if sampler == "clip_batch" else None, "yes" if mirror else "no", start,
        setup.batch, setup.batch * len(timed.seconds), rate, *(timed.milliseconds(percent) for percent in (20, 50, 80)),
        timed.major_faults, setup.trainer_rate, rate / setup.trainer_rate if setup.trainer_rate else None,
        importlib.metadata.version("styleinv"), np.__version__, platform.python_version(), processor(), os.cpu_count(),
        platform.platform(), os.getloadavg()[0],
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _line(row: Row) -> str:
    what = "frames" if row["sampler"] == "frame_batch" else "clips"
    flips = "with flips" if row["mirror"] == "yes" else "no flips"
    ratio = f", {row['times_trainer']:.0f} times the trainer's" if row["times_trainer"] else ""
    faults = f", {row['major_page_faults']} pages waited for" if row["start"] == "cold" else ""
    return (
        f"{row['sampler']:11} {flips:10} {row['start']}: {row['samples_per_s']:9,.0f} {what}/s{ratio} "
        f"(batch of {row['batch']}: {row['batch_ms_p50']:.3f} ms{faults})"
    )


if __name__ == "__main__":
    sys.exit(main())
