"""Packages of Inductor: which this machine loads, what is said of the others, and that none is loaded unasked."""

import dataclasses
import importlib.util
import os
import subprocess
import sys

import pytest
from compiled_bundle import add_engine

from styleinv.runtime import Bundle, BundleError, EngineError, Sessions
from styleinv.runtime.manifest_fields import CPU_TARGET
from styleinv.runtime.sessions import ENGINES, _candidates, inductor, obstacle, open_session

torch = pytest.importorskip("torch")
HERE = inductor.here("inductor")
OTHER = "8.9" if HERE.target == CPU_TARGET else CPU_TARGET


@pytest.fixture
def packaged(make_bundle, tmp_path):
    """A bundle with a package for each of its graphs: files that are none, but for this machine."""
    bundle = make_bundle(tmp_path / "sky.bundle")
    for graph in Bundle.open(bundle.path).manifest["graphs"]:
        add_engine(bundle, graph, engine="inductor", version=HERE.version, targets=[HERE.target])
    return bundle


@pytest.fixture
def nothing_loads(monkeypatch):
    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", lambda *_: pytest.fail("native code was loaded"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": "1.0"}, rf"built by version 1\.0, where {HERE.version.replace('+', '.')} is installed"),
        ({"targets": [OTHER]}, rf"built for [a-zA-Z ]+ {OTHER}, where "),
    ],
)
def test_a_package_for_others_is_refused_with_the_command_that_builds_one(
    make_bundle, tmp_path, nothing_loads, fields, message
):
    bundle = make_bundle(tmp_path / "sky.bundle")
    own = {"engine": "inductor", "version": HERE.version, "targets": [HERE.target]}
    add_engine(bundle, "mapping", **{**own, **fields})
    opened = Bundle.open(bundle.path)
    command = rf"`styleinv export MODEL --out {bundle.path} --engine inductor --precision fp32`"
    with pytest.raises(EngineError, match=f"{message}.*{command}"):
        open_session("inductor", opened, "mapping")
    (spec,) = opened.engines
    with pytest.raises(EngineError, match=f"found a package that torch .* does not load: {message}"):
        inductor.open_session("inductor", inductor.CompiledGraph(spec, spec.graph), inductor.SessionOptions())


def test_a_package_that_was_tampered_with_is_never_loaded(packaged, nothing_loads):
    opened = Bundle.open(packaged.path)
    file = next(spec.file for spec in opened.engines if spec.graph.name == "mapping")
    file.write_bytes(b"other code")
    with pytest.raises(BundleError, match=r"mapping\.\d+\.engine: found SHA-256 [0-9a-f]+, expected .* it is damaged"):
        open_session("inductor", opened, "mapping")
    file.unlink()
    with pytest.raises(BundleError, match="expected a readable file"):
        open_session("inductor", opened, "mapping")


def test_a_file_that_is_no_package(packaged):
    with pytest.raises(EngineError, match=r"found a package that torch .* does not load: .*; build it with `styleinv"):
        open_session("inductor", Bundle.open(packaged.path), "mapping")


def test_native_code_loads_only_by_name_or_on_trust(packaged, nothing_loads):
    bundle = Bundle.open(packaged.path)
    with Sessions(bundle) as sessions:
        assert sessions.engine in ("openvino", "onnxruntime")
    assert "inductor" not in _candidates("auto", "fp32")
    trusted = _candidates("auto", "fp32", bundle)
    assert trusted == [name for name in ENGINES if name in trusted]
    assert trusted[-2:] == ["onnxruntime", "inductor"]  # the faster one first
    with pytest.raises(pytest.fail.Exception, match="native code was loaded"):
        open_session("inductor", bundle, "mapping")


def test_pytorch_is_not_imported_for_bundles_without_packages(tiny):
    program = (
        "import sys; from styleinv.runtime import Bundle, Sessions; from styleinv.runtime.sessions import obstacle\n"
        "Sessions(Bundle.open(sys.argv[1]), trust=True).close()\n"
        "obstacle('inductor', 'fp32')\n"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tiny.path)]
    finished = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, check=True)
    assert finished.stdout == "False\n"


@pytest.fixture
def machine_with(monkeypatch):
    """Sets the instruction sets of this machine, which then has no GPU."""

    def change(sets: str) -> None:
        machine = dataclasses.replace(inductor.describe_machine(), instruction_sets=sets)
        monkeypatch.setattr(inductor, "describe_machine", lambda: machine)
        monkeypatch.setattr(inductor, "cuda_driver_version", lambda: (None, "none"))

    return change


def test_what_a_cpu_computes_in(machine_with, monkeypatch):
    machine_with("AVX2, AVX-512, AVX-512 BF16")
    assert obstacle("inductor", "fp32") is None and obstacle("inductor", "bf16") is None
    assert obstacle("inductor", "fp16") == "on a CPU this engine computes in fp32, bf16"
    machine_with("AVX2, AVX-512")
    assert obstacle("inductor", "bf16") == "this CPU has no AVX-512 BF16 or AMX BF16"
    machine_with("NEON")
    assert obstacle("inductor", "fp32") == "this CPU has no AVX2"
    monkeypatch.setattr(inductor, "cuda_driver_version", lambda: ("13.0", None))
    assert obstacle("inductor", "fp16") is None


def test_without_pytorch(monkeypatch, tiny):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    with pytest.raises(
        EngineError, match=r"inductor in fp32: PyTorch cannot be had.*pip install 'styleinv\[kernels\]'"
    ):
        Sessions(Bundle.open(tiny.path), engine="inductor")
