"""ONNX Runtime's providers for GPUs: what is copied when, and that nothing falls back to the CPU. Where the class
computes is data, so it runs on the CPU's provider here."""

import gc
import importlib.metadata
import json
import subprocess
import sys
import types
import weakref

import numpy as np
import pytest

from styleinv.runtime import Bundle, EngineError, Rollout, Sessions
from styleinv.runtime.machine import nvidia_gpus
from styleinv.runtime.sessions import ENGINES, SessionOptions, obstacle, open_session
from styleinv.runtime.sessions import onnxruntime_gpu as module
from styleinv.runtime.sessions.base import BOUND_SHAPES
from styleinv.runtime.sessions.onnxruntime import session_settings

onnxruntime = pytest.importorskip("onnxruntime")
NAMES = ("onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-rtx")
HERE = "CPUExecutionProvider"


def provider(name=HERE):
    return module.Provider(name, "none", "nothing", "it wants a GPU", lambda graph, precision: {})


def on_cpu(spec, name=HERE):
    """The session of a GPU, with everything on the CPU."""
    options = SessionOptions()
    settings = session_settings(options)
    return module.OnnxRuntimeGpuSession(spec, options, provider(name), settings, {HERE: {}}, module.ON_CPU)


@pytest.fixture
def copies(monkeypatch):
    """The inputs that are copied to where they lie, by their sizes."""
    copied = []
    update = onnxruntime.OrtValue.update_inplace

    def counting_update(value, array):
        copied.append(array.size)
        update(value, array)

    monkeypatch.setattr(onnxruntime.OrtValue, "update_inplace", counting_update)
    return copied


def latent_inputs(bundle, batch=1):
    draws = np.random.default_rng(batch)
    return {
        name: draws.standard_normal((batch, *spec.shape[1:])).astype(np.float32)
        for name, spec in bundle.graph("latent").inputs.items()
    }


def test_the_same_arrays_as_on_the_cpu(tiny):
    bundle = Bundle.open(tiny.path)
    with on_cpu(bundle.graph("latent")) as session, open_session("onnxruntime", bundle, "latent") as plain:
        for batch in (1, 3, 2, 1):
            inputs = latent_inputs(bundle, batch)
            np.testing.assert_array_equal(session.run(inputs)["w"], plain.run(inputs)["w"])
            kept = session.run_on_device(inputs, ["w"])["w"]
            np.testing.assert_array_equal(np.from_dlpack(kept), plain.run(inputs)["w"])
            np.testing.assert_array_equal(session.run(inputs)["w"], plain.run(inputs)["w"])  # outputs bound as before


def test_what_stays_on_the_device_is_not_written_over(tiny):
    bundle = Bundle.open(tiny.path)
    with on_cpu(bundle.graph("latent")) as session:
        first, second = latent_inputs(bundle), latent_inputs(bundle)
        shape = bundle.graph("latent").inputs["v"].shape
        first["v"], second["v"] = (np.full((1, *shape[1:]), v, np.float32) for v in (0.1, 0.9))
        kept = np.from_dlpack(session.run_on_device(first, ["w"])["w"])
        copied = kept.copy()
        other = np.from_dlpack(session.run_on_device(second, ["w"])["w"])
        assert not np.array_equal(kept, other)
        np.testing.assert_array_equal(kept, copied)


def test_read_only_inputs_are_copied_once(tiny, copies):
    bundle = Bundle.open(tiny.path)
    with on_cpu(bundle.graph("latent")) as session, open_session("onnxruntime", bundle, "latent") as plain:
        inputs = latent_inputs(bundle)
        for name, array in inputs.items():
            array.flags.writeable = name == "v"
        session.run(inputs)
        assert sorted(copies) == sorted(array.size for array in inputs.values())
        for _ in range(3):
            inputs["v"] += 0.1  # in place: the same array, another content
            copies.clear()
            found = session.run(inputs)["w"]
            assert copies == [inputs["v"].size]
            np.testing.assert_array_equal(found, plain.run(inputs)["w"])


def test_only_what_is_wanted_leaves_the_device(tiny):
    bundle = Bundle.open(tiny.path)
    w = np.ones((1, 12), np.float32)
    with on_cpu(bundle.graph("synthesis")) as session, open_session("onnxruntime", bundle, "synthesis") as plain:
        expected = plain.run({"w": w})
        session.bound(1).buffers["image"][:] = 7.0
        np.testing.assert_array_equal(session.run({"w": w}, ["frame"])["frame"], expected["frame"])
        assert (session.bound(1).buffers["image"] == 7.0).all()
        kept = session.run_on_device({"w": w}, ["frame"])
        assert kept.keys() == {"frame"} and (session.bound(1).buffers["image"] == 7.0).all()
        np.testing.assert_array_equal(session.run({"w": w}, ["image"])["image"], expected["image"])


def test_batch_sizes_that_are_not_kept_ready_are_let_go(tiny):
    bundle = Bundle.open(tiny.path)
    with on_cpu(bundle.graph("latent")) as session:
        session.run_on_device(latent_inputs(bundle), ["w"])
        first = weakref.ref(session.bound(1))
        for batch in range(2, 2 + BOUND_SHAPES):
            session.run(latent_inputs(bundle, batch))
        gc.collect()
        assert first() is None


def test_another_provider_than_the_one_asked_for_is_refused(tiny):
    with pytest.raises(EngineError, match=f"found {HERE}, expected CUDAExecutionProvider: .*; it wants a GPU"):
        on_cpu(Bundle.open(tiny.path).graph("latent"), "CUDAExecutionProvider")


def test_a_file_that_is_none(damaged):
    bundle = Bundle.open(damaged.path)
    bundle.graph("latent").file.write_bytes(b"no model")
    with pytest.raises(EngineError, match=r"latent\.onnx: found a file that onnxruntime .* does not load"):
        on_cpu(bundle.graph("latent"))


def test_a_closed_session_refuses(tiny):
    bundle = Bundle.open(tiny.path)
    session = on_cpu(bundle.graph("latent"))
    session.close()
    for run in (session.run, session.run_on_device):
        with pytest.raises(EngineError, match="found a closed session"):
            run(latent_inputs(bundle), ["w"])


@pytest.mark.parametrize("engine", NAMES)
def test_obstacles(engine, monkeypatch):
    """The provider first, then the GPU's driver; auto takes the first of them only."""
    assert module.PROVIDERS.keys() == set(NAMES) and ENGINES[engine].automatic == (engine == "onnxruntime-cuda")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [HERE])
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    provider = module.PROVIDERS[engine].name
    assert f"has no {provider}, which `pip install '" in obstacle(engine, "fp32")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [provider, HERE])
    monkeypatch.setattr(module, "cuda_driver_version", lambda: (None, "libcuda.so.1 cannot be loaded"))
    assert obstacle(engine, "fp16") == "this machine has no driver for NVIDIA's GPUs (libcuda.so.1 cannot be loaded)"
    monkeypatch.setattr(module, "cuda_driver_version", lambda: ("13.0", None))
    assert obstacle(engine, "fp16") is None
    assert obstacle(engine, "bf16") == "this engine computes in fp32, fp16"


@pytest.mark.parametrize("engine", NAMES)
def test_what_is_asked_of_onnxruntime(engine, tiny, monkeypatch, tmp_path):
    """Provider, options, and folders of the user's own for what is compiled."""
    monkeypatch.setenv("STYLEINV_CACHE", str(tmp_path / "cache"))
    asked = {}

    def session(file, sess_options, providers, enable_fallback):
        asked.update(providers=providers, enable_fallback=enable_fallback)
        raise RuntimeError("enough")

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    built_in = [module.PROVIDERS[name].name for name in NAMES if name != "onnxruntime-rtx"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: built_in)
    device = types.SimpleNamespace(memory_info=lambda kind: "its memory")
    monkeypatch.setattr(module, "_plugin_device", lambda _: device)
    monkeypatch.setattr(module, "_preload_cuda", lambda _: None)
    settings = types.SimpleNamespace(
        add_provider_for_devices=lambda devices, given: asked.update(plugin=(devices, given))
    )
    monkeypatch.setattr(module, "session_settings", lambda options: settings)
    with pytest.raises(EngineError, match="does not load: enough"):
        module.open_session(engine, Bundle.open(tiny.path).graph("latent"), SessionOptions("fp16"))
    assert asked.pop("enable_fallback") == 0
    caches = list((tmp_path / "cache").glob("*"))
    if engine == "onnxruntime-cuda":
        assert asked["providers"] == [("CUDAExecutionProvider", {"use_tf32": "0"})] and not caches
        return
    (cache,) = caches
    assert cache.name.startswith(f"{engine}-") and cache.stat().st_mode & 0o777 == 0o700
    if engine == "onnxruntime-rtx":
        assert asked == {"providers": None, "plugin": ([device], {"nv_runtime_cache_path": str(cache)})}
    else:
        first, second = asked["providers"]
        assert first[0] == "TensorrtExecutionProvider" and second[0] == "CUDAExecutionProvider"
        assert first[1]["trt_engine_cache_path"] == str(cache)
        assert first[1]["trt_fp16_enable"] == first[1]["trt_engine_cache_enable"] == "True"  # it refuses "1"


def test_a_provider_that_is_built_in_needs_no_plugin(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("STYLEINV_CACHE", str(tmp_path))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["NvTensorRTRTXExecutionProvider", HERE])
    monkeypatch.setattr(module, "_preload_cuda", lambda _: None)
    monkeypatch.setitem(sys.modules, module.PLUGIN, None)
    with pytest.raises(EngineError, match="NvTensorRTRTXExecutionProvider"):
        module.open_session("onnxruntime-rtx", Bundle.open(tiny.path).graph("latent"), SessionOptions())


def test_graphs_that_differ_in_weights_alone_share_no_cache(styled, monkeypatch, tmp_path):
    """A style's synthesis has the names and operators of the bundle's own, which is all that providers look at."""
    monkeypatch.setenv("STYLEINV_CACHE", str(tmp_path))
    bundle = Bundle.open(styled.path)
    graphs = [bundle.graph("synthesis", transfer) for transfer in (None, "ink", "oil-2")]
    assert len({graph.sha256 for graph in graphs[1:]}) == 1  # their weights lie outside
    folders = [module._cache("onnxruntime-tensorrt", graph) for graph in graphs]
    assert len(set(folders)) == 3 and folders == [module._cache("onnxruntime-tensorrt", graph) for graph in graphs]


def test_a_plugin_without_a_gpu(monkeypatch):
    plugin = types.SimpleNamespace(get_ep_name=lambda: "Rtx", get_library_path=lambda: "/nowhere.so")
    monkeypatch.setitem(sys.modules, module.PLUGIN, plugin)
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda *_: None, raising=False)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: [types.SimpleNamespace(ep_name="other")], raising=False)
    module._plugin_device.cache_clear()
    with pytest.raises(EngineError, match="Rtx: found no GPU that it computes on, expected one"):
        module._plugin_device(onnxruntime)


@pytest.mark.skipif(
    "onnxruntime-gpu" not in {d.metadata["Name"] for d in importlib.metadata.distributions()} or bool(nvidia_gpus()[0]),
    reason="takes onnxruntime-gpu, and no GPU",
)
@pytest.mark.parametrize("engine", [name for name in NAMES if name != "onnxruntime-rtx"])
def test_without_a_gpu_nothing_is_computed_on_the_cpu(tiny, engine, tmp_path):
    """The error names the library that is missing, and standard output, which may carry frames, stays clean."""
    program = f"""
import json
from styleinv.runtime import Bundle, EngineError
from styleinv.runtime.sessions import SessionOptions, onnxruntime_gpu
try:
    onnxruntime_gpu.open_session({engine!r}, Bundle.open({str(tiny.path)!r}).graph("latent"), SessionOptions())
except EngineError as error:
    print(json.dumps(str(error)))
"""
    environment = {"STYLEINV_CACHE": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    message = json.loads(finished.stdout)
    assert module.PROVIDERS[engine].name in message and "cannot open shared object file" in message
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in message


@pytest.mark.gpu
@pytest.mark.parametrize("engine", NAMES)
def test_on_a_gpu(small_bundle, engine):
    if (reason := obstacle(engine, "fp32")) is not None:
        pytest.skip(reason)
    ts = [0.0, 1.0, 7.5, 1000.5]
    with Rollout.open(small_bundle, seed=3, engine=engine) as rollout, Sessions(Bundle.open(small_bundle)) as sessions:
        wanted = Rollout(sessions, 3)
        for found, right in zip(rollout.frames(ts), wanted.frames(ts), strict=True):
            assert np.abs(found.astype(int) - right).max() <= 1
        frame = rollout.frame(7.5, device="cuda")
        assert frame.__dlpack_device__()[0] == 2
