"""Compiled engines on a real GPU, against ONNX Runtime. `make test-gpu` runs these; elsewhere they skip."""

import numpy as np
import pytest
from compiled_bundle import add_engine, built_engine

from styleinv.runtime import Bundle, Rollout, Sessions
from styleinv.runtime.engine_library import import_engine_library
from styleinv.runtime.sessions import cuda, obstacle, open_session

pytestmark = pytest.mark.gpu
GRAPHS = ("mapping", "synthesis", "content", "latent", "frame")


@pytest.fixture(scope="module", params=["tensorrt", "rtx"])
def engine(request):
    reason = obstacle(request.param, "fp32")
    if reason is not None:
        pytest.skip(reason)
    if request.param == "rtx":
        supported = import_engine_library("rtx").ComputeCapability.__members__
        if capability() not in supported:
            pytest.skip(f"TensorRT for RTX builds for none of this GPU's kind ({capability()})")
    return request.param


def capability():
    return "SM" + cuda.open_device().compute_capability.replace(".", "")


@pytest.fixture(scope="module")
def bundle(engine, make_bundle, tmp_path_factory):
    library, device = import_engine_library(engine), cuda.open_device()
    made = make_bundle(tmp_path_factory.mktemp("bundles") / "sky.bundle")
    for graph in GRAPHS:
        content = built_engine(library, made.path / f"{graph}.onnx", capability())
        fields = {"engine": engine, "version": str(library.__version__), "targets": [device.compute_capability]}
        add_engine(made, graph, content, **fields)
    return Bundle.open(made.path)


def latents(*shape):
    return np.random.default_rng(0).standard_normal((*shape, 12)).astype(np.float32)


def test_results_are_those_of_onnxruntime(bundle, engine):
    with open_session(engine, bundle, "synthesis") as session, open_session("onnxruntime", bundle, "synthesis") as cpu:
        for batch in (1, 3, 1, 4, 2):  # each of them enqueued, captured and replayed
            for w in latents(6, batch):
                found, expected = session.run({"w": w}), cpu.run({"w": w})
                np.testing.assert_allclose(found["image"], expected["image"], atol=5e-3)  # TF32
                assert np.abs(found["frame"].astype(int) - expected["frame"]).max() <= 1
        assert "without CUDA graph" not in session.name


def test_runs_in_flight(bundle, engine):
    rows = latents(50, 1)
    with open_session(engine, bundle, "synthesis") as session:
        expected = [session.run({"w": w}, ["frame"])["frame"] for w in rows]
        runs = [session.submit({"w": w}, ["frame"]) for w in rows]
        for run, frame in zip(runs, expected, strict=True):
            np.testing.assert_array_equal(run.result()["frame"], frame)


def test_playing(bundle, engine):
    with Rollout.open(bundle, 3, engine="onnxruntime") as rollout:
        expected = [frame.astype(int) for frame in rollout.play(count=40)]
    for options in ({"engine": engine}, {"trust": True}):
        with Rollout.open(bundle, 3, **options) as rollout:
            assert rollout.engine.startswith(f"{engine} ") and rollout.sessions.fused
            for frame, wanted in zip(rollout.play(count=40), expected, strict=True):
                assert np.abs(frame - wanted).max() <= 1


def test_memory_goes_back(bundle, engine):
    driver = pytest.importorskip("pycuda.driver")
    device = cuda.open_device()

    def free():
        with device.current():
            return driver.mem_get_info()[0]

    def play():
        with Sessions(bundle, engine=engine) as sessions:
            for batch in (1, 2, 3, 4):
                sessions.session("synthesis").run({"w": latents(batch)})

    play()  # loads modules that stay
    before = free()
    for _ in range(5):
        play()
    assert before - free() < 2**22


def test_in_an_application_that_uses_cuda(bundle, engine):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no GPU")
    ours = torch.arange(1000, device="cuda")  # it has made the primary context current
    with Rollout.open(bundle, 3, engine=engine) as rollout:
        expected = rollout[2.5]
        kept = rollout.frame(2.5, device="cuda")
        theirs = torch.from_dlpack(kept)
        assert theirs.device.type == "cuda" and int(ours.sum()) == 499500
        np.testing.assert_array_equal(theirs.cpu().numpy(), expected)
    np.testing.assert_array_equal(theirs.cpu().numpy(), expected)  # the session is closed
    assert int((ours + 1).sum()) == 500500
