"""Rollouts that begin at a given latent, and rollouts drawn in another style."""

import numpy as np
import pytest

from styleinv.runtime import Bundle, BundleError, EngineError, Rollout, Sessions
from styleinv.runtime.inversion import invert

TIMES = [0, 1, 2.5, 16, 1000.5]


@pytest.fixture(scope="module")
def sessions(styled):
    with Sessions(Bundle.open(styled.path), threads=1) as sessions:
        yield sessions


def drawn(latents, S):
    """The frames of latents [T, W], as the synthesis graph computes them."""
    images = np.tanh(latents.astype(np.float64) @ S).reshape(-1, 3, 16, 16)
    return np.floor(np.clip(images * 127.5 + 128, 0, 255)).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("transfer", ["ink", "oil-2"])
def test_a_transfer_draws_the_same_latents(styled, sessions, transfer):
    plain, other = Rollout(sessions, 3), Rollout(sessions, 3, transfer=transfer)
    assert other.transfer == transfer and plain.transfer is None
    np.testing.assert_array_equal(other.latents(TIMES), plain.latents(TIMES))
    np.testing.assert_array_equal(other.first_image, plain.first_image)
    frames = np.stack(list(other.frames(TIMES)))
    assert np.abs(frames.astype(int) - drawn(plain.latents(TIMES), styled.transfers[transfer])).max() <= 1
    assert not np.array_equal(frames, np.stack(list(plain.frames(TIMES))))
    np.testing.assert_array_equal(next(other.play(start=1)), frames[1])


def test_renderings_are_the_frames_of_each(sessions):
    rollout = Rollout(sessions, 3)
    for batch in (1, 2):
        rows = list(rollout.renderings(TIMES, ["ink", None, "oil-2"], batch))
        assert len(rows) == len(TIMES)
        for place, transfer in enumerate(("ink", None, "oil-2")):
            expected = Rollout(sessions, 3, transfer=transfer).frames(TIMES, batch)
            for row, frame in zip(rows, expected, strict=True):
                np.testing.assert_array_equal(row[place], frame)
                assert row[place].flags.owndata and row[place].flags.c_contiguous
    with pytest.raises(BundleError, match="transfers: found ink, oil-2, expected anime"):
        rollout.renderings(TIMES, [None, "anime"])


def test_a_transfer_of_an_image_bundle(make_bundle, tmp_path):
    bundle = make_bundle(tmp_path / "pictures.bundle", "image", transfers=("ink",))
    with Rollout.open(bundle.path, 5, transfer="ink") as rollout:
        expected = drawn(rollout.first_latent[None], bundle.transfers["ink"])[0]
        assert np.abs(rollout[0].astype(int) - expected).max() <= 1
        with pytest.raises(BundleError, match="single pictures"):
            rollout[1]


def test_unknown_transfers(sessions, tiny):
    with pytest.raises(BundleError, match=r"styled\.bundle: transfers: found ink, oil-2, expected anime"):
        Rollout(sessions, transfer="anime")
    with pytest.raises(BundleError, match=r"sky\.bundle: transfers: found none, expected ink"):
        Rollout.open(tiny.path, transfer="ink")


def test_a_given_first_latent(sessions):
    plain = Rollout(sessions, 3, motion_seed=8)
    given = Rollout(sessions, 8, w0=plain.first_latent)
    np.testing.assert_array_equal(given.first_latent, plain.first_latent)
    np.testing.assert_array_equal(given.latents(TIMES), plain.latents(TIMES))
    for t in TIMES:
        np.testing.assert_array_equal(given[t], plain[t])
    other = Rollout(sessions, 8, motion_seed=9, w0=plain.first_latent)
    assert not np.array_equal(other[20], given[20])


def test_a_given_first_latent_is_copied(sessions):
    w0 = np.linspace(-1, 1, 12)
    rollout = Rollout(sessions, w0=w0, truncation=1)
    w0[:] = 9
    np.testing.assert_allclose(rollout.first_latent, np.linspace(-1, 1, 12), atol=1e-7)
    assert rollout.first_latent.dtype == np.float32 and not rollout.first_latent.flags.writeable


def test_a_given_first_latent_needs_no_label(make_bundle, tmp_path):
    bundle = make_bundle(tmp_path / "classes.bundle", "image", label_dim=3)
    with Rollout.open(bundle.path, w0=np.ones(12)) as rollout:
        expected = drawn(np.ones((1, 12)), bundle.weights["S"])[0]
        assert np.abs(rollout[0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"w0": np.zeros(7)}, r"w0: found shape \[7\], expected 12 finite numbers"),
        ({"w0": np.zeros((1, 12))}, r"w0: found shape \[1, 12\], expected 12 finite numbers"),
        ({"w0": np.full(12, np.nan)}, "w0: found numbers that are not finite"),
        ({"w0": np.zeros(12), "z": np.zeros(8)}, "z: found .*, expected none: w0 stands in for the mapping network's"),
        ({"w0": np.zeros(12), "truncation": 0.7}, "truncation: found 0.7, expected none: w0 stands in"),
        ({"w0": np.zeros(12), "label": 1}, "label: found 1, expected none: w0 stands in"),
    ],
)
def test_bad_first_latents(sessions, arguments, message):
    with pytest.raises(ValueError, match=message):
        Rollout(sessions, **arguments)


@pytest.mark.parametrize("kind", ["styleinv", "image", "inversion"])
def test_inversion(make_bundle, tmp_path, kind):
    bundle = make_bundle(tmp_path / "b", kind, inversion=kind != "inversion")
    image = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16)).astype(np.float32)
    with Sessions(Bundle.open(bundle.path)) as sessions:
        w0 = invert(sessions, image)
        assert w0.shape == (12,) and w0.dtype == np.float32
        np.testing.assert_allclose(w0, image.mean(axis=(1, 2)) @ bundle.weights["C"], atol=1e-6)
        with pytest.raises(EngineError, match=r"input image: found shape \[1, 3, 8, 8\], expected \[1, 3, 16, 16\]"):
            invert(sessions, image[:, :8, :8])
        with pytest.raises(EngineError, match="input image: found dtype float64, expected float32"):
            invert(sessions, image.astype(np.float64))


def test_inversion_of_a_bundle_without(tiny):
    with Sessions(Bundle.open(tiny.path)) as sessions, pytest.raises(BundleError) as caught:
        invert(sessions, np.zeros((3, 16, 16), np.float32))
    assert "graphs: found content, frame, latent, mapping, synthesis, expected inversion" in str(caught.value)
    assert "`styleinv export MODEL --inversion ENCODER --out BUNDLE`" in str(caught.value)
