"""A player in real time on real rollouts: each policy for five minutes (`make soak`), and for a few seconds."""

import math
import random
import time
from itertools import pairwise

import numpy as np
import pytest

from styleinv.runtime import Player, Rollout
from styleinv.runtime.cli import main

FPS = 25.0


def watch(rollout, policy, seconds, nap):
    """Plays with a consumer that sleeps for nap() after each frame, holding the policy to its guarantees; returns the
    statistics."""
    ticks, kept = [], {}
    with Player(rollout, FPS, policy=policy) as player:
        next(player)
        begin = time.perf_counter()  # the clock runs since then at the latest
        ticks.append(player.position)
        while (before := time.perf_counter()) < begin + seconds:
            frame = next(player)
            ticks.append(player.position)
            if policy == "latest":
                assert math.floor((before - begin) * FPS) - ticks[-1] <= 1
            assert player.statistics.queue_depth <= 8
            if len(ticks) % 100 == 0:
                kept[ticks[-1]] = frame
            time.sleep(nap())
        counted = player.statistics
    steps = [after - before for before, after in pairwise(ticks)]
    assert min(steps) >= 1 and len(ticks) == counted.delivered
    assert counted.dropped == ticks[-1] + 1 - len(ticks)
    if policy == "every":
        assert max(steps) == 1
    else:
        assert max(counted.lateness_seconds) < 2 / FPS
    for t, frame in kept.items():
        np.testing.assert_array_equal(frame, rollout[t])
    return counted


def sleepy(seed):
    generator = random.Random(seed)
    return lambda: generator.choice([0.0, 0.0, 0.0, 0.01, 0.03, 0.05, 0.1, 0.3])


@pytest.mark.parametrize("policy", ["every", "latest"])
def test_guarantees_for_a_few_seconds(tiny, policy):
    with Rollout.open(tiny.path, seed=1, threads=1) as rollout:
        assert watch(rollout, policy, 3.0, sleepy(1)).late > 0


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_five_minutes_of_the_tiny_model(tmp_path):
    main(["init", "--preset", "tiny64", "--out", str(tmp_path / "tiny.safetensors")])
    main(["export", str(tmp_path / "tiny.safetensors"), "--out", str(tmp_path / "tiny.bundle")])
    idle_p99 = {}
    with Rollout.open(tmp_path / "tiny.bundle", seed=1) as rollout:
        for policy in ("every", "latest"):
            for consumer, nap in (("asleep at random", sleepy(2)), ("idle", lambda: 0.0)):
                counted = watch(rollout, policy, 150.0, nap)
                print(
                    f"{policy}, consumer {consumer}: {counted.delivered} frames, {counted.late} late, "
                    f"{counted.dropped} dropped, {counted.fps:.2f} frames/s, milliseconds p50 / p95 / p99: computing "
                    f"{in_milliseconds(counted.compute)}, lateness {in_milliseconds(counted.lateness)}"
                )
                if consumer == "idle":
                    idle_p99[policy] = counted.lateness.p99
    assert max(idle_p99.values()) < 0.004


def in_milliseconds(percentiles):
    return " / ".join(f"{1000 * seconds:.2f}" for seconds in percentiles)
