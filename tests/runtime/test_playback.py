"""The rules of playing, in simulated time: nothing here waits, and every run is the same."""

import itertools
import math
import random

import numpy as np
import pytest

from styleinv.runtime.playback import Job, Playback

PERIOD = 0.04  # of 25 ticks per second


def playback(policy="every", **arguments):
    return Playback(**{
        "frame_rate": 25.0, "fps": 25.0, "lookahead": 8, "policy": policy, "start": 0, "speed": 1.0, "count": None,
        **arguments,
    })  # fmt: skip


def frame_of(job):
    return np.array([job.t])  # what is played does not matter here, only which


def fill(playing, now=0.0, seconds=0.0):
    """Computes until there is nothing to compute at this time; the frame indices computed."""
    computed = []
    while isinstance(job := playing.plan(now), Job):
        playing.put(job, frame_of(job), seconds)
        computed.append(job.t)
    return computed


def taken(playing, now=0.0):
    """The frame index shown now."""
    frame = playing.take(now)
    assert isinstance(frame, np.ndarray), f"found {frame} at {now}, expected a frame"
    return frame[0]


def simulate(playing, compute_seconds, busy_seconds, until):
    """Plays with a worker whose frames take the times of the one iterator, and a consumer that after each frame is away
    for the times of the other. Returns (time, frame index) of each frame shown before `until`."""
    shown, job, seconds, done_at = [], None, 0.0, math.inf
    now = away_until = 0.0
    while now < until:
        if now >= done_at:
            playing.put(job, frame_of(job), seconds)
            job, done_at = None, math.inf
        worker_at = done_at
        if job is None:
            planned = playing.plan(now)
            if isinstance(planned, Job):
                job, seconds = planned, next(compute_seconds)
                worker_at = done_at = now + seconds
            elif planned is not None:
                worker_at = now + planned
        consumer_at = away_until
        if now >= away_until:
            found = playing.take(now)
            if found is None:
                break
            if isinstance(found, float):
                consumer_at = now + found
            else:
                shown.append((now, found[0]))
                consumer_at = away_until = now + next(busy_seconds)
                worker_at = done_at if job else now  # the queue has room again
        assert playing.statistics().queue_depth <= 8
        now = max(math.nextafter(now, math.inf), min(worker_at, consumer_at))
    return shown


def lags(shown):
    """How many ticks each frame shown is behind the clock, which starts with the first."""
    return [math.floor((time - shown[0][0]) / PERIOD + 1e-6) - int(t) for time, t in shown]


def sometimes_away(seed):
    generator = random.Random(seed)
    return iter(lambda: generator.choice([0.0, 0.0, 0.01, 0.05, 0.1, 0.5]), None)


@pytest.mark.parametrize("policy", ["every", "latest"])
def test_an_idle_consumer_gets_every_frame_on_time(policy):
    shown = simulate(playback(policy), itertools.repeat(0.002), itertools.repeat(0.0), until=20.0)
    assert [t for _, t in shown] == list(range(len(shown))) and len(shown) == 500
    np.testing.assert_allclose([time for time, _ in shown], 0.002 + PERIOD * np.arange(500), atol=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_every_drops_nothing_and_does_not_hurry(seed):
    playing = playback()
    shown = simulate(playing, itertools.repeat(0.01), sometimes_away(seed), until=60.0)
    assert [t for _, t in shown] == list(range(len(shown))) and len(shown) > 300
    assert np.diff([time for time, _ in shown]).min() > 0.9 * PERIOD - 1e-6
    counted = playing.statistics()
    assert counted.dropped == 0 and counted.delivered == len(shown) and 0 < counted.late < len(shown)


@pytest.mark.parametrize("seed", range(10))
def test_latest_never_lags_more_than_one_frame(seed):
    playing = playback("latest")
    shown = simulate(playing, itertools.repeat(0.01), sometimes_away(seed), until=60.0)
    assert min(lags(shown)) >= 0 and max(lags(shown)) <= 1
    ts = [int(t) for _, t in shown]
    assert ts == sorted(set(ts)) and len(ts) > 300
    counted = playing.statistics()
    assert counted.dropped == ts[-1] + 1 - len(ts) > 0


def test_who_comes_back_late_gets_the_current_frame_at_once():
    away = itertools.chain([0.0, 0.0, 10.0], itertools.repeat(0.0))
    shown = simulate(playback("latest"), itertools.repeat(0.005), away, until=12.0)
    (left, _), (back, t) = shown[2:4]
    assert back == left + 10.0 and t == 252


def test_stale_frames_are_passed_over_while_another_is_being_computed():
    playing = playback("latest")
    fill(playing)
    assert taken(playing, 0.0) == 0
    assert taken(playing, 5 * PERIOD + 0.001) == 5
    assert taken(playing, 7 * PERIOD + 0.039) == 7
    taken_late = playback("latest", lookahead=2)
    fill(taken_late)
    assert taken(taken_late, 0.0) == 0
    assert taken_late.take(3 * PERIOD + 0.001) == math.inf  # 1 lags two frames behind: none is better
    assert taken_late.statistics().queue_depth == 0


@pytest.mark.parametrize("lookahead", [1, 2, 8])
@pytest.mark.parametrize("seed", range(5))
def test_latest_keeps_pace_where_computing_is_three_times_too_slow(lookahead, seed):
    generator = random.Random(seed)
    times = iter(lambda: 3 * PERIOD * generator.uniform(0.8, 1.2), None)
    shown = simulate(playback("latest", lookahead=lookahead), times, itertools.repeat(0.0), until=40.0)
    assert min(lags(shown)) >= 0 and max(lags(shown)) <= 1
    assert len(shown) > 1000 / 4
    assert np.diff([time for time, _ in shown]).max() < 9 * PERIOD


def test_every_waits_where_computing_is_three_times_too_slow():
    shown = simulate(playback(), itertools.repeat(3 * PERIOD), itertools.repeat(0.0), until=40.0)
    assert [t for _, t in shown] == list(range(333))


def test_latest_is_not_led_astray_by_one_slow_frame():
    times = itertools.chain(itertools.repeat(0.01, 100), [2.0], itertools.repeat(0.01))
    shown = simulate(playback("latest"), times, itertools.repeat(0.0), until=10.0)
    assert max(lags(shown)) <= 1
    gaps = np.diff([time for time, _ in shown])
    assert gaps.max() < 2.0 + 2 * PERIOD and (gaps > 1.5 * PERIOD).sum() == 1


def test_latest_adapts_where_frames_become_slower():
    times = itertools.chain(itertools.repeat(0.01, 50), itertools.repeat(1.0))
    shown = simulate(playback("latest"), times, itertools.repeat(0.0), until=60.0)
    assert max(lags(shown)) <= 1
    assert sum(time > 10 for time, _ in shown) >= 47  # of the 50 that a second each leaves room for
    assert shown[-1][0] > 58


def test_frames_for_a_faster_consumer_lie_closer():
    playing = playback(fps=50.0, start=10, speed=0.5)
    fill(playing)
    assert [taken(playing, n / 50) for n in range(5)] == [10, 10.25, 10.5, 10.75, 11]
    whole = playback(fps=12.5)
    assert all(type(t) is int for t in fill(whole))  # exact, however far


def test_the_queue_is_bounded():
    playing = playback(lookahead=3)
    assert fill(playing) == [0, 1, 2] and playing.plan(0.0) == math.inf
    taken(playing)
    assert fill(playing) == [3]


def test_a_pause_stops_the_clock():
    for policy in ("every", "latest"):
        playing = playback(policy)
        fill(playing)
        assert taken(playing, 0.0) == 0
        playing.pause(0.03)
        playing.pause(0.05)  # paused it is
        assert playing.paused and playing.take(5.0) == math.inf and playing.position == 0
        fill(playing, 5.0)
        playing.resume(100.03)
        playing.resume(200.0)
        assert not playing.paused
        assert playing.take(100.03) == pytest.approx(0.01)
        assert taken(playing, 100.041) == 1
        assert playing.statistics().fps == 0  # of one frame since


def test_a_jump_throws_away_what_was_computed_for_before():
    for policy in ("every", "latest"):
        playing = playback(policy)
        fill(playing)
        assert taken(playing, 0.0) == 0
        fill(playing)
        taken(playing, 0.05)
        before = playing.plan(0.05)
        assert isinstance(before, Job)
        playing.seek(1000.5)
        playing.put(before, frame_of(before), 0.001)  # it was being computed meanwhile
        assert playing.take(0.06) == math.inf and playing.statistics().queue_depth == 0
        fill(playing, 0.06)
        assert taken(playing, 3.0) == 1000.5  # due at once, whenever that is, and the clock starts with it
        assert playing.take(3.0) == pytest.approx(PERIOD)
        assert taken(playing, 3.041) == 1001.5


def test_a_new_speed_decides_on_the_next_frame():
    for policy in ("every", "latest"):
        playing = playback(policy)
        fill(playing)
        assert [taken(playing, n * PERIOD + 0.001) for n in range(3)] == [0, 1, 2]
        before = playing.plan(0.09)
        playing.set_speed(2.5, 0.09)
        assert playing.speed == 2.5
        playing.put(before, frame_of(before), 0.001)
        fill(playing, 0.09)
        assert playing.take(0.09) == pytest.approx(0.03, abs=0.002)  # the pace goes on
        assert [taken(playing, n * PERIOD + 0.002) for n in (3, 4)] == [4.5, 7]
        playing.set_speed(-1, 0.165)
        fill(playing, 0.165)
        assert [taken(playing, n * PERIOD + 0.003) for n in (5, 6)] == [6, 5]


def test_a_speed_set_before_the_first_frame_keeps_its_start():
    playing = playback(start=5)
    fill(playing)
    playing.set_speed(3, 0.0)
    fill(playing)
    assert [taken(playing, time) for time in (1.0, 1.041)] == [5, 8]


def test_latest_turns_where_the_clock_is_not_where_the_consumer_was():
    playing = playback("latest")
    fill(playing)
    taken(playing, 0.0)
    playing.set_speed(-1, 100 * PERIOD + 0.01)  # nobody looked for 100 ticks
    fill(playing, 100 * PERIOD + 0.01)
    assert taken(playing, 101 * PERIOD + 0.001) == 99


@pytest.mark.parametrize("policy", ["every", "latest"])
def test_playing_backwards_ends_at_the_beginning_and_can_turn(policy):
    playing = playback(policy, start=5, speed=-2)
    assert fill(playing) == [5, 3, 1]
    assert not playing.ended
    assert [taken(playing, n * PERIOD + 0.001) for n in range(3)] == [5, 3, 1]
    assert playing.take(0.1) is None and playing.ended
    now = 4.0 if policy == "latest" else 0.1
    playing.set_speed(2, now)
    assert not playing.ended
    fill(playing, now)
    assert taken(playing, now + PERIOD) == (2 if policy == "latest" else 3)


@pytest.mark.parametrize("policy", ["every", "latest"])
def test_count_ends_playing(policy):
    shown = simulate(playback(policy, count=30), itertools.repeat(0.002), itertools.repeat(0.0), until=10.0)
    assert [t for _, t in shown] == list(range(30))
    away = itertools.chain([0.0, 0.5], itertools.repeat(0.0))
    shown = simulate(playback(policy, count=30), itertools.repeat(0.002), away, until=10.0)
    assert len(shown) == (30 if policy == "every" else 19) and shown[-1][1] == 29
    nothing = playback(policy, count=0)
    assert nothing.plan(0.0) is None and nothing.take(0.0) is None


def test_an_error_comes_after_the_frames_before_it_and_a_jump_forgets_it():
    playing = playback(lookahead=2)
    fill(playing)
    taken(playing, 0.0)
    error = RuntimeError("no more")
    playing.fail(playing.plan(0.0), error)
    assert playing.plan(0.0) == math.inf
    assert taken(playing, PERIOD + 0.001) == 1
    for _ in range(3):
        with pytest.raises(RuntimeError) as raised:
            playing.take(0.1)
        assert raised.value is error and len(raised.traceback) == 2
    assert not playing.ended
    playing.seek(0)
    fill(playing)
    assert taken(playing, 0.2) == 0
    playing.set_speed(2, 0.2)
    stale = playing.plan(0.2)
    playing.seek(7)
    playing.fail(stale, error)  # what nobody waits for may fail
    fill(playing, 0.2)
    assert taken(playing, 0.3) == 7


def test_statistics():
    playing = playback(lookahead=4)
    empty = playing.statistics()
    assert (empty.delivered, empty.fps, empty.queue_depth) == (0, 0, 0) and math.isnan(empty.lateness.p50)
    fill(playing, seconds=0.003)
    lateness = [0.0, 0.001, 0.02, 0.0]  # the third is late, and what follows is due later
    for n, seconds in enumerate(lateness):
        taken(playing, n * PERIOD + seconds + (0.02 if n > 2 else 0.0) + 1e-9)
    found = playing.statistics()
    assert (found.delivered, found.late, found.dropped, found.computed, found.queue_depth) == (4, 1, 0, 4, 0)
    np.testing.assert_allclose(found.lateness_seconds, lateness, atol=1e-6)
    assert found.compute_seconds == (0.003,) * 4 and found.compute == (0.003,) * 3
    assert found.lateness.p99 == pytest.approx(np.percentile(lateness, 99), abs=1e-6)
    assert found.fps == pytest.approx(3 / (3 * PERIOD + 0.02))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"fps": 0}, ValueError, "fps: found 0"),
        ({"fps": -25}, ValueError, "fps: found -25"),
        ({"fps": math.nan}, ValueError, "fps: found nan"),
        ({"fps": math.inf}, ValueError, "fps: found inf"),
        ({"lookahead": 0}, ValueError, "lookahead: found 0, expected at least 1"),
        ({"policy": "newest"}, ValueError, "policy: found 'newest', expected one of every, latest"),
        ({"speed": 0}, ValueError, "speed: found 0, expected a finite number other than 0"),
        ({"speed": math.nan}, ValueError, "speed: found nan"),
        ({"speed": -math.inf}, ValueError, "speed: found -inf"),
        ({"start": -1}, ValueError, "start: found -1"),
        ({"start": "0"}, TypeError, "start: found '0'"),
        ({"count": -1}, ValueError, "count: found -1"),
    ],
)
def test_arguments_out_of_range(arguments, error, message):
    with pytest.raises(error, match=message):
        playback(**arguments)


def test_bad_jumps_and_speeds_change_nothing():
    playing = playback()
    fill(playing)
    taken(playing, 0.0)
    for t in (-1, math.nan):
        with pytest.raises(ValueError, match="seek: found"):
            playing.seek(t)
    for speed in (0, math.nan):
        with pytest.raises(ValueError, match="speed: found"):
            playing.set_speed(speed, 0.0)
    assert playing.speed == 1.0 and taken(playing, PERIOD + 0.001) == 1
