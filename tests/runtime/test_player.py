"""The player's threads and waiting. What is due when is tested in simulated time, in test_playback.py."""

import contextlib
import itertools
import random
import threading
import time

import numpy as np
import pytest
from fake_clip import FAST, LONG, FakeClip, got, started, t_of, wait_until

from styleinv.runtime import Bundle, BundleError, Player, Rollout, Sessions

pytestmark = pytest.mark.usefixtures("no_player_is_left")


@pytest.fixture(scope="module")
def rollout(tiny):
    with Rollout.open(tiny.path, 3, threads=1) as rollout:
        yield rollout


@pytest.mark.parametrize(
    ("fps", "start", "speed"), [(25, 0, 1), (30, 1000.5, 0.7), (1000, 3, 2.5), (24, 10**9 + 0.25, 0.1)]
)
def test_a_player_plays_what_a_rollout_plays(rollout, fps, start, speed):
    with Player(rollout, fps, start=start, speed=speed, count=6) as player:
        frames = [frame.copy() for frame in player]
        assert player.position == list(rollout.times(fps, start, speed, 6))[-1]
    assert len(frames) == 6
    for found, expected in zip(frames, rollout.play(fps, start, speed, 6), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_an_image_model_has_one_picture(make_bundle, tmp_path):
    path = make_bundle(tmp_path / "image.bundle", kind="image").path
    with Rollout.open(path, threads=1) as rollout, Player(rollout) as player:
        assert next(player).shape == (16, 16, 3)
        with pytest.raises(BundleError, match="plays single pictures"):
            next(player)


def test_no_frame_comes_before_it_is_due():
    with Player(FakeClip(), fps=100) as player:
        begin = time.perf_counter()  # before the clock starts
        for n in range(21):
            assert player.get(timeout=LONG) is not None
            assert time.perf_counter() >= begin + n / 100
        assert player.statistics.delivered == 21


def play_with_a_sleeping_consumer(policy, seed, seconds_to_compute=0.0):
    """Plays two seconds at 100 frames per second, so that t counts ticks; the consumer sleeps at random. Returns the
    ticks, how many of them each was behind the clock at least, and the statistics."""
    clip = FakeClip(seconds_to_compute, frame_rate=100.0)
    generator = random.Random(seed)
    ticks, lags = [], []
    with Player(clip, fps=100, policy=policy) as player:
        ticks.append(t_of(next(player)))
        first = time.perf_counter()
        while (before := time.perf_counter()) < first + 2.0:
            ticks.append(t_of(next(player)))
            lags.append(np.floor((before - first) * 100) - ticks[-1])
            time.sleep(generator.choice([0.0, 0.0, 0.0, 0.004, 0.03, 0.2]))
        return ticks, lags, player.statistics


def test_latest_with_a_consumer_that_sleeps_at_random():
    ticks, lags, counted = play_with_a_sleeping_consumer("latest", seed=1)
    assert max(lags) <= 1
    assert ticks == sorted(set(ticks))
    assert counted.dropped == ticks[-1] + 1 - len(ticks) > 0
    assert max(counted.lateness_seconds) < 2 / 100


def test_every_with_a_consumer_that_sleeps_at_random():
    ticks, _, counted = play_with_a_sleeping_consumer("every", seed=2)
    assert ticks == list(range(len(ticks)))
    assert counted.dropped == 0 and counted.late > 0 and counted.delivered == len(ticks)


def test_latest_with_a_slow_producer():
    ticks, lags, counted = play_with_a_sleeping_consumer("latest", seed=3, seconds_to_compute=0.03)
    assert max(lags) <= 1
    assert len(ticks) >= 5  # it goes on delivering; with the machine for itself, it is about 30
    assert counted.compute.p50 >= 0.03


def test_a_consumer_that_comes_back_finds_a_current_frame_waiting():
    clip = FakeClip(frame_rate=100.0)
    with Player(clip, fps=100, policy="latest") as player:
        next(player)
        first = time.perf_counter()
        wait_until(lambda: len(clip.computed) > 100)  # without anyone taking any: stale ones make room
        before = time.perf_counter()
        assert t_of(player.get(timeout=LONG)) >= np.floor((before - first) * 100) - 1


def test_every_computes_as_many_ahead_as_asked():
    clip = FakeClip()
    with Player(clip, fps=FAST, lookahead=3) as player:
        for taken in (0, 1, 2):
            wait_until(lambda: player.statistics.queue_depth == 3)
            assert len(clip.computed) == 3 + taken
            next(player)


def test_poll_waits_for_nothing():
    clip = FakeClip(gated=True)
    with Player(clip, fps=0.01) as player:
        assert player.poll() is None  # nothing is computed
        clip.permit.release()
        wait_until(lambda: player.statistics.queue_depth == 1)
        assert t_of(player.poll()) == 0
        clip.permit.release(20)
        wait_until(lambda: player.statistics.queue_depth == 8)
        assert player.poll() is None  # the next is due in 100 seconds
        with pytest.raises(TimeoutError, match=r"found no frame due within 0\.02 seconds"):
            player.get(timeout=0.02)
        assert not player.ended


def test_pause_and_resume_from_another_thread():
    played = []
    with Player(FakeClip(), fps=FAST) as player:
        consumer = started(lambda: played.extend(map(t_of, player)))
        wait_until(lambda: len(played) > 10)
        player.pause()
        assert player.paused and player.poll() is None
        with pytest.raises(TimeoutError):
            player.get(timeout=0.05)  # 50 frames would have been due
        position = player.position
        wait_until(lambda: played[-1] == position)
        player.resume()
        wait_until(lambda: len(played) > position + 10)
        assert not player.paused
    consumer.join(LONG)
    assert played == list(range(len(played)))


@contextlib.contextmanager
def computing():
    """A player that has handed out t = 0, while t = 3 is being computed, and 1 and 2 wait in the queue."""
    clip = FakeClip(gated=True)
    with Player(clip, fps=FAST) as player:
        clip.permit.release(3)
        for _ in range(4):
            assert clip.asked.acquire(timeout=LONG)
        assert got(player, 1) == [0]
        yield clip, player


def test_seek_while_a_frame_is_computed():
    with computing() as (clip, player):
        player.seek(500.5)
        clip.permit.release(100)
        assert got(player, 3) == [500.5, 501.5, 502.5]


def test_speed_while_a_frame_is_computed():
    with computing() as (clip, player):
        player.speed = 10
        assert player.speed == 10
        clip.permit.release(100)
        assert got(player, 3) == [10, 20, 30]
        player.speed = -15
        assert got(player, 3) == [15, 0] and player.ended


def test_seeking_and_changing_speed_while_another_thread_plays():
    """After each change by the one thread, what the other gets follows from the change alone."""
    played = []
    generator = random.Random(4)
    with Player(FakeClip(), fps=FAST) as player:
        consumer = started(lambda: played.extend(map(t_of, player)))
        for jump in range(1, 101):
            player.seek(jump * 10**6)
            wait_until(lambda start=jump * 10**6: player.position >= start + generator.randrange(3))
            player.speed = 1 + jump % 3
    consumer.join(LONG)
    for before, after in itertools.pairwise(played):
        assert after - before in (1, 2, 3) or (after % 10**6 == 0 and after // 10**6 == before // 10**6 + 1)
    assert played[-1] >= 10**8


def test_close_wakes_a_blocked_consumer_and_ends_with_the_frame_being_computed():
    clip, ended = FakeClip(gated=True), threading.Event()
    player = Player(clip, fps=FAST)
    assert clip.asked.acquire(timeout=LONG)
    consumer = started(lambda: (list(player), ended.set()))
    closing = started(player.close)
    assert ended.wait(LONG)  # at once, although the frame is not done
    consumer.join(LONG)
    assert closing.is_alive()
    clip.permit.release()
    closing.join(LONG)
    assert not closing.is_alive() and clip.computed == [0]
    assert player.ended and player.poll() is None and player.get() is None and list(player) == []
    player.close()


@pytest.mark.parametrize("policy", ["every", "latest"])
def test_close_takes_less_than_100_milliseconds(policy):
    def seconds_to_close():
        with Player(FakeClip(), fps=1, policy=policy) as player:
            next(player)
            wait_until(lambda: player.statistics.queue_depth == 8)
            begin = time.perf_counter()
            player.close()
            return time.perf_counter() - begin

    assert min(seconds_to_close() for _ in range(5)) < 0.1  # the least: others use this machine, too


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_an_exception_surfaces_in_the_consumer(kind):
    error = kind("no more frames")
    with Player(FakeClip(fails={3: error}), fps=FAST) as player:
        assert got(player, 3) == [0, 1, 2]
        depths = []
        for look in (player.get, player.poll, player.__next__, player.get, player.poll):
            with pytest.raises(kind) as raised:
                look()
            assert raised.value is error
            depths.append(len(raised.traceback))
        assert depths[:2] == depths[3:]  # raising it again makes it no longer
        player.seek(4)
        assert got(player, 2) == [4, 5]


def test_an_exception_wakes_a_consumer_that_waits():
    clip = FakeClip(gated=True, fails={0: ValueError("no first frame")})
    with Player(clip) as player:
        assert clip.asked.acquire(timeout=LONG)
        raised = []

        def consume():
            try:
                next(player)
            except ValueError as error:
                raised.append(error)

        consumer = started(consume)
        clip.permit.release()
        consumer.join(LONG)
        assert raised == [clip.fails[0]]


def test_bad_arguments_start_no_thread():
    for arguments in ({"fps": 0}, {"lookahead": 0}, {"policy": "newest"}, {"speed": float("nan")}, {"start": -1}):
        with pytest.raises(ValueError, match="found"):
            Player(FakeClip(), **arguments)


def test_the_end_wakes_a_consumer_that_waits():
    for _ in range(20):
        with Player(FakeClip(), fps=FAST, lookahead=1, count=2) as player:
            assert got(player, 3) == [0, 1]


def test_players_share_sessions(tiny):
    with Sessions(Bundle.open(tiny.path), threads=1) as sessions:
        rollouts = [Rollout(sessions, seed) for seed in (1, 2)]
        with Player(rollouts[0], fps=FAST, count=3) as one, Player(rollouts[1], fps=FAST, count=3) as other:
            frames = list(one), list(other)
        for rollout, played in zip(rollouts, frames, strict=True):
            for found, expected in zip(played, rollout.play(FAST, count=3), strict=True):
                np.testing.assert_array_equal(found, expected)
