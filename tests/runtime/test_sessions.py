"""Sessions: the engine registry, the two engines of a CPU, and what they refuse."""

import importlib.metadata
import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from styleinv.runtime import Bundle, BundleError, EngineError, Sessions
from styleinv.runtime.sessions import choose_engine, obstacle, open_session
from styleinv.runtime.sessions.base import BOUND_SHAPES

NO_BF16 = obstacle("openvino", "bf16")


@pytest.fixture(scope="module")
def bundle(tiny):
    return Bundle.open(tiny.path)


def test_run(bundle, tiny, engine):
    z = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    psi = np.array([1.0, 0.5, 0.0], np.float32)
    with open_session(engine, bundle, "mapping", threads=1) as session:
        assert session.name.startswith(f"{engine} ") and session.name.endswith("(CPU, fp32)")
        found = session.run({"z": z, "truncation_psi": psi})
    assert found.keys() == {"w0"}
    np.testing.assert_allclose(found["w0"], psi[:, None] * (z @ tiny.weights["M"]), atol=1e-6)


def test_any_batch_and_batches_that_change(bundle, tiny, engine):
    z = np.random.default_rng(0).standard_normal((9, 8)).astype(np.float32)
    with open_session(engine, bundle, "mapping") as session:
        for batch in (1, 9, 3, 1, 9, 2):
            found = session.run({"z": z[:batch], "truncation_psi": np.ones(batch, np.float32)})["w0"]
            np.testing.assert_allclose(found, z[:batch] @ tiny.weights["M"], atol=1e-5)
        assert len(session._bound) == BOUND_SHAPES


def test_buffers_are_bound_once_and_results_are_the_callers(bundle, tiny, engine):
    w = np.zeros((1, 12), np.float32)
    with open_session(engine, bundle, "synthesis") as session:
        dark = session.run({"w": w}, ["image"])["image"]
        bound = session.bound(1)
        kept = dark.copy()
        w[:] = 1.0  # the same array with other content
        bright = session.run({"w": w}, ["image"])["image"]
        assert session.bound(1) is bound
    np.testing.assert_array_equal(dark, kept)
    np.testing.assert_allclose(bright.reshape(-1), np.tanh(w[0] @ tiny.weights["S"]), atol=1e-5)


def test_run_some_outputs_of_inputs_that_are_not_contiguous(bundle, engine):
    w = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32).T
    with open_session(engine, bundle, "synthesis") as session:
        some, all_outputs = session.run({"w": w}, ["frame"]), session.run({"w": w})
        w[:] = 0.0  # it was copied, so the copy must follow
        assert not session.run({"w": w}, ["image"])["image"].any()
    assert some.keys() == {"frame"} and all_outputs.keys() == {"frame", "image"}
    assert some["frame"].flags.c_contiguous and some["frame"].flags.writeable
    np.testing.assert_array_equal(some["frame"], all_outputs["frame"])


def test_inputs_that_cannot_be_written(bundle, tiny, engine):
    w = np.ones((1, 12), np.float32)
    w.flags.writeable = False
    with open_session(engine, bundle, "synthesis") as session:
        image = session.run({"w": w}, ["image"])["image"]
    np.testing.assert_allclose(image.reshape(-1), np.tanh(w[0] @ tiny.weights["S"]), atol=1e-5)


def test_what_is_submitted_is_computed_when_it_is_asked_for(bundle, tiny, engine):
    w = np.zeros((1, 12), np.float32)
    with open_session(engine, bundle, "synthesis") as session:
        run = session.submit({"w": w}, ["image"])
        w[:] = 1.0
        image = run.result()["image"]
        assert not session.overlaps and run.result()["image"] is image
        wrong = session.submit({}, ["image"])
        with pytest.raises(EngineError, match="inputs of graph synthesis: found none"):
            wrong.result()
    np.testing.assert_allclose(image.reshape(-1), np.tanh(w[0] @ tiny.weights["S"]), atol=1e-5)


@pytest.mark.parametrize("writeable", [True, False])
def test_inputs_that_must_be_copied_are_copied_again_where_they_can_change(bundle, engine, writeable):
    w = np.random.default_rng(0).standard_normal((12, 1)).astype(np.float32).repeat(2, 1).T
    w.flags.writeable = writeable
    with open_session(engine, bundle, "synthesis") as session:
        copies = []
        for _ in range(2):
            session.run({"w": w})
            copies.append(session.bound(2)._inputs["w"][1])
    assert (copies[0] is copies[1]) is not writeable


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "inputs of graph mapping: found none, expected truncation_psi, z"),
        ({"z": (1, 8), "psi": (1,)}, "found psi, z, expected truncation_psi, z"),
        ({"z": (1, 9), "truncation_psi": (1,)}, r"input z: found shape \[1, 9\], expected \[1, 8\]"),
        ({"z": (2, 8), "truncation_psi": (1,)}, r"input z: found shape \[2, 8\], expected \[1, 8\]"),
        ({"z": (8,), "truncation_psi": (1,)}, r"input z: found shape \[8\], expected \[1, 8\]"),
    ],
)
def test_inputs_that_do_not_fit(bundle, engine, inputs, message):
    arrays = {name: np.zeros(shape, np.float32) for name, shape in inputs.items()}
    with open_session(engine, bundle, "mapping") as session, pytest.raises(EngineError, match=message):
        session.run(arrays)


def test_dtype_and_output_that_do_not_fit(bundle, engine):
    with open_session(engine, bundle, "synthesis") as session:
        with pytest.raises(EngineError, match="input w: found dtype float64, expected float32"):
            session.run({"w": np.zeros((1, 12))})
        with pytest.raises(EngineError, match="outputs of graph synthesis: found mask, expected frame, image"):
            session.run({"w": np.zeros((1, 12), np.float32)}, ["mask"])


def test_closed_session(bundle, engine):
    session = open_session(engine, bundle, "mapping")
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed session"):
        session.run({})


def test_many_threads_share_a_session(bundle, tiny, engine):
    rows = np.random.default_rng(0).standard_normal((16, 1, 12)).astype(np.float32)
    with open_session(engine, bundle, "synthesis", threads=1) as session:
        found = [None] * len(rows)

        def run(index):
            for _ in range(20):
                found[index] = session.run({"w": rows[index]}, ["image"])["image"]

        threads = [threading.Thread(target=run, args=(index,)) for index in range(len(rows))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for row, image in zip(rows, found, strict=True):
        np.testing.assert_allclose(image.reshape(-1), np.tanh(row[0] @ tiny.weights["S"]), atol=1e-5)


def test_automatic_choice():
    assert choose_engine() == "openvino" and choose_engine(precision="fp16") == "onnxruntime"


def test_automatic_choice_without_openvino(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert choose_engine() == "onnxruntime"
    with pytest.raises(EngineError, match=r"openvino in fp32: the engine openvino cannot be had .*pip install"):
        choose_engine("openvino")
    with pytest.raises(
        EngineError,
        match=r"found bf16, for which this machine has no engine \(onnxruntime-cuda: .*; openvino: .*; onnxrun",
    ):
        choose_engine(precision="bf16")


def test_pairs_that_cannot_be_say_why():
    assert obstacle("onnxruntime", "bf16") == "this engine computes in fp32, fp16, fp8, int8"
    assert obstacle("openvino", "fp16") == "this engine computes in fp32, bf16"
    assert obstacle("openvino", "fp32") is None and obstacle("onnxruntime", "fp32") is None


def test_a_cpu_without_bfloat16(monkeypatch):
    from styleinv.runtime.sessions import openvino

    monkeypatch.setattr(openvino, "_capabilities", lambda module: ("FP32", "INT8"))
    with pytest.raises(EngineError, match="openvino in bf16: this CPU has no bfloat16 instructions"):
        choose_engine("openvino", "bf16")


def test_openvino_computes_in_float32_unless_told_otherwise(bundle):
    with open_session("openvino", bundle, "synthesis") as session:
        assert session._properties["INFERENCE_PRECISION_HINT"] == "f32"


@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks are asked for as Linux has them")
def test_openvino_leaves_the_signal_stack_alone(tiny):
    """On the small one that it brings, Ctrl-C can end in a segmentation fault."""
    program = f"""
import ctypes, faulthandler
from styleinv.runtime import Rollout

def signal_stack():
    stack = (ctypes.c_size_t * 3)()
    ctypes.CDLL(None).sigaltstack(None, stack)
    return list(stack)

faulthandler.enable()  # has a stack of its own for signals
before = signal_stack()
with Rollout.open({str(tiny.path)!r}, engine="openvino") as rollout:
    rollout[0]
    assert signal_stack() == before and before[2] > 0
assert signal_stack() == before
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(NO_BF16 is not None, reason=str(NO_BF16))
def test_openvino_in_bfloat16_is_close_and_not_equal(bundle):
    w = np.random.default_rng(0).standard_normal((4, 12)).astype(np.float32)
    with (
        open_session("openvino", bundle, "synthesis") as exact,
        open_session("openvino", bundle, "synthesis", precision="bf16") as rounded,
    ):
        assert rounded.name.endswith("(CPU, bf16)")
        difference = exact.run({"w": w})["image"] - rounded.run({"w": w})["image"]
    assert 0.0 < np.abs(difference).max() < 0.05


def test_unknown_engine(bundle):
    with pytest.raises(
        EngineError,
        match="engine: found 'cuda', expected one of auto, tensorrt, rtx, onnxruntime-cuda, openvino, onnxruntime",
    ):
        choose_engine("cuda")
    with pytest.raises(EngineError, match="found 'cuda'"):
        Sessions(bundle, engine="cuda")


def test_unknown_graph(bundle):
    with pytest.raises(BundleError, match="expected mirror"):
        open_session("auto", bundle, "mirror")


def test_file_that_does_not_load(damaged, engine):
    (damaged.path / "latent.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=rf"latent\.onnx: found a file that {engine} does not load"):
        open_session(engine, unchecked(damaged), "latent")


@pytest.mark.parametrize("absolute", [True, False])
def test_external_weights_stay_inside(damaged, absolute):
    onnx = pytest.importorskip("onnx")
    outside = (damaged.path / "synthesis.bin").rename(damaged.path.parent / "synthesis.bin")
    model = onnx.load(damaged.path / "synthesis.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(outside) if absolute else "../synthesis.bin"
    onnx.save_model(model, damaged.path / "synthesis.onnx")
    with pytest.raises(
        EngineError, match=r"synthesis\.onnx: found a file that onnxruntime does not load: .*xternal data"
    ):
        open_session("onnxruntime", unchecked(damaged), "synthesis")


def test_file_whose_names_are_not_the_manifests(damaged, engine):
    (damaged.path / "latent.onnx").write_bytes((damaged.path / "content.onnx").read_bytes())
    with pytest.raises(EngineError, match="inputs of graph latent: found image, expected features"):
        open_session(engine, unchecked(damaged), "latent")


def unchecked(damaged):
    return Bundle(damaged.path, json.loads((damaged.path / "manifest.json").read_text()))


def test_missing_onnxruntime(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"pip install 'styleinv\[runtime-cpu\]'"):
        open_session("onnxruntime", bundle, "mapping")


def test_two_onnxruntimes(bundle, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: name)
    with pytest.raises(EngineError, match="found both onnxruntime and onnxruntime-gpu installed"):
        open_session("onnxruntime", bundle, "mapping")


def test_sessions_are_opened_once_and_shared_by_threads(bundle):
    with Sessions(bundle, threads=1) as sessions:
        found = []
        threads = [threading.Thread(target=lambda: found.append(sessions.session("latent"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8 and len(set(map(id, found))) == 1
        assert sessions.motion_network() is sessions.motion_network()
    with pytest.raises(EngineError, match="closed sessions"):
        sessions.session("latent")
