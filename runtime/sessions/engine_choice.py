"""Which engine of a bundle fits this machine: built by the library's own version, for its GPU or CPU, for the batch."""

from __future__ import annotations

from dataclasses import dataclass

from styleinv.runtime.bundle import Bundle, EngineSpec, GraphSpec
from styleinv.runtime.errors import EngineError
from styleinv.runtime.manifest_fields import is_capability

# What TensorRT for RTX finds wrong with an engine, by the bits of its EngineInvalidityDiagnostics.
FINDINGS = {
    1: "another version of the library built it",
    2: "it was built for GPUs of other compute capabilities",
    4: "the GPU's driver is too old for it",
    8: "the CUDA runtime is too old for it",
    16: "the GPU has too little memory for it",
    32: "its file is damaged",
    64: "CUDA gave an error: no GPU, or one that cannot be used",
}


@dataclass(frozen=True)
class Here:
    """What this machine has: the library's version, and the target that engines must be for, which is the GPU's compute
    capability, or the kind of CPU."""

    version: str
    target: str


@dataclass(frozen=True)
class CompiledGraph:
    """An engine and the graph that it is to compute; where it was built from another, it takes over that one's
    weights."""

    engine: EngineSpec
    graph: GraphSpec


def engine_for(bundle: Bundle, engine: str, graph: GraphSpec, here: Here | None = None) -> CompiledGraph:
    """The engine of the bundle, for the session of this name, that was compiled from this graph, or can be refitted
    with its weights; the newest, where several fit. Without `here` any does.

    Raises: EngineError where none fits, listing those that there are and saying how to build one.
    """
    own = [spec for spec in bundle.engines if spec.engine == engine and spec.graph == graph]
    compiled = own or [spec for spec in bundle.engines if spec.engine == engine and _can_become(spec, graph)]
    fitting = [spec for spec in compiled if here is None or misfit(spec, here) is None]
    if fitting:
        return CompiledGraph(fitting[-1], graph)
    others = [spec for spec in bundle.engines if spec.engine == engine]
    found = "; ".join(_described(spec, here) for spec in compiled or others) or "none"
    target = None if here is None else here.target
    raise EngineError(
        f"{bundle.path}: engines of {graph.file.relative_to(bundle.path)} for {engine}: found {found}, expected one in "
        f"{graph.precision}{'' if here is None else _wanted(here)}: build it with "
        f"`{rebuild_command(engine, graph.precision, target, str(bundle.path))}`"
    )


def misfit(spec: EngineSpec, here: Here) -> str | None:
    """Why this machine cannot load an engine, in words; None where it can."""
    if spec.version != here.version:
        return f"built by version {spec.version}, where {here.version} is installed"
    if here.target not in spec.targets:
        there = f"the GPU has {here.target}" if is_capability(here.target) else f"there is {_hardware(here.target)}"
        return f"built for {_hardware(*spec.targets)}, where {there}"
    return None


def check_batch(spec: EngineSpec, batch: int) -> None:
    """Raises EngineError where the engine does not take this batch."""
    least, best, largest = spec.batch
    if not least <= batch <= largest:
        wanted = min(least, batch), best, max(largest, batch)
        command = rebuild_command(spec.engine, spec.precision, " ".join(spec.targets), batch=wanted)
        raise EngineError(f"{spec.file}: batch: found {batch}, expected {least} to {largest}; others take `{command}`")


def rebuild_command(
    engine: str,
    precision: str,
    compute_capability: str | None = None,
    bundle: str = "BUNDLE",
    batch: tuple[int, int, int] | None = None,
) -> str:
    """The command that builds the engines of a bundle. TensorRT builds for the GPU at hand, so it is not told which;
    Inductor compiles the model itself, which is in no bundle."""
    source = f"MODEL --out {bundle}" if engine == "inductor" else bundle
    target = f" --compute-capability {compute_capability or '8.9'}" if engine == "rtx" else ""
    sizes = "" if batch is None else " --batch {} {} {}".format(*batch)
    return f"styleinv export {source} --engine {engine} --precision {precision}{target}{sizes}"


def findings(diagnostics: int) -> str:
    """The words for the bits that TensorRT for RTX sets where an engine is of no use to it."""
    return "; ".join(words for bit, words in FINDINGS.items() if diagnostics & bit) or f"its finding {diagnostics}"


def _can_become(spec: EngineSpec, graph: GraphSpec) -> bool:
    """Whether it is refittable, of the bundle's own style, and the graph another style's: export leaves out a style's
    engine only where the own style's can take its weights. Those of styles may be of other shapes."""
    same = (spec.graph.name, spec.graph.precision) == (graph.name, graph.precision)
    return spec.refittable and spec.transfer is None and same


def _described(spec: EngineSpec, here: Here | None) -> str:
    reason = None if here is None else misfit(spec, here)
    return f"{spec.graph.name} in {spec.graph.precision}" + ("" if reason is None else f", {reason}")


def _wanted(here: Here) -> str:
    return f" by version {here.version} for {_hardware(here.target)}"


def _hardware(*targets: str) -> str:
    """Targets in words."""
    return f"{'compute capability' if is_capability(targets[0]) else 'a CPU of'} {', '.join(targets)}"
