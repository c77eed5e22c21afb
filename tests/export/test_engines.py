"""Engines built for real, by TensorRT for RTX, which needs no GPU for that; and every way in which that goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from styleinv.export import engines
from styleinv.export.arithmetic import arithmetic_in
from styleinv.export.engine_build import Job, build_engine
from styleinv.export.engines import EngineOptions, add_engines, as_table, build_engines
from styleinv.export.graphs import graphs_of
from styleinv.export.onnx_graph import export_onnx, write_models
from styleinv.export.writer import write_bundle
from styleinv.runtime import Bundle
from styleinv.runtime.bundle import file_sha256
from styleinv.runtime.cli import main
from styleinv.runtime.engine_library import import_engine_library
from styleinv.runtime.errors import BundleError, EngineError
from styleinv.runtime.machine import nvidia_gpus
from styleinv.training.checkpoint import load_checkpoint, save_checkpoint
from styleinv.training.initialize import initialize
from styleinv.training.presets import preset

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
TARGETS = ("8.6", "8.9", "12.0")
GRAPHS = ["content", "frame", "latent", "mapping", "synthesis"]
without_gpu = pytest.mark.skipif(bool(nvidia_gpus()[0]), reason="here is a GPU")


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(shared_cache, monkeypatch) -> Path:
    """Engines of one test are there for the next, but not those of the user."""
    monkeypatch.setenv("STYLEINV_CACHE", str(shared_cache))
    return shared_cache / "engines"


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """A cache that is empty."""
    monkeypatch.setenv("STYLEINV_CACHE", str(tmp_path / "own-cache"))
    return tmp_path / "own-cache" / "engines"


@pytest.fixture
def bundle(small_bundle, tmp_path) -> Path:
    return Path(shutil.copytree(small_bundle, tmp_path / "small.bundle"))


def rtx(precision: str = "fp32", targets: tuple[str, ...] = ("8.9",), **options) -> EngineOptions:
    return EngineOptions("rtx", precision, targets, **options).resolved()


def job_of(graph: Path, folder: Path, **changes) -> Job:
    fields = {"engine": "rtx", "graph": str(graph), "targets": ("8.9",), "batch": (1, 1, 4), "refittable": False}
    return Job(**{**fields, "out": str(folder / "engine"), "log": str(folder / "log"), **changes})


@pytest.fixture(scope="module")
def tiny64(tmp_path_factory) -> Path:
    """A bundle of tiny64 in every precision that graphs are written in."""
    folder = tmp_path_factory.mktemp("tiny64")
    config = preset("tiny64")
    save_checkpoint(folder / "model.safetensors", initialize(config, seed=1), config)
    bundle = folder / "tiny64.bundle"
    bundle.mkdir()
    checkpoint = load_checkpoint(folder / "model.safetensors")
    write_bundle(checkpoint, bundle, noise="const", precisions=["fp32", "fp16", "bf16"])
    return bundle


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_graph_of_tiny64(tiny64, tmp_path, precision):
    folder = Path(shutil.copytree(tiny64, tmp_path / "sky.bundle"))
    built = add_engines(folder, [rtx(precision, TARGETS)], progress=False)
    found = Bundle.open(folder).engines
    assert [engine.graph.name for engine in found] == GRAPHS
    for engine, result in zip(found, built, strict=True):
        assert engine.file.read_bytes()[:4] == b"vtrt" or engine.file.stat().st_size > 10_000
        assert (engine.engine, engine.targets, engine.batch) == ("rtx", TARGETS, (1, 1, 4))
        assert engine.version == import_engine_library("rtx").__version__
        assert engine.graph == Bundle.open(folder).graph(engine.graph.name, precision=precision)
        assert result.seconds is None or result.seconds < 10
        log = engine.file.with_suffix(".log").read_text()
        assert f"{engine.graph.file.name}, batch (1, 1, 4), for 8.6 8.9 12.0" in log and "Engine generation" in log
        assert str(tmp_path) not in log  # nor any other path of this machine
    assert as_table(built).count("\n") == len(GRAPHS)


def test_synthesis_of_the_papers_size(tmp_path):
    """In fp16, for three generations of GPUs: no larger than its weights, in seconds."""
    config = preset("paper256")
    generator = initialize(config, seed=1).generator
    (graph,) = [
        g for g in graphs_of(generator, config, "const", arithmetic=arithmetic_in("fp16")) if g.name != "mapping"
    ]
    files = write_models({"synthesis": export_onnx(graph)}, tmp_path)
    weights = (tmp_path / "weights.bin").stat().st_size
    phases: list[str] = []
    build_engine(job_of(files["synthesis"], tmp_path, targets=TARGETS), phases.append)
    size = (tmp_path / "engine").stat().st_size
    seconds = float((tmp_path / "log").read_text().rstrip().rpartition(" after ")[2].removesuffix(" s"))
    print(f"{size / 1e6:.1f} MB of {weights / 1e6:.1f} MB of weights, {seconds:.1f} s")
    assert weights < size <= 75e6 and seconds <= 10
    assert "Building engine" in phases


def test_an_export_with_engines_from_the_command_line(small_checkpoint, tmp_path, capsys):
    out = tmp_path / "sky.bundle"
    command = ["export", str(small_checkpoint), "--out", str(out), "--engine", "rtx"]
    assert main([*command, "--compute-capability", "8.9", "12.0", "--batch", "1", "2", "3"]) == 0
    said = capsys.readouterr().err
    assert "synthesis" in said and "8.9 12.0" in said and "1-3" in said
    found = Bundle.open(out)
    assert [engine.graph.name for engine in found.engines] == GRAPHS
    assert {engine.precision for engine in found.engines} == {"fp16"}
    assert {engine.file.parent.name for engine in found.engines} == {"rtx-fp16-8.9-12.0"}
    assert {engine.batch for engine in found.engines} == {(1, 2, 3)}
    assert main(["inspect", str(out)]) == 0


def test_engines_are_added_to_a_bundle(bundle, capsys):
    assert main(["export", str(bundle), "--engine", "rtx", "--precision", "fp32"]) == 0
    first = Bundle.open(bundle)
    assert {engine.targets for engine in first.engines} == {TARGETS}  # the default
    assert main(["export", str(bundle), "--engine", "rtx", "--precision", "fp32", "--compute-capability", "8.9"]) == 0
    assert "seconds" in capsys.readouterr().err
    both = Bundle.open(bundle)
    assert [engine.targets for engine in both.engines] == [TARGETS] * 5 + [("8.9",)] * 5


def test_engines_of_transfers(bundle, small_checkpoint, small_config, tmp_path):
    config, style = small_config, initialize(small_config, seed=9).generator
    save_checkpoint(tmp_path / "style.safetensors", style, config, kind="transfer")
    out = tmp_path / "styled.bundle"
    command = [
        "export",
        str(small_checkpoint),
        "--out",
        str(out),
        "--transfer",
        f"ink={tmp_path / 'style.safetensors'}",
    ]
    assert main([*command, "--engine", "rtx", "--precision", "fp32", "--compute-capability", "8.9"]) == 0
    names = [(engine.graph.name, engine.graph.file.parent.name) for engine in Bundle.open(out).engines]
    assert names[-1] == ("synthesis", "ink") and len(names) == len(GRAPHS) + 1
    own, ink = (engine for engine in Bundle.open(out).engines if engine.graph.name == "synthesis")
    assert own.key != ink.key and file_sha256(own.file) != file_sha256(ink.file)


def test_nothing_changed_nothing_is_built(bundle, tmp_path, no_build_again):
    """Another place, another bundle of the same model, another order of the GPUs: the same engines."""
    elsewhere = Path(shutil.copytree(bundle, tmp_path / "elsewhere.bundle"))
    first = add_engines(bundle, [rtx(targets=("8.6", "8.9"))], progress=False)
    no_build_again()
    again = add_engines(bundle, [rtx(targets=("8.6", "8.9"))], progress=False)
    other = add_engines(elsewhere, [rtx(targets=("8.9", "8.6"))], progress=False)
    for built in (again, other):
        assert all(engine.seconds is None for engine in built)
        assert [e.files for e in built] == [e.files for e in first]
    assert len(Bundle.open(bundle).engines) == len(GRAPHS)


@pytest.fixture
def no_build_again(monkeypatch):
    def forbid() -> None:
        def refuse(*_: object) -> None:
            raise AssertionError("an engine was built")

        monkeypatch.setattr(engines, "build_engine", refuse)

    return forbid


def test_exported_anew_from_the_same_checkpoint_nothing_is_built(small_checkpoint, tmp_path, no_build_again):
    checkpoint = load_checkpoint(small_checkpoint)
    first, second = tmp_path / "first.bundle", tmp_path / "second.bundle"
    for folder in (first, second):
        folder.mkdir()
    write_bundle(checkpoint, first, noise="const", precisions=["fp32", "fp16"])
    build_engines(Bundle.open(first), [rtx("fp16")], progress=False)
    write_bundle(checkpoint, second, noise="const", precisions=["fp32", "fp16"])
    no_build_again()
    built = build_engines(Bundle.open(second), [rtx("fp16")], progress=False)
    assert [engine.seconds for engine in built] == [None] * len(GRAPHS)


def change_a_weight(bundle: Path, graph: str) -> None:
    """Changes one weight of one graph, and declares what changed."""
    file = bundle / f"{graph}.onnx"
    model = onnx.load(file, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.raw_data and t.data_type == onnx.TensorProto.FLOAT)
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
    file.write_bytes(model.SerializeToString())
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["graphs"][graph]["sha256"] = file_sha256(file)
    engines.write_manifest(bundle, manifest)


def test_what_changed_is_built_and_nothing_else(bundle, own_cache, monkeypatch):
    def rebuilt(**options) -> list[str]:
        built = add_engines(bundle, [rtx(**options)], progress=False)
        return [engine.fields["graph"] for engine in built if engine.seconds is not None]

    assert rebuilt() == GRAPHS and rebuilt() == []
    change_a_weight(bundle, "mapping")
    assert rebuilt() == ["mapping"]
    change_a_weight(bundle, "synthesis")
    assert rebuilt() == ["synthesis"]
    assert rebuilt(batch=(1, 2, 4)) == GRAPHS and rebuilt() == []
    assert rebuilt(targets=("8.6",)) == GRAPHS
    library = import_engine_library("rtx")
    monkeypatch.setattr(library, "__version__", "1.7.1.117")
    assert rebuilt() == GRAPHS
    shutil.rmtree(own_cache / Bundle.open(bundle).engines[-1].key)
    assert rebuilt() == [Bundle.open(bundle).engines[-1].graph.name]


def test_a_new_engine_replaces_the_one_for_the_same_gpus(bundle):
    add_engines(bundle, [rtx()], progress=False)
    old = {engine.file for engine in Bundle.open(bundle).engines}
    add_engines(bundle, [rtx(batch=(1, 1, 2))], progress=False)
    new = Bundle.open(bundle).engines
    assert len(new) == len(GRAPHS) and {engine.batch for engine in new} == {(1, 1, 2)}
    assert not any(file.exists() for file in old)
    files = {file.name for file in (bundle / "engines").rglob("*") if file.is_file()}
    assert len(files) == 2 * len(GRAPHS)  # engines and logs, and nothing temporary


def test_several_exports_at_once(bundle, own_cache):
    """Two of the same engines and one of others, from an empty cache: all of them end well, nothing is lost."""
    command = [sys.executable, "-m", "styleinv.runtime.cli", "export", str(bundle), "--engine", "rtx"]
    command += ["--precision", "fp32", "--compute-capability"]
    processes = [subprocess.Popen([*command, target], stderr=subprocess.PIPE) for target in ("8.9", "8.9", "8.6")]
    said = [process.communicate()[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    found = Bundle.open(bundle)
    found.verify()
    assert sorted((*engine.targets, engine.graph.name) for engine in found.engines) == [
        (target, graph) for target in ("8.6", "8.9") for graph in GRAPHS
    ]
    assert len(list(own_cache.iterdir())) == 2 * len(GRAPHS)


def refused(capsys, *arguments: object) -> str:
    assert main(["export", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_a_capability_that_the_library_does_not_build_for(bundle, capsys):
    said = refused(capsys, bundle, "--engine", "rtx", "--compute-capability", "9.0", "8.9")
    assert "--compute-capability: found 9.0, expected some of 7.5 8.0 8.6 8.9 12.0" in said


def test_a_precision_that_the_bundle_has_not(bundle, capsys):
    said = refused(capsys, bundle, "--engine", "rtx")
    assert "precisions: found fp32, expected fp16: export again with `styleinv export MODEL --precision fp16" in said


@without_gpu
def test_tensorrt_wants_the_gpu_that_is_to_play(bundle, capsys, monkeypatch):
    said = refused(capsys, bundle, "--engine", "tensorrt")
    assert "TensorRT cannot be had" in said and "pip install 'styleinv[runtime-gpu]'" in said
    monkeypatch.setattr(engines, "import_engine_library", lambda engine: import_engine_library("rtx"))
    said = refused(capsys, bundle, "--engine", "tensorrt")
    assert "--engine tensorrt: found no GPU" in said and "--engine rtx builds without one" in said


@pytest.fixture
def stand_ins(tmp_path, monkeypatch) -> Path:
    """A GPU that nvidia-smi tells of, and a library `tensorrt`: TensorRT for RTX without the choice of other GPUs."""
    folder = tmp_path / "stand-ins"
    folder.mkdir()
    smi = folder / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 4090, 24564 MiB, 580.65.06, 8.9'\n")
    smi.chmod(0o755)
    library = "from tensorrt_rtx import *\nfrom tensorrt_rtx import __version__\n"
    (folder / "tensorrt.py").write_text(library + "__version__ = '11.4.0.106'\ndel ComputeCapability\n")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def exported(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "styleinv.runtime.cli", "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_tensorrt_builds_for_the_gpu_at_hand(bundle, stand_ins):
    """The same code builds with either library; no module of this name can be had without a GPU, so one stands in."""
    finished = exported(bundle, "--engine", "tensorrt", "--precision", "fp32", "--batch", 1, 2, 2)
    assert finished.returncode == 0, finished.stderr
    found = Bundle.open(bundle).engines
    assert [engine.graph.name for engine in found] == GRAPHS
    assert {(engine.engine, engine.version, engine.targets) for engine in found} == {
        ("tensorrt", "11.4.0.106", ("8.9",))
    }
    assert {engine.file.parent.name for engine in found} == {"tensorrt-fp32-8.9"}
    finished = exported(bundle, "--engine", "tensorrt", "--precision", "fp32", "--compute-capability", "8.6")
    assert finished.returncode == 2
    assert "--compute-capability: found 8.6, expected 8.9, as TensorRT builds for the GPU at hand" in finished.stderr


def test_a_tensorrt_that_is_too_old(bundle, stand_ins):
    (stand_ins / "tensorrt.py").write_text("__version__ = '10.9.0.34'\n")
    finished = exported(bundle, "--engine", "tensorrt", "--precision", "fp32")
    assert finished.returncode == 2 and "TensorRT: found version 10.9.0.34, expected 11 or newer" in finished.stderr


@without_gpu
def test_refitting_wants_a_gpu(bundle, capsys):
    said = refused(capsys, bundle, "--engine", "rtx", "--refit")
    assert "--refit: found no GPU" in said and "without --refit each transfer gets an engine of its own" in said


@without_gpu
def test_a_failed_build_says_what_the_library_said(bundle, tmp_path):
    with pytest.raises(EngineError, match=r"found no engine: .*CUDA") as caught:
        build_engine(job_of(bundle / "latent.onnx", tmp_path, refittable=True))
    assert str(caught.value).startswith(str(bundle / "latent.onnx"))
    assert not (tmp_path / "engine").exists()
    build_engine(job_of(bundle / "latent.onnx", tmp_path))  # the failure spoilt nothing: it was another process


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compute-capability", "8.9"], "--compute-capability is about engines: give --engine, too"),
        (["--dry-run"], "--dry-run is about engines"),
        ([], "is a folder: give --engine, to add engines to that bundle"),
        (["--engine", "rtx", "--out", "x.bundle"], "--out: engines are added to"),
        (
            ["--engine", "rtx", "--noise", "none", "--optimize-for", "onnxruntime"],
            "--noise, --optimize-for: engines are",
        ),
        (["--engine", "rtx", "--batch", "4", "1", "8"], "found [4, 1, 8], expected the least first"),
        (["--engine", "rtx", "--compute-capability", "sm_89"], "found 'sm_89', expected a compute capability"),
        (["--engine", "cuda"], "invalid choice: 'cuda'"),
    ],
)
def test_options_that_do_not_go_together(bundle, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(["export", str(bundle), *arguments])
    assert caught.value.code == 2 and message in capsys.readouterr().err


def broken(bundle: Path, change) -> Path:
    """The bundle's mapping graph, changed."""
    model = onnx.load(bundle / "mapping.onnx")
    change(model.graph)
    onnx.save(model, bundle / "changed.onnx")
    return bundle / "changed.onnx"


def test_an_operator_that_the_library_does_not_know(bundle, tmp_path):
    def change(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "LeakyRelu")
        node.op_type, node.domain = "FusedBias", "example"

    with pytest.raises(EngineError) as caught:
        build_engine(job_of(broken(bundle, change), tmp_path))
    said = str(caught.value)
    assert said.startswith(str(bundle / "changed.onnx")) and "FusedBias" in said and "float32" in said


def test_a_batch_that_is_frozen(bundle, tmp_path):
    def change(graph: onnx.GraphProto) -> None:
        for value in [*graph.input, *graph.output]:
            value.type.tensor_type.shape.dim[0].dim_value = 2

    with pytest.raises(EngineError, match=r"input z: found shape \[2, 8\], expected -1"):
        build_engine(job_of(broken(bundle, change), tmp_path))


def test_what_a_graph_must_not_have_is_found_before_anything_is_built(bundle, own_cache):
    def change(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "LeakyRelu")
        node.op_type, node.domain = "FusedBias", "example"

    broken(bundle, change).replace(bundle / "mapping.onnx")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["graphs"]["mapping"]["sha256"] = file_sha256(bundle / "mapping.onnx")
    engines.write_manifest(bundle, manifest)
    with pytest.raises(
        EngineError, match=r"mapping\.onnx: operators: .*: found example\.FusedBias, an operator of its own"
    ):
        add_engines(bundle, [rtx()], progress=False)
    assert not own_cache.exists() or not list(own_cache.iterdir())


def test_a_dry_run_writes_nothing(bundle, small_checkpoint, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", str(bundle), "--engine", "rtx", "tensorrt", "--precision", "fp32", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("nothing stands in the way") == 2 and "synthesis fp32" in said
    assert main(["export", str(small_checkpoint), "--engine", "rtx", "--dry-run"]) == 0
    assert "synthesis fp16" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_process_that_dies(bundle, tmp_path, monkeypatch):
    dying = "import os, signal, sys; print('last words', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)"
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: real([sys.executable, "-c", dying], **options))
    with pytest.raises(EngineError, match="ended with status -9, expected an engine: last words"):
        build_engine(job_of(bundle / "latent.onnx", tmp_path))


def test_a_failure_leaves_the_bundle_as_it_was(bundle, own_cache, monkeypatch):
    before = {file.relative_to(bundle): file_sha256(file) for file in bundle.rglob("*") if file.is_file()}

    def fail(job: Job, on_phase: object) -> None:
        if job.graph.endswith("synthesis.onnx"):
            raise EngineError("no")
        build_engine(job)

    monkeypatch.setattr(engines, "build_engine", fail)
    with pytest.raises(EngineError):
        add_engines(bundle, [rtx()], progress=False)
    after = {file.relative_to(bundle): file_sha256(file) for file in bundle.rglob("*") if file.is_file()}
    assert after == before


def test_a_bundle_that_was_exported_anew_meanwhile(bundle, monkeypatch):
    def meddle(job: Job, on_phase: object) -> None:
        build_engine(job)
        manifest = json.loads((bundle / "manifest.json").read_text())
        manifest["graphs"]["latent"]["macs"] = 1
        engines.write_manifest(bundle, manifest)

    monkeypatch.setattr(engines, "build_engine", meddle)
    with pytest.raises(BundleError, match="found others than those that the engines were built from"):
        add_engines(bundle, [rtx(batch=(1, 3, 5))], progress=False)


def test_ctrl_c_ends_the_build(bundle, own_cache, tmp_path):
    """The process that builds does not go on alone, and nothing of it stays in the bundle."""
    program = (
        "import sys; from styleinv.runtime.cli import main; from styleinv.export import engines, engine_build\n"
        "build = engine_build.build_engine\n"
        "def tell(job, on_phase): print('building', flush=True); build(job, on_phase)\n"
        "engines.build_engine = tell\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "export", str(bundle), "--engine", "rtx", "--precision", "fp32"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == b"building\n"
    os.killpg(process.pid, signal.SIGINT)
    process.wait()
    process.stdout.close()
    assert process.returncode in (130, -signal.SIGINT)
    assert Bundle.open(bundle).engines == ()
    with pytest.raises(ProcessLookupError):
        while True:  # ends when no process of the group is left; the test's own time limit is the bound
            os.killpg(process.pid, 0)
