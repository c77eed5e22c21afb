"""Which frame indices a slice and `play` stand for, forwards and backwards, and that their frames are those of `t`."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from styleinv.runtime import Bundle, Rollout, Sessions
from styleinv.runtime.frame_times import batches, playing_times, slice_times


@pytest.fixture(scope="module")
def rollout(tiny):
    with Sessions(Bundle.open(tiny.path), threads=1) as sessions:
        yield Rollout(sessions, seed=3)


@pytest.mark.parametrize(
    ("span", "times"),
    [
        (slice(2, 10, 2), [2, 4, 6, 8]),
        (slice(None, 3), [0, 1, 2]),
        (slice(1, 2, 0.25), [1, 1.25, 1.5, 1.75]),
        (slice(0.5, 3), [0.5, 1.5, 2.5]),
        (slice(np.int64(1), np.float32(4), np.uint8(2)), [1, 3]),
        (slice(5, 5), []),
        (slice(9, 5), []),
        (slice(5, 1, -2), [5, 3]),
        (slice(3, None, -1), [3, 2, 1, 0]),
        (slice(2.5, None, -1), [2.5, 1.5, 0.5]),
        (slice(1, 0, -0.25), [1, 0.75, 0.5, 0.25]),
        (slice(4, 4, -1), []),
        (slice(1, 5, -1), []),
    ],
)
def test_slices(rollout, span, times):
    frames = rollout[span]
    assert slice_times(span) == times
    assert frames.shape == (len(times), 16, 16, 3) and frames.dtype == np.uint8
    assert frames.flags.c_contiguous and frames.flags.owndata
    for frame, t in zip(frames, times, strict=True):
        np.testing.assert_array_equal(frame, rollout[t])


def test_slices_of_integers_stay_exact():
    times = slice_times(slice(10**15 + 1, 10**15 + 5, 2))
    assert times == [10**15 + 1, 10**15 + 3] and all(type(t) is int for t in times)


@pytest.mark.parametrize(
    ("span", "count"),
    [(slice(0, 1.1, 0.1), 11), (slice(2.0, 2.6, 0.1), 6), (slice(4.5, 3.3, -0.1), 12), (slice(3.9, None, -0.1), 39)],
)
def test_slices_whose_steps_are_rounded(rollout, span, count):
    """The quotient of length and step says that one more fits: it would be the stop itself, or below 0."""
    assert len(rollout[span]) == count
    assert span.stop not in slice_times(span)


TENTHS = st.integers(0, 80).map(lambda n: n / 10)
STEPS = st.integers(1, 30).map(lambda n: n / 10) | st.floats(0.05, 3.0)


@given(TENTHS, TENTHS | st.none(), STEPS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_slices_hold_all_that_is_before_the_stop(start, stop, size, backwards):
    step = -size if backwards else size
    if stop is None and not backwards:
        stop = 8.0
    times = slice_times(slice(start, stop, step))
    following = start + len(times) * step

    def is_inside(t):
        return t >= 0 if stop is None else t > stop if backwards else t < stop

    assert times == [start + n * step for n in range(len(times))]
    assert all(map(is_inside, times)) and not is_inside(following)


@pytest.mark.parametrize(
    ("span", "message"),
    [
        (slice(3, None), "slice: found no stop"),
        (slice(-1, 3), "slice start: found -1"),
        (slice(0, -1), "slice stop: found -1"),
        (slice(0, math.inf), "slice stop: found inf"),
        (slice(math.nan, 3), "slice start: found nan"),
        (slice(0, 3, 0), "slice: found step 0"),
        (slice(0, 3, math.nan), "slice step: found nan"),
        (slice(None, 0, -1), "slice: found no start"),
        (slice(3, -1, -1), "slice stop: found -1"),
        (slice(3, 0, -math.inf), "slice step: found inf"),
    ],
)
def test_bad_slices(rollout, span, message):
    with pytest.raises(ValueError, match=message):
        rollout[span]


@pytest.mark.parametrize("span", [slice(False, 3), slice(0, True), slice(0, 3, True), slice("", 3), slice(0, "3")])
def test_slices_of_wrong_type(rollout, span):
    with pytest.raises(TypeError, match=r"slice (start|stop|step): found .*, expected a real number"):
        rollout[span]


def times_of(rollout, count=5, **arguments):
    return list(itertools.islice(rollout.times(**arguments), count))


def test_times_of_play(rollout):
    assert times_of(rollout) == [0, 1, 2, 3, 4]
    assert times_of(rollout, fps=50, start=3) == [3, 3.5, 4, 4.5, 5]
    assert times_of(rollout, 20, speed=0.1) == [n * 0.1 for n in range(20)]  # not 0.1 + 0.1 + ...
    assert list(rollout.times(fps=12.5, speed=2, count=3)) == [0, 4, 8]
    far = times_of(rollout, start=10**12)
    assert far == [10**12 + n for n in range(5)] and all(type(t) is int for t in far)


def test_times_of_play_backwards(rollout):
    assert list(rollout.times(start=3, speed=-1)) == [3, 2, 1, 0]
    assert list(rollout.times(start=2.5, speed=-1)) == [2.5, 1.5, 0.5]
    assert list(rollout.times(fps=50, start=1, speed=-0.5)) == [1, 0.75, 0.5, 0.25, 0]
    assert list(rollout.times(speed=-3)) == [0]
    assert list(rollout.times(start=10**12, speed=-2, count=2)) == [10**12, 10**12 - 2]
    assert list(rollout.times(start=2, speed=-1, count=9)) == [2, 1, 0]


def test_times_of_play_take_numpy(rollout):
    found = times_of(rollout, fps=np.float32(50), start=np.uint8(250), speed=np.int64(2), count=9)
    assert found == list(range(250, 259))  # not modulo 256
    for arguments in ({"fps": np.float32(40)}, {"speed": np.float32(0.625)}):
        assert times_of(rollout, start=10**9, **arguments) == [10**9 + 0.625 * n for n in range(5)]  # not in float32


def test_play(rollout):
    for arguments, times in [
        ({"fps": 50, "start": 2, "speed": 0.5, "count": 4}, (2, 2.25, 2.5, 2.75)),
        ({"start": 40, "speed": -16}, (40, 24, 8)),
    ]:
        for frame, t in zip(rollout.play(**arguments), times, strict=True):
            np.testing.assert_array_equal(frame, rollout[t])
    assert len(list(itertools.islice(rollout.play(), 30))) == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fps": 0}, "fps: found 0"),
        ({"fps": -25}, "fps: found -25"),
        ({"fps": math.nan}, "fps: found nan"),
        ({"speed": 0}, "speed: found 0"),
        ({"speed": math.nan}, "speed: found nan"),
        ({"speed": -math.inf}, "speed: found -inf"),
        ({"start": -1}, "start: found -1"),
        ({"count": -1}, "count: found -1, expected at least 0"),
        ({"start": math.nan}, "start: found nan"),
    ],
)
def test_bad_play(rollout, arguments, message):
    with pytest.raises(ValueError, match=message):  # before the first frame is asked for
        rollout.play(**arguments)


def test_playing_knows_the_bundles_frame_rate():
    assert list(playing_times(25.0, 30, 0, 1.0, 3)) == [0, 25 / 30, 2 * (25 / 30)]
    assert list(playing_times(30000 / 1001, None, 0, 1.0, 3)) == [0, 1, 2]


def test_batches_are_filled_up():
    assert list(batches([7, 8, 9, 1, 2], 2)) == [([7, 8], 2), ([9, 1], 2), ([2, 2], 1)]
    assert list(batches([], 3)) == []
    assert next(batches(itertools.count(), 3)) == ([0, 1, 2], 3)
