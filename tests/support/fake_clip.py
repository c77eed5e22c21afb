"""What the tests of the player share: a clip whose pace the test decides, and waiting that cannot go on for ever."""

import itertools
import threading
import time
from types import SimpleNamespace

import numpy as np

from styleinv.runtime.frames import Frame

FAST = 1000.0  # frames per second, where the pace does not matter; of the clips, too, so that steps are 1
LONG = 60.0  # seconds, within which everything happens that happens at all


class FakeClip:
    """A clip whose frames say their t. Where it is `gated`, computing a frame waits for a `permit` each."""

    def __init__(self, seconds=0.0, gated=False, fails=None, frame_rate=FAST):
        self.bundle = SimpleNamespace(frame_rate=frame_rate)
        self.seconds, self.gated = seconds, gated
        self.fails = fails or {}  # t: the exception it raises
        self.permit, self.asked = threading.Semaphore(0), threading.Semaphore(0)
        self.computed = []

    def __getitem__(self, t) -> Frame:
        self.asked.release()
        if self.gated:
            assert self.permit.acquire(timeout=LONG)
        time.sleep(self.seconds)
        if t in self.fails:
            raise self.fails[t]
        self.computed.append(t)
        frame = np.zeros((1, 3, 3), np.uint8)
        frame.reshape(-1)[:8] = np.frombuffer(np.float64(t).tobytes(), np.uint8)
        return frame


def t_of(frame):
    return float(np.frombuffer(frame.tobytes()[:8])[0])


def got(player, count):
    return [t_of(frame) for frame in itertools.islice(player, count)]


def wait_until(holds):
    deadline = time.perf_counter() + LONG
    while not holds():
        assert time.perf_counter() < deadline
        time.sleep(0.001)


def started(target):
    thread = threading.Thread(target=target)
    thread.start()
    return thread
