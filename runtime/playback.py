"""The rules of playing: what to compute next, what to show now, what is stale. `Player` adds threads and a clock.

Every method that depends on the time is told it as `now`, in seconds of a clock that never goes back.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from types import TracebackType
from typing import Literal, NamedTuple, get_args

from styleinv.runtime.frame_times import checked_fps, step_of
from styleinv.runtime.frames import Frame
from styleinv.runtime.motion import FrameIndex, as_frame_index
from styleinv.runtime.player_statistics import PlayerStatistics, Recorder
from styleinv.runtime.schedule import Schedule

Policy = Literal["every", "latest"]

LATE = 0.1  # of a tick: a frame delivered later than this after it was due counts as late
ESTIMATED_FROM = 5  # compute times, of which the slowest but one is what the next frame is expected to take


class Job(NamedTuple):
    """A frame to compute, `rollout[t]`, for this tick; `generation` tells if it is still wanted when it is done."""

    generation: int
    tick: int
    t: int | float


class Playback:
    """A bounded queue between one that computes frames (`plan`, `put`, `fail`) and one that shows them (`take`).

    Arguments and errors as in `Player`; frame_rate is the clip's, in frames per second.
    """

    def __init__(
        self,
        frame_rate: float,
        fps: float,
        lookahead: int,
        policy: Policy,
        start: FrameIndex,
        speed: float,
        count: int | None,
    ) -> None:
        checked_fps(fps)
        if lookahead < 1:
            raise ValueError(f"lookahead: found {lookahead!r}, expected at least 1")
        if policy not in get_args(Policy):
            raise ValueError(f"policy: found {policy!r}, expected one of {', '.join(get_args(Policy))}")
        if count is not None and count < 0:
            raise ValueError(f"count: found {count!r}, expected at least 0")
        self.position = as_frame_index(start, "start")
        self.speed = speed
        self._frame_rate, self._fps, self._lookahead, self._count = frame_rate, fps, lookahead, count
        self._drops = policy == "latest"
        self._schedule = Schedule(1.0 / fps, step_of(speed, frame_rate, fps), tick=0, t=self.position)
        self._next = 0  # tick to compute next
        self._last = -1  # tick delivered last
        self._queue: deque[tuple[Job, Frame]] = deque()
        self._over = False  # nothing is left to compute
        self._error: tuple[BaseException, TracebackType | None] | None = None
        self._generation = 0
        self._paused_at: float | None = None
        self._recorder = Recorder()
        self._compute_seconds: deque[float] = deque(maxlen=ESTIMATED_FROM)

    @property
    def paused(self) -> bool:
        """Whether the clock stands still."""
        return self._paused_at is not None

    @property
    def ended(self) -> bool:
        """Whether the last frame has been taken."""
        return self._over and not self._queue and self._error is None

    def statistics(self) -> PlayerStatistics:
        """The counters as they are now."""
        return self._recorder.snapshot(len(self._queue))

    def plan(self, now: float) -> Job | float | None:
        """What to compute next: a frame; or seconds until there may be one, infinite where something else has to happen
        first; or None where playing ends here."""
        now = self._clip_clock(now)
        if self._error is not None:
            return math.inf
        self._discard_stale(now)
        if len(self._queue) >= self._lookahead:
            return self._first_stale_at() - now if self._drops and not self.paused else math.inf
        tick = self._next
        if self._drops and self._schedule.running:
            tick = max(tick, self._schedule.tick_after(now + self._expected_seconds()))
        t = self._schedule.frame_index(tick)
        self._over = t < 0 or (self._count is not None and tick >= self._count)
        if self._over:
            return None
        self._next = tick + 1
        return Job(self._generation, tick, t)

    def put(self, job: Job, frame: Frame, seconds: float) -> None:
        """Takes in a frame that took this long to compute; it is thrown away where nobody waits for it any more."""
        self._recorder.computed(seconds)
        self._compute_seconds.append(seconds)
        if job.generation == self._generation:
            self._queue.append((job, frame))

    def fail(self, job: Job, error: BaseException) -> None:
        """Computing the frame failed: `take` raises the error after the frames before it. A jump forgets it."""
        if job.generation == self._generation:
            self._error = error, error.__traceback__

    def take(self, now: float) -> Frame | float | None:
        """The frame that is due now; or seconds until one is, infinite where something else has to happen first; or
        None where playing has ended. Raises what computing the frame raised."""
        if self.paused:
            return math.inf
        self._discard_stale(now)
        if not self._queue:
            if self._error is not None:
                error, traceback = self._error
                raise error.with_traceback(traceback)  # as it was: raising it again and again would lengthen it
            return None if self._over else math.inf
        job, frame = self._queue[0]
        if not self._schedule.running:  # the first frame is due when somebody is there to see it
            self._schedule = replace(self._schedule, time=now)
        lateness = now - self._schedule.due(job.tick)
        if lateness < 0:
            return -lateness
        self._queue.popleft()
        late = lateness > LATE * self._schedule.period
        if late and not self._drops:  # the frames after it wait as much longer, and do not come in a burst
            self._schedule = replace(self._schedule, time=self._schedule.time + lateness)
        self._recorder.delivered(now, lateness, late, dropped=job.tick - self._last - 1)
        self._last, self.position = job.tick, job.t
        return frame

    def pause(self, now: float) -> None:
        """Stops the clock."""
        if self._paused_at is None:
            self._paused_at = now

    def resume(self, now: float) -> None:
        """Lets the clock go on from where it stood."""
        if self._paused_at is not None:
            self._schedule = replace(self._schedule, time=self._schedule.time + now - self._paused_at)
            self._paused_at = None
            self._recorder.resumed()

    def seek(self, t: FrameIndex) -> None:
        """The next frame taken is the one at t, and the clock starts with it."""
        start = as_frame_index(t, "seek")
        self._restart(replace(self._schedule, tick=self._last + 1, t=start, time=math.inf), self._last + 1)

    def set_speed(self, speed: float, now: float) -> None:
        """The frames taken from now on are a new step apart."""
        step = step_of(speed, self._frame_rate, self._fps)
        schedule = self._schedule
        if not schedule.running:
            self._restart(replace(schedule, step=step), schedule.tick)
        else:
            tick = max(self._last, schedule.tick_at(self._clip_clock(now))) if self._drops else self._last
            turn = max(0, schedule.frame_index(tick))  # 0: backwards, the clock may have passed the beginning
            self._restart(Schedule(schedule.period, step, tick, turn, schedule.due(tick)), tick + 1)
        self.speed = speed

    def _restart(self, schedule: Schedule, next_tick: int) -> None:
        """Goes on by another schedule; what was computed by the old one, or is being computed, is thrown away."""
        self._schedule, self._next = schedule, next_tick
        self._generation += 1
        self._queue.clear()
        self._over, self._error = False, None

    def _clip_clock(self, now: float) -> float:
        return now if self._paused_at is None else self._paused_at

    def _discard_stale(self, now: float) -> None:
        while self._drops and self._queue and now >= self._first_stale_at():
            self._queue.popleft()

    def _first_stale_at(self) -> float:
        """When the first frame of the queue is stale: the second one is due, or it lags more than one tick."""
        stale = self._queue[0][0].tick + 2
        if len(self._queue) > 1:
            stale = min(stale, self._queue[1][0].tick)
        return self._schedule.due(stale)

    def _expected_seconds(self) -> float:
        """What the next frame may take: the slowest but one of the newest, since any one of them may be an outlier."""
        return sorted(self._compute_seconds)[-2] if len(self._compute_seconds) > 1 else 0.0
