"""What export measures of strided latents, and what `latent_stride="auto"` makes of it."""

import json

import numpy as np
import pytest

from styleinv.export import latent_strides
from styleinv.export.latent_strides import measure_strides
from styleinv.runtime import Rollout


@pytest.fixture(scope="module")
def rollout(small_bundle):
    with Rollout.open(small_bundle, 6) as rollout:
        yield rollout


def psnr(a, b):
    return 10 * np.log10(255.0**2 / np.mean((a.astype(float) - b) ** 2))


def test_the_manifest_holds_the_measurement(small_bundle, rollout):
    measured = json.loads((small_bundle / "manifest.json").read_text())["latent_strides"]
    assert measured == measure_strides(rollout.sessions)  # the same each time
    assert measured["precision"] == "fp32" and measured["frames"] == 32
    strides = [int(stride) for stride in measured["least_psnr_db"]]
    assert strides == sorted(strides) and strides[0] == 2 and set(strides) <= set(latent_strides.STRIDES)
    for stride, least in measured["least_psnr_db"].items():
        assert 0 < least <= measured["psnr_db"][stride] <= latent_strides.IDENTICAL
    assert measured["bound_psnr_db"] == 40.0
    assert measured["stride"] == Rollout(rollout.sessions, latent_stride="auto").latent_stride


def test_what_was_measured_is_what_frames_show(rollout):
    """Frames that export did not look at come out about as near."""
    measured = measure_strides(rollout.sessions)
    strided = Rollout(rollout.sessions, 6, latent_stride=2)
    times = np.arange(40, 72) + 0.6
    together = psnr(np.stack([rollout[t] for t in times]), np.stack([strided[t] for t in times]))
    print(f"measured {measured['psnr_db']['2']} dB, another clip {together:.2f} dB")
    assert abs(together - measured["psnr_db"]["2"]) < 6.0


def test_larger_strides_are_not_looked_at_where_a_smaller_one_is_bad(rollout, monkeypatch):
    measured = measure_strides(rollout.sessions)
    monkeypatch.setattr(latent_strides, "LEAST_WORTH_KNOWING", measured["least_psnr_db"]["2"] + 1.0)
    assert list(measure_strides(rollout.sessions)["least_psnr_db"]) == ["2"]


def test_auto_plays_the_largest_good_one(small_bundle, rollout):
    least = measure_strides(rollout.sessions)["least_psnr_db"]
    for bound in (0.0, 40.0, 200.0):
        good = [int(stride) for stride, psnr in least.items() if psnr >= bound]
        auto = Rollout(rollout.sessions, 6, latent_stride="auto", latent_psnr_db=bound)
        assert auto.latent_stride == max(good, default=1)
