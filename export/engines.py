"""Engines: graphs of a bundle, compiled by TensorRT, TensorRT for RTX or PyTorch's Inductor for what will play it.

Each graph becomes an engine of its own; so does `frame`, latent and synthesis in one, which is one launch for a frame.
TensorRT compiles the graphs' files; Inductor the model that they were made from, so only an export can have it.
An engine is built once for all that decides it (see `engine_cache`), and taken from the cache after that. Its file's
name carries its key, so an engine that is built anew never overwrites one that a manifest tells of.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
import torch
from tqdm import tqdm

from styleinv.export.engine_build import Job, build_engine
from styleinv.export.engine_cache import CachedEngine, cached, engine_key, graph_hash, keep
from styleinv.export.engine_options import EngineOptions
from styleinv.export.inductor import Programs, kernels_hash, program_hash
from styleinv.export.lint import lint
from styleinv.export.refit import can_refit, check_refits
from styleinv.runtime.bundle import Bundle, GraphSpec, file_sha256, write_manifest
from styleinv.runtime.engine_library import import_engine_library
from styleinv.runtime.errors import BundleError, EngineError

BUILT_FROM = ("graphs", "precisions", "transfers")  # what of a manifest engines are built from
PLUGIN_GRAPHS = ("synthesis", "frame")  # those that draw
WHICH = ("engine", "precision", "targets", "graph", "transfer")  # a new engine replaces the one that has the same


@dataclass(frozen=True)
class BuiltEngine:
    """An engine in the cache: the name, without suffix, that its files get in the bundle, the fields of its entry in
    the manifest, and the seconds that its build took, None where the cache had it."""

    files: CachedEngine
    stem: str
    fields: dict[str, Any]
    seconds: float | None


def add_engines(path: Path, options: Iterable[EngineOptions], *, progress: bool = True) -> list[BuiltEngine]:
    """Builds engines from the graphs of the bundle folder `path` and adds them to it, in place of those that it has for
    the same graph, precision and GPUs. Several exports may add to one bundle at a time; a failure changes nothing.

    Raises: as `build_engines`, `place_engines` and `check_refitted`; BundleError where the bundle is damaged, or was
    exported anew meanwhile.
    """
    bundle, options = Bundle.open(path), list(options)
    built = build_engines(bundle, options, progress=progress)
    fresh = {_which(engine.fields) for engine in built}
    with _locked(path):
        manifest = Bundle.open(path, verify_hashes=False).manifest
        if any(manifest.get(part) != bundle.manifest.get(part) for part in BUILT_FROM):
            raise BundleError(f"{path}: graphs: found others than those that the engines were built from: export again")
        kept = [entry for entry in manifest["engines"] if _which(entry) not in fresh]
        entries = [*kept, *place_engines(built, path)]
        write_manifest(path, {**manifest, "engines": entries})
        try:
            check_refitted(Bundle.open(path, verify_hashes=False), options)
        except BaseException:
            write_manifest(path, manifest)
            for file in _files(entries) - _files(manifest["engines"]):
                (path / file).unlink()
            raise
        for file in _files(manifest["engines"]) - _files(entries):
            (path / file).unlink(missing_ok=True)
    return built


def build_engines(
    bundle: Bundle, options: Iterable[EngineOptions], programs: Programs | None = None, *, progress: bool = True
) -> list[BuiltEngine]:
    """Has an engine of every graph, and of every transfer's, in the cache; the bundle stays as it is. `programs` are
    the model's, which Inductor and plugins take.

    Raises: EngineError where the library cannot be had, or a graph has what it does not take, naming file and node and,
    where that was found before anything was built, how to mend it; BundleError where the bundle has no graphs in a
    precision.
    """
    plans = [(each, graph, transfer) for each in options for graph, transfer in _graphs(bundle, each)]
    for each, graph, _ in plans:
        if each.engine != "inductor":
            _check_compatible(graph, each)
        if programs is None and (each.engine == "inductor" or each.plugins):
            what = f"--engine {each.engine}{' --plugins' * each.plugins}"
            raise EngineError(
                f"{bundle.path}: found a bundle, expected the checkpoint that it was exported from, which {what} "
                f"compiles: `styleinv export MODEL --out {bundle.path} {what} --precision {each.precision}`"
            )
    built: list[BuiltEngine] = []
    with (
        tqdm(plans, desc="engines", unit=" engines", disable=not (progress and plans)) as bar,
        tempfile.TemporaryDirectory(prefix="styleinv-engines-") as scratch,  # one: Inductor's caches serve all builds
    ):
        for each, graph, transfer in bar:
            bar.set_postfix_str(f"{graph.name} {each.engine} {each.precision}")
            built.append(_build(each, graph, transfer, programs, Path(scratch), bar))
    return built


def place_engines(built: Iterable[BuiltEngine], folder: Path) -> list[dict[str, Any]]:
    """Copies engines and their logs into the bundle folder; returns their entries for the manifest.

    Raises: BundleError where there is no room for them; then none of them stays.
    """
    copied: list[Path] = []
    try:
        return [
            {
                **engine.fields,
                **_copy(engine.files.engine, folder, f"{engine.stem}{_suffix(engine.fields)}", copied),
                "log": _copy(engine.files.log, folder, f"{engine.stem}.log", copied),
            }
            for engine in built
        ]
    except BaseException as error:
        for file in copied:
            file.unlink()
        if isinstance(error, OSError):
            raise BundleError(f"{folder}: engines: found {error}, expected room for them") from error
        raise


def check_refitted(bundle: Bundle, options: Iterable[EngineOptions]) -> None:
    """Has each transfer drawn by a refitted engine, on this machine's GPU, where engines are refittable.

    Raises: EngineError where one does not draw what its graph does.
    """
    for each in options:
        if each.refittable:
            check_refits(bundle, each.engine, each.precision)


def as_table(built: Sequence[BuiltEngine]) -> str:
    """What was built, in a line for each engine."""
    rows = [("engine", "graph", "precision", "for", "batch", "MB", "seconds")]
    for engine in built:
        fields = engine.fields
        rows.append(
            (
                f"{fields['engine']} {fields['version']}",
                fields["graph"] if fields["transfer"] is None else f"{fields['graph']} of {fields['transfer']}",
                fields["precision"],
                " ".join(fields["targets"]),
                f"{fields['batch'][0]}-{fields['batch'][2]}",
                f"{engine.files.engine.stat().st_size / 1e6:.1f}",
                "from the cache" if engine.seconds is None else f"{engine.seconds:.1f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _graphs(bundle: Bundle, options: EngineOptions) -> Iterator[tuple[GraphSpec, str | None]]:
    """The graphs to build from, each with the name of the transfer that it belongs to."""
    for name in bundle.manifest["graphs"]:
        yield bundle.graph(name, None, options.precision), None
    for transfer in bundle.transfers:
        graph = bundle.graph("synthesis", transfer, options.precision)
        if not (options.refittable and can_refit(bundle.graph("synthesis", None, options.precision).file, graph.file)):
            yield graph, transfer


def _check_compatible(graph: GraphSpec, options: EngineOptions) -> None:
    model = onnx.load(graph.file, load_external_data=False)
    errors = [
        each for each in lint(model, str(graph.file), options.engine, options.targets) if each.severity == "error"
    ]
    if errors:
        more = f" (and {len(errors) - 1} more, which --dry-run lists)" if len(errors) > 1 else ""
        first = errors[0]
        raise EngineError(f"{first.where}: {first.rule}: {first.node}: found {first.found}: {first.fix}{more}")


def _build(
    options: EngineOptions,
    graph: GraphSpec,
    transfer: str | None,
    programs: Programs | None,
    scratch: Path,
    bar: Any,
) -> BuiltEngine:
    version = str(import_engine_library(options.engine).__version__)
    details: dict[str, Any] = {"batch": options.batch, "refittable": options.refittable}
    begin = time.perf_counter()
    program = None
    if options.engine == "inductor":
        assert programs is not None
        program = programs.of(graph.name, transfer, options.precision, options.targets[0], options.batch)
    source = graph_hash(graph.file) if program is None else program_hash(program)
    file = graph.file.resolve()
    if options.plugins and graph.name in PLUGIN_GRAPHS:
        assert options.engine == "tensorrt" and programs is not None  # TensorRT for RTX has no plugins
        file = scratch / f"{graph.name}.onnx"
        onnx.save(programs.plugin_graph(graph.name, transfer, options.precision), file)
        source, details["plugins"] = graph_hash(file), [kernels_hash(), metadata.version("triton")]
    key = engine_key(source, options.engine, version, options.targets, details)
    files, seconds = cached(key), None
    if files is None:
        files = CachedEngine(scratch / "engine.pt2", scratch / "log")
        if program is not None:
            file = scratch / f"{graph.name}.pt2"
            torch.export.save(program, file)
        job = Job(
            engine=options.engine,
            graph=str(file),
            targets=options.targets,
            batch=options.batch,
            refittable=options.refittable,
            plugins="plugins" in details,
            out=str(files.engine),
            log=str(files.log),
        )
        build_engine(job, lambda phase: bar.set_postfix_str(f"{graph.name}: {phase}"))
        seconds = time.perf_counter() - begin
        files = keep(key, files)
    place = "-".join((options.engine, options.precision, *options.targets))
    inner = "" if transfer is None else f"transfers/{transfer}/"
    fields = {
        "engine": options.engine,
        "version": version,
        "precision": options.precision,
        "targets": list(options.targets),
        "graph": graph.name,
        "transfer": transfer,
        "batch": list(options.batch),
        "refittable": options.refittable,
        "key": key,
    }
    return BuiltEngine(files, f"engines/{place}/{inner}{graph.name}.{key[:8]}", fields, seconds)


def _copy(source: Path, bundle: Path, name: str, copied: list[Path]) -> dict[str, Any]:
    """Copies a file into a bundle that has none of this name; returns its entry in the manifest."""
    file = bundle / name
    if not file.exists():  # else it is the same: its name carries the key
        file.parent.mkdir(parents=True, exist_ok=True)
        copied.append(file)
        shutil.copyfile(source, file)
    return {"file": name, "sha256": file_sha256(file), "bytes": file.stat().st_size}


def _suffix(fields: Mapping[str, Any]) -> str:
    return ".pt2" if fields["engine"] == "inductor" else ".engine"


def _which(fields: Mapping[str, Any]) -> str:
    return str([fields[field] for field in WHICH])


def _files(entries: Iterable[Mapping[str, Any]]) -> set[str]:
    return {file for entry in entries for file in (entry["file"], entry["log"]["file"])}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time changes the manifest of this bundle. The lock goes with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
