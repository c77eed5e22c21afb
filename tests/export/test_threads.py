"""Several rollouts of one bundle, each played by a thread of its own, at the same time."""

import itertools
import threading

import numpy as np
import pytest

from styleinv.runtime import Bundle, Rollout, Sessions

SEEDS = range(4)
TIMES = [0, 1, 2, 3.5, 100, 101, 10**6, 7, 8, 9]


@pytest.fixture(scope="module")
def alone(small_bundle):
    """The frames of each clip, played by themselves, one clip after the other."""
    with Sessions(Bundle.open(small_bundle)) as sessions:
        return [np.stack(list(Rollout(sessions, seed).frames(TIMES))) for seed in SEEDS]


@pytest.mark.parametrize("shared", [True, False], ids=["shared sessions", "sessions of their own"])
def test_four_threads_on_four_rollouts(small_bundle, alone, shared):
    bundle = Bundle.open(small_bundle)
    opened = [Sessions(bundle) for _ in range(1 if shared else len(SEEDS))]
    start, found = threading.Barrier(len(SEEDS)), {}

    def play(seed, sessions):
        rollout = Rollout(sessions, seed)
        start.wait()
        found[seed] = [np.stack(list(rollout.frames(TIMES))) for _ in range(5)]

    threads = [threading.Thread(target=play, args=pair) for pair in zip(SEEDS, itertools.cycle(opened), strict=False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for sessions in opened:
        sessions.close()
    for seed in SEEDS:
        for frames in found[seed]:
            np.testing.assert_array_equal(frames, alone[seed])
