"""The session of compiled engines, on a GPU made of numpy whose engines are ONNX Runtime's: results, order, memory."""

import dataclasses
import gc
import threading

import numpy as np
import pytest
from compiled_bundle import add_engine, built_engine
from fake_device import FakeDevice, FakeLibrary

from styleinv.runtime import Bundle, BundleError, EngineError, Rollout, RolloutBatch, Sessions
from styleinv.runtime.cli import main
from styleinv.runtime.device_array import DeviceArray
from styleinv.runtime.sessions import SessionOptions, cuda, open_session
from styleinv.runtime.sessions import tensorrt as module
from styleinv.runtime.sessions.base import BOUND_SHAPES
from styleinv.runtime.sessions.engine_choice import CompiledGraph
from styleinv.runtime.sessions.tensorrt import TensorRtSession

GRAPHS = ("mapping", "synthesis", "content", "latent", "frame")
VERSION = "1.2.3"


@pytest.fixture
def compiled(make_bundle, tmp_path):
    """A bundle with an engine of each graph, for each of the two libraries."""
    bundle = make_bundle(tmp_path / "sky.bundle", transfers=("ink",))
    for graph in GRAPHS:
        for engine in ("rtx", "tensorrt"):
            add_engine(bundle, graph, engine=engine, version=VERSION)
    return bundle


class Fakes:
    """What the session is given in place of a GPU and a library; every graph of the bundle computes."""

    def __init__(self, path, own_graphs=False):
        self.bundle, self.device, self.own_graphs = Bundle.open(path), FakeDevice(), own_graphs
        self.cpu = Sessions(self.bundle, engine="onnxruntime", threads=1)
        self.library = None  # the last one made

    def compiled_graph(self, graph, engine="tensorrt"):
        (spec,) = [each for each in self.bundle.engines if (each.graph.name, each.engine) == (graph, engine)]
        return CompiledGraph(spec, spec.graph)

    def session(self, graph, change=None):
        chosen = self.compiled_graph(graph)
        self.library = FakeLibrary(self.device, chosen.graph, self.cpu.session(graph).run, self.own_graphs)
        if change is not None:
            change(self.library)
        return TensorRtSession(self.library, self.device, chosen)


@pytest.fixture
def fakes(compiled):
    fakes = Fakes(compiled.path)
    yield fakes
    fakes.cpu.close()


@pytest.fixture
def on_fakes(fakes, monkeypatch):
    """This machine has the fake GPU, and the library of its engines."""
    libraries = {}

    def opened(engine, graph, options):
        run = fakes.cpu.session(graph.graph.name).run
        libraries[graph.graph.name] = FakeLibrary(fakes.device, graph.graph, run)
        return TensorRtSession(libraries[graph.graph.name], fakes.device, graph)

    monkeypatch.setattr(module, "open_session", opened)
    monkeypatch.setattr(module, "obstacle", lambda engine, precision: None)
    any_library = FakeLibrary(fakes.device, fakes.bundle.graph("latent"), None)
    monkeypatch.setattr(module, "import_engine_library", lambda engine: any_library)
    monkeypatch.setattr(cuda, "open_device", lambda: fakes.device)
    return fakes


def latents(*shape):
    return np.random.default_rng(0).standard_normal((*shape, 12)).astype(np.float32)


@pytest.mark.parametrize("own_graphs", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_results_are_those_of_the_graph(fakes, own_graphs, batch):
    fakes.own_graphs = own_graphs
    with fakes.session("synthesis") as session:
        for w in latents(6, batch):
            found, expected = session.run({"w": w}), fakes.cpu.session("synthesis").run({"w": w})
            assert found.keys() == expected.keys()
            for name, array in expected.items():
                np.testing.assert_array_equal(found[name], array)
                assert found[name].flags.owndata and found[name].flags.writeable
        assert session.name == "tensorrt 1.2.3 (a GPU of numpy, fp32)" and session.overlaps
    assert ("launch" in fakes.device.operations()) != own_graphs
    if own_graphs:
        assert all(context.config.cuda_graph_strategy == "whole" for context in fakes.library.contexts)


def test_the_copy_of_a_frame_overlaps_the_computing_of_the_next(fakes):
    rows = latents(6, 1)
    with fakes.session("synthesis") as session:
        for w in rows[:4]:
            session.run({"w": w}, ["frame"])
        fakes.device.log.clear()
        first = session.submit({"w": rows[4]}, ["frame"])
        second = session.submit({"w": rows[5]}, ["frame"])
        submitted = list(fakes.device.log)
        results = [run.result()["frame"] for run in (first, second)]
        assert first.result()["frame"] is results[0]  # once more
    compute, copy = 1, 2
    one_run = [
        ("copy_in", compute, rows[0].nbytes),
        ("launch", compute),
        ("record", compute),
        ("wait", copy),
        ("copy_out", copy, 16 * 16 * 3),  # the frame alone
        ("record", copy),
    ]
    # Nothing waits between the two on the host; the second slot's last run is over already.
    assert [entry for entry in submitted if entry[0] != "synchronize"] == one_run * 2
    assert all(entry[0] != "synchronize" for entry in submitted[1 : len(one_run)])
    for w, frame in zip(rows[4:], results, strict=True):
        np.testing.assert_array_equal(frame, fakes.cpu.session("synthesis").run({"w": w})["frame"])


def test_results_may_be_asked_for_late_in_any_order_or_never(fakes):
    rows = latents(7, 1)
    with fakes.session("synthesis") as session:
        runs = [session.submit({"w": w.copy()}, ["image"]) for w in rows]
        del runs[3]
        for w, run in zip(rows[[6, 5, 4, 2, 1, 0]], reversed(runs), strict=True):
            expected = fakes.cpu.session("synthesis").run({"w": w})["image"]
            np.testing.assert_array_equal(run.result()["image"], expected)


def test_inputs_may_be_changed_once_they_are_submitted(fakes):
    w = latents(1)
    with fakes.session("synthesis") as session:
        expected = session.run({"w": w})["image"]
        run = session.submit({"w": w}, ["image"])
        w[:] = 0.0
        np.testing.assert_array_equal(run.result()["image"], expected)
        assert not session.run({"w": w})["image"].any()  # the same array with other content


def test_inputs_that_are_read_only_and_the_same_are_copied_once(fakes):
    clip = Rollout(fakes.cpu, 1).clip
    inputs = {name: array.copy() for name, array in clip.conditions.items()}
    for array in inputs.values():
        array.flags.writeable = False
    v = np.ones((1, 8), np.float32)
    with fakes.session("latent") as session:
        for _ in range(2):
            session.run({**inputs, "v": v})
        fakes.device.log.clear()
        for count in range(4):
            found = session.run({**inputs, "v": v + count})["w"]
            expected = fakes.cpu.session("latent").run({**inputs, "v": v + count})["w"]
            np.testing.assert_array_equal(found, expected)
        assert [entry for entry in fakes.device.log if entry[0] == "copy_in"] == [("copy_in", 1, v.nbytes)] * 4
        other = {**inputs, "w0": inputs["w0"] + 1, "v": v}
        for given in (other, other, {**inputs, "v": v}, {**inputs, "v": v}):  # through both slots
            found = session.run(given)["w"]
            np.testing.assert_array_equal(found, fakes.cpu.session("latent").run(given)["w"])


def test_everything_is_allocated_once_and_freed(fakes):
    session = fakes.session("synthesis")
    for w in latents(2, 1):
        session.run({"w": w})
    fakes.device.log.clear()
    for w in latents(9, 1):
        session.run({"w": w})
    assert not {"allocate", "pinned", "stream", "event"} & set(fakes.device.operations())
    for batch in (2, 3, 4, 1, 2):
        session.run({"w": latents(batch)})
        assert len(session._plans) <= BOUND_SHAPES
    session.submit({"w": latents(2)})  # in flight
    session.close()
    session.close()
    assert not fakes.device.memory and not fakes.device.arrays and fakes.device.depth == 0
    counts = fakes.device.operations()
    assert counts.count("free_graph") <= counts.count("end_capture")
    with pytest.raises(EngineError, match="closed session"):
        session.run({"w": latents(1)})


def test_a_result_outlives_the_session(fakes):
    w = latents(1)
    session = fakes.session("synthesis")
    run = session.submit({"w": w}, ["image"])
    session.close()
    np.testing.assert_array_equal(run.result()["image"], fakes.cpu.session("synthesis").run({"w": w})["image"])


def test_outputs_stay_on_the_device_in_memory_of_their_own(fakes):
    rows = latents(3, 1)
    session = fakes.session("synthesis")
    arrays = [session.run_on_device({"w": w}, ["frame"])["frame"] for w in rows]
    session.close()
    assert len({array.pointer for array in arrays}) == 3 and len(fakes.device.memory) == 3
    for w, array in zip(rows, arrays, strict=True):
        assert isinstance(array, DeviceArray) and array.shape == (1, 16, 16, 3) and array.number == 3
        found = fakes.device.read(array.pointer, array.shape, array.dtype)  # finished
        np.testing.assert_array_equal(found, fakes.cpu.session("synthesis").run({"w": w})["frame"])
    view = dataclasses.replace(arrays[0], shape=(16, 16, 3))
    del arrays, array
    gc.collect()
    assert list(fakes.device.memory) == [view.pointer]
    del view
    gc.collect()
    assert not fakes.device.memory


def test_threads_share_a_session(fakes):
    rows = latents(8, 1)
    found = [None] * len(rows)
    with fakes.session("synthesis") as session:

        def run(index):
            for _ in range(10):
                found[index] = session.run({"w": rows[index]}, ["image"])["image"]

        threads = [threading.Thread(target=run, args=(index,)) for index in range(len(rows))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for w, image in zip(rows, found, strict=True):
        np.testing.assert_array_equal(image, fakes.cpu.session("synthesis").run({"w": w})["image"])


def test_what_does_not_fit(fakes):
    with fakes.session("synthesis") as session:
        with pytest.raises(EngineError, match=r"batch: found 5, expected 1 to 4; others take `styleinv export BUNDLE"):
            session.run({"w": latents(5)})
        with pytest.raises(EngineError, match="input w: found dtype float64"):
            session.run({"w": np.zeros((1, 12))})
        with pytest.raises(EngineError, match="outputs of graph synthesis: found mask"):
            session.run({"w": latents(1)}, ["mask"])
        session.run({"w": latents(1)})


def test_a_run_that_is_refused(fakes):
    w = latents(1)
    with fakes.session("synthesis") as session:
        session.run({"w": w})
        fakes.library.accepts = False
        with pytest.raises(EngineError, match="found a run that the engine refused"):
            session.run({"w": w})
        fakes.library.accepts = True
        expected = fakes.cpu.session("synthesis").run({"w": w})["image"]
        for _ in range(6):
            np.testing.assert_array_equal(session.run({"w": w})["image"], expected)


def test_the_name_says_where_there_is_no_graph(fakes):
    fakes.device.can_capture = False
    with fakes.session("synthesis") as session:
        for w in latents(4, 1):
            expected = fakes.cpu.session("synthesis").run({"w": w})["image"]
            np.testing.assert_array_equal(session.run({"w": w})["image"], expected)
        assert session.name == "tensorrt 1.2.3 (a GPU of numpy, fp32, without CUDA graph)"


@pytest.mark.parametrize("failing", ["allocate", "pinned", "event"])
def test_no_memory(fakes, failing):
    with fakes.session("synthesis") as session:
        fakes.device.fails = {failing}
        with pytest.raises(EngineError, match=f"{failing} failed"):
            session.run({"w": latents(1)})
        assert not fakes.device.memory and not fakes.device.arrays
        fakes.device.fails = set()
        session.run({"w": latents(1)})


def test_a_device_that_fails_while_it_computes(fakes):
    with fakes.session("synthesis") as session:
        run = session.submit({"w": latents(1)})
        fakes.device.fails = {"synchronize"}
        for _ in range(2):
            with pytest.raises(EngineError, match="synchronize failed"):
                run.result()
        fakes.device.fails = set()
    assert not fakes.device.memory


def dtype_of_another(library):
    library.nptype = lambda dtype: np.dtype("float16")


def other_names(library):
    library.engine.get_tensor_name = lambda index: f"array{index}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda library: setattr(library, "__version__", "1.2.4"), "built by version 1.2.3, where 1.2.4 is installed"),
        (
            lambda library: setattr(library, "complaint", "no CUDA"),
            "does not load on a GPU of numpy: no CUDA; build it",
        ),
        (dtype_of_another, r"its w is float16 \[-1, 12\], not float32 \['batch', 12\]"),
        (other_names, "inputs of graph synthesis: found none, expected w"),
    ],
)
def test_engines_that_do_not_load(fakes, change, message):
    with pytest.raises(EngineError, match=message):
        fakes.session("synthesis", change)


def test_what_rtx_finds_wrong_is_said(fakes):
    fakes.own_graphs = True
    with pytest.raises(
        EngineError, match="GPU's driver is too old for it; its file is damaged; build it with `styleinv "
    ):
        fakes.session("synthesis", lambda library: setattr(library, "diagnostics", 4 | 32))
    assert not fakes.library.loaded


def test_another_gpu(fakes):
    fakes.device.compute_capability = "7.5"
    with pytest.raises(EngineError, match=r"built for compute capability 8.9, where the GPU has 7.5"):
        fakes.session("synthesis")


def test_a_damaged_file_is_never_loaded(fakes):
    chosen = fakes.compiled_graph("synthesis")
    content = bytearray(chosen.engine.file.read_bytes())
    content[0] ^= 1
    chosen.engine.file.write_bytes(content)
    with pytest.raises(BundleError, match="found SHA-256"):
        fakes.session("synthesis")
    assert not fakes.library.loaded
    chosen.engine.file.unlink()
    with pytest.raises(BundleError, match="expected a readable file"):
        fakes.session("synthesis")


def test_native_code_loads_only_by_name_or_on_trust(on_fakes):
    path = on_fakes.bundle.path
    with Sessions(on_fakes.bundle) as sessions:
        assert sessions.engine in ("openvino", "onnxruntime") and not sessions.fused
    for options in ({"engine": "rtx"}, {"engine": "tensorrt"}, {"trust": True}):
        with Rollout.open(path, **options) as rollout:
            assert rollout.engine.endswith("(a GPU of numpy, fp32)")
            assert rollout.sessions.engine == options.get("engine", "tensorrt")


@pytest.mark.parametrize("option", ["--trust", "--engine=rtx"])
def test_the_command_plays_on_it(on_fakes, tmp_path, capsys, option):
    command = ["stream", str(on_fakes.bundle.path), option, "--frames", "3", "--threads", "1"]
    assert main([*command, "--out", f"{tmp_path / 'pictures'}/"]) == 0
    name = "rtx" if "rtx" in option else "tensorrt"
    assert f"playing on {name} 1.2.3 (a GPU of numpy, fp32)" in capsys.readouterr().err
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 3


def test_a_trusted_bundle_without_engines_that_fit_is_played_as_ever(on_fakes):
    on_fakes.device.compute_capability = "7.5"
    with Sessions(on_fakes.bundle, trust=True) as sessions:
        assert sessions.engine in ("openvino", "onnxruntime")
    with pytest.raises(EngineError, match=r"for tensorrt: found .*where the GPU has 7.5"):
        Rollout.open(on_fakes.bundle.path, engine="tensorrt")


def test_a_bundle_without_engines(tiny, on_fakes):
    with pytest.raises(EngineError, match=r"for rtx: found none.*build it with `styleinv export"):
        Rollout.open(tiny.path, engine="rtx")


def test_frames_come_from_one_launch_each(on_fakes):
    ts = [0, 1, 2.5, 1000, 16]
    expected = list(Rollout(on_fakes.cpu, 3).frames(ts))
    with Rollout.open(on_fakes.bundle.path, 3, engine="tensorrt") as rollout:
        assert ("latent", None) not in rollout.sessions._open
        rollout.warm_up()
        for batch in (1, 2):
            for frame, wanted in zip(rollout.frames(ts, batch), expected, strict=True):
                assert np.abs(frame.astype(int) - wanted).max() <= 1
        np.testing.assert_array_equal(rollout[2.5], next(iter(rollout.play(start=2.5, count=1))))
        kept = rollout.frame(1, device="cuda")
        found = on_fakes.device.read(kept.pointer, kept.shape, kept.dtype)
        assert np.abs(found.astype(int) - expected[1]).max() <= 1
        assert ("latent", None) not in rollout.sessions._open
        del kept
    gc.collect()
    assert not on_fakes.device.memory


def test_strided_latents_take_the_two_graphs(on_fakes):
    with Rollout.open(on_fakes.bundle.path, 3, engine="tensorrt", latent_stride=2) as rollout:
        found = list(rollout.frames([0, 1, 2]))
        assert ("frame", None) not in rollout.sessions._open
    expected = list(Rollout(on_fakes.cpu, 3, latent_stride=2).frames([0, 1, 2]))
    assert np.abs(np.array(found, int) - expected).max() <= 1


def test_one_frame_is_in_flight_ahead_and_none_is_lost(on_fakes):
    drawn = []

    def times():
        for t in range(5):
            drawn.append(t)
            yield t
        raise ValueError("the end")

    with Rollout.open(on_fakes.bundle.path, 3, engine="tensorrt") as rollout:
        frames, found = rollout.frames(times()), []
        found.append(next(frames))
        assert drawn == [0, 1]
        with pytest.raises(ValueError, match="the end"):
            while True:
                found.append(next(frames))
        assert len(found) == 5
        for t, frame in enumerate(found):
            np.testing.assert_array_equal(frame, rollout[t])
        cut_short = rollout.frames(iter(range(9)))
        next(cut_short)
        del cut_short
        np.testing.assert_array_equal(rollout[7], rollout[7])
    assert not on_fakes.device.memory
    drawn.clear()
    next(Rollout(on_fakes.cpu, 3).frames(times()))
    assert drawn == [0]  # on a CPU nothing is computed ahead


def test_batches_of_rollouts(on_fakes):
    on_cpu = RolloutBatch([Rollout(on_fakes.cpu, seed) for seed in (1, 2)])
    expected = list(on_cpu.play(count=3))
    with Sessions(on_fakes.bundle, engine="tensorrt") as sessions:
        batch = RolloutBatch([Rollout(sessions, seed) for seed in (1, 2)])
        found = list(batch.play(count=3))
        assert np.abs(np.array(found, int) - expected).max() <= 1
        out = np.empty_like(found[0])
        assert [frames is out for frames in batch.play(count=2, out=out)] == [True, True]
        np.testing.assert_array_equal(out, found[1])


def test_a_real_engine_where_there_is_no_gpu(make_bundle, tmp_path):
    """Built by TensorRT for RTX, opened where there is no GPU: the error says what is missing, and nothing crashes."""
    library = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    if cuda.obstacle("styleinv[rtx]") is None:
        pytest.skip("here is a GPU")
    bundle = make_bundle(tmp_path / "sky.bundle")
    content = built_engine(library, bundle.path / "mapping.onnx")
    add_engine(bundle, "mapping", content, version=library.__version__)
    opened = Bundle.open(bundle.path)
    with pytest.raises(EngineError, match="rtx in fp32: this machine has no driver for NVIDIA's GPUs"):
        open_session("rtx", opened, "mapping")
    (spec,) = opened.engines
    chosen = CompiledGraph(spec, spec.graph)
    with pytest.raises(EngineError, match="this machine has no driver"):
        module.open_session("rtx", chosen, SessionOptions())
    with pytest.raises(
        EngineError, match=r"mapping.0.engine: found an engine that rtx .* does not load on a GPU of num"
    ):
        TensorRtSession(library, FakeDevice(), chosen)
