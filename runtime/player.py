"""Plays a rollout in real time: frames are computed ahead in a thread and handed out when they are due.

    with Rollout.open("sky.bundle", seed=7) as rollout, Player(rollout, fps=25) as player:
        for frame in player: show(frame)              # uint8 [H, W, 3], 25 times a second
        async for frame in player: await send(frame)  # the same in asyncio
        frame = player.poll()                         # the same in the loop of a window: None while nothing is due

`playback.py` holds the rules; here are the thread that computes and the waiting.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, Self

from styleinv.runtime.closing import Closing
from styleinv.runtime.frames import Frame
from styleinv.runtime.motion import FrameIndex
from styleinv.runtime.playback import Job, Playback, Policy
from styleinv.runtime.player_statistics import PlayerStatistics

if TYPE_CHECKING:
    import asyncio  # imported where it is used: most programs do without


class HasFrameRate(Protocol):
    """A bundle."""

    @property
    def frame_rate(self) -> float:
        """Frames per second."""


class Playable(Protocol):
    """What a player needs of a rollout."""

    @property
    def bundle(self) -> HasFrameRate:
        """What says the clip's frame rate."""

    def __getitem__(self, t: int | float, /) -> Frame:
        """The frame at frame index t."""


class Player(Closing):
    """Hands out a clip's frames at t = start + n * speed * frame_rate / fps, the n-th of them n / fps seconds after the
    first was taken. Threads may share it. Close it: until then a thread computes ahead, from construction on.

    Args:
        rollout: the clip, which stays open when the player is closed.
        fps: frames per second.
        lookahead: how many frames are computed ahead at most.
        policy: what happens when the consumer, or computing, is too slow. 'every' hands out every frame, and those that
            follow a late one come as much later. 'latest' keeps pace with the clock: a frame that lags more than one
            frame behind is passed over.
        start: frame index of the first frame.
        speed: 0.5 is slow motion, -1 plays backwards, down to frame index 0 at the lowest.
        count: how many frames to play, those included that 'latest' passes over; None plays without end.
    Raises: TypeError or ValueError where an argument is not of its kind or out of range.
    """

    def __init__(
        self,
        rollout: Playable,
        fps: float = 25.0,
        lookahead: int = 8,
        policy: Policy = "every",
        *,
        start: FrameIndex = 0,
        speed: float = 1.0,
        count: int | None = None,
    ) -> None:
        self._rollout = rollout
        self._playback = Playback(rollout.bundle.frame_rate, fps, lookahead, policy, start, speed, count)
        # The lock guards everything below and the playback. It is taken itself, not through the condition, whose
        # `with` is a function in Python: Ctrl-C at its end would leave the lock held, and `close` waiting for ever.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._listeners: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="styleinv player", daemon=True)
        self._worker.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Frame:
        """The next frame, as `get` without a timeout."""
        frame = self.get()
        if frame is None:
            raise StopIteration
        return frame

    def get(self, timeout: float | None = None) -> Frame | None:
        """Waits until the next frame, uint8 [H, W, 3], is due; None after the last one, and after `close`.

        Raises: TimeoutError where none was due within `timeout` seconds; whatever computing the frame raised, on this
        and every further call, after the frames before it.
        """
        deadline = math.inf if timeout is None else time.perf_counter() + timeout
        with self._lock:
            while isinstance(found := self._take(), float):
                left = deadline - time.perf_counter()
                if left <= 0:
                    raise TimeoutError(f"found no frame due within {timeout} seconds")
                self._changed.wait(_timeout(min(found, left)))
        return found

    def poll(self) -> Frame | None:
        """The next frame where it is due; None where none is, and where playing has `ended`. Raises as `get`."""
        with self._lock:
            found = self._take()
        return None if isinstance(found, float) else found

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        """As `get`, while the event loop goes on. Cancelling it loses no frame."""
        import asyncio

        await asyncio.sleep(0)  # others get their turn even where frames are always late, and so due at once
        changed = asyncio.Event()
        listener = asyncio.get_running_loop(), changed
        with self._lock:
            self._listeners.add(listener)
        try:
            while isinstance(found := self._look(changed), float):
                with suppress(TimeoutError):
                    async with asyncio.timeout(_timeout(found)):
                        await changed.wait()
        finally:
            with self._lock:
                self._listeners.discard(listener)
        if found is None:
            raise StopAsyncIteration
        return found

    def pause(self) -> None:
        """Stops the clock; until `resume` no frame is due."""
        with self._lock:
            self._playback.pause(time.perf_counter())
            self._notify()

    def resume(self) -> None:
        """Lets the clock go on from where it stood."""
        with self._lock:
            self._playback.resume(time.perf_counter())
            self._notify()

    def seek(self, t: FrameIndex) -> None:
        """Makes t the frame index of the next frame, which is due as soon as it is computed; also after the last frame,
        and after an error, which is forgotten. Raises: TypeError or ValueError where t is no frame index."""
        with self._lock:
            self._playback.seek(t)
            self._notify()

    @property
    def speed(self) -> float:
        """How fast the clip plays; setting it decides on the next frame. Raises: ValueError where it is set to 0 or to
        what is not finite."""
        with self._lock:
            return self._playback.speed

    @speed.setter
    def speed(self, speed: float) -> None:
        with self._lock:
            self._playback.set_speed(speed, time.perf_counter())
            self._notify()

    @property
    def position(self) -> int | float:
        """Frame index of the last frame handed out; where there is none yet, of the first."""
        with self._lock:
            return self._playback.position

    @property
    def paused(self) -> bool:
        """Whether the clock stands still."""
        with self._lock:
            return self._playback.paused

    @property
    def ended(self) -> bool:
        """Whether the last frame was handed out, or the player closed."""
        with self._lock:
            return self._closed or self._playback.ended

    @property
    def statistics(self) -> PlayerStatistics:
        """What was counted and timed up to now."""
        with self._lock:
            return self._playback.statistics()

    def close(self) -> None:
        """Ends playing: whoever waits for a frame is woken and gets the end. Returns when the frame that is being
        computed is done and the thread has ended. Closing twice is allowed."""
        with self._lock:
            self._closed = True
            self._notify()
        self._worker.join()

    def _take(self) -> Frame | float | None:
        """As `Playback.take`, now. The lock must be held."""
        if self._closed:
            return None
        found = self._playback.take(time.perf_counter())
        if found is not None and not isinstance(found, float):
            self._notify()  # the queue has room again
        return found

    def _look(self, changed: asyncio.Event) -> Frame | float | None:
        """Takes, so that whatever changes from now on sets the event."""
        with self._lock:
            changed.clear()
            return self._take()

    def _notify(self) -> None:
        """Wakes everything that waits, in threads and in event loops. The lock must be held."""
        self._changed.notify_all()
        for loop, event in self._listeners:
            with suppress(RuntimeError):  # a loop that was closed while something waited in it
                loop.call_soon_threadsafe(event.set)

    def _work(self) -> None:
        """Computes one frame after the other; the thread's whole life."""
        while (job := self._next_job()) is not None:
            begin = time.perf_counter()
            try:
                frame = self._rollout[job.t]
            except BaseException as error:  # the consumer's to handle, whatever it is
                with self._lock:
                    self._playback.fail(job, error)
                    self._notify()
            else:
                with self._lock:
                    self._playback.put(job, frame, time.perf_counter() - begin)
                    self._notify()

    def _next_job(self) -> Job | None:
        """Waits until there is a frame to compute; None when the player is closed."""
        with self._lock:
            while not self._closed:
                planned = self._playback.plan(time.perf_counter())
                if isinstance(planned, Job):
                    return planned
                if planned is None:
                    self._notify()  # nothing follows what is in the queue
                self._changed.wait(_timeout(math.inf if planned is None else planned))
            return None


def _timeout(seconds: float) -> float | None:
    """Seconds to wait as the standard library wants them: None for those without end."""
    return seconds if seconds < threading.TIMEOUT_MAX else None
