"""Engines built for real, by TensorRT for RTX, which needs no GPU for that; and when none is built."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from engine_jobs import GRAPHS, job_of, rtx

from styleinv.export import engines
from styleinv.export.arithmetic import arithmetic_in
from styleinv.export.engine_build import build_engine
from styleinv.export.engines import add_engines, as_table, build_engines
from styleinv.export.graphs import graphs_of
from styleinv.export.onnx_graph import export_onnx, write_models
from styleinv.export.writer import write_bundle
from styleinv.runtime import Bundle
from styleinv.runtime.bundle import file_sha256
from styleinv.runtime.cli import main
from styleinv.runtime.engine_library import import_engine_library
from styleinv.training.checkpoint import load_checkpoint, save_checkpoint
from styleinv.training.initialize import initialize
from styleinv.training.presets import preset

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
TARGETS = ("8.6", "8.9", "12.0")


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


def test_engines_are_added_to_a_bundle(small_copy, capsys):
    assert main(["export", str(small_copy), "--engine", "rtx", "--precision", "fp32"]) == 0
    first = Bundle.open(small_copy)
    assert {engine.targets for engine in first.engines} == {TARGETS}  # the default
    assert (
        main(["export", str(small_copy), "--engine", "rtx", "--precision", "fp32", "--compute-capability", "8.9"]) == 0
    )
    assert "seconds" in capsys.readouterr().err
    both = Bundle.open(small_copy)
    assert [engine.targets for engine in both.engines] == [TARGETS] * 5 + [("8.9",)] * 5


def test_engines_of_transfers(small_copy, small_checkpoint, small_config, tmp_path):
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


def test_nothing_changed_nothing_is_built(small_copy, tmp_path, no_build_again):
    """Another place, another bundle of the same model, another order of the GPUs: the same engines."""
    elsewhere = Path(shutil.copytree(small_copy, tmp_path / "elsewhere.bundle"))
    first = add_engines(small_copy, [rtx(targets=("8.6", "8.9"))], progress=False)
    no_build_again()
    again = add_engines(small_copy, [rtx(targets=("8.6", "8.9"))], progress=False)
    other = add_engines(elsewhere, [rtx(targets=("8.9", "8.6"))], progress=False)
    for built in (again, other):
        assert all(engine.seconds is None for engine in built)
        assert [e.files for e in built] == [e.files for e in first]
    assert len(Bundle.open(small_copy).engines) == len(GRAPHS)


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


def test_what_changed_is_built_and_nothing_else(small_copy, own_cache, monkeypatch):
    def rebuilt(**options) -> list[str]:
        built = add_engines(small_copy, [rtx(**options)], progress=False)
        return [engine.fields["graph"] for engine in built if engine.seconds is not None]

    assert rebuilt() == GRAPHS and rebuilt() == []
    change_a_weight(small_copy, "mapping")
    assert rebuilt() == ["mapping"]
    change_a_weight(small_copy, "synthesis")
    assert rebuilt() == ["synthesis"]
    assert rebuilt(batch=(1, 2, 4)) == GRAPHS and rebuilt() == []
    assert rebuilt(targets=("8.6",)) == GRAPHS
    library = import_engine_library("rtx")
    monkeypatch.setattr(library, "__version__", "1.7.1.117")
    assert rebuilt() == GRAPHS
    shutil.rmtree(own_cache / Bundle.open(small_copy).engines[-1].key)
    assert rebuilt() == [Bundle.open(small_copy).engines[-1].graph.name]


def test_a_new_engine_replaces_the_one_for_the_same_gpus(small_copy):
    add_engines(small_copy, [rtx()], progress=False)
    old = {engine.file for engine in Bundle.open(small_copy).engines}
    add_engines(small_copy, [rtx(batch=(1, 1, 2))], progress=False)
    new = Bundle.open(small_copy).engines
    assert len(new) == len(GRAPHS) and {engine.batch for engine in new} == {(1, 1, 2)}
    assert not any(file.exists() for file in old)
    files = {file.name for file in (small_copy / "engines").rglob("*") if file.is_file()}
    assert len(files) == 2 * len(GRAPHS)  # engines and logs, and nothing temporary


def test_several_exports_at_once(small_copy, own_cache):
    """Two of the same engines and one of others, from an empty cache: all of them end well, nothing is lost."""
    command = [sys.executable, "-m", "styleinv.runtime.cli", "export", str(small_copy), "--engine", "rtx"]
    command += ["--precision", "fp32", "--compute-capability"]
    processes = [subprocess.Popen([*command, target], stderr=subprocess.PIPE) for target in ("8.9", "8.9", "8.6")]
    said = [process.communicate()[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    found = Bundle.open(small_copy)
    found.verify()
    assert sorted((*engine.targets, engine.graph.name) for engine in found.engines) == [
        (target, graph) for target in ("8.6", "8.9") for graph in GRAPHS
    ]
    assert len(list(own_cache.iterdir())) == 2 * len(GRAPHS)
