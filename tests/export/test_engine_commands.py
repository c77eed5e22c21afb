"""`styleinv inspect BUNDLE --engine`: the engines of a bundle, and commands of Polygraphy that really run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from damage import engine_entry

from styleinv.export.engine_commands import polygraphy_commands
from styleinv.export.engines import write_manifest
from styleinv.runtime import Bundle
from styleinv.runtime.bundle import file_sha256
from styleinv.runtime.cli import main
from styleinv.runtime.machine import nvidia_gpus


@pytest.fixture
def bundle(small_bundle, tmp_path) -> Path:
    """A bundle, in a folder whose name a shell would take apart, with an engine of `latent` that is none."""
    folder = Path(shutil.copytree(small_bundle, tmp_path / "my sky's.bundle"))
    place = folder / "engines" / "rtx-fp32-8.9"
    place.mkdir(parents=True)
    for name in ("latent.00000000.engine", "latent.00000000.log"):
        (place / name).write_bytes(b"abc")
    file = f"engines/{place.name}/latent.00000000.engine"
    entry = engine_entry(file, file_sha256(folder / file), 3) | {"targets": ["8.6", "8.9"], "batch": [1, 2, 4]}
    entry["log"] = entry["log"] | {"file": file.replace(".engine", ".log")}
    manifest = json.loads((folder / "manifest.json").read_text())
    write_manifest(folder, manifest | {"engines": [entry]})
    return folder


def polygraphy(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a line in a folder as a shell does, with this environment's Polygraphy."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True, check=False, env=environment)


def test_what_is_printed(bundle, capsys):
    assert main(["inspect", str(bundle), "--engine"]) == 0
    printed = capsys.readouterr().out
    for words in ("latent, rtx 1 fp32 for 8.6/8.9", "latent.00000000.engine", "latent.00000000.log", "0" * 64):
        assert words in printed
    assert "configuration" not in printed
    lines = [str(command) for command in polygraphy_commands(Bundle.open(bundle).engines[0])]
    assert len(lines) == 4 and all(line in printed for line in lines)
    assert main(["inspect", str(bundle), "--engine", "--json"]) == 0
    (engine,) = json.loads(capsys.readouterr().out)["engines"].values()
    assert list(engine["commands"].values()) == lines
    assert engine["batch"] == {"least": 1, "usual": 2, "largest": 4} and engine["bytes"] == 3


def test_a_bundle_without_engines(small_bundle, capsys):
    assert main(["inspect", str(small_bundle), "--engine"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["engines", "-"]


def test_files_are_told_from_here(bundle, monkeypatch):
    monkeypatch.chdir(bundle.parent)
    inspect = polygraphy_commands(Bundle.open(bundle.name).engines[0])[0]
    assert inspect.arguments[3] == f"{bundle.name}/latent.onnx"
    assert "'my sky'\"'\"'s.bundle/latent.onnx'" in str(inspect)


def test_the_commands_run(bundle, tmp_path):
    """What takes no GPU does what it says; of what takes one, the tool takes the options."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    engine = Bundle.open(bundle).engines[0]
    layers, look, build, compare = map(str, polygraphy_commands(engine))
    assert all(line.startswith("POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy ") for line in (layers, look, build, compare))
    finished = polygraphy(layers, tmp_path)
    assert finished.returncode == 0 and "Gemm" in finished.stdout, finished.stdout + finished.stderr
    finished = polygraphy(build, tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    built = tmp_path / "latent.00000000.again.engine"
    assert built.read_bytes()[:4] == b"vtrt" or built.stat().st_size > 10_000
    if not nvidia_gpus()[0]:
        for line in (look, compare):
            finished = polygraphy(line, tmp_path)
            said = finished.stdout + finished.stderr
            assert finished.returncode != 0 and "usage:" not in said and "deserialize" in said, said


def test_commands_of_tensorrt_name_no_other_gpus(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["engines"][0] |= {"engine": "tensorrt", "targets": ["8.9"]}
    write_manifest(bundle, manifest)
    lines = [str(command) for command in polygraphy_commands(Bundle.open(bundle).engines[0])]
    assert all(line.startswith("polygraphy ") and "--compute-capabilities" not in line for line in lines)


def test_the_comparison_is_of_a_batch_that_the_engine_takes(bundle, tmp_path):
    """Not of 1, Polygraphy's own choice; and a byte of a frame may be rounded up where the other is rounded down."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["engines"][0] |= {"graph": "synthesis", "batch": [2, 4, 8]}
    write_manifest(bundle, manifest)
    compare = polygraphy_commands(Bundle.open(bundle).engines[0])[3].arguments
    finished = polygraphy(shlex.join(word for word in compare if word != "--trt"), tmp_path)  # all that takes no GPU
    assert finished.returncode == 0 and "{w [dtype=float32, shape=(4, 12)]}" in finished.stdout, finished.stdout
    assert compare[compare.index("--atol") + 2] == "frame:1"
