"""Which engines are built from graphs of plugins: those of TensorRT that ask for it, and none of TensorRT for RTX."""

from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from styleinv.export import engines
from styleinv.export.additions import Additions
from styleinv.export.engine_options import EngineOptions
from styleinv.export.engines import build_engines
from styleinv.export.inductor import Programs
from styleinv.export.plugin_graph import plugins_of
from styleinv.runtime.bundle import Bundle
from styleinv.runtime.errors import EngineError
from styleinv.training.checkpoint import load_checkpoint


@pytest.fixture
def programs(small_checkpoint):
    return Programs(load_checkpoint(small_checkpoint), Additions(), "const")


@pytest.fixture
def jobs(monkeypatch, own_cache):
    """The jobs that would be built, and the plugins in their graphs."""
    made = []

    def build(job, on_phase):
        model = onnx.load(job.graph)
        onnx.checker.check_model(model)
        made.append((job, plugins_of(model)))
        for file in (job.out, job.log):
            Path(file).write_text("none")

    monkeypatch.setattr(engines, "import_engine_library", lambda engine: SimpleNamespace(__version__="11.4.0"))
    monkeypatch.setattr(engines, "build_engine", build)
    return made


def test_what_draws_has_plugins(jobs, programs, small_bundle):
    build_engines(
        Bundle.open(small_bundle), [EngineOptions("tensorrt", "fp32", ("8.9",), plugins=True)], programs, progress=False
    )
    drawn = {job.graph.rpartition("/")[2]: (job.plugins, len(plugins)) for job, plugins in jobs}
    assert drawn.pop("synthesis.onnx") == drawn.pop("frame.onnx") == (True, 5)
    assert drawn and set(drawn.values()) == {(False, 0)}


@pytest.mark.parametrize("engine", ["rtx", "tensorrt"])
def test_others_have_none(engine, jobs, programs, small_bundle):
    build_engines(Bundle.open(small_bundle), [EngineOptions(engine, "fp32", ("8.9",))], programs, progress=False)
    assert jobs and not any(job.plugins or plugins for job, plugins in jobs)
    assert all(job.graph.startswith(str(small_bundle)) for job, _ in jobs)


@pytest.mark.parametrize(("engine", "precision"), [("rtx", "fp16"), ("inductor", "fp16"), ("tensorrt", "fp8")])
def test_other_engines_are_refused(engine, precision):
    with pytest.raises(EngineError, match=f"--plugins: found --engine {engine} in {precision}, expected tensorrt"):
        EngineOptions(engine, precision, plugins=True).resolved()


def test_they_take_a_checkpoint(jobs, small_bundle):
    options = [EngineOptions("tensorrt", "fp32", ("8.9",), plugins=True)]
    with pytest.raises(EngineError, match=r"found a bundle, expected the checkpoint .* --engine tensorrt --plugins"):
        build_engines(Bundle.open(small_bundle), options, progress=False)
