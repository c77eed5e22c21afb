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

from styleinv.runtime.errors import BundleError
from styleinv.runtime.motion import CACHED_ANCHORS, MotionCodes, MotionNetwork, as_frame_index
from styleinv.runtime.noise import MOTION_DOMAIN, standard_normal

D = 16  # anchor_distance of the tiny bundle
SEED = 11
TIMES = [0, 1, 2.5, D - 1e-3, D, 10 * D + 0.5, 1e5, 1e6, 1e9, 10**6, 10**9]
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def network(motion_tensors: dict[str, np.ndarray], motion_config: dict[str, Any]) -> MotionNetwork:
    return MotionNetwork(motion_tensors, motion_config)


def reference_code(anchor: int, tensors: dict[str, np.ndarray], config: dict[str, Any], seed: int) -> np.ndarray:
    """u_k by two plain loops over all anchors of the window, every tap in its place, longdouble."""
    K, Z, U = config["kernel_size"], config["noise_dim"], config["code_dim"]
    half = K // 2
    real = {name: array.astype(np.longdouble) for name, array in tensors.items()}

    def noise(k: int) -> np.ndarray:
        if k == 0:
            return real["first_code_noise"]
        return standard_normal(seed, MOTION_DOMAIN, k, Z).astype(np.longdouble)

    def layer(number: int, rows: dict[int, np.ndarray], k: int) -> np.ndarray:
        weight, bias = real[f"conv.{number}.weight"], real[f"conv.{number}.bias"]
        total = bias * np.longdouble(config["lr_multiplier"])
        gain = np.longdouble(config["lr_multiplier"]) / np.sqrt(np.longdouble(weight.shape[1] * K))
        for tap in range(K):
            position = k + tap - half
            if tap <= half and position >= 0:  # future taps are masked, anchors before 0 are zero
                total = total + (weight[:, :, tap] * gain) @ rows[position]
        return np.where(total < 0, np.longdouble(0.2) * total, total)

    window = range(max(0, anchor - 2 * half), anchor + 1)
    rows = {k: noise(k) for k in window}
    hidden = {k: layer(0, rows, k) for k in window if k >= anchor - half}
    assert len(hidden[anchor]) == U
    return layer(1, hidden, anchor)


def reference_time_code(t: float, tensors: dict[str, np.ndarray], config: dict[str, Any], seed: int) -> np.ndarray:
    """v_t: every angle as f * p * tau + phi, nothing reduced, longdouble."""
    d, U = config["anchor_distance"], config["code_dim"]
    anchor = math.floor(t / d)
    left, right = (reference_code(k, tensors, config, seed) for k in (anchor, anchor + 1))
    real = {name: array.astype(np.longdouble) / np.sqrt(np.longdouble(U)) for name, array in tensors.items()}
    f = tensors["frequencies"].astype(np.longdouble)
    pi = np.longdouble("3.14159265358979323846264338327950288")
    p = np.tanh(real["period.weight"] @ left) + 1
    phi = (real["phase.weight"] @ left) * config["max_period"] * f / (2 * pi)

    def e(tau: np.longdouble) -> np.ndarray:
        angle = f * p * tau + phi
        return np.concatenate([np.sin(angle), np.cos(angle)])

    t_left, t_right = np.longdouble(anchor * d), np.longdouble((anchor + 1) * d)
    alpha = (np.longdouble(t) - t_left) / d
    aligned = (1 - alpha) * (real["aligner.weight"] @ left) + alpha * (real["aligner.weight"] @ right)
    return e(np.longdouble(t)) - ((1 - alpha) * e(t_left) + alpha * e(t_right)) + aligned


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
