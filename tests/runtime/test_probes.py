"""engine="auto" takes the fastest engine that loads and reproduces the bundle's probe values, and says what failed."""

import importlib
import warnings

import numpy as np
import pytest

from styleinv.runtime import Bundle, BundleError, EngineError, Rollout, Sessions
from styleinv.runtime.probes import BOUNDS, deviation
from styleinv.runtime.sessions import ENGINES

SEED, TIMES = 1, [0.0, 1000.5]


@pytest.fixture(scope="module")
def probed(make_bundle, tmp_path_factory):
    """A bundle whose manifest says what must come out."""
    return with_probes(make_bundle(tmp_path_factory.mktemp("bundles") / "sky.bundle"), TIMES)


def with_probes(bundle, times, label=None):
    with Rollout.open(bundle.path, SEED, engine="onnxruntime", label=label) as rollout:
        probes = {
            "seed": SEED,
            "t": times,
            "w": [[float(value) for value in latent[:8]] for latent in rollout.latents(times)],
            "mean_level": [float(frame.mean()) for frame in rollout.frames(times)],
        }
    bundle.change_manifest(lambda manifest: manifest.update(probes=probes))
    return bundle


@pytest.fixture
def both_engines():
    for engine in ("openvino", "onnxruntime"):
        pytest.importorskip(engine)


def break_engine(monkeypatch, engine, change):
    """The engine computes something else from now on: `change` is given the outputs of each run."""
    module = importlib.import_module(ENGINES[engine].module)
    open_session = module.open_session

    def broken(engine, graph, options):
        session = open_session(engine, graph, options)
        run = session.run
        session.run = lambda inputs, outputs=None: change(graph.name, run(inputs, outputs))
        return session

    monkeypatch.setattr(module, "open_session", broken)


def off(graph_name, name, by):
    def change(graph, arrays):
        if graph != graph_name or name not in arrays:
            return arrays
        return {**arrays, name: (arrays[name] + by).astype(arrays[name].dtype)}

    return change


def test_the_fastest_engine_is_taken_without_a_word(probed, both_engines):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Rollout.open(probed.path) as rollout:
            assert rollout.engine.startswith("openvino ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (off("latent", "w", 0.05), r"probes\.w: found latents .* off"),
        (off("mapping", "w0", np.float32("nan")), r"probes\.w: found latents nan off"),
        (off("synthesis", "frame", 3), r"probes\.mean_level: found frames .* levels off"),
    ],
)
def test_an_engine_that_computes_something_else_is_passed_over(probed, both_engines, monkeypatch, change, message):
    with Rollout.open(probed.path, 3, engine="onnxruntime") as rollout:
        expected = rollout[7.5]
    break_engine(monkeypatch, "openvino", change)
    with pytest.warns(RuntimeWarning, match=rf"openvino: {message}.*; playing on onnxruntime"):
        rollout = Rollout.open(probed.path, 3)
    with rollout:
        assert rollout.engine.startswith("onnxruntime ")
        np.testing.assert_array_equal(rollout[7.5], expected)
    named = Sessions(Bundle.open(probed.path), engine="openvino")  # who names an engine gets it
    assert named.engine == "openvino" and deviation(named) is not None
    named.close()


def test_an_engine_that_does_not_load_is_passed_over(probed, both_engines, monkeypatch):
    def refuse(engine, graph, options):
        raise EngineError(f"{graph.file}: found a file that openvino does not load: no memory")

    monkeypatch.setattr(importlib.import_module(ENGINES["openvino"].module), "open_session", refuse)
    with pytest.warns(RuntimeWarning, match="does not load: no memory; playing on onnxruntime"):
        rollout = Rollout.open(probed.path)
    assert rollout.engine.startswith("onnxruntime ")
    rollout.close()


def test_no_engine_comes_out_right(probed, both_engines, monkeypatch):
    for engine in ("openvino", "onnxruntime"):
        break_engine(monkeypatch, engine, off("latent", "w", 1.0))
    with pytest.raises(
        EngineError, match=r"no engine on which the bundle's probe comes out right \(openvino: .*onnxruntime: "
    ):
        Rollout.open(probed.path)


def test_sessions_of_a_refused_engine_are_closed(probed, both_engines, monkeypatch):
    opened = []
    module = importlib.import_module(ENGINES["openvino"].module)
    open_session = module.open_session
    monkeypatch.setattr(module, "open_session", lambda *given: opened.append(open_session(*given)) or opened[-1])
    monkeypatch.setattr("styleinv.runtime.sessions.deviation", lambda sessions: sessions.preload() or "broken")
    with pytest.raises(EngineError, match="openvino: broken"):
        Sessions(Bundle.open(probed.path))
    assert len(opened) == 4
    for session in opened:
        with pytest.raises(EngineError, match="closed session"):
            session.run({})


def test_other_kinds_and_bundles_without_probes(make_bundle, tmp_path, tiny):
    with Sessions(Bundle.open(tiny.path)) as sessions:
        assert deviation(sessions) is None  # its manifest says nothing
    for folder, label_dim in (("pictures.bundle", 0), ("classes.bundle", 3)):
        bundle = make_bundle(tmp_path / folder, "image", label_dim=label_dim)
        with_probes(bundle, [0.0], label=0 if label_dim else None)
        with Sessions(Bundle.open(bundle.path)) as sessions:
            assert deviation(sessions) is None


def test_every_precision_has_bounds():
    assert BOUNDS.keys() == {precision for engine in ENGINES.values() for precision in engine.graphs}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": []}, "probes.t: found"),
        ({"t": [-1.0, 0.0]}, "probes.t: found"),
        ({"w": [[1.0], ["x"]]}, "probes.w: found"),
        ({"w": [[1.0]]}, r"probes.w: found 1 of them, expected 2"),
        ({"w": [[1.0], [1.0, 2.0]]}, "probes.w: found rows of 1, 2"),
        ({"w": [[0.0] * 99, [0.0] * 99]}, "probes.w: found rows of 99, expected equal ones, up to 12"),
        ({"mean_level": [1.0, 2.0, 3.0]}, "probes.mean_level: found 3 of them, expected 2"),
        ({"seed": -1}, "probes.seed: found -1"),
    ],
)
def test_damaged_probes(make_bundle, tmp_path, change, message):
    bundle = make_bundle(tmp_path / "sky.bundle")
    probes = {"seed": 1, "t": [0.0, 1.0], "w": [[1.0], [1.0]], "mean_level": [1.0, 2.0], **change}
    bundle.change_manifest(lambda manifest: manifest.update(probes=probes))
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle.path)
