"""Builds one engine, in a process of its own: TensorRT may take one down, and some failures spoil its later builds.
Inductor compiles in one, too: what it sets up and caches does not stay behind.

`build_engine` starts `python -m styleinv.export.engine_build`, which reads a job from its standard input, says on its
standard output how far it is, and last what came of it, one JSON object in each line. All that the library says is in
the log. Networks are strongly typed: what a graph computes in is what stands in its file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from styleinv.export.graph_errors import ParserFault, describe_errors
from styleinv.runtime.engine_library import ENGINE_LIBRARIES, import_engine_library
from styleinv.runtime.errors import EngineError

CAPABILITY_PREFIX = "SM"  # of the library's names: SM89 is 8.9
LOG_LINES = 3  # of the library's complaints that an error repeats
QUIET_LEVELS = ("VERBOSE",)  # thousands of lines for each graph


@dataclass(frozen=True)
class Job:
    """What to build: a graph's file, or for Inductor an exported program's, for these targets, and where to write the
    engine and the log. `batch` is the least, the usual and the largest."""

    engine: str
    graph: str
    targets: tuple[str, ...]
    batch: tuple[int, int, int]
    refittable: bool
    out: str
    log: str
    plugins: bool = False  # of ours, in the graph


def build_engine(job: Job, on_phase: Callable[[str], object] = lambda phase: None) -> None:
    """Builds the engine of a job; `on_phase` hears the name of each part of the build as it begins.

    Raises: EngineError naming the graph's file and, where the library does not take it, the node and its inputs.
    """
    with Path(job.log).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "styleinv.export.engine_build"],  # -P: nothing is imported from this folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "TMPDIR": str(Path(job.out).parent)},  # what it leaves behind goes with that folder
        )
        assert process.stdin is not None and process.stdout is not None
        outcome: dict[str, Any] = {}
        try:
            with suppress(BrokenPipeError), process.stdin:  # one that died has its status looked at below
                process.stdin.write(json.dumps(asdict(job)))
            for line in process.stdout:
                outcome = json.loads(line)
                if "phase" in outcome:
                    on_phase(outcome["phase"])
            status = process.wait()
        finally:
            process.kill()  # after an interruption; one that has ended does not mind
            process.wait()
            process.stdout.close()
    if "faults" in outcome:
        raise EngineError(describe_errors(Path(job.graph), [ParserFault(**fault) for fault in outcome["faults"]]))
    if "error" in outcome:
        raise EngineError(f"{job.graph}: {outcome['error']}")
    if status != 0 or "built" not in outcome:
        said = " ".join(Path(job.log).read_text(encoding="utf-8", errors="replace").split("\n")[-LOG_LINES - 1 :])
        raise EngineError(f"{job.graph}: found a build that ended with status {status}, expected an engine: {said}")


def main() -> int:
    """Builds what the job on standard input says."""
    # What the library prints must not stand among our lines: they go where standard output was, all else into the log.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    fields = json.loads(sys.stdin.read())
    job = Job(**{**fields, "targets": tuple(fields["targets"]), "batch": tuple(fields["batch"])})
    try:
        outcome = _compile(job, answers) if job.engine == "inductor" else _build(job, answers)
    except EngineError as error:
        outcome = {"error": str(error)}
    _say(answers, outcome)
    return 0


def _compile(job: Job, answers: TextIO) -> dict[str, Any]:
    """Has PyTorch compile the program; what it cannot ends the process, with the reason in the log."""
    file, out = Path(job.graph), Path(job.out)
    from styleinv.export.inductor import compile_program

    torch, begin = import_engine_library(job.engine), time.perf_counter()
    print(f"torch {torch.__version__}: {file.stem}, batch {job.batch}, for {' '.join(job.targets)}", file=sys.stderr)
    _say(answers, {"phase": "compiling"})
    compile_program(file, out)
    print(f"{out.stat().st_size} bytes after {time.perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)
    return {"built": job.out}


def _build(job: Job, answers: TextIO) -> dict[str, Any]:
    trt = import_engine_library(job.engine)
    begin = time.perf_counter()
    graph = Path(job.graph)
    if job.plugins:
        from styleinv.export.plugin_graph import register_plugins

        register_plugins(graph, job.targets[0])
    os.chdir(graph.parent)  # the log stays in the bundle, and has no paths of this machine then
    options = f"batch {job.batch}, for {' '.join(job.targets) or 'the GPU at hand'}{', refittable' * job.refittable}"
    print(f"{trt.__name__} {trt.__version__}: {graph.name}, {options}", file=sys.stderr, flush=True)
    complaints: list[str] = []
    logger = _logger(trt, complaints)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(graph.name):
        return {"faults": [_fault(parser.get_error(index)) for index in range(parser.num_errors)]}
    config = builder.create_builder_config()
    config.progress_monitor = _progress_monitor(trt, answers)
    if job.refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    if ENGINE_LIBRARIES[job.engine].builds_for_others:
        config.num_compute_capabilities = len(job.targets)
        for index, target in enumerate(job.targets):
            name = CAPABILITY_PREFIX + target.replace(".", "")
            config.set_compute_capability(trt.ComputeCapability.__members__[name], index)
    profile = builder.create_optimization_profile()
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    for array in inputs:
        batch, *rest = tuple(array.shape)  # -1: dynamic
        if batch != -1 or -1 in rest:
            return {
                "error": f"input {array.name}: found shape {[batch, *rest]}, expected -1, dynamic, first and only there"
            }
        profile.set_shape(array.name, *((each, *rest) for each in job.batch))
    config.add_optimization_profile(profile)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        return {"error": f"found no engine: {' '.join(complaints[-LOG_LINES:]) or 'the library says nothing'}"}
    Path(job.out).write_bytes(serialized)
    print(f"{serialized.nbytes} bytes after {time.perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)
    return {"built": job.out}


def _fault(error: Any) -> dict[str, Any]:
    return asdict(
        ParserFault(
            node=error.node(),
            name=error.node_name(),
            operator=error.node_operator(),
            description=error.desc(),
            code=str(error.code()),
        )
    )


def _logger(trt: Any, complaints: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Writes into the log, and keeps the errors."""

        def log(self, severity: Any, message: str) -> None:
            level = str(severity).rpartition(".")[2]
            if level not in QUIET_LEVELS:
                print(f"{level}: {message}", file=sys.stderr, flush=True)
            if level in ("ERROR", "INTERNAL_ERROR"):
                complaints.append(message)

    return Logger()


def _progress_monitor(trt: Any, answers: TextIO) -> Any:
    class ProgressMonitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Tells of the parts of the build."""

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            _say(answers, {"phase": name})

        def phase_finish(self, name: str) -> None:
            pass

        def step_complete(self, name: str, step: int) -> bool:
            return True  # go on

    return ProgressMonitor()


def _say(answers: TextIO, line: dict[str, Any]) -> None:
    print(json.dumps(line), file=answers, flush=True)


def supported_capabilities(engine: str) -> list[str]:
    """The compute capabilities that a library builds for without such a GPU at hand. Raises EngineError where it cannot
    be had."""
    trt = import_engine_library(engine)
    names = [name.removeprefix(CAPABILITY_PREFIX) for name in trt.ComputeCapability.__members__]
    return [f"{name[:-1]}.{name[-1]}" for name in names if name.isdecimal()]


if __name__ == "__main__":
    sys.exit(main())
