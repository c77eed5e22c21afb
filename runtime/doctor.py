"""`styleinv doctor`: what this machine has, which sessions would load on it, and why the others would not."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from styleinv.runtime.bundle import Bundle
from styleinv.runtime.errors import EngineError, StyleInVError
from styleinv.runtime.machine import cuda_driver_version, describe_machine, nvidia_gpus
from styleinv.runtime.manifest_fields import PRECISIONS
from styleinv.runtime.sessions import ENGINES, Sessions, choose_engine, obstacle

DESCRIPTION = """\
Prints what this machine has: its processor, GPUs and their driver, the libraries that
styleinv can use, whether a window could be shown; and which sessions would load, in which
precision on which engine, and why the others would not. Where no session would, the exit
status is 2.
"""
EXAMPLES = """\
examples:
  styleinv doctor
      what is here, and what to install for more
  styleinv doctor sky.bundle
      the same, and each engine really opens a graph of this bundle
  styleinv doctor --json
      for programs, and for reports of bugs
"""

# What pip installs for each library, by the library's name there. Versions are read from what pip wrote down: importing
# all of these takes seconds, and one that is broken could not be told of.
LIBRARIES = {
    "styleinv": "styleinv",
    "numpy": "styleinv",
    "safetensors": "styleinv",
    "openvino": "styleinv[runtime-cpu]",
    "onnxruntime": "styleinv[runtime-cpu]",
    "onnxruntime-gpu": "styleinv[runtime-gpu]",
    "tensorrt": "styleinv[runtime-gpu]",
    "pycuda": "styleinv[runtime-gpu]",
    "cuda-bindings": "styleinv[runtime-gpu]",
    "tensorrt-rtx-cu13": "styleinv[rtx]",
    "av": "styleinv[runtime-cpu]",
    "torch": "styleinv[train]",
    "triton": "styleinv[kernels]",
    "onnx": "styleinv[export]",
}
SAME_MODULE = ("onnxruntime", "onnxruntime-gpu")
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY")  # variables of the environment that name one

Rows = list[tuple[str, ...]]
Answer = TypeVar("Answer")


def main(argv: list[str]) -> int:
    """Runs `styleinv doctor`; returns the exit status. Raises BundleError where the bundle is bad, and EngineError,
    when all is printed, where no session would load."""
    parser = argparse.ArgumentParser(
        prog="styleinv doctor",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help="folder of a bundle, to open its first graph")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    arguments = parser.parse_args(argv)
    findings = examine(None if arguments.bundle is None else Bundle.open(arguments.bundle))
    print(json.dumps(findings, indent=1) if arguments.json else as_text(findings), flush=True)
    if not any(session["loads"] for session in findings["sessions"]):
        raise EngineError(
            f"sessions: found none that loads, expected one of {', '.join(ENGINES)}, which `pip install "
            "'styleinv[runtime-cpu]'` brings; the report says why each does not load"
        )
    return 0


def examine(bundle: Bundle | None = None) -> dict[str, Any]:
    """What this machine has, as JSON's values. With a bundle, its first graph is opened in every session.

    Whatever asking a part of the machine raises becomes the reason why it is not there.
    """
    return {
        "machine": _machine(),
        "gpus": _gpus(),
        "libraries": {name: {"version": _version(name), "pip": pip} for name, pip in LIBRARIES.items()},
        "display": _display(),
        "bundle": None if bundle is None else str(bundle.path),
        "sessions": [
            *(_session(name, precision, bundle) for name, engine in ENGINES.items() for precision in engine.graphs),
            *(_session("auto", precision, bundle) for precision in PRECISIONS),
        ],
    }


def as_text(findings: Mapping[str, Any]) -> str:
    """The same for people, in sections."""
    bundle = findings["bundle"]
    sections = {
        "machine": _machine_rows(findings["machine"]),
        "GPUs": _gpu_rows(findings["gpus"]),
        "libraries": _library_rows(findings["libraries"]),
        "display": _display_rows(findings["display"]),
        "sessions" if bundle is None else f"sessions, opening {bundle}": _session_rows(findings["sessions"]),
    }
    return "\n\n".join("\n".join([title, *_aligned(rows)]) for title, rows in sections.items())


def _machine() -> dict[str, Any]:
    machine, reason = _attempt(describe_machine)
    return {
        **({"unknown": reason} if machine is None else dataclasses.asdict(machine)),
        "python": f"{platform.python_version()}, {sys.executable}",
    }


def _machine_rows(machine: Mapping[str, Any]) -> Rows:
    python = ("Python", machine["python"])
    if "unknown" in machine:
        return [("not known", machine["unknown"]), python]
    missing, available = machine["missing_instruction_sets"], machine["available_memory_gib"]
    free = "" if available is None else f", {available} GiB of it available"
    return [
        ("processor", machine["processor"]),
        ("cores", f"{machine['logical_cores']} that this process may use"),
        ("instruction sets", (machine["instruction_sets"] or "none known") + (missing and f"; without {missing}")),
        ("memory", f"{machine['memory_gib']} GiB{free}"),
        ("load", f"{machine['load_average']} (0 is an idle machine)"),
        ("system", machine["system"]),
        python,
    ]


def _gpus() -> dict[str, Any]:
    found, complaint = nvidia_gpus()
    cuda, no_cuda = cuda_driver_version()
    return {
        "found": [dataclasses.asdict(gpu) for gpu in found],
        "complaint": complaint,
        "cuda": cuda,
        "no_cuda": no_cuda,
    }


def _gpu_rows(gpus: Mapping[str, Any]) -> Rows:
    found, complaint, cuda, no_cuda = gpus["found"], gpus["complaint"], gpus["cuda"], gpus["no_cuda"]
    if not found and cuda is None:
        return [(f"none found ({complaint}; {no_cuda})",)]
    text = "{memory}, driver {driver}, compute capability {compute_capability}"
    rows: Rows = [(gpu["name"], text.format(**gpu)) for gpu in found]
    if complaint is not None:
        rows.append(("warning" if found else "none found", complaint))
    return [*rows, ("CUDA", no_cuda if cuda is None else f"{cuda}, the newest that the driver serves")]


def _version(library: str) -> str | None:
    """The version that is installed; None where it is not."""
    version, _ = _attempt(lambda: importlib.metadata.version(library))
    return version


def _library_rows(libraries: Mapping[str, Any]) -> Rows:
    rows: Rows = [
        (name, library["version"] or f"not installed: `pip install '{library['pip']}'`")
        for name, library in libraries.items()
    ]
    same = f"{' and '.join(SAME_MODULE)} are one module under two names"
    if all(libraries[name]["version"] for name in SAME_MODULE):
        return [*rows, ("warning", f"{same} and overwrite each other: uninstall both, then install one")]
    return [*rows, ("note", f"{same}: uninstall the one before you install the other")]


def _display() -> dict[str, Any]:
    tkinter, _ = _attempt(lambda: all(map(importlib.util.find_spec, ("tkinter", "_tkinter"))))
    screens = {name: os.environ.get(name) or None for name in SCREENS}
    # tkinter draws through X: on Wayland, too, where XWayland sets DISPLAY. Other systems need no variable.
    window = bool(tkinter) and (screens["DISPLAY"] is not None or sys.platform in ("darwin", "win32"))
    return {**screens, "tkinter": bool(tkinter), "window": window}


def _display_rows(display: Mapping[str, Any]) -> Rows:
    tkinter = "found" if display["tkinter"] else "not found; it comes with Python, on Debian and Ubuntu as python3-tk"
    return [
        *((name, display[name] or "not set") for name in SCREENS),
        ("tkinter", tkinter),
        ("window", "could be shown" if display["window"] else "could not be shown: that takes tkinter and a DISPLAY"),
    ]


def _session(engine: str, precision: str, bundle: Bundle | None) -> dict[str, Any]:
    """The engine that loads, of which 'auto' tells the name, or the reason why none does."""
    loads, reason = _attempt(lambda: _load(engine, precision, bundle))
    return {"engine": engine, "precision": precision, "loads": loads, "reason": reason}


def _load(engine: str, precision: str, bundle: Bundle | None) -> str:
    """The name of the engine that loads. Raises whatever keeps it from loading."""
    if engine in ENGINES and (reason := obstacle(engine, precision)) is not None:
        raise EngineError(reason)
    if bundle is None:
        return choose_engine(engine, precision)
    with Sessions(bundle, engine=engine, precision=precision) as sessions:
        sessions.session(next(iter(bundle.manifest["graphs"])))
        return sessions.engine


def _session_rows(sessions: list[dict[str, Any]]) -> Rows:
    rows: Rows = []
    for session in sessions:
        yes = f"takes {session['loads']}" if session["engine"] == "auto" else "loads"
        outcome = yes if session["reason"] is None else f"no: {session['reason']}"
        rows.append((session["engine"], session["precision"], outcome))
    return rows


def _attempt(question: Callable[[], Answer]) -> tuple[Answer | None, str | None]:
    """The answer, or in one line why there is none: a library that is broken may raise anything, and may even exit."""
    try:
        return question(), None
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        return None, text if isinstance(error, StyleInVError) else f"{type(error).__name__}: {text}"


def _aligned(rows: Rows) -> list[str]:
    """Indented lines of the rows; columns but the last are as wide as their longest text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return ["  " + "  ".join([*map(str.ljust, row, widths), row[-1]]) for row in rows]
