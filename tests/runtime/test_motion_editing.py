"""Edited motion: spliced, looped, mapped and mixed rollouts show what the rollouts that they are made of show."""

import gc
import hashlib
import itertools
import math
import subprocess
import sys
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

from styleinv.runtime import Bundle, BundleError, EngineError, Rollout, Sessions
from styleinv.runtime.motion import MotionCodes
from styleinv.runtime.motion_editing import LoopedMotion, SplicedMotion

D = 16  # anchor_distance of the tiny bundle
TIMES = [0, 1, 2.5, D - 0.25, D, 2 * D + 3, 5 * D, 7.5 * D, 1000.5, 10**9 + 1]

EDITS = {
    "splice": lambda rollout: rollout.splice(9, 2, 2),
    "splice at once": lambda rollout: rollout.splice(9, 0),
    "loop": lambda rollout: rollout.loop(3),
    "loop of one": lambda rollout: rollout.loop(1),
    "splice of splice": lambda rollout: rollout.splice(9, 2, 2).splice(8, 3, 3),
    "splice back": lambda rollout: rollout.splice(9, 1).splice(3, 5),
    "loop of splice": lambda rollout: rollout.splice(9, 1, 2).loop(6),
    "loop of loop": lambda rollout: rollout.loop(2).loop(5),
    "splice of loop": lambda rollout: rollout.loop(2).splice(9, 5, 2),
    "all": lambda rollout: rollout.splice(9, 1).loop(4).splice(8, 9).remap(lambda t: 1.5 * t).loop(12),
}
each_edit = pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())


@pytest.fixture(scope="module")
def sessions(styled):
    with Sessions(Bundle.open(styled.path), threads=1) as sessions:
        yield sessions


@pytest.fixture(scope="module")
def rollout(sessions):
    return Rollout(sessions, seed=3)


@pytest.fixture(scope="module")
def other(sessions):
    return Rollout(sessions, seed=3, motion_seed=9)


def shown(rollout, ts):
    return [rollout[t].tobytes() + rollout.latents([t]).tobytes() for t in ts]


@pytest.mark.parametrize(("anchor", "fade"), [(0, 1), (1, 1), (3, 1), (3, 2), (2, 5), (1000, 3)])
def test_a_splice_is_one_clip_then_the_other(rollout, other, anchor, fade):
    spliced = rollout.splice(9, anchor, fade)
    begin, end = anchor * D, (anchor + fade) * D
    before = [t for t in (0, 0.5, begin - 17, begin - 1, begin - 0.125, begin) if 0 <= t <= begin]
    after = [end, end + 0.125, end + 1, end + 100, 10**9 + 0.5]
    assert shown(spliced, before) == shown(rollout, before)
    assert shown(spliced, after) == shown(other, after)
    for t in (begin + 0.5, (begin + end) / 2, end - 0.5):
        assert shown(spliced, [t]) != shown(rollout, [t])
        if (anchor, fade) != (0, 1):  # every motion has the same code at anchor 0, so there nothing is to be mixed
            assert shown(spliced, [t]) != shown(other, [t])


def test_a_fade_mixes_evenly(sessions):
    first, second = (MotionCodes(sessions.motion_network(), seed) for seed in (3, 9))
    spliced = SplicedMotion(first, second, anchor=2, fade=4)
    for anchor in range(9):
        mixed, begin, end = (motion.code(anchor) for motion in (spliced, first, second))
        share = min(max((anchor - 2) / 4, 0), 1)
        np.testing.assert_allclose(mixed, (1 - share) * begin + share * end, rtol=1e-14, atol=1e-15)


@each_edit
def test_time_codes_do_not_jump(rollout, edit):
    """Neither at anchors nor at seams; 1e-9 frames make some 1e-9."""
    motion = edit(rollout)._timeline.motion
    for anchor in range(1, 26):
        before, at, after = (motion.time_code(anchor * D + step) for step in (-1e-9, 0, 1e-9))
        np.testing.assert_allclose(before, at, rtol=0, atol=1e-7)
        np.testing.assert_allclose(after, at, rtol=0, atol=1e-7)


def test_a_loop_moves_smoothly_to_its_seam(sessions):
    """Where the waves begin to be calmed, nothing jumps: no wave turns by more than 2 * 2 pi / 8 a frame."""
    looped = LoopedMotion(MotionCodes(sessions.motion_network(), 3), 2)
    codes = np.stack([looped.time_code(t) for t in np.arange(D, 2 * D + 1, 1 / 256)])
    assert np.abs(np.diff(codes, axis=0)).max() < 4 / 256
    assert np.abs(np.diff(codes[::256], axis=0)).max() > 0.5  # it does move


@pytest.mark.parametrize("anchors", [1, 2, 3, 7])
@pytest.mark.parametrize("stride", [1, 4])
def test_a_loop_repeats(sessions, anchors, stride):
    looped = Rollout(sessions, 3, latent_stride=stride).loop(anchors)
    period = anchors * D
    times = [0, 0.5, 1, D - 1, D - 0.125, period - 3.5, period - 1, period - 0.125]
    first_round = shown(looped, times)
    for number in (1, 2, 10**6):
        assert shown(looped, [t + number * period for t in times]) == first_round
    assert len(set(first_round)) == len(set(times))


@pytest.mark.parametrize("anchors", [1, 2, 3, 7])
def test_a_loop_has_the_first_codes_of_its_motion(sessions, anchors):
    motion = MotionCodes(sessions.motion_network(), 3)
    looped = LoopedMotion(motion, anchors)
    for anchor in range(3 * anchors + 1):
        np.testing.assert_array_equal(looped.code(anchor), motion.code(anchor % anchors))
    for t in (0, 0.5, (anchors - 1) * D - 0.5, (anchors - 1) * D):
        if 0 <= t <= (anchors - 1) * D:
            np.testing.assert_array_equal(looped.time_code(t), motion.time_code(t))


def test_a_loop_of_a_splice(rollout):
    spliced = rollout.splice(9, 1, 2)
    looped = spliced.loop(5)
    times = [0, D - 1, D + 0.5, 2 * D + 3, 3 * D + 7, 4 * D]
    assert shown(looped, times) == shown(spliced, times)
    assert shown(looped, [t + 5 * D for t in times]) == shown(spliced, times)


def test_a_splice_of_a_loop(rollout, other):
    """Up to the splice it is the loop, in its later rounds and at its seams, too."""
    looped = rollout.loop(2)
    spliced = looped.splice(9, 5)
    times = [0, D + 0.5, 2 * D - 1, 2 * D - 0.125, 2 * D, 3 * D + 1, 4 * D - 1, 4 * D + 1, 5 * D]
    assert shown(spliced, times) == shown(looped, times)
    assert shown(spliced, [6 * D, 7 * D + 1]) == shown(other, [6 * D, 7 * D + 1])


def test_a_loop_of_a_loop(rollout):
    """Two rounds of the inner one; what follows the last anchor leads back to the beginning."""
    inner = rollout.loop(2)
    times = [0, D, 2 * D - 1, 2 * D, 2 * D + 7.5]
    assert shown(inner.loop(4), times) == shown(inner, times)
    assert shown(inner.loop(4), [t + 4 * D for t in times]) == shown(inner, times)


def test_splices_follow_each_other(sessions, rollout, other):
    spliced = rollout.splice(9, 2).splice(8, 5, 2).splice(7, 10)
    third, last = (Rollout(sessions, 3, motion_seed=seed) for seed in (8, 7))
    for part, times in [(rollout, [5, 2 * D]), (other, [3 * D, 5 * D]), (third, [7 * D, 9.5 * D]), (last, [11 * D])]:
        assert shown(spliced, times) == shown(part, times)


def test_a_map_of_time(rollout):
    faster = rollout.remap(lambda t: 2 * t + 1)
    assert shown(faster, [0, 1, 2.25, 10**9]) == shown(rollout, [1, 3, 5.5, 2 * 10**9 + 1])
    backwards = rollout.remap(lambda t: np.float64(40 - t))
    assert shown(backwards, [0, 30, 40]) == shown(rollout, [40, 10, 0])
    still = rollout.remap(lambda t: np.int64(7))
    assert shown(still, [0, 1000.5]) == shown(rollout, [7, 7])
    np.testing.assert_array_equal(backwards[0:3], rollout[40:37:-1])


def test_maps_of_maps_and_edits_seen_through_them(rollout):
    twice = rollout.remap(lambda t: 2 * t).remap(lambda t: t + 5)  # 2 (t + 5)
    assert shown(twice, [0, 3.5]) == shown(rollout, [10, 17])
    mapped = rollout.remap(lambda t: 3 * t)
    for edit in (lambda rollout: rollout.loop(2), lambda rollout: rollout.splice(9, 1)):
        for edited in (edit(mapped), edit(rollout).remap(lambda t: 3 * t)):
            assert shown(edited, [0, 7, 20.5, 100]) == shown(edit(rollout), [0, 21, 61.5, 300])


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (math.nan, ValueError), (math.inf, ValueError), (True, TypeError),
                         ("1", TypeError), (None, TypeError), (np.zeros(2), TypeError)]
)  # fmt: skip
def test_maps_that_give_no_frame_index(rollout, value, error):
    for mapped in (rollout.remap(lambda t: value), rollout.remap(lambda t: t).remap(lambda t: value)):
        with pytest.raises(error, match="time map at 3: found"):
            mapped[3]
        with pytest.raises(ValueError, match="frame index: found -1"):
            mapped[-1]  # never shown to the map


def test_content_of_one_and_motion_of_another(sessions, rollout):
    moving = Rollout(sessions, 5)
    mixed = rollout.with_motion_of(moving)
    assert shown(mixed, TIMES) == shown(Rollout(sessions, 3, motion_seed=5), TIMES)
    np.testing.assert_array_equal(mixed.first_latent, rollout.first_latent)
    edited = moving.splice(9, 1).loop(3).remap(lambda t: t / 2)
    np.testing.assert_array_equal(rollout.with_motion_of(edited).time_codes(TIMES), edited.time_codes(TIMES))
    assert shown(rollout.with_motion_of(rollout), TIMES) == shown(rollout, TIMES)


def test_content_and_motion_of_two_bundles_do_not_mix(rollout, tiny):
    with Rollout.open(tiny.path) as apart, pytest.raises(ValueError, match="opened apart, expected shared sessions"):
        rollout.with_motion_of(apart)


@each_edit
def test_edits_are_pure(sessions, rollout, edit):
    """Any order, a fresh object, several threads: the same bytes; and what was edited stays as it was."""
    before = shown(rollout, TIMES)
    edited = edit(rollout)
    forwards = shown(edited, TIMES)
    assert shown(edited, TIMES[::-1])[::-1] == forwards
    assert [shown(edit(Rollout(sessions, 3)), [t])[0] for t in TIMES] == forwards
    assert shown(rollout, TIMES) == before != forwards

    shared, found = edit(rollout), {}
    threads = [
        threading.Thread(target=lambda ts=ts: found.update(zip(ts, shown(shared, ts), strict=True)))
        for ts in (TIMES[::2], TIMES[1::2], TIMES[::-3])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[t] for t in TIMES] == forwards


def test_another_process_shows_the_same(styled, rollout):
    edited = rollout.splice(9, 1, 2).loop(5).remap(lambda t: 1.5 * t)
    program = (
        "import sys, hashlib; from styleinv.runtime import Rollout\n"
        "with Rollout.open(sys.argv[1], 3, threads=1) as rollout:\n"
        "    edited = rollout.splice(9, 1, 2).loop(5).remap(lambda t: 1.5 * t)\n"
        "    for t in (10**9, 40.5, 0): print(hashlib.sha256(edited[t].tobytes()).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", program, styled.path], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [hashlib.sha256(edited[t].tobytes()).hexdigest() for t in (10**9, 40.5, 0)]


def test_edits_keep_what_else_decides_a_clip(sessions, rollout):
    arguments = {"truncation": 0.5, "transfer": "ink"}
    inked = Rollout(sessions, 3, **arguments).splice(9, 0)
    assert shown(inked, [D, 100]) == shown(Rollout(sessions, 3, motion_seed=9, **arguments), [D, 100])
    np.testing.assert_array_equal(list(inked.play(start=D, speed=2, count=3)), inked[D : D + 6 : 2])
    assert inked.size == (16, 16) and inked.anchor_distance == D
    strided = Rollout(sessions, 3, latent_stride=4).splice(9, 0)
    assert shown(strided, TIMES) == shown(Rollout(sessions, 3, motion_seed=9, latent_stride=4), TIMES)


def test_edits_do_not_own_the_sessions(styled):
    with Rollout.open(styled.path, threads=1) as rollout:
        with rollout.loop(2) as looped, rollout.remap(lambda t: t) as mapped:
            kept = looped[1]
            mapped[1]
        np.testing.assert_array_equal(rollout[1], kept)  # closing the edits closed nothing
        spliced = rollout.splice(9, 1)
    for closed in (looped, mapped, spliced, rollout):
        with pytest.raises(EngineError, match="closed sessions"):
            closed[1]


def test_arguments_of_numpy(rollout):
    assert shown(rollout.splice(np.uint64(9), np.int8(2), np.int32(1)), TIMES) == shown(rollout.splice(9, 2), TIMES)
    assert shown(rollout.loop(np.int16(3)), TIMES) == shown(rollout.loop(3), TIMES)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rollout: rollout.splice(9, -1), "anchor: found -1, expected a whole number of at least 0"),
        (lambda rollout: rollout.splice(9, 1.0), "anchor: found 1.0"),
        (lambda rollout: rollout.splice(9, True), "anchor: found True"),
        (lambda rollout: rollout.splice(9, 1, 0), "fade: found 0, expected a whole number of at least 1"),
        (lambda rollout: rollout.splice(9, 1, "2"), "fade: found '2'"),
        (lambda rollout: rollout.splice(-1, 1), "motion_seed: found -1"),
        (lambda rollout: rollout.splice(2**64, 1), "motion_seed: found"),
        (lambda rollout: rollout.loop(0), "anchors: found 0, expected a whole number of at least 1"),
        (lambda rollout: rollout.loop(2.5), "anchors: found 2.5"),
        (lambda rollout: rollout.loop(None), "anchors: found None"),
    ],
)
def test_bad_edits(rollout, edit, message):
    with pytest.raises(ValueError, match=message):
        edit(rollout)


def test_a_map_is_a_function(rollout):
    with pytest.raises(TypeError, match="time_map: found 3, expected a function from frame indices"):
        rollout.remap(3)


def test_pictures_do_not_move(make_bundle, tmp_path):
    bundle = make_bundle(tmp_path / "pictures.bundle", "image")
    with Rollout.open(bundle.path) as picture:
        for edit in (
            lambda: picture.splice(9, 1),
            lambda: picture.loop(2),
            lambda: picture.remap(lambda t: t),
            lambda: picture.with_motion_of(picture),
            lambda: picture.anchor_distance,
            lambda: picture.time_codes([0]),
        ):
            with pytest.raises(BundleError, match="found image, expected styleinv: single pictures do not move"):
                edit()


def test_time_codes(sessions, rollout):
    motion = MotionCodes(sessions.motion_network(), 3)
    found = rollout.time_codes(np.array(TIMES))
    np.testing.assert_array_equal(found, np.stack([motion.time_code(t) for t in TIMES]).astype(np.float32), strict=True)
    assert rollout.time_codes([]).shape == (0, 8) and rollout.time_codes([]).dtype == np.float32


@each_edit
def test_playing_edits_takes_constant_memory(rollout, edit):
    edited = edit(rollout)
    times = itertools.count(0, D / 2)

    def play(anchors):
        edited.time_codes(itertools.islice(times, 2 * anchors))
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = play(100)  # anchors, more than are kept
        grown = play(200) - before
    finally:
        tracemalloc.stop()
    assert grown < 2**14, f"found {grown} bytes, of some 2^17 that all anchors take"


def test_edits_that_are_dropped_are_freed(rollout):
    edited = rollout.splice(9, 1).loop(4).remap(lambda t: 2 * t)
    edited[100]
    dropped = weakref.ref(edited)
    motion = weakref.ref(edited._timeline.motion)
    del edited
    gc.collect()
    assert dropped() is None and motion() is None
