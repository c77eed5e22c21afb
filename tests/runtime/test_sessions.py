"""Sessions: the engine registry, ONNX Runtime, and what they refuse."""

import importlib.metadata
import json
import sys
import threading

import numpy as np
import pytest

from styleinv.runtime import Bundle, BundleError, EngineError, Sessions
from styleinv.runtime.sessions import choose_engine, open_session


@pytest.fixture(scope="module")
def bundle(tiny):
    return Bundle.open(tiny.path)


def test_run(bundle, tiny):
    z = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    psi = np.array([1.0, 0.5, 0.0], np.float32)
    with open_session("auto", bundle, "mapping", threads=1) as session:
        assert session.name.startswith("onnxruntime ") and session.name.endswith("(CPU)")
        found = session.run({"z": z, "truncation_psi": psi})
    assert found.keys() == {"w0"}
    np.testing.assert_allclose(found["w0"], psi[:, None] * (z @ tiny.weights["M"]), atol=1e-6)


def test_run_some_outputs_of_inputs_that_are_not_contiguous(bundle):
    w = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32).T
    with open_session("onnxruntime", bundle, "synthesis") as session:
        some, all_outputs = session.run({"w": w}, ["frame"]), session.run({"w": w})
    assert some.keys() == {"frame"} and all_outputs.keys() == {"frame", "image"}
    assert some["frame"].flags.c_contiguous and some["frame"].flags.writeable
    np.testing.assert_array_equal(some["frame"], all_outputs["frame"])


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
def test_inputs_that_do_not_fit(bundle, inputs, message):
    arrays = {name: np.zeros(shape, np.float32) for name, shape in inputs.items()}
    with open_session("auto", bundle, "mapping") as session, pytest.raises(EngineError, match=message):
        session.run(arrays)


def test_dtype_and_output_that_do_not_fit(bundle):
    with open_session("auto", bundle, "synthesis") as session:
        with pytest.raises(EngineError, match="input w: found dtype float64, expected float32"):
            session.run({"w": np.zeros((1, 12))})
        with pytest.raises(EngineError, match="outputs of graph synthesis: found mask, expected frame, image"):
            session.run({"w": np.zeros((1, 12), np.float32)}, ["mask"])


def test_closed_session(bundle):
    session = open_session("auto", bundle, "mapping")
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed session"):
        session.run({})


def test_unknown_engine(bundle):
    with pytest.raises(EngineError, match="engine: found 'cuda', expected one of auto, onnxruntime"):
        choose_engine("cuda")
    with pytest.raises(EngineError, match="found 'cuda'"):
        Sessions(bundle, engine="cuda")


def test_unknown_graph(bundle):
    with pytest.raises(BundleError, match="expected mirror"):
        open_session("auto", bundle, "mirror")


def test_file_that_does_not_load(damaged):
    (damaged.path / "latent.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"latent\.onnx: found a file that onnxruntime does not load"):
        open_session("auto", unchecked(damaged), "latent")


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
        open_session("auto", unchecked(damaged), "synthesis")


def test_file_whose_names_are_not_the_manifests(damaged):
    (damaged.path / "latent.onnx").write_bytes((damaged.path / "content.onnx").read_bytes())
    with pytest.raises(EngineError, match="inputs of graph latent: found image, expected features"):
        open_session("auto", unchecked(damaged), "latent")


def unchecked(damaged):
    return Bundle(damaged.path, json.loads((damaged.path / "manifest.json").read_text()))


def test_missing_onnxruntime(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"pip install 'styleinv\[runtime-cpu\]'"):
        open_session("auto", bundle, "mapping")


def test_two_onnxruntimes(bundle, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: name)
    with pytest.raises(EngineError, match="found both onnxruntime and onnxruntime-gpu installed"):
        open_session("auto", bundle, "mapping")


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
