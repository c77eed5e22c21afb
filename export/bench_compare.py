"""`styleinv bench --compare`: one clip, played in every way that this machine has, in turns.

PyTorch, eager and compiled, on a GPU or on the CPU, and each engine of the bundle there. A frame counts when it is an
array in the host's memory. The bundle plays as `styleinv stream` does, so where its session overlaps the copy of a
frame with computing the next, that is in the times; PyTorch fetches each batch before it starts the next one.

Machines are not equally fast all the time, so all ways take turns. A way that cannot be had is told with its reason;
one that fails on the way keeps the times that it has.

Shapes: B frames of a batch, R resolution, N batches that were timed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from styleinv.export.bench import check_origin, open_playable, plays_on_cpu
from styleinv.export.bench_baseline import BLOCK, SquaredError
from styleinv.export.bench_playing import Clock, Milliseconds
from styleinv.export.bench_start import Settings, frame_indices, played_label
from styleinv.export.bench_torch import EAGER, WAYS, TorchPlayer, set_up, torch_precisions
from styleinv.runtime.bundle import Bundle
from styleinv.runtime.errors import EngineError, StyleInVError
from styleinv.runtime.frames import Frame
from styleinv.runtime.rollout import Rollout
from styleinv.runtime.sessions import ENGINES, Sessions, obstacle

Batch = Sequence[Frame] | npt.NDArray[np.uint8]  # B frames
Play = Callable[[Iterator[int]], Iterator[Batch]]  # endless frame indices -> their frames, a batch at a time


@dataclass(frozen=True)
class Way:
    """One way of playing: what plays, in which precision, and how it is opened: what it is in words, and how it plays.
    What must be closed goes on the stack."""

    name: str
    precision: str
    open: Callable[[ExitStack], tuple[str, Play]]


@dataclass
class Timed:
    """What was measured of one way."""

    name: str
    precision: str
    by: str  # library, version, device and form, in words
    play: Play
    first_frame_s: float  # from opening to the first batch: loading, and compiling
    times: list[float] = field(default_factory=list)
    error: SquaredError = field(default_factory=SquaredError)  # of its bytes, against eager's in fp32
    failure: str | None = None  # in words

    @property
    def milliseconds(self) -> Milliseconds:
        """[N], per frame."""
        return np.array(self.times)


@dataclass(frozen=True)
class Comparison:
    """All that was measured. The first way is eager PyTorch in fp32, unless that could not be had."""

    settings: Settings
    bundle: Bundle
    device: str
    timed: list[Timed]
    missing: dict[tuple[str, str], str]  # name and precision of a way that cannot be had: the reason

    def times_eager(self, timed: Timed) -> float | None:
        """How many times faster than eager PyTorch, by medians; None where either has no times."""
        eager = next((way for way in self.timed if (way.name, way.precision) == (EAGER, "fp32")), None)
        if eager is None or not eager.times or not timed.times:
            return None
        return float(np.median(eager.times) / np.median(timed.times))


def compare_ways(
    settings: Settings, precisions: Sequence[str], device: str | None, checkpoint: Path, report: Callable[[str], None]
) -> Comparison:
    """Plays the clip in every way.

    Args:
        precisions: that are asked for; eager PyTorch in fp32 is played besides.
        device: cpu or cuda; None is cuda where PyTorch has it.
        report: is told, in words, what is being done.
    Raises: BundleError where the bundle is damaged or plays nothing by itself; CheckpointError where the checkpoint is
        none or another one; EngineError where there is no such device.
    """
    device = checked_device(device)
    bundle = open_playable(settings)
    check_origin(bundle, checkpoint)
    set_up(device, settings.threads)
    missing: dict[tuple[str, str], str] = {}
    ways = list(ways_of(settings, bundle, precisions, device, checkpoint, missing))
    with ExitStack() as stack:
        timed = []
        for way in ways:
            report(f"opening {way.name} in {way.precision}")
            try:
                timed.append(opened(way, bundle, stack))
            except Exception as error:  # the engines' exceptions share no base class
                missing[way.name, way.precision] = in_words(error)
        rounds = max(1, settings.frames // (BLOCK * settings.batch))
        report(f"{rounds * BLOCK * settings.batch} frames of each of {len(timed)} ways, in turns")
        take_turns(timed, bundle, rounds, settings.batch)
    return Comparison(settings, bundle, device, timed, missing)


def checked_device(device: str | None) -> str:
    """cpu or cuda. Raises EngineError where PyTorch has no GPU and one is asked for."""
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise EngineError(
            f"--device cuda: found torch {torch.__version__} without a GPU that it can use, expected one; "
            "`styleinv doctor` says what this machine has"
        )
    return device or ("cuda" if found else "cpu")


def ways_of(
    settings: Settings,
    bundle: Bundle,
    precisions: Sequence[str],
    device: str,
    checkpoint: Path,
    missing: dict[tuple[str, str], str],
) -> Iterator[Way]:
    """The ways that can be had here, eager PyTorch in fp32 first; for the others the reason goes to `missing`."""
    computes = torch_precisions(device)
    for precision in dict.fromkeys(["fp32", *precisions]):
        names = list(WAYS) if precision in precisions else [EAGER]
        for name in names:
            if precision in computes:
                yield Way(name, precision, partial(_open_torch, name, precision, settings, bundle, checkpoint, device))
            else:
                missing[name, precision] = f"PyTorch on {device} is compared in {' and '.join(computes)}"
    for engine, precision in itertools.product(ENGINES, precisions):
        reason = obstacle(engine, precision)
        if reason is None and plays_on_cpu(engine) != (device == "cpu"):
            reason = f"it does not play on {device}, where this comparison is"
        if reason is None:
            yield Way(engine, precision, partial(_open_engine, engine, precision, settings, bundle))
        else:
            missing[engine, precision] = reason


def _open_torch(
    name: str, precision: str, settings: Settings, bundle: Bundle, checkpoint: Path, device: str, stack: ExitStack
) -> tuple[str, Play]:
    player = TorchPlayer(name, precision, checkpoint, bundle, settings.seed, device)

    def play(ts: Iterator[int]) -> Iterator[Batch]:
        while True:
            yield player.frames(list(itertools.islice(ts, settings.batch)))

    return player.name, play


def _open_engine(engine: str, precision: str, settings: Settings, bundle: Bundle, stack: ExitStack) -> tuple[str, Play]:
    sessions = Sessions(bundle, engine=engine, precision=precision, threads=settings.threads)
    stack.enter_context(sessions)
    rollout = Rollout(sessions, settings.seed, label=played_label(bundle))

    def play(ts: Iterator[int]) -> Iterator[Batch]:
        frames = rollout.frames(ts, settings.batch)
        while True:
            yield list(itertools.islice(frames, settings.batch))

    return rollout.engine, play


def opened(way: Way, bundle: Bundle, stack: ExitStack, clock: Clock = time.perf_counter) -> Timed:
    """The way, opened, and its first batch drawn. Raises whatever opening it or playing raises."""
    begin = clock()
    by, play = way.open(stack)
    next(play(frame_indices(bundle)))
    return Timed(way.name, way.precision, by, play, clock() - begin)


def take_turns(
    ways: Sequence[Timed], bundle: Bundle, rounds: int, batch: int, clock: Clock = time.perf_counter
) -> None:
    """In each round every way has a turn, and plays the same frames: BLOCK batches, and one before them.

    The first round is the warm-up, and not timed. Nor is a turn's first batch: the threads of the way before may still
    keep the cores busy, waiting for more. A way that fails has no more turns.
    """
    for turn in range(rounds + 1):
        wanted: list[Batch] | None = None
        for way in ways:
            if way.failure is not None:
                continue
            ts = itertools.islice(frame_indices(bundle), turn * (BLOCK + 1) * batch, None)
            try:
                drawn, times = _turn(way.play, ts, batch, clock)
            except Exception as error:  # the engines' exceptions share no base class
                way.failure = in_words(error)
                continue
            if turn > 0:
                way.times.extend(times)
            if (way.name, way.precision) == (EAGER, "fp32"):
                wanted = drawn
            if wanted is not None:
                way.error.add(np.stack(list(itertools.chain(*drawn))), np.stack(list(itertools.chain(*wanted))))


def _turn(play: Play, ts: Iterator[int], batch: int, clock: Clock) -> tuple[list[Batch], list[float]]:
    """The frames of a turn, and the milliseconds per frame of all batches but the first.

    Frame indices go on for ever, so that a session which computes ahead does so behind the last batch, too, as it does
    in playing.
    """
    batches = play(ts)
    drawn, times = [], []
    for number in range(BLOCK + 1):
        begin = clock()
        drawn.append(next(batches))
        if number > 0:
            times.append(1000.0 * (clock() - begin) / batch)
    return drawn, times


def in_words(error: Exception) -> str:
    """What an exception says, in one line; its type, too, where it is not one of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, StyleInVError) else f"{type(error).__name__}: {text}"
