"""Rollouts stepped together show what each shows alone, in one run of each graph."""

import itertools
import math

import numpy as np
import pytest

from styleinv.runtime import Bundle, BundleError, EngineError, Rollout, RolloutBatch, Sessions
from styleinv.runtime.sessions import ENGINES, obstacle

TIMES = [0, 7.5, 100, 10**9 + 1, 33.25, 2, 50]


@pytest.fixture(scope="module")
def sessions(styled):
    with Sessions(Bundle.open(styled.path), threads=1) as sessions:
        yield sessions


def unlike(sessions):
    """Seven rollouts that differ in all that rollouts of one batch may differ in."""
    plain = Rollout(sessions, 3)
    return [
        plain,
        Rollout(sessions, 4, truncation=0.5),
        Rollout(sessions, 3, motion_seed=9),
        Rollout(sessions, 5, w0=np.linspace(-1, 1, 12)),
        Rollout(sessions, 6, image=np.full((5, 9, 3), 90, np.uint8)),
        Rollout(sessions, 7).splice(8, 1).loop(3),
        plain.with_motion_of(Rollout(sessions, 8)).remap(lambda t: 2 * t),
    ]


def alone(rollouts, ts):
    return np.stack([rollout[t] for rollout, t in zip(rollouts, ts, strict=True)])


def worst_level(found, expected):
    return int(np.abs(found.astype(int) - expected).max())


@pytest.fixture(scope="module")
def batch(sessions):
    return RolloutBatch(unlike(sessions))


@pytest.mark.parametrize("engine", [name for name, engine in ENGINES.items() if not engine.compiled])
def test_frames_are_those_of_each_alone(styled, engine):
    if obstacle(engine, "fp32") is not None:
        pytest.skip(str(obstacle(engine, "fp32")))
    with Sessions(Bundle.open(styled.path), engine=engine, threads=1) as sessions:
        rollouts = unlike(sessions)
        batch = RolloutBatch(rollouts)
        assert len(batch) == 7
        for ts in (TIMES, TIMES[::-1], [5] * 7):
            frames = batch[ts]
            assert frames.shape == (7, 16, 16, 3) and frames.dtype == np.uint8
            assert frames.flags.c_contiguous and frames.flags.owndata and frames.flags.writeable
            worst = worst_level(frames, alone(rollouts, ts))
            latents = np.concatenate([rollout.latents([t]) for rollout, t in zip(rollouts, ts, strict=True)])
            distance = np.abs(batch.latents(ts) - latents).max()
            print(f"{engine}: worst difference {worst} levels, {distance:.2g} in the latents")
            assert worst <= 1 and distance <= 1e-5  # an engine may add in another order for another batch size


def test_rows_keep_their_places(sessions, batch):
    turned = RolloutBatch(batch.rollouts[::-1])
    assert worst_level(turned[TIMES[::-1]], batch[TIMES][::-1]) <= 1
    for row, frame in enumerate(batch[TIMES]):
        others = alone(batch.rollouts, TIMES)
        assert np.argmin(np.abs(others.astype(int) - frame).sum(axis=(1, 2, 3))) == row


def test_a_batch_is_pure(sessions, batch):
    first = batch[TIMES].tobytes()
    batch[3], batch[TIMES[::-1]]
    assert batch[TIMES].tobytes() == first == RolloutBatch(unlike(sessions))[TIMES].tobytes()


@pytest.mark.parametrize("stride", [(4, 4), (1, 4), (1, 1)])
def test_interpolated_latents_are_each_rollouts_own(sessions, stride):
    rollouts = [Rollout(sessions, seed, latent_stride=k) for seed, k in enumerate(stride)]
    assert worst_level(RolloutBatch(rollouts)[5, 10.5], alone(rollouts, [5, 10.5])) <= 1
    latents = np.concatenate([rollout.latents([t]) for rollout, t in zip(rollouts, (5, 10.5), strict=True)])
    np.testing.assert_allclose(RolloutBatch(rollouts).latents([5, 10.5]), latents, atol=1e-5)


@pytest.fixture
def runs(sessions, monkeypatch):
    """The graphs that run, by name and batch size, as they do."""
    found = []
    for name in ("mapping", "content", "latent", "synthesis"):
        session = sessions.session(name)

        def counted(inputs, outputs=None, name=name, run=session.run):
            found.append((name, len(next(iter(inputs.values())))))
            return run(inputs, outputs)

        monkeypatch.setattr(session, "run", counted)
    return found


def test_a_step_is_one_run_of_each_graph(sessions, runs):
    batch = RolloutBatch([Rollout(sessions, seed) for seed in range(3)])
    batch[0]
    starts = [("mapping", 1), ("synthesis", 1), ("content", 1)]  # once for each clip
    assert sorted(runs) == sorted([*starts * 3, ("latent", 3), ("synthesis", 3)])
    runs.clear()
    for _ in batch.play(start=[0, 5, 9], count=4):
        pass
    assert runs == [("latent", 3), ("synthesis", 3)] * 4


def test_times_in_every_form(batch):
    expected = batch[[5, 6, 7, 8, 9, 10, 11]]
    for ts in ((5, 6, 7, 8, 9, 10, 11), range(5, 12), np.arange(5, 12), np.arange(5, 12, dtype=np.float32)):
        np.testing.assert_array_equal(batch[ts], expected)
    np.testing.assert_array_equal(batch[5, 6, 7, 8, 9, 10, 11], expected)
    for t in (5, 5.0, np.int64(5), np.float32(5)):
        np.testing.assert_array_equal(batch[t], batch[[5] * 7])


def test_frames_are_written_where_the_caller_says(batch):
    expected = batch[TIMES]
    out = np.zeros((16, 7, 3, 16), np.uint8).transpose(1, 0, 3, 2)  # not contiguous
    assert batch.frames_at(TIMES, out=out) is out
    np.testing.assert_array_equal(out, expected)
    assert all(frames is out for frames in batch.play(count=3, out=out))
    np.testing.assert_array_equal(out, batch[2])
    for bad in (np.zeros((6, 16, 16, 3), np.uint8), np.zeros((7, 16, 16, 3)), [0]):
        with pytest.raises(ValueError, match=r"out: found .*, expected .*uint8 \[7, 16, 16, 3\]"):
            batch.frames_at(TIMES, out=bad)


def test_frames_that_are_kept_stay(batch):
    kept = [(frames, frames.copy()) for frames in batch.play(count=5)]
    assert len({frames.tobytes() for frames, _ in kept}) == 5
    for frames, copy in kept:
        np.testing.assert_array_equal(frames, copy)


def test_playing(batch):
    for arguments, times in [
        ({"fps": 50, "start": 2, "count": 3}, [[2] * 7, [2.5] * 7, [3] * 7]),
        ({"start": TIMES, "speed": 2, "count": 2}, [TIMES, [t + 2 for t in TIMES]]),
        ({"start": np.arange(7), "speed": 3, "count": 2}, [list(range(7)), list(range(3, 10))]),
        ({"start": [5, 9, 4, 7, 5, 2, 9], "speed": -1}, [[5 - n, 9 - n, 4 - n, 7 - n, 5 - n, 2 - n, 9 - n]
                                                           for n in range(3)]),
    ]:  # fmt: skip
        for frames, ts in zip(batch.play(**arguments), times, strict=True):
            np.testing.assert_array_equal(frames, batch[ts])
    assert len(list(itertools.islice(batch.play(), 10))) == 10


@pytest.mark.parametrize("ts", [[], [1, 2], range(8), np.arange(6)])
def test_times_of_another_number(batch, ts):
    with pytest.raises(ValueError, match=rf"found {len(ts)} frame indices, expected one for each of 7 rollouts"):
        batch[ts]
    with pytest.raises(ValueError, match=rf"found {len(ts)} frame indices, expected one for each of 7 rollouts"):
        batch.play(start=ts)


@pytest.mark.parametrize(
    ("t", "error"),
    [(-1, ValueError), (math.nan, ValueError), (True, TypeError), (None, TypeError), (slice(3), TypeError)],
)
def test_bad_times(batch, t, error):
    for ts in (t, [0, 0, 0, t, 0, 0, 0]):
        with pytest.raises(error, match="frame index: found"):
            batch[ts]


@pytest.mark.parametrize("arguments", [{"fps": 0}, {"speed": 0}, {"start": -1}, {"start": [0, 0, 0, 0, 0, 0, -1]}])
def test_bad_play(batch, arguments):
    with pytest.raises(ValueError, match=r"(fps|speed|start): found"):
        batch.play(**arguments)


def test_rollouts_that_do_not_go_together(styled, sessions):
    with pytest.raises(ValueError, match="rollouts: found none"):
        RolloutBatch([])
    plain, ink = Rollout(sessions), Rollout(sessions, transfer="ink")
    with pytest.raises(ValueError, match="rollouts: found the transfers None, ink, expected one for all"):
        RolloutBatch([plain, ink])
    with Rollout.open(styled.path) as apart, pytest.raises(ValueError, match="opened apart, expected shared sessions"):
        RolloutBatch([plain, apart])


def test_a_transfer_draws_them_all(sessions):
    inked = [Rollout(sessions, seed, transfer="ink") for seed in (3, 4)]
    assert worst_level(RolloutBatch(inked)[5, 6], alone(inked, [5, 6])) <= 1
    assert worst_level(RolloutBatch(inked)[5, 6], alone([Rollout(sessions, 3), Rollout(sessions, 4)], [5, 6])) > 1


def test_one_rollout_may_come_twice(sessions):
    rollout = Rollout(sessions, 3)
    assert worst_level(RolloutBatch([rollout, rollout])[5, 60], alone([rollout] * 2, [5, 60])) <= 1
    np.testing.assert_array_equal(RolloutBatch([rollout])[5][0], rollout[5])  # the same batch size: the same bytes


def test_pictures(make_bundle, tmp_path):
    bundle = make_bundle(tmp_path / "pictures.bundle", "image")
    with Sessions(Bundle.open(bundle.path), threads=1) as sessions:
        pictures = [Rollout(sessions, seed) for seed in range(3)]
        batch = RolloutBatch(pictures)
        assert worst_level(batch[0], alone(pictures, [0, 0, 0])) <= 1
        with pytest.raises(BundleError, match="found t = 2, expected 0"):
            batch[0, 2, 0]


def test_closed_sessions(styled):
    with Rollout.open(styled.path) as rollout:
        batch = RolloutBatch([rollout, rollout.loop(2)])
        batch[1]
    with pytest.raises(EngineError, match="closed sessions"):
        batch[1]
