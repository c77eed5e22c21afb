"""Times frames, and of each frame the graphs in it, while a rollout plays.

All times are wall time. A batch is computed as a whole, so a frame's time is its batch's divided by the batch's size.
Shapes: N batches that were timed.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from styleinv.export.bench_start import Settings, frame_indices
from styleinv.runtime.bundle import Bundle
from styleinv.runtime.closing import Closing
from styleinv.runtime.device_array import DeviceArray
from styleinv.runtime.frames import Frame
from styleinv.runtime.rollout import Rollout
from styleinv.runtime.sessions import Session, Sessions
from styleinv.runtime.sessions.base import Array, Arrays, Pending

Milliseconds = npt.NDArray[np.float64]  # [N], per frame
Clock = Callable[[], float]  # seconds


@dataclass(frozen=True)
class Played:
    """The frames that were timed: the milliseconds of each, and the mean of what each graph took of it."""

    milliseconds: Milliseconds
    graph_milliseconds: Mapping[str, float]
    frames: int
    warmup: int  # frames before them
    engine: str
    session: str  # engine, version, device and precision, in words
    latent_stride: int  # the frames between two latents that are the encoder's own

    @property
    def frames_per_second(self) -> float:
        return 1000.0 / float(self.milliseconds.mean())

    def parts(self) -> dict[str, float]:
        """Milliseconds per frame in each graph and, as 'host', in the rest: time code, checks, copies. They add up to
        the mean."""
        host = float(self.milliseconds.mean()) - sum(self.graph_milliseconds.values())
        return {**self.graph_milliseconds, "host": host}

    def shares(self) -> dict[str, float]:
        """The same as shares of a frame; they add up to 1."""
        return {name: part / float(self.milliseconds.mean()) for name, part in self.parts().items()}


class TimedSession(Closing):
    """A session that adds the seconds its runs take to those of its graph: of a run that overlaps with others, those
    that the program spends on asking for it and on waiting for its result."""

    def __init__(self, session: Session, graph: str, seconds: dict[str, float], clock: Clock) -> None:
        self._session, self._graph, self._seconds, self._clock = session, graph, seconds, clock

    @property
    def name(self) -> str:
        return self._session.name

    @property
    def overlaps(self) -> bool:
        return self._session.overlaps

    def run(self, inputs: Mapping[str, Array], outputs: Iterable[str] | None = None) -> Arrays:
        with self._timed():
            return self._session.run(inputs, outputs)

    def submit(self, inputs: Mapping[str, Array], outputs: Iterable[str] | None = None) -> Pending:
        with self._timed():
            pending = self._session.submit(inputs, outputs)
        return TimedPending(pending, self._timed)

    def run_on_device(self, inputs: Mapping[str, Array], outputs: Iterable[str]) -> dict[str, DeviceArray]:
        return self._session.run_on_device(inputs, outputs)

    def close(self) -> None:
        self._session.close()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begin = self._clock()
        yield
        self._seconds[self._graph] += self._clock() - begin


@dataclass(frozen=True)
class TimedPending:
    """A run that was submitted; waiting for its result is timed."""

    pending: Pending
    timed: Callable[[], AbstractContextManager[None]]

    def result(self) -> Arrays:
        with self.timed():
            return self.pending.result()


class TimedSessions(Sessions):
    """The sessions of a bundle; `seconds` says how long each graph ran, all its runs together."""

    def __init__(self, bundle: Bundle, settings: Settings, clock: Clock = time.perf_counter) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._clock = clock
        super().__init__(bundle, engine=settings.engine, precision=settings.precision, threads=settings.threads)

    def session(self, graph: str, transfer: str | None = None) -> Session:
        """As `Sessions.session`, timed."""
        return TimedSession(super().session(graph, transfer), graph, self.seconds, self._clock)


def play(rollout: Rollout, sessions: TimedSessions, settings: Settings, clock: Clock = time.perf_counter) -> Played:
    """Plays the clip from its beginning: the frames of the warm-up, then those that are timed."""
    frames = rollout.frames(frame_indices(rollout.bundle), settings.batch)
    warmup, timed = settings.whole_batches(settings.warmup), settings.whole_batches(settings.frames)
    deque(itertools.islice(frames, warmup), maxlen=0)
    sessions.seconds.clear()
    milliseconds = time_batches(frames, timed // settings.batch, settings.batch, clock)
    graphs = {graph: 1000.0 * seconds / timed for graph, seconds in sessions.seconds.items()}
    return Played(milliseconds, graphs, timed, warmup, sessions.engine, rollout.engine, rollout.latent_stride)


def time_batches(frames: Iterator[Frame], batches: int, batch: int, clock: Clock) -> Milliseconds:
    """Takes so many batches from `frames`, which computes them whole; the milliseconds of each, per frame."""
    milliseconds = np.empty(batches)
    for number in range(batches):
        begin = clock()
        for _ in range(batch):
            next(frames)
        milliseconds[number] = 1000.0 * (clock() - begin) / batch
    return milliseconds


def percentile(milliseconds: Milliseconds, percent: float) -> float:
    """The time that so many percent of the frames stay within."""
    return float(np.percentile(milliseconds, percent))


def jitter(milliseconds: Milliseconds) -> float:
    """Mean absolute difference of the times of neighbouring frames, in milliseconds; 0 of a single one."""
    return float(np.abs(np.diff(milliseconds)).mean()) if len(milliseconds) > 1 else 0.0
