"""Every way in which building engines goes wrong: what is said, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from engine_jobs import GRAPHS, job_of, rtx

from styleinv.export import engine_options, engines
from styleinv.export.engine_build import Job, build_engine
from styleinv.export.engines import add_engines
from styleinv.runtime import Bundle
from styleinv.runtime.bundle import file_sha256
from styleinv.runtime.cli import main
from styleinv.runtime.engine_library import import_engine_library
from styleinv.runtime.errors import BundleError, EngineError
from styleinv.runtime.machine import nvidia_gpus

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
without_gpu = pytest.mark.skipif(bool(nvidia_gpus()[0]), reason="here is a GPU")


def refused(capsys, *arguments: object) -> str:
    assert main(["export", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_a_capability_that_the_library_does_not_build_for(small_copy, capsys):
    said = refused(capsys, small_copy, "--engine", "rtx", "--compute-capability", "9.0", "8.9")
    assert "--compute-capability: found 9.0, expected some of 7.5 8.0 8.6 8.9 12.0" in said


def test_a_precision_that_the_bundle_has_not(small_copy, capsys):
    said = refused(capsys, small_copy, "--engine", "rtx")
    assert "precisions: found fp32, expected fp16: export again with `styleinv export MODEL --precision fp16" in said


@without_gpu
def test_tensorrt_wants_the_gpu_that_is_to_play(small_copy, capsys, monkeypatch):
    said = refused(capsys, small_copy, "--engine", "tensorrt")
    assert "TensorRT cannot be had" in said and "pip install 'styleinv[runtime-gpu]'" in said
    monkeypatch.setattr(engine_options, "import_engine_library", lambda engine: import_engine_library("rtx"))
    said = refused(capsys, small_copy, "--engine", "tensorrt")
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


def test_tensorrt_builds_for_the_gpu_at_hand(small_copy, stand_ins):
    """The same code builds with either library; no module of this name can be had without a GPU, so one stands in."""
    finished = exported(small_copy, "--engine", "tensorrt", "--precision", "fp32", "--batch", 1, 2, 2)
    assert finished.returncode == 0, finished.stderr
    found = Bundle.open(small_copy).engines
    assert [engine.graph.name for engine in found] == GRAPHS
    assert {(engine.engine, engine.version, engine.targets) for engine in found} == {
        ("tensorrt", "11.4.0.106", ("8.9",))
    }
    assert {engine.file.parent.name for engine in found} == {"tensorrt-fp32-8.9"}
    finished = exported(small_copy, "--engine", "tensorrt", "--precision", "fp32", "--compute-capability", "8.6")
    assert finished.returncode == 2
    assert "--compute-capability: found 8.6, expected 8.9, as TensorRT builds for the GPU at hand" in finished.stderr


def test_a_tensorrt_that_is_too_old(small_copy, stand_ins):
    (stand_ins / "tensorrt.py").write_text("__version__ = '10.9.0.34'\n")
    finished = exported(small_copy, "--engine", "tensorrt", "--precision", "fp32")
    assert finished.returncode == 2 and "TensorRT: found version 10.9.0.34, expected 11 or newer" in finished.stderr


@without_gpu
def test_refitting_wants_a_gpu(small_copy, capsys):
    said = refused(capsys, small_copy, "--engine", "rtx", "--refit")
    assert "--refit: found no GPU" in said and "without --refit each transfer gets an engine of its own" in said


@without_gpu
def test_a_failed_build_says_what_the_library_said(small_copy, tmp_path):
    with pytest.raises(EngineError, match=r"found no engine: .*CUDA") as caught:
        build_engine(job_of(small_copy / "latent.onnx", tmp_path, refittable=True))
    assert str(caught.value).startswith(str(small_copy / "latent.onnx"))
    assert not (tmp_path / "engine").exists()
    build_engine(job_of(small_copy / "latent.onnx", tmp_path))  # the failure spoilt nothing: it was another process


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
def test_options_that_do_not_go_together(small_copy, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(["export", str(small_copy), *arguments])
    assert caught.value.code == 2 and message in capsys.readouterr().err


def broken(bundle: Path, change) -> Path:
    """The bundle's mapping graph, changed."""
    model = onnx.load(bundle / "mapping.onnx")
    change(model.graph)
    onnx.save(model, bundle / "changed.onnx")
    return bundle / "changed.onnx"


def test_an_operator_that_the_library_does_not_know(small_copy, tmp_path):
    def change(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "LeakyRelu")
        node.op_type, node.domain = "FusedBias", "example"

    with pytest.raises(EngineError) as caught:
        build_engine(job_of(broken(small_copy, change), tmp_path))
    said = str(caught.value)
    assert said.startswith(str(small_copy / "changed.onnx")) and "FusedBias" in said and "float32" in said


def test_a_batch_that_is_frozen(small_copy, tmp_path):
    def change(graph: onnx.GraphProto) -> None:
        for value in [*graph.input, *graph.output]:
            value.type.tensor_type.shape.dim[0].dim_value = 2

    with pytest.raises(EngineError, match=r"input z: found shape \[2, 8\], expected -1"):
        build_engine(job_of(broken(small_copy, change), tmp_path))


def test_what_a_graph_must_not_have_is_found_before_anything_is_built(small_copy, own_cache):
    def change(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "LeakyRelu")
        node.op_type, node.domain = "FusedBias", "example"

    broken(small_copy, change).replace(small_copy / "mapping.onnx")
    manifest = json.loads((small_copy / "manifest.json").read_text())
    manifest["graphs"]["mapping"]["sha256"] = file_sha256(small_copy / "mapping.onnx")
    engines.write_manifest(small_copy, manifest)
    with pytest.raises(
        EngineError, match=r"mapping\.onnx: operators: .*: found example\.FusedBias, an operator of its own"
    ):
        add_engines(small_copy, [rtx()], progress=False)
    assert not own_cache.exists() or not list(own_cache.iterdir())


def test_a_dry_run_writes_nothing(small_copy, small_checkpoint, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", str(small_copy), "--engine", "rtx", "tensorrt", "--precision", "fp32", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("nothing stands in the way") == 2 and "synthesis fp32" in said
    assert main(["export", str(small_checkpoint), "--engine", "rtx", "--dry-run"]) == 0
    assert "synthesis fp16" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_process_that_dies(small_copy, tmp_path, monkeypatch):
    dying = "import os, signal, sys; print('last words', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)"
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: real([sys.executable, "-c", dying], **options))
    with pytest.raises(EngineError, match="ended with status -9, expected an engine: last words"):
        build_engine(job_of(small_copy / "latent.onnx", tmp_path))


def test_a_failure_leaves_the_bundle_as_it_was(small_copy, own_cache, monkeypatch):
    before = {file.relative_to(small_copy): file_sha256(file) for file in small_copy.rglob("*") if file.is_file()}

    def fail(job: Job, on_phase: object) -> None:
        if job.graph.endswith("synthesis.onnx"):
            raise EngineError("no")
        build_engine(job)

    monkeypatch.setattr(engines, "build_engine", fail)
    with pytest.raises(EngineError):
        add_engines(small_copy, [rtx()], progress=False)
    after = {file.relative_to(small_copy): file_sha256(file) for file in small_copy.rglob("*") if file.is_file()}
    assert after == before


def test_a_bundle_that_was_exported_anew_meanwhile(small_copy, monkeypatch):
    def meddle(job: Job, on_phase: object) -> None:
        build_engine(job)
        manifest = json.loads((small_copy / "manifest.json").read_text())
        manifest["graphs"]["latent"]["macs"] = 1
        engines.write_manifest(small_copy, manifest)

    monkeypatch.setattr(engines, "build_engine", meddle)
    with pytest.raises(BundleError, match="found others than those that the engines were built from"):
        add_engines(small_copy, [rtx(batch=(1, 3, 5))], progress=False)


def test_ctrl_c_ends_the_build(small_copy, own_cache, tmp_path):
    """The process that builds does not go on alone, and nothing of it stays in the bundle."""
    program = (
        "import sys; from styleinv.runtime.cli import main; from styleinv.export import engines, engine_build\n"
        "build = engine_build.build_engine\n"
        "def tell(job, on_phase): print('building', flush=True); build(job, on_phase)\n"
        "engines.build_engine = tell\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "export", str(small_copy), "--engine", "rtx", "--precision", "fp32"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == b"building\n"
    os.killpg(process.pid, signal.SIGINT)
    process.wait()
    process.stdout.close()
    assert process.returncode in (130, -signal.SIGINT)
    assert Bundle.open(small_copy).engines == ()
    with pytest.raises(ProcessLookupError):
        while True:  # ends when no process of the group is left; the test's own time limit is the bound
            os.killpg(process.pid, 0)
