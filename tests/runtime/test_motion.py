"""The motion network against a reference written straight from its formulas, in extended precision."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from motion_reference import reference_code, reference_time_code

from styleinv.runtime.errors import BundleError
from styleinv.runtime.motion import CACHED_ANCHORS, MotionCodes, MotionNetwork, as_frame_index
from styleinv.runtime.noise import standard_normal

D = 16  # anchor_distance of the tiny bundle
SEED = 11
TIMES = [0, 1, 2.5, D - 1e-3, D, 10 * D + 0.5, 1e5, 1e6, 1e9, 10**6, 10**9]
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def network(motion_tensors: dict[str, np.ndarray], motion_config: dict[str, Any]) -> MotionNetwork:
    return MotionNetwork(motion_tensors, motion_config)


def variant(kernel_size: int, first_frame_aware: bool, config: dict[str, Any]) -> tuple[dict, dict[str, Any]]:
    """Tensors and configuration of a network with another kernel, and with or without awareness of the first frame."""
    draws = np.random.default_rng([kernel_size, first_frame_aware])
    config = {**config, "kernel_size": kernel_size, "first_frame_aware": first_frame_aware}
    Z, U, F = config["noise_dim"], config["code_dim"], config["frequencies"]
    shapes = {
        "conv.0.weight": (Z, Z, kernel_size), "conv.0.bias": (Z,), "conv.1.weight": (U, Z, kernel_size),
        "conv.1.bias": (U,), "period.weight": (F, U), "phase.weight": (F, U), "aligner.weight": (2 * F, U),
    }  # fmt: skip
    if first_frame_aware:
        shapes["first_code_noise"] = (Z,)
    tensors = {name: draws.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name in tensors:
        tensors[name] *= 100 if name.startswith("conv") else 1
    tensors["frequencies"] = np.linspace(0.05, 0.7, F).astype(np.float32)
    return tensors, config


@pytest.mark.parametrize("t", TIMES)
def test_time_code_is_the_reference(t, network, motion_tensors, motion_config):
    found = MotionCodes(network, SEED).time_code(t)
    expected = reference_time_code(t, motion_tensors, motion_config, SEED)
    assert found.dtype == np.float64 and found.shape == (2 * motion_config["frequencies"],)
    # One rounding of f * p, of at most 2^-53 of its size (below 2 here), grows with t; nothing else does.
    tolerance = 1e-13 + 4 * 2.0**-53 * t
    worst = float(np.abs(found - expected).max())
    assert worst <= tolerance, f"t = {t}: found {worst}, expected at most {tolerance}"


@pytest.mark.parametrize("anchor", [0, 1, 2, 5, 100])
def test_motion_code_is_the_reference(anchor, network, motion_tensors, motion_config):
    found = MotionCodes(network, SEED).code(anchor)
    expected = reference_code(anchor, motion_tensors, motion_config, SEED)
    np.testing.assert_allclose(found, expected.astype(np.float64), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("kernel_size", [1, 2, 4, 5, 40])
def test_other_kernels_and_the_unaware_network_are_the_reference(kernel_size, aware, motion_config):
    tensors, config = variant(kernel_size, aware, motion_config)
    codes = MotionCodes(MotionNetwork(tensors, config), SEED)
    for anchor in (0, 1, 3, 70):
        expected = reference_code(anchor, tensors, config, SEED).astype(np.float64)
        np.testing.assert_allclose(codes.code(anchor), expected, rtol=1e-12, atol=1e-13 * np.abs(expected).max())
    for t in (0, 2.5, 3 * D + 1):
        expected = reference_time_code(t, tensors, config, SEED)
        assert float(np.abs(codes.time_code(t) - expected).max()) < 1e-11


def test_an_even_kernel_does_not_see_its_own_anchor(motion_config, monkeypatch):
    tensors, config = variant(4, True, motion_config)
    asked = []

    def recorded(seed, domain, k, count):
        asked.append(k)
        return standard_normal(seed, domain, k, count)

    monkeypatch.setattr("styleinv.runtime.motion.standard_normal", recorded)
    MotionCodes(MotionNetwork(tensors, config), SEED).code(9)
    assert sorted(set(asked)) == [5, 6, 7]  # two layers, each from two anchors before to one before


def test_without_awareness_frame_zero_has_noise_of_its_own(motion_config):
    tensors, config = variant(3, False, motion_config)
    network = MotionNetwork(tensors, config)
    assert not np.array_equal(MotionCodes(network, 1).time_code(0), MotionCodes(network, 2).time_code(0))


def test_bundles_that_do_not_speak_of_the_first_frame_are_aware_of_it(network, motion_tensors, motion_config):
    assert "first_frame_aware" not in motion_config
    said = MotionNetwork(motion_tensors, {**motion_config, "first_frame_aware": True})
    np.testing.assert_array_equal(MotionCodes(network, SEED).time_code(99.5), MotionCodes(said, SEED).time_code(99.5))


def test_frame_zero_does_not_depend_on_the_seed(network):
    np.testing.assert_array_equal(MotionCodes(network, 1).time_code(0), MotionCodes(network, 2).time_code(0))
    assert not np.array_equal(MotionCodes(network, 1).time_code(1), MotionCodes(network, 2).time_code(1))


def test_time_code_is_continuous_at_anchors(network):
    codes = MotionCodes(network, SEED)
    for anchor in (1, 2, 7):
        before, after = codes.time_code(anchor * D - 1e-9), codes.time_code(anchor * D)
        np.testing.assert_allclose(before, after, atol=1e-7)


@given(st.lists(st.floats(0, 2.0**53) | st.integers(0, 10**12) | st.integers(0, 40 * D), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_any_order_gives_the_same_bytes(network, ts):
    shared = MotionCodes(network, SEED)
    forwards = [shared.time_code(t).tobytes() for t in ts]
    backwards = [shared.time_code(t).tobytes() for t in reversed(ts)][::-1]
    alone = [MotionCodes(network, SEED).time_code(t).tobytes() for t in ts]
    assert forwards == backwards == alone


def test_bytes_survive_the_caches_being_overrun(network):
    codes = MotionCodes(network, SEED)
    first = [codes.time_code(t).tobytes() for t in range(40)]
    for anchor in range(3 * CACHED_ANCHORS):
        codes.time_code(anchor * D)
    assert [codes.time_code(t).tobytes() for t in range(40)] == first


def test_equal_times_of_other_types_give_the_same_bytes(network):
    codes = MotionCodes(network, SEED)
    expected = codes.time_code(1000).tobytes()
    for t in (1000.0, np.int32(1000), np.uint64(1000), np.float32(1000), np.float64(1000)):
        assert codes.time_code(t).tobytes() == expected


def test_large_integers_stay_exact(network):
    codes = MotionCodes(network, SEED)
    assert as_frame_index(10**12 + 1) == 10**12 + 1
    assert not np.array_equal(codes.time_code(10**12), codes.time_code(10**12 + 1))
    assert np.isfinite(codes.time_code(2**53)).all()


@pytest.mark.parametrize("t", [-1, -0.5, math.nan, math.inf, -math.inf, 2**53 + 1, 1e300, np.float32("nan")])
def test_frame_index_out_of_range(t):
    with pytest.raises(ValueError, match=r"frame index: found .*, expected a finite number from 0 to 2\^53"):
        as_frame_index(t)


@pytest.mark.parametrize("t", [True, np.True_, "1", None, 1j, [1], np.array([1, 2])])
def test_frame_index_of_wrong_type(t):
    with pytest.raises(TypeError, match="expected a real number"):
        as_frame_index(t)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_motion_seed_out_of_range(network, seed):
    with pytest.raises(ValueError, match="motion_seed: found"):
        MotionCodes(network, seed)


def test_network_refuses_tensors_that_do_not_fit(motion_tensors, motion_config):
    missing = {name: array for name, array in motion_tensors.items() if name != "phase.weight"}
    with pytest.raises(BundleError, match=r"x\.safetensors: phase.weight: found nothing, expected float32 \[4, 6\]"):
        MotionNetwork(missing, motion_config, "x.safetensors")
    turned = {**motion_tensors, "aligner.weight": motion_tensors["aligner.weight"].T}
    with pytest.raises(BundleError, match=r"aligner.weight: found float32 \[6, 8\], expected float32 \[8, 6\]"):
        MotionNetwork(turned, motion_config)
    double = {**motion_tensors, "first_code_noise": np.zeros(8)}
    with pytest.raises(BundleError, match=r"first_code_noise: found float64 \[8\], expected float32 \[8\]"):
        MotionNetwork(double, motion_config)


def test_golden_values_of_the_authors_model(monkeypatch):
    """The authors' own modules computed motion_v, in float32, from t / 127; hence the tolerance."""
    places = (REPOSITORY / "tests" / "golden" / "sky64", REPOSITORY.parent / "shared" / "golden" / "sky64")
    golden = next((place for place in places if place.is_dir()), None)
    if golden is None:
        pytest.skip("the golden set is not there")
    described = json.loads((golden / "state_dict.json").read_text())["SI"]
    prefix = "mapping.motion_encoder."

    def tensor(name: str) -> np.ndarray:
        entry = described[prefix + name]
        philox = np.random.Philox(key=zlib.crc32(f"SI.{prefix}{name}".encode()))
        values = np.random.Generator(philox).standard_normal(entry["shape"], dtype=np.float32)
        return np.float32(entry["mean"]) + np.float32(entry["std"]) * values

    tensors = {name: tensor(name) for name in ("conv.0.weight", "conv.0.bias", "conv.1.weight", "conv.1.bias")}
    tensors["first_code_noise"] = tensor("frame_0_const")
    for own, theirs in (("period", "periods"), ("phase", "phase"), ("aligner", "aligners")):
        tensors[f"{own}.weight"] = tensor(f"time_encoder.{theirs}_predictor.weight")
    tensors["frequencies"] = np.load(golden / "constants.npz")[f"SI.{prefix}time_encoder.freqs"].reshape(-1)
    config = {
        "noise_dim": 512, "code_dim": 512, "anchor_distance": 128, "kernel_size": 11, "lr_multiplier": 0.01,
        "frequencies": 256, "min_period": 32.0, "max_period": 1024.0,
    }  # fmt: skip
    expected = np.load(golden / "expected.npz")
    motion_z = expected["motion_z"][0].astype(np.float64)
    monkeypatch.setattr("styleinv.runtime.motion.standard_normal", lambda seed, domain, k, count: motion_z[k])
    codes = MotionCodes(MotionNetwork(tensors, config), seed=0)
    found = np.stack([codes.time_code(float(t)) for t in expected["t_frames"]])
    worst = np.abs(found - expected["motion_v"]).max()
    assert worst <= 2e-3 * np.abs(expected["motion_v"]).max(), f"found {worst}"
