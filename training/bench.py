"""Times the image stage's steps on this machine's CPU, against a plain float32 loop of the same networks.

    python -m styleinv.training.bench --preset tiny64 --csv benchmarks/results/training.csv

The plain loop (see `bench_loops.py`) and the package take turns, and between them the changes that lie on the way from
one to the other, each on top of those before. Every turn has the same share of regularisation steps; pairs with real
frames are switched off, so that both do the same. A machine that slows down is slow for all, so ratios hold where rates
do not; on a busy one the processor time per image says more.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import math
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from styleinv.kernels.bench_csv import Value, append_rows, check_header
from styleinv.runtime.errors import ConfigError, EngineError, StyleInVError
from styleinv.training.bench_loops import Step, ladder, plain_and_package
from styleinv.training.config import Config, with_overrides
from styleinv.training.data import ClipSet, load_clips
from styleinv.training.machine import processor
from styleinv.training.presets import PRESETS, preset
from styleinv.training.stages.common import uses_bfloat16

SEED = 0
FEWEST_STEPS = 8  # of a turn
FEWEST_ROUNDS = 3
RANDOM_FRAMES = 64
COLUMNS = (
    "date", "preset", "resolution_pixels", "data", "batch", "augment_p", "precision", "way", "rounds", "steps_per_turn",
    "images_per_s_p20", "images_per_s_p50", "images_per_s_p80", "times_plain", "times_plain_p20", "times_plain_p80",
    "times_before", "cpu_ms_per_image_p50", "cpu_times_plain", "threads", "styleinv", "torch", "python", "processor",
    "logical_cores", "system", "load_average_before",
)  # fmt: skip
Row = dict[str, Value]


@dataclass
class Turns:
    """What the turns of one way took, one number for each round."""

    images_per_s: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)  # processor time of an image, over all threads


def take_turns(ways: Mapping[str, Step], batch: int, steps: int, seconds: float) -> dict[str, Turns]:
    """Let ways train `steps` steps each, in turns, for some seconds in all and at least 3 rounds; a first round, in
    which memory is taken and networks are compiled, does not count."""
    turns = {name: Turns() for name in ways}
    for name, step in ways.items():
        _warm_up(name, step, steps)
    end = time.monotonic() + seconds
    first = steps
    while time.monotonic() < end or first <= FEWEST_ROUNDS * steps:
        for name, step in ways.items():
            before, cpu_before = time.perf_counter(), time.process_time()
            for index in range(first, first + steps):
                step(index)
            turns[name].images_per_s.append(batch * steps / (time.perf_counter() - before))
            turns[name].cpu_ms.append(1e3 * (time.process_time() - cpu_before) / (batch * steps))
        first += steps
    return turns


def _warm_up(name: str, step: Step, steps: int) -> None:
    try:
        for index in range(steps):
            step(index)
    except Exception as error:
        if "compile" not in name:
            raise
        reason = str(error).strip().partition("\n")[0]  # of whatever the compiler's layers raise
        raise EngineError(f"--compile: torch.compile does not work here: {reason}") from error


def as_rows(turns: Mapping[str, Turns]) -> list[Row]:
    """What was measured, of each way: rates, and how many times the plain loop's, which comes first, they are.

    Ratios are of medians; their percentiles are those of the rounds' own ratios.
    """
    rows: list[Row] = []
    plain = before = next(iter(turns.values()))
    for name, found in turns.items():
        ratios = np.divide(found.images_per_s, plain.images_per_s)
        rates = {percent: float(np.percentile(found.images_per_s, percent)) for percent in (20, 50, 80)}
        rows.append(
            {
                "way": name,
                "rounds": len(ratios),
                **{f"images_per_s_p{percent}": rate for percent, rate in rates.items()},
                "times_plain": rates[50] / float(np.median(plain.images_per_s)),
                "times_plain_p20": float(np.percentile(ratios, 20)),
                "times_plain_p80": float(np.percentile(ratios, 80)),
                "times_before": rates[50] / float(np.median(before.images_per_s)),
                "cpu_ms_per_image_p50": float(np.median(found.cpu_ms)),
                "cpu_times_plain": float(np.median(plain.cpu_ms) / np.median(found.cpu_ms)),
            }
        )
        before = found
    return rows


def as_table(rows: Sequence[Row]) -> str:
    """What each change gained, for people."""
    lines = [
        f"{'':26}{'images/s, p20 p50 p80':>24}  {'times plain (p20 to p80)':>24}  {'gained':>7}  {'CPU ms':>7}  "
        f"{'times plain':>11}"
    ]
    for row in rows:
        rates = "".join(f"{row[f'images_per_s_p{percent}']:8.2f}" for percent in (20, 50, 80))
        spread = f"{row['times_plain']:.2f} ({row['times_plain_p20']:.2f} to {row['times_plain_p80']:.2f})"
        lines.append(
            f"{row['way']:26}{rates:>24}  {spread:>24}  {row['times_before']:7.2f}  {row['cpu_ms_per_image_p50']:7.2f}"
            f"  {row['cpu_times_plain']:11.2f}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m styleinv.training.bench`: 0; 1 where the package is less than --at-least; 2 for bad input."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        config = _config(arguments)
        steps = _steps(arguments.steps, config)
        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)
        if arguments.csv:
            check_header(arguments.csv, COLUMNS)
        clips = _clips(arguments.data, config)
        setting = _setting(arguments, config, steps)
        p = arguments.augment
        ways = (
            plain_and_package(config, clips, SEED, p)
            if arguments.brief
            else ladder(config, clips, SEED, p, arguments.compile)
        )
        rows = as_rows(take_turns(ways, config.image.batch, steps, arguments.seconds))
        if arguments.csv:
            measured = [setting | row for row in rows]
            append_rows(arguments.csv, [{name: row[name] for name in COLUMNS} for row in measured])
    except (StyleInVError, ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(_heading(setting, rows), as_table(rows), sep="\n")
    ratio = rows[-1]["times_plain"]
    assert isinstance(ratio, float)
    if ratio < arguments.at_least:
        print(f"found {ratio:.2f} times the plain loop, expected at least {arguments.at_least:g}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m styleinv.training.bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--preset", default="tiny64", metavar="NAME", help=f"one of {', '.join(PRESETS)} "
                        "(default: tiny64)")  # fmt: skip
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE",
                        help="change fields of it, as `styleinv train` does")  # fmt: skip
    parser.add_argument("--batch", type=int, metavar="N", help="pictures (default: the preset's)")
    parser.add_argument("--data", type=Path, metavar="PATH", help="clips, as of `styleinv train` (default: random "
                        "frames)")  # fmt: skip
    parser.add_argument("--augment", type=float, default=0.2, metavar="P", help="probability of augmentation, 0 to 1 "
                        "(default: 0.2)")  # fmt: skip
    parser.add_argument("--steps", type=int, metavar="N", help="of a turn, a multiple of the preset's intervals of "
                        f"regularisation (default: such a one, at least {FEWEST_STEPS})")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=120.0, metavar="N", help="of all turns together, after the "
                        f"first round, and at least {FEWEST_ROUNDS} rounds (default: 120)")  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's own choice)")
    parser.add_argument("--brief", action="store_true", help="the plain loop and the package alone")
    parser.add_argument("--compile", action="store_true", help="torch.compile as one more change (it needs a C++ "
                        "compiler, and takes a minute first)")  # fmt: skip
    parser.add_argument("--at-least", type=float, default=0.0, metavar="N", help="exit with 1 where the package is not "
                        "N times as fast as the plain loop")  # fmt: skip
    parser.add_argument("--csv", type=Path, metavar="FILE", help="where rows are added (default: nowhere)")
    return parser


def _config(arguments: argparse.Namespace) -> Config:
    for name, least, most in (
        ("batch", 1, math.inf), ("augment", 0, 1), ("seconds", 0, 86_400), ("threads", 1, math.inf),
        ("at_least", 0, math.inf),
    ):  # fmt: skip
        found = getattr(arguments, name)
        if found is not None and not least <= found <= most:
            limit = f"at least {least}" if most == math.inf else f"{least} to {most}"
            raise ConfigError(f"--{name.replace('_', '-')}: found {found}, expected {limit}")
    config = with_overrides(preset(arguments.preset), arguments.set)
    if config.model.generator.label_dim:
        raise ConfigError("model.generator.label_dim: training of conditional models is not supported, expected 0")
    batch = config.image.batch if arguments.batch is None else arguments.batch
    return with_overrides(config, [f"image.batch={batch}", "image.pair_weight=0", "image.pair_images=0"])


def _steps(found: int | None, config: Config) -> int:
    """The steps of a turn: as many as every turn has the same regularisation in."""
    cycle = math.lcm(config.image.r1_interval, config.image.path_length_interval or 1)
    if found is None:
        return cycle * math.ceil(FEWEST_STEPS / cycle)
    if found < 1 or found % cycle:
        raise ConfigError(f"--steps: found {found}, expected a multiple of {cycle}, the intervals of regularisation")
    return found


def _clips(path: Path | None, config: Config) -> ClipSet:
    resolution = config.model.generator.resolution
    if path is not None:
        return load_clips(path, resolution)
    shape = (RANDOM_FRAMES, resolution, resolution, 3)
    frames = np.random.default_rng(SEED).integers(0, 256, shape, dtype=np.uint8)
    return ClipSet(("random",), np.array([RANDOM_FRAMES]), np.array([0]), frames)


def _setting(arguments: argparse.Namespace, config: Config, steps: int) -> Row:
    """The columns that all rows share."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "preset": ", ".join([config.preset, *arguments.set]),
        "resolution_pixels": config.model.generator.resolution,
        "data": "random" if arguments.data is None else arguments.data.resolve().name,
        "batch": config.image.batch,
        "augment_p": arguments.augment,
        "precision": "bf16" if uses_bfloat16(config.compute.precision, torch.get_default_device()) else "fp32",
        "steps_per_turn": steps,
        "threads": torch.get_num_threads(),
        "styleinv": importlib.metadata.version("styleinv"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "logical_cores": os.cpu_count(),
        "system": platform.platform(),
        "load_average_before": os.getloadavg()[0],
    }


def _heading(setting: Row, rows: Sequence[Row]) -> str:
    return (
        f"{setting['preset']}, {setting['resolution_pixels']} pixels, batch {setting['batch']}, {setting['data']} "
        f"frames, augmentation p = {setting['augment_p']:g}: {rows[0]['rounds']} rounds of {setting['steps_per_turn']} "
        f"steps each\n{setting['processor']}, {setting['threads']} threads, load before "
        f"{setting['load_average_before']:.2f}, torch {setting['torch']}"
    )


if __name__ == "__main__":
    sys.exit(main())
