"""Strided latents: the encoder's own at keyframes, a curve between, and a choice that keeps to what was measured."""

import itertools

import numpy as np
import pytest

from styleinv.runtime import Bundle, BundleError, Rollout, Sessions
from styleinv.runtime.latent_stride import CACHED_KEYS, StridedLatents, hermite

MEASURED = {"precision": "fp32", "frames": 32, "least_psnr_db": {"2": 52.1, "4": 41.0, "8": 36.5}, "psnr_db": {}}


@pytest.fixture(scope="module")
def sessions(tiny):
    with Sessions(Bundle.open(tiny.path), threads=1) as sessions:
        yield sessions


class Curve:
    """Latents of a smooth function; counts which were asked for."""

    def __init__(self, function):
        self.function, self.asked = function, []

    def __call__(self, t):
        self.asked.append(t)
        return np.asarray(self.function(t), np.float32)


def test_keyframes_are_exact_and_asked_for_once():
    curve = Curve(lambda t: [t, t * t])
    latents = StridedLatents(curve, 8)
    for t in range(25):
        latents(t)
    assert sorted(curve.asked) == [0, 8, 16, 24, 32]  # 32: the right neighbour's neighbour of 16 .. 23
    np.testing.assert_array_equal(latents(16), curve.function(16))
    np.testing.assert_array_equal(latents(16.0), curve.function(16))


def test_parabolas_are_reproduced():
    """A Hermite curve with such slopes is exact for them, but in the first stretch, which has no left neighbour."""
    latents = StridedLatents(Curve(lambda t: [3 * t - 2, t * t / 10]), 5)
    for t in [5, 6.25, 9.999, 12, 23.5]:
        np.testing.assert_allclose(latents(t), [3 * t - 2, t * t / 10], rtol=1e-6)
    np.testing.assert_allclose(latents(2.5)[0], 5.5, rtol=1e-6)


def test_the_curve_meets_its_keyframes_with_one_slope():
    draws = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    latents = StridedLatents(lambda t: draws[t // 4], 4)
    for key in (4, 8, 40):
        before, at, after = (latents(key + step).astype(float) for step in (-1e-3, 0, 1e-3))
        np.testing.assert_allclose(before, after, atol=0.01)
        np.testing.assert_allclose(at - before, after - at, atol=1e-5)
    assert np.abs(latents(5) - latents(4)).max() > 1e-3


def test_hermite_is_computed_in_float64():
    rows = np.random.default_rng(1).standard_normal((4, 7)).astype(np.float32) + 1000
    wide = hermite(*rows.astype(np.longdouble), np.longdouble(0.3)).astype(np.float64)
    found = hermite(*rows, 0.3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wide.astype(np.float32))


@pytest.mark.parametrize("stride", [2, 3, 8, 16])
def test_a_frame_is_pure(sessions, stride):
    """Any order, any batch, a fresh object: the same bytes."""
    times = [0, 1, 2.5, 7, 15.75, 16, 31, 1000.5, 10**9 + 1]
    rollout = Rollout(sessions, 3, latent_stride=stride)
    forwards = [latent.tobytes() for latent in rollout.latents(times)]
    backwards = [rollout.latents([t]).tobytes() for t in reversed(times)][::-1]
    alone = [Rollout(sessions, 3, latent_stride=stride).latents([t]).tobytes() for t in times]
    batched = [latent.tobytes() for latent in rollout.latents(times, batch=4)]
    assert forwards == backwards == alone == batched
    assert [frame.tobytes() for frame in rollout.frames(times)] == [rollout[t].tobytes() for t in times]


def test_keyframes_are_those_of_stride_1(sessions):
    exact, strided = Rollout(sessions, 3), Rollout(sessions, 3, latent_stride=4)
    for t in (0, 4, 4000):
        np.testing.assert_array_equal(exact[t], strided[t])
    assert not np.array_equal(exact.latents([5, 6, 7]), strided.latents([5, 6, 7]))


def test_the_encoder_runs_at_every_kth_frame_only(sessions, monkeypatch):
    rollout = Rollout(sessions, 5, latent_stride=8)
    rollout[0]
    session, runs = sessions.session("latent"), []
    run = session.run
    monkeypatch.setattr(session, "run", lambda inputs, outputs=None: runs.append(1) or run(inputs, outputs))
    for _ in itertools.islice(rollout.play(), 80):
        pass
    assert len(runs) == 11  # keyframes 8, 16, ..., 88; 0 was there before
    for t in range(0, 8 * CACHED_KEYS * 4, 8):  # far more keyframes than are kept
        rollout.latents([t + 1])
    assert rollout._latents._strided._key.cache_info().currsize == CACHED_KEYS


def test_two_frames_at_a_time_by_default(sessions, monkeypatch):
    session, batches = sessions.session("synthesis"), []
    run = session.run
    monkeypatch.setattr(
        session, "run", lambda inputs, outputs=None: batches.append(len(inputs["w"])) or run(inputs, outputs)
    )
    for stride, batch in ((1, 1), (4, 2)):
        rollout = Rollout(sessions, 5, latent_stride=stride)
        expected = [rollout[t] for t in range(5)]
        batches.clear()
        for frame, alone in zip(rollout.play(count=5), expected, strict=True):
            assert np.abs(frame.astype(int) - alone).max() <= 1
        assert set(batches) == {batch}


def test_auto_keeps_to_what_was_measured(make_bundle, tmp_path):
    bundle = make_bundle(tmp_path / "sky.bundle")
    bundle.change_manifest(lambda manifest: manifest.update(latent_strides=MEASURED))
    with Sessions(Bundle.open(bundle.path), threads=1) as sessions:
        for bound, stride in [
            ({}, 4),
            ({"latent_psnr_db": 50}, 2),
            ({"latent_psnr_db": 60}, 1),
            ({"latent_psnr_db": 30}, 8),
        ]:
            assert Rollout(sessions, latent_stride="auto", **bound).latent_stride == stride
        assert Rollout(sessions).latent_stride == 1  # off by default


def test_auto_needs_the_measurement(tiny, make_bundle, tmp_path):
    with pytest.raises(
        BundleError, match=r"latent_strides: found nothing, expected .*: export again with `styleinv export`"
    ):
        Rollout.open(tiny.path, latent_stride="auto")
    pictures = make_bundle(tmp_path / "pictures.bundle", "image")
    with Rollout.open(pictures.path, latent_stride="auto") as rollout:
        assert rollout.latent_stride == 1


@pytest.mark.parametrize("stride", [0, -1, 2.5, True, "all", None])
def test_bad_strides(sessions, stride):
    with pytest.raises(ValueError, match=r"latent_stride: found .*, expected a whole number of at least 1, or 'auto'"):
        Rollout(sessions, latent_stride=stride)


@pytest.mark.parametrize("bound", [float("nan"), "40", None])
def test_bad_bounds(sessions, bound):
    with pytest.raises(ValueError, match=r"latent_psnr_db: found .*, expected a number of decibels"):
        Rollout(sessions, latent_stride="auto", latent_psnr_db=bound)


@pytest.mark.parametrize(
    "measured", [{"least_psnr_db": {"x": 40.0}}, {"least_psnr_db": {"2": "40"}}, {"least_psnr_db": [1]}, {"frames": 3}]
)
def test_damaged_measurements(make_bundle, tmp_path, measured):
    bundle = make_bundle(tmp_path / "sky.bundle")
    bundle.change_manifest(lambda manifest: manifest.update(latent_strides=measured))
    with pytest.raises(BundleError, match=r"latent_strides\.least_psnr_db: found .*, expected numbers by stride"):
        Bundle.open(bundle.path)
