"""Loops of exported models close: the step from the last frame to the first one never stands out."""

import numpy as np
import pytest

from styleinv.runtime import Bundle, Rollout, Sessions
from styleinv.runtime.cli import main

SEEDS = [*range(8), 29, 33]  # the last two take large steps where a loop of one anchor closes


@pytest.fixture(scope="module")
def sessions(small_bundle):
    with Sessions(Bundle.open(small_bundle), threads=1) as sessions:
        yield sessions


def steps(frames):
    """How far each frame is from the one before, in levels: the mean over its pixels, [T - 1]."""
    return np.abs(np.diff(np.stack(list(frames)).astype(np.float32), axis=0)).mean(axis=(1, 2, 3))


def seam(rollout, period, speed=1.0):
    """The step back to frame 0, after `period` frames, in 99th percentiles of the steps between neighbours before."""
    times = [*rollout.times(speed=speed, count=round(period / speed)), period]
    found = steps(rollout.frames(times, batch=4))
    assert np.median(found) > 0.05  # it moves
    return float(found[-1] / np.percentile(found[:-1], 99))


def looped_seam(rollout, anchors, speed=1.0):
    return seam(rollout.loop(anchors), anchors * rollout.anchor_distance, speed)


@pytest.mark.parametrize("anchors", [1, 2, 3, 8])
def test_the_seam_is_no_larger_than_other_steps(sessions, anchors):
    found = {seed: looped_seam(Rollout(sessions, seed), anchors) for seed in SEEDS}
    worst = max(found, key=found.__getitem__)
    print(f"{anchors} anchors: the largest seam, of seed {worst}, is {found[worst]:.2f} times the 99th percentile")
    assert found[worst] <= 1


def test_the_seam_of_edited_motion(sessions):
    for edit in (
        lambda rollout: rollout.splice(99, 1, 2),
        lambda rollout: rollout.loop(2),
        lambda rollout: rollout.with_motion_of(Rollout(sessions, 98)),
    ):
        for seed in range(3):
            assert looped_seam(edit(Rollout(sessions, seed)), 4) <= 1


def test_the_seam_played_slowly(sessions):
    """A 32nd of a frame is a small step: without the loop the way back to frame 0 is a jump of many of them."""
    for seed in range(5):
        rollout = Rollout(sessions, seed)
        cut = rollout.remap(lambda t: t % 24)
        assert seam(cut, 24, speed=1 / 32) > 2
        assert looped_seam(rollout, 3, speed=1 / 32) <= 1


def test_a_loop_shows_the_clips_own_frames_up_to_its_last_anchor(sessions):
    rollout = Rollout(sessions, 5)
    looped = rollout.loop(3)
    np.testing.assert_array_equal(looped[0:17], rollout[0:17])
    np.testing.assert_array_equal(looped[24:41], rollout[0:17])
    np.testing.assert_array_equal(looped[17:24], looped[41:48])


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_seam_of_the_tiny_model(tmp_path):
    assert main(["init", "--preset", "tiny64", "--out", str(tmp_path / "tiny.safetensors")]) == 0
    assert main(["export", str(tmp_path / "tiny.safetensors"), "--out", str(tmp_path / "tiny.bundle")]) == 0
    with Sessions(Bundle.open(tmp_path / "tiny.bundle")) as sessions:
        for anchors in (1, 2, 5):
            found = [looped_seam(Rollout(sessions, seed), anchors) for seed in range(6)]
            print(f"{anchors} anchors: the largest seam is {max(found):.2f} times the 99th percentile")
            assert max(found) <= 1
