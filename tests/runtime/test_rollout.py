"""A rollout is a pure function of (bundle, seed or z, motion seed, truncation, t), and says no clearly."""

import hashlib
import itertools
import math
import subprocess
import sys
import threading

import numpy as np
import pytest

from styleinv.runtime import Bundle, BundleError, EngineError, Rollout, Sessions
from styleinv.runtime.motion import MotionCodes, MotionNetwork
from styleinv.runtime.noise import Z_DOMAIN, standard_normal


@pytest.fixture(scope="module")
def sessions(tiny):
    with Sessions(Bundle.open(tiny.path), threads=1) as sessions:
        yield sessions


@pytest.fixture(scope="module")
def rollout(sessions):
    return Rollout(sessions, seed=3)


def expected_frames(tiny, motion_config, ts, seed=3, motion_seed=3, truncation=1.0, z=None):
    """Latents and frames as numpy computes the tiny bundle's graphs."""
    M, S, T, C = (tiny.weights[name].astype(np.float64) for name in "MSTC")
    z = standard_normal(seed, Z_DOMAIN, 0, 8) if z is None else z
    w0 = truncation * (np.float32(z).astype(np.float64) @ M)
    x0 = np.tanh(w0 @ S).reshape(3, 16, 16)
    features = x0.mean(axis=(1, 2))
    energy = ((x0 - features[:, None, None]) ** 2).mean()
    codes = MotionCodes(MotionNetwork(tiny.motion_tensors, motion_config), motion_seed)
    w = np.stack([w0 + codes.time_code(t) @ T + features @ C + energy for t in ts])
    images = np.tanh(w @ S).reshape(-1, 3, 16, 16)
    return w, np.floor(np.clip(images * 127.5 + 128, 0, 255)).transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"motion_seed": 9},
        {"truncation": 0.5},
        {"z": np.linspace(-1, 1, 8)},
    ],
)
def test_frames_are_what_the_graphs_compute(tiny, sessions, motion_config, arguments):
    ts = [0, 1, 2.5, 15.999, 16, 1000.5, 10**9]
    rollout = Rollout(sessions, 3, **arguments)
    latents, frames = expected_frames(tiny, motion_config, ts, **arguments)
    np.testing.assert_allclose(rollout.latents(ts), latents, atol=1e-5)
    found = np.stack(list(rollout.frames(ts)))
    assert np.abs(found.astype(int) - frames).max() <= 1  # float32 against float64


def test_a_frame_belongs_to_the_caller(rollout):
    first = rollout[7]
    assert first.dtype == np.uint8 and first.shape == (16, 16, 3)
    assert first.flags.c_contiguous and first.flags.owndata and first.flags.writeable
    kept = first.copy()
    first[...] = 0
    np.testing.assert_array_equal(rollout[7], kept)


def test_first_latent_and_image(rollout, tiny):
    assert rollout.first_latent.shape == (12,) and rollout.first_latent.dtype == np.float32
    image = rollout.first_image
    assert image.shape == (3, 16, 16) and image.dtype == np.float32
    np.testing.assert_allclose(image.reshape(-1), np.tanh(rollout.first_latent @ tiny.weights["S"]), atol=1e-5)
    assert rollout.size == (16, 16) and rollout.engine.startswith("openvino")
    with pytest.raises(ValueError, match="read-only"):
        rollout.first_latent[0] = 1


def test_any_order_gives_the_same_bytes(sessions, rollout):
    ts = [5, 0, 100.25, 1e6, 33, 10**12, 5.0]
    forwards = [rollout[t].tobytes() for t in ts]
    again = Rollout(sessions, 3)
    again[10**9 + 0.5]
    backwards = [again[t].tobytes() for t in reversed(ts)][::-1]
    assert forwards == backwards
    assert forwards[0] == forwards[-1]  # 5 and 5.0 are one time
    assert len(set(forwards)) == len(ts) - 1


def test_another_process_gives_the_same_bytes(tiny, rollout):
    ts = [1000.5, 0, 17, 10**12]
    program = (
        "import sys, hashlib; from styleinv.runtime import Rollout\n"
        "with Rollout.open(sys.argv[1], 3, threads=1) as rollout:\n"
        "    for t in (10**12, 17, 0, 1000.5): print(hashlib.sha256(rollout[t].tobytes() + "
        "rollout.latents([t]).tobytes()).hexdigest())"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, tiny.path], capture_output=True, text=True, check=True
    ).stdout.split()
    assert found[::-1] == [
        hashlib.sha256(rollout[t].tobytes() + rollout.latents([t]).tobytes()).hexdigest() for t in ts
    ]


def test_threads_share_a_rollout(sessions, rollout):
    expected = {t: rollout[t].tobytes() for t in range(0, 400, 25)}
    shared = Rollout(sessions, 3)
    found = {}
    threads = [
        threading.Thread(target=lambda ts=ts: found.update((t, shared[t].tobytes()) for t in ts))
        for ts in (list(expected)[::2], list(expected)[1::2])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_what_decides_a_clip(sessions):
    def look(seed=3, **arguments):
        rollout = Rollout(sessions, seed, **arguments)
        return rollout.first_latent.tobytes(), rollout[20].tobytes()

    base = look()
    assert look() == base == look(motion_seed=3) == look(z=np.float32(standard_normal(3, Z_DOMAIN, 0, 8)))
    other_motion = look(motion_seed=4)
    assert other_motion[0] == base[0] and other_motion[1] != base[1]
    assert look(4)[0] != base[0] and look(truncation=0.5)[0] != base[0]


@pytest.mark.parametrize("t", [-1, -0.001, math.nan, math.inf, np.float32("-inf"), 2**60])
def test_bad_times(rollout, t):
    with pytest.raises(ValueError, match="frame index: found"):
        rollout[t]
    with pytest.raises(ValueError, match="frame index: found"):
        rollout.latents([0, t])


@pytest.mark.parametrize("t", [True, np.True_, "1", None, 1j, (1,), np.arange(3)])
def test_times_of_wrong_type(rollout, t):
    with pytest.raises(TypeError, match="frame index: found"):
        rollout[t]


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
def test_batches_only_group(rollout, batch):
    ts = [0, 3, 40.5, 7, 1000]
    frames, latents = list(rollout.frames(ts, batch)), rollout.latents(ts, batch)
    assert len(frames) == 5 and latents.shape == (5, 12)
    for place, t in enumerate(ts):
        assert frames[place].flags.owndata
        assert np.abs(frames[place].astype(int) - rollout[t]).max() <= 1
        np.testing.assert_allclose(latents[place], rollout.latents([t])[0], atol=1e-6)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float16, np.float32, np.float64, np.longdouble])
def test_times_of_numpy(rollout, kind):
    np.testing.assert_array_equal(rollout[kind(40)], rollout[40])
    np.testing.assert_array_equal(rollout.latents(np.arange(3).astype(kind)), rollout.latents([0, 1, 2]))


def test_seeds_of_numpy(sessions):
    found = Rollout(sessions, np.uint64(3), motion_seed=np.int8(4))
    np.testing.assert_array_equal(found[20], Rollout(sessions, 3, motion_seed=4)[20])


def test_batches_are_lazy(rollout):
    frames = rollout.frames(itertools.count(), batch=4)
    assert len(list(itertools.islice(frames, 6))) == 6
    with pytest.raises(ValueError, match=r"batch: found 2\.5, expected a whole number of at least 1"):
        rollout.frames([0], batch=2.5)
    with pytest.raises(ValueError, match="batch: found 0"):
        rollout.frames([0], batch=0)
    with pytest.raises(ValueError, match="batch: found 0"):
        rollout.latents([0], batch=0)
    assert rollout.latents([]).shape == (0, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": True}, "seed: found True, expected a whole number from 0 to"),
        ({"seed": -1}, "seed: found -1, expected a whole number from 0 to"),
        ({"seed": 2**64}, "seed: found"),
        ({"motion_seed": -1}, "motion_seed: found -1"),
        ({"truncation": math.nan}, "truncation: found nan, expected a finite number"),
        ({"truncation": "1"}, "truncation: found '1'"),
        ({"z": np.zeros(7)}, r"z: found shape \[7\], expected 8 finite numbers"),
        ({"z": np.full(8, np.inf)}, "z: found numbers that are not finite"),
        ({"label": 0}, "label: found 0, expected None: the model is unconditional"),
    ],
)
def test_bad_arguments(sessions, arguments, message):
    with pytest.raises(ValueError, match=message):
        Rollout(sessions, **arguments)


def test_memory_stays_constant(tiny):
    program = """
import sys
from pathlib import Path
from styleinv.runtime import Rollout

def resident():  # KiB
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line)

rollout = Rollout.open(sys.argv[1], threads=1)
for t in range(5_500):
    rollout.latents([t])
    if t == 500:
        before = resident()
print(resident() - before)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    grown = int(subprocess.run([sys.executable, "-c", program, tiny.path], capture_output=True, check=True).stdout)
    assert grown < 1024, f"found {grown} KiB, expected less than 1 MiB"


def test_image_bundle_plays_single_pictures(make_bundle, tmp_path):
    bundle = make_bundle(tmp_path / "pictures.bundle", "image")
    with Rollout.open(bundle.path, 5) as rollout:
        expected = np.tanh(rollout.first_latent @ bundle.weights["S"]).reshape(3, 16, 16).transpose(1, 2, 0)
        frame = rollout[0]
        assert np.abs(frame - np.floor(expected * 127.5 + 128)).max() <= 1
        np.testing.assert_array_equal(rollout[0.0], frame)
        np.testing.assert_array_equal(rollout.latents([0])[0], rollout.first_latent)
        with pytest.raises(BundleError, match="a bundle of an image model plays single pictures"):
            rollout[1]
        with pytest.raises(BundleError, match=r"found t = 1.0, expected 0"):
            list(rollout.play(start=0.0, count=3))


def test_inversion_bundle_plays_nothing(make_bundle, tmp_path):
    bundle = make_bundle(tmp_path / "inversion.bundle", "inversion")
    with pytest.raises(BundleError, match="a bundle of an inversion model plays nothing by itself"):
        Rollout.open(bundle.path)


def test_conditional_bundle(make_bundle, tmp_path):
    bundle = make_bundle(tmp_path / "classes.bundle", "image", label_dim=3)
    with Sessions(Bundle.open(bundle.path)) as sessions:
        zero, two = (Rollout(sessions, label=label).first_latent for label in (0, 2))
        np.testing.assert_allclose(two, zero + 2, atol=1e-6)
        for label in (None, 3, -1, 1.0, True):
            with pytest.raises(ValueError, match=r"label: found .*, expected a class from 0 to 2"):
                Rollout(sessions, label=label)


def test_closing(tiny, sessions):
    with Rollout.open(Bundle.open(tiny.path)) as rollout:
        rollout[0]
    rollout.close()
    with pytest.raises(EngineError, match="closed sessions"):
        rollout[1]
    with Rollout(sessions) as sharing:
        pass
    sharing[0]  # the sessions are not its own


def test_open_refuses(tmp_path, tiny, monkeypatch):
    with pytest.raises(BundleError, match="found nothing, expected the folder of a bundle"):
        Rollout.open(tmp_path / "nowhere")
    with pytest.raises(EngineError, match="found 'abacus', expected one of auto"):
        Rollout.open(tiny.path, engine="abacus")
    with pytest.raises(EngineError, match="precision: found 'fp4', expected one of fp32, fp16, bf16"):
        Rollout.open(tiny.path, precision="fp4")
    with pytest.raises(BundleError, match="precisions: found fp32, expected fp16: export again with"):
        Rollout.open(tiny.path, precision="fp16")
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"pip install 'styleinv\[runtime-cpu\]'"):
        Rollout.open(tiny.path)
