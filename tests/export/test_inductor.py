"""Packages of PyTorch's Inductor: built for real on this machine, and played."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_jobs import GRAPHS, job_of

from styleinv import kernels
from styleinv.export import engines
from styleinv.export.additions import Additions
from styleinv.export.engine_build import build_engine
from styleinv.export.engine_options import EngineOptions
from styleinv.export.engines import build_engines
from styleinv.export.inductor import Programs, export_program, program_hash
from styleinv.runtime import Bundle
from styleinv.runtime.cli import main
from styleinv.runtime.errors import EngineError
from styleinv.runtime.manifest_fields import CPU_TARGET
from styleinv.runtime.sessions import open_session
from styleinv.training.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU, for which packages would be")
BATCH = (1, 1, 4)


@pytest.fixture(scope="module")
def picture_checkpoint(small_config, small_model, tmp_path_factory) -> Path:
    """Of a generator alone."""
    file = tmp_path_factory.mktemp("pictures") / "model.safetensors"
    save_checkpoint(file, small_model.generator, small_config, kind="image")
    return file


@pytest.fixture(scope="module")
def packaged(picture_checkpoint, shared_cache) -> Path:
    """Its bundle, with a package of its synthesis."""
    out = picture_checkpoint.with_name("pictures.bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STYLEINV_CACHE", str(shared_cache))
        patch.setattr(engines, "_graphs", lambda bundle, _: [(bundle.graph("synthesis"), None)])
        assert main(["export", str(picture_checkpoint), "--out", str(out), "--engine", "inductor"]) == 0
    return out


def arrays_for(bundle: Bundle, graph: str, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    draws = np.random.default_rng(seed)
    return {
        name: draws.standard_normal((batch, *spec.shape[1:])).astype(np.float32)
        for name, spec in bundle.graph(graph).inputs.items()
    }


def programs(checkpoint: Path, noise: str = "const") -> Programs:
    return Programs(load_checkpoint(checkpoint), Additions(), noise)


def test_what_the_bundle_holds(packaged, capsys):
    (engine,) = Bundle.open(packaged).engines
    assert (engine.engine, engine.precision, engine.targets) == ("inductor", "fp32", (CPU_TARGET,))
    assert (engine.graph.name, engine.version, engine.batch) == ("synthesis", torch.__version__, BATCH)
    assert engine.file.parent.name == f"inductor-fp32-{CPU_TARGET}" and engine.file.suffix == ".pt2"
    log = engine.file.with_suffix(".log").read_text()
    assert f"synthesis, batch (1, 1, 4), for {CPU_TARGET}" in log and "/" not in log
    assert main(["inspect", str(packaged)]) == 0
    assert f"synthesis, inductor {torch.__version__} fp32 for {CPU_TARGET}" in capsys.readouterr().out


def test_a_package_computes_what_its_graph_does_in_every_batch(packaged):
    bundle = Bundle.open(packaged)
    wanted = open_session("onnxruntime", bundle, "synthesis")
    with open_session("inductor", bundle, "synthesis") as found, wanted:
        assert found.name == f"inductor {torch.__version__} (CPU, fp32)"
        for batch in (1, 4, 2, 3, 1):
            inputs = arrays_for(bundle, "synthesis", batch, seed=batch)
            arrays, expected = found.run(inputs), wanted.run(inputs)
            assert arrays.keys() == expected.keys()
            for name, array in arrays.items():
                assert array.dtype == expected[name].dtype and array.flags.c_contiguous and array.flags.writeable
                error = np.abs(array.astype(np.float64) - expected[name]).max()
                assert error <= (1 if name == "frame" else 1e-4), name


def test_results_are_the_callers_and_inputs_stay_as_they_are(packaged):
    bundle = Bundle.open(packaged)
    inputs = arrays_for(bundle, "synthesis", 2)
    kept = inputs["w"].copy()
    with open_session("inductor", bundle, "synthesis", threads=1) as session:
        pending = session.submit(inputs, ["frame"])
        first = session.run(inputs)
        frame = first["frame"].copy()
        inputs["w"].flags.writeable = False  # PyTorch warns of such arrays
        assert session.run(inputs, ["image"]).keys() == {"image"}
        session.run(arrays_for(bundle, "synthesis", 2, seed=1))
        np.testing.assert_array_equal(first["frame"], frame)
        np.testing.assert_array_equal(pending.result()["frame"], frame)
        np.testing.assert_array_equal(inputs["w"], kept)
        strided = {"w": np.asfortranarray(kept)}
        np.testing.assert_array_equal(session.run(strided)["frame"], frame)
    torch.set_num_threads(os.cpu_count() or 1)


def test_what_does_not_fit(packaged):
    bundle = Bundle.open(packaged)
    session = open_session("inductor", bundle, "synthesis")
    with pytest.raises(EngineError, match=r"batch: found 5, expected 1 to 4; others take `styleinv export MODEL --out "
                       r"BUNDLE --engine inductor --precision fp32 --batch 1 1 5`"):  # fmt: skip
        session.run(arrays_for(bundle, "synthesis", 5))
    with pytest.raises(EngineError, match="input w: found dtype float64, expected float32"):
        session.run({"w": np.zeros((1, 12))})
    with pytest.raises(EngineError, match="expected a session on a GPU"):
        session.run_on_device(arrays_for(bundle, "synthesis", 1), ["frame"])
    session.close()
    session.close()
    with pytest.raises(EngineError, match="found a closed session"):
        session.run(arrays_for(bundle, "synthesis", 1))


def test_it_wants_pytorch_alone(packaged, tmp_path):
    """No kernels, no training, no export, no compiler: neither Inductor's nor a C++ one; and it leaves nothing."""
    program = (
        "import sys, numpy as np; from styleinv.runtime import Bundle\n"
        "from styleinv.runtime.sessions import open_session\n"
        "with open_session('inductor', Bundle.open(sys.argv[1]), 'synthesis') as session:\n"
        "    assert session.run({'w': np.zeros((1, 12), np.float32)})['frame'].shape == (1, 16, 16, 3)\n"
        "unwanted = ('styleinv.kernels', 'styleinv.training', 'styleinv.export', 'triton', 'torch._inductor')\n"
        "print(*sorted(set(unwanted) & set(sys.modules)))"
    )
    environment = {**os.environ, "PATH": str(tmp_path), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", program, str(packaged)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (0, "\n"), finished.stderr
    assert not list(tmp_path.iterdir())


def test_nothing_changed_nothing_is_compiled(packaged, picture_checkpoint, monkeypatch):
    monkeypatch.setattr(engines, "_graphs", lambda bundle, _: [(bundle.graph("synthesis"), None)])
    monkeypatch.setattr(engines, "build_engine", lambda *_: pytest.fail("it was compiled"))
    options = [EngineOptions("inductor", "fp32").resolved()]
    (built,) = build_engines(Bundle.open(packaged), options, programs(picture_checkpoint), progress=False)
    assert built.seconds is None and built.fields["key"] == Bundle.open(packaged).engines[0].key


def test_the_hash_changes_with_what_decides_the_package(picture_checkpoint, small_model, small_config, tmp_path,
                                                        monkeypatch):  # fmt: skip
    def hashed(checkpoint: Path = picture_checkpoint, noise: str = "const", batch: tuple[int, int, int] = BATCH) -> str:
        program = programs(checkpoint, noise).of("synthesis", None, "fp32", CPU_TARGET, batch)
        return program_hash(program)

    first = hashed()
    assert hashed() == first
    found = {first, hashed(noise="none"), hashed(batch=(1, 1, 8)), hashed(batch=(2, 2, 2))}
    with torch.no_grad():
        weight = small_model.generator.synthesis.blocks[0].convs[0].bias
        weight += 1e-3
        save_checkpoint(tmp_path / "changed.safetensors", small_model.generator, small_config, kind="image")
        weight -= 1e-3
    found.add(hashed(tmp_path / "changed.safetensors"))
    copy = shutil.copytree(kernels.__path__[0], tmp_path / "kernels")
    monkeypatch.setattr(kernels, "__path__", [str(copy)])
    assert hashed() == first
    with (copy / "reference.py").open("a") as source:
        source.write("# another form\n")
    found.add(hashed())
    assert len(found) == 6


def test_every_graph_of_a_clip_as_a_program(small_checkpoint, small_bundle):
    """The frame's, too, latent and synthesis in one; arrays in the order of their names."""
    bundle = Bundle.open(small_bundle)
    assert sorted(bundle.manifest["graphs"]) == GRAPHS
    for graph in GRAPHS:
        program = programs(small_checkpoint).of(graph, None, "fp32", CPU_TARGET, BATCH)
        with open_session("onnxruntime", bundle, graph) as session:
            for batch in (1, 4):
                inputs = arrays_for(bundle, graph, batch, seed=batch)
                expected = session.run(inputs)
                found = program.module()(*(torch.from_numpy(inputs[name]) for name in sorted(inputs)))
                for name, tensor in zip(sorted(expected), found, strict=True):
                    error = np.abs(tensor.numpy().astype(np.float64) - expected[name]).max()
                    assert error <= (1 if name == "frame" else 2e-4 * np.abs(expected[name]).max()), (graph, name)


def test_batches_that_cannot_change_and_that_never_are_1():
    module, inputs = torch.nn.Linear(3, 2), {"x": torch.zeros(4, 3)}
    for batch in ((4, 4, 4), (2, 4, 8), (1, 1, 4)):
        program = export_program(module, inputs, ("y",), "cpu", batch).module()
        for size in {batch[0], batch[2]}:
            assert program(torch.zeros(size, 3))[0].shape == (size, 2)


def refused(capsys, *arguments: object) -> str:
    assert main(["export", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_without_a_compiler_nothing_is_begun(picture_checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    said = refused(capsys, picture_checkpoint, "--out", tmp_path / "sky.bundle", "--engine", "inductor")
    assert "found no program no-such-compiler, expected a C++ compiler: install g++" in said
    assert not list(tmp_path.glob("*.bundle"))


def test_a_bundle_is_told_to_be_exported_from_its_checkpoint(small_copy, capsys):
    said = refused(capsys, small_copy, "--engine", "inductor")
    assert f"{small_copy}: found a bundle, expected the checkpoint" in said
    assert f"`styleinv export MODEL --out {small_copy} --engine inductor --precision fp32`" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp16"], "inductor in fp16: on a CPU this engine computes in fp32, bf16"),
        (["--precision", "int8"], "inductor in int8: this engine computes in fp32, fp16, bf16"),
        (["--refit"], "--refit: found --engine inductor, expected one of TensorRT's"),
        (["--compute-capability", "8.9"], f"--compute-capability: found 8.9, expected {CPU_TARGET}, as Inductor"),
    ],
)
def test_what_inductor_does_not_do(picture_checkpoint, tmp_path, capsys, arguments, message):
    out = tmp_path / "sky.bundle"
    assert message in refused(capsys, picture_checkpoint, "--out", out, "--engine", "inductor", *arguments)
    assert not out.exists()


def test_no_dry_run(picture_checkpoint, capsys):
    with pytest.raises(SystemExit):
        main(["export", str(picture_checkpoint), "--engine", "inductor", "--dry-run"])
    assert "--dry-run looks in the graphs' files, which inductor does not compile" in capsys.readouterr().err


def test_a_compilation_that_fails_says_why(tmp_path):
    (tmp_path / "synthesis.pt2").write_bytes(b"no program")
    job = job_of(tmp_path / "synthesis.pt2", tmp_path, engine="inductor", targets=(CPU_TARGET,))
    with pytest.raises(EngineError, match=r"synthesis.pt2: found a build that ended with status 1, expected an engine"):
        build_engine(job)
    assert not (tmp_path / "engine").exists()


@pytest.mark.soak
def test_a_clip_with_packages_in_both_precisions(small_checkpoint, tmp_path, own_cache, capsys):
    out = tmp_path / "sky.bundle"
    command = ["export", str(small_checkpoint), "--out", str(out), "--engine", "inductor", "--precision", "fp32"]
    assert main(command) == 0
    assert main(["verify", str(out), "--engine", "inductor", "--precision", "fp32", "--batches", "1", "2", "4"]) == 0
    with open_session("inductor", Bundle.open(out), "frame"):
        pass
    command = ["stream", str(out), "--engine", "inductor", "--frames", "4", "--out", f"{tmp_path / 'pictures'}/"]
    assert main(command) == 0 and len(list((tmp_path / "pictures").glob("*.png"))) == 4
