"""Frames are the caller's own, or written where the caller says."""

import itertools

import numpy as np
import pytest

from styleinv.runtime import Bundle, Rollout, Sessions

SHAPE = (16, 16, 3)


@pytest.fixture(scope="module")
def rollout(tiny):
    with Sessions(Bundle.open(tiny.path), threads=1) as sessions:
        yield Rollout(sessions, seed=3)


PLACES = {
    "its own": (SHAPE, lambda whole: whole),
    "one of a batch": ((4, *SHAPE), lambda whole: whole[2]),
    "a tile of a larger picture": ((40, 50, 3), lambda whole: whole[7:23, 11:27]),
    "colours of RGBA": ((16, 16, 4), lambda whole: whole[..., :3]),
    "BGR": (SHAPE, lambda whole: whole[..., ::-1]),
    "upside down": (SHAPE, lambda whole: whole[::-1]),
    "planes": ((3, 16, 16), lambda whole: whole.transpose(1, 2, 0)),
    "Fortran's order": ((3, 16, 16), lambda whole: whole.T.transpose(1, 0, 2)),
    "every other pixel": ((32, 32, 3), lambda whole: whole[1::2, ::2]),
}


@pytest.mark.parametrize(("shape", "part"), PLACES.values(), ids=PLACES.keys())
def test_out_may_lie_anywhere(rollout, shape, part):
    whole = np.full(shape, 77, np.uint8)
    out = part(whole)
    assert rollout.frame(40, out=out) is out
    np.testing.assert_array_equal(out, rollout[40])
    places = np.zeros(shape, bool)
    part(places)[...] = True
    assert (whole[~places] == 77).all()  # and nothing beside it was written


def test_out_is_written_over_with_each_frame(rollout):
    out = np.zeros(SHAPE, np.uint8)
    times = [5, 0, 60.5, 1000, 7]
    for batch in (1, 2, 5):
        found = []
        for frame in rollout.frames(times, batch, out=out):
            assert frame is out
            found.append(frame.copy())
        assert np.abs(np.stack(found).astype(int) - np.stack([rollout[t] for t in times])).max() <= 1
    for frame, t in zip(rollout.play(start=9, speed=-3, out=out), (9, 6, 3, 0), strict=True):
        assert frame is out
        np.testing.assert_array_equal(frame, rollout[t])


def test_out_is_written_by_edited_rollouts(rollout):
    out = np.zeros(SHAPE, np.uint8)
    looped = rollout.loop(2)
    assert looped.frame(40, out=out) is out
    np.testing.assert_array_equal(out, looped[8])


@pytest.mark.parametrize("batch", [1, 3])
def test_frames_that_are_kept_stay(rollout, batch):
    kept = [(frame, frame.copy()) for frame in rollout.frames(range(0, 90, 9), batch)]
    rollout[50], rollout[0:3]
    assert len({copy.tobytes() for _, copy in kept}) == 10
    for frame, copy in kept:
        np.testing.assert_array_equal(frame, copy)
        assert frame.flags.owndata and frame.flags.writeable and frame.flags.c_contiguous
    for (frame, _), (other, _) in itertools.combinations(kept, 2):
        assert not np.shares_memory(frame, other)


def test_what_the_caller_does_to_a_frame_changes_no_other(rollout):
    expected = [frame.tobytes() for frame in rollout.frames(range(6), 2)]
    found = []
    for frame in rollout.frames(range(6), 2):
        found.append(frame.tobytes())
        frame[...] = 0
    assert found == expected


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros((16, 16), np.uint8), r"out: found uint8 \[16, 16\], expected uint8 \[16, 16, 3\]"),
        (np.zeros((1, 16, 16, 3), np.uint8), r"out: found uint8 \[1, 16, 16, 3\]"),
        (np.zeros((16, 16, 4), np.uint8), r"out: found uint8 \[16, 16, 4\]"),
        (np.zeros((3, 16, 16), np.uint8), r"out: found uint8 \[3, 16, 16\]"),
        (np.zeros(SHAPE), r"out: found float64 \[16, 16, 3\]"),
        (np.zeros(SHAPE, np.int8), r"out: found int8 \[16, 16, 3\]"),
        (np.zeros(SHAPE, bool), r"out: found bool \[16, 16, 3\]"),
        (read_only(np.zeros(SHAPE, np.uint8)), r"out: found read-only uint8 \[16, 16, 3\], expected .* can be written"),
        (np.broadcast_to(np.uint8(0), SHAPE), "out: found read-only uint8"),
        (np.zeros(SHAPE, np.uint8).tolist(), "out: found list, expected a numpy array"),
        (bytearray(768), "out: found bytearray, expected a numpy array"),
    ],
)
def test_out_that_does_not_fit(rollout, out, message):
    for ask in (
        lambda: rollout.frame(0, out=out),
        lambda: rollout.frames([0], out=out),  # before a frame is asked for
        lambda: rollout.play(out=out),
    ):
        with pytest.raises(ValueError, match=message):
            ask()


def test_a_bad_time_leaves_out_alone(rollout):
    out = np.full(SHAPE, 77, np.uint8)
    with pytest.raises(ValueError, match="frame index: found -1"):
        rollout.frame(-1, out=out)
    assert (out == 77).all()
