"""`styleinv doctor`: what it finds, that text and JSON say the same, and that nothing which is broken breaks it."""

import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from styleinv.runtime import cli, doctor, machine
from styleinv.runtime.errors import BundleError, EngineError
from styleinv.runtime.manifest_fields import PRECISIONS
from styleinv.runtime.sessions import ENGINES, choose_engine, obstacle
from styleinv.runtime.sessions.base import CpuSession


def sessions_of(findings):
    """(engine that loads or None, reason) by engine and precision."""
    rows = findings["sessions"]
    found = {(row["engine"], row["precision"]): (row["loads"], row["reason"]) for row in rows}
    assert len(found) == len(rows)
    return found


def test_sessions_are_those_that_this_machine_has():
    found = sessions_of(doctor.examine())
    computes = {(name, precision) for name, engine in ENGINES.items() for precision in engine.graphs}
    assert found.keys() == computes | {("auto", precision) for precision in PRECISIONS}
    for engine in ENGINES:
        for precision in ENGINES[engine].graphs:
            reason = obstacle(engine, precision)
            assert found[engine, precision] == (engine if reason is None else None, reason)
    assert found["auto", "fp32"] == (choose_engine(), None)


def test_text_and_json_say_the_same(tiny, capsys, monkeypatch):
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.25, 0.0, 0.0))
    monkeypatch.setattr(
        doctor, "nvidia_gpus", lambda: ([machine.Gpu("A100", "40 GiB", "550.54", "8.0")], "one is lost")
    )
    monkeypatch.setenv("DISPLAY", ":7")
    assert cli.main(["doctor", str(tiny.path), "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert cli.main(["doctor", str(tiny.path)]) == 0
    text = capsys.readouterr().out
    for section in ("machine", "GPUs", "libraries", "display", f"sessions, opening {tiny.path}"):
        assert f"\n{section}\n" in f"\n{text}"
    lines = [line.split(maxsplit=2) for line in text.splitlines()]
    for row in findings["sessions"]:
        (outcome,) = [outcome for engine, precision, outcome in (line for line in lines if len(line) == 3)
                      if (engine, precision) == (row["engine"], row["precision"])]  # fmt: skip
        yes = f"takes {row['loads']}" if row["engine"] == "auto" else "loads"
        assert outcome == (yes if row["reason"] is None else f"no: {row['reason']}")
    for name, library in findings["libraries"].items():
        (said,) = [line[1:] for line in lines if line[:1] == [name] and line[1] not in PRECISIONS]
        assert " ".join(said) == (library["version"] or f"not installed: `pip install '{library['pip']}'`")
    findings["machine"].pop("available_memory_gib")  # it changes
    for part in (findings["machine"], findings["gpus"], findings["gpus"]["found"][0], findings["display"]):
        for value in part.values():
            assert isinstance(value, (bool, list)) or value is None or str(value) in text


def test_libraries_are_told_with_the_extra_that_brings_them(monkeypatch):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    brought = {"styleinv": ["styleinv", *project["dependencies"]]}
    for extra, requirements in project["optional-dependencies"].items():
        brought[f"styleinv[{extra}]"] = requirements
    for name, pip in doctor.LIBRARIES.items():
        assert any(re.split(r"[\[>]", requirement)[0] == name for requirement in brought[pip]), name

    def version(name):
        if name == "numpy":
            return "9.8.7"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    text = doctor.as_text(doctor.examine())
    assert "  numpy              9.8.7\n" in text
    assert "  tensorrt-rtx-cu13  not installed: `pip install 'styleinv[rtx]'`\n" in text
    assert (
        "  note               onnxruntime and onnxruntime-gpu are one module under two names: uninstall the one" in text
    )


def test_versions_are_read_without_loading_the_libraries():
    program = (
        "import sys; from styleinv.runtime import doctor\n"
        "assert doctor.examine()['libraries']['numpy']['version']\n"
        "print(*sorted({'torch', 'triton', 'onnx', 'av', 'tkinter', 'tensorrt', 'pycuda'} & sys.modules.keys()))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout == "\n"


def test_both_onnxruntimes_are_warned_of(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2.3")
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: name)
    findings = doctor.examine()
    assert "  warning            onnxruntime and onnxruntime-gpu are one module" in doctor.as_text(findings)
    loads, reason = sessions_of(findings)["onnxruntime", "fp32"]
    assert loads is None and "found both onnxruntime and onnxruntime-gpu installed" in reason


def test_without_any_engine_the_status_is_2(monkeypatch, capsys):
    for library in ("openvino", "onnxruntime", "torch"):
        monkeypatch.setitem(sys.modules, library, None)
    assert cli.main(["doctor"]) == 2
    printed, error = capsys.readouterr()
    assert "  openvino              fp32  no: the engine openvino cannot be had" in printed
    assert error.startswith("styleinv: error: sessions: found none that loads, expected one of tensorrt, rtx, ")
    assert "pip install 'styleinv[runtime-cpu]'" in error
    assert cli.main(["doctor", "--json"]) == 2
    assert not any(row["loads"] for row in json.loads(capsys.readouterr().out)["sessions"])


def test_without_one_engine_the_other_is_taken(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert (
        "  onnxruntime           fp32  loads\n" in printed
        and "  auto                  fp32  takes onnxruntime\n" in printed
    )
    assert "  auto                  bf16  no: precision: found bf16, for which this machine has no engine" in printed


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("raise RuntimeError('no\\nsuch   symbol')", "RuntimeError: no such symbol"),
        ("raise SystemExit('needs Windows')", "SystemExit: needs Windows"),
        ("import ctypes; ctypes.CDLL('libnothing.so')", "OSError: libnothing.so: cannot open shared object file"),
        ("", "AttributeError: module 'openvino' has no attribute 'Core'"),
    ],
)
def test_an_engine_whose_import_is_broken(broken, reason, tmp_path):
    (tmp_path / "openvino.py").write_text(f"{broken}\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "styleinv.runtime.cli", "doctor", "--json"]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    found = sessions_of(json.loads(finished.stdout))
    assert found["onnxruntime", "fp32"] == ("onnxruntime", None)
    loads, told = found["openvino", "bf16"]
    assert loads is None and told.startswith(reason)


def test_a_machine_that_says_nothing(monkeypatch, capsys):
    monkeypatch.delattr(machine.os, "sysconf")
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "machine\n  not known  AttributeError: " in printed and f"  Python     {sys.version.split()[0]}, " in printed


def test_a_bundles_graph_is_opened_and_not_run(make_bundle, tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "sky.bundle", precisions=("fp16",))
    opened = []
    for module in {importlib.import_module(engine.module) for engine in ENGINES.values()}:

        def open_session(engine, graph, options, load=module.open_session):
            opened.append((engine, options.precision, graph.name, graph.precision))
            return load(engine, graph, options)

        monkeypatch.setattr(module, "open_session", open_session)
    monkeypatch.setattr(CpuSession, "run", lambda *arguments: pytest.fail("it ran"))
    first = next(iter(json.loads((bundle.path / "manifest.json").read_text())["graphs"]))
    found = sessions_of(doctor.examine(doctor.Bundle.open(bundle.path)))
    loading = [(engine, precision) for (engine, precision), (loads, _) in found.items() if loads and engine != "auto"]
    assert {("openvino", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "fp16")} <= set(loading)
    assert opened[: len(loading)] == [
        (engine, precision, first, ENGINES[engine].graphs[precision]) for engine, precision in loading
    ]


def test_an_engine_that_does_not_open_the_graph(tiny, monkeypatch, capsys):
    def fail(engine, graph, options):
        raise EngineError(f"{graph.file}: found a file that openvino does not load: illegal instruction")

    monkeypatch.setattr("styleinv.runtime.sessions.openvino.open_session", fail)
    assert cli.main(["doctor", str(tiny.path)]) == 0
    printed = capsys.readouterr().out
    assert (
        f"  openvino              fp32  no: {tiny.path}" in printed and "does not load: illegal instruction" in printed
    )
    assert (
        f"  onnxruntime           fp16  no: {tiny.path}: precisions: found fp32, expected fp16: export again" in printed
    )
    assert "  onnxruntime           fp32  loads\n" in printed


def test_bundles_that_are_none_end_with_status_2(damaged, tmp_path, capsys):
    assert cli.main(["doctor", str(tmp_path / "nothing.bundle")]) == 2
    assert "nothing.bundle: found nothing, expected the folder of a bundle" in capsys.readouterr().err
    (damaged.path / "synthesis.bin").write_bytes(b"")
    with pytest.raises(BundleError, match=r"synthesis\.bin"):
        doctor.main([str(damaged.path)])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("environment", "tkinter", "window"),
    [
        ({"DISPLAY": ":0"}, True, True),
        ({"DISPLAY": ":0"}, False, False),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True, False),
        ({"DISPLAY": ""}, True, False),
    ],
)
def test_a_window_takes_tkinter_and_a_display(environment, tkinter, window, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: tkinter or None)
    for name in doctor.SCREENS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    findings = doctor.examine()
    assert (findings["display"]["tkinter"], findings["display"]["window"]) == (tkinter, window)
    text = doctor.as_text(findings)
    assert ("could be shown" in text) == window and ("could not be shown" in text) != window
    assert all(value in text for value in environment.values())
