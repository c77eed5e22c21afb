"""Sessions: the graphs of a bundle, loaded on an engine. Each engine is one module here, imported when it is used."""

from __future__ import annotations

import functools
import importlib
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from styleinv.runtime.bundle import MOTION_FILE, Bundle, GraphSpec
from styleinv.runtime.closing import Closing
from styleinv.runtime.errors import BundleError, EngineError
from styleinv.runtime.manifest_fields import PRECISIONS
from styleinv.runtime.motion import MotionNetwork
from styleinv.runtime.probes import deviation
from styleinv.runtime.sessions.base import Session, SessionOptions
from styleinv.runtime.sessions.engine_choice import CompiledGraph, engine_for

__all__ = [
    "ENGINES",
    "Session",
    "SessionOptions",
    "Sessions",
    "choose_engine",
    "obstacle",
    "open_graph",
    "open_session",
]


@dataclass(frozen=True)
class Engine:
    """A module with the functions `open_session(engine, graph, options)` and `obstacle(engine, precision)`, which are
    told the engine's name, and for each precision that it computes in, the precision of the graphs that it loads for
    it. Where it is compiled, `graph` is a `CompiledGraph`, an engine of the bundle, which holds native code."""

    module: str
    graphs: Mapping[str, str]
    compiled: bool = False
    automatic: bool = True  # whether 'auto' may take it; a compiled one it takes only where the bundle is trusted


_TENSORRT, _ONNXRUNTIME_GPU = "styleinv.runtime.sessions.tensorrt", "styleinv.runtime.sessions.onnxruntime_gpu"
_ON_GPU = {"fp32": "fp32", "fp16": "fp16"}

# In the order in which 'auto' tries them: a GPU is faster than a CPU, and there OpenVINO is faster than ONNX Runtime,
# and that faster than packages of Inductor, whose place on a GPU has not been measured. The last two compile graphs for
# minutes when they load them, so they must be asked for.
ENGINES = {
    "tensorrt": Engine(_TENSORRT, {name: name for name in PRECISIONS}, compiled=True),
    "rtx": Engine(_TENSORRT, {name: name for name in PRECISIONS}, compiled=True),
    "onnxruntime-cuda": Engine(_ONNXRUNTIME_GPU, _ON_GPU),
    "openvino": Engine("styleinv.runtime.sessions.openvino", {"fp32": "fp32", "bf16": "fp32"}),
    "onnxruntime": Engine(
        "styleinv.runtime.sessions.onnxruntime", {"fp32": "fp32", "fp16": "fp16", "fp8": "fp8", "int8": "int8"}
    ),
    "inductor": Engine(
        "styleinv.runtime.sessions.inductor", {name: name for name in ("fp32", "fp16", "bf16")}, compiled=True
    ),
    "onnxruntime-tensorrt": Engine(_ONNXRUNTIME_GPU, _ON_GPU, automatic=False),
    "onnxruntime-rtx": Engine(_ONNXRUNTIME_GPU, _ON_GPU, automatic=False),
}

PLAYED_GRAPHS = ("mapping", "synthesis", "content", "latent")  # that a clip takes


FUSED_GRAPH = "frame"  # latent and synthesis in one; where it is compiled, it takes the place of `latent` in playing


def choose_engine(engine: str = "auto", precision: str = "fp32") -> str:
    """The name of the engine that `engine` stands for: 'auto' is the first that this machine has in this precision and
    that loads no native code from a bundle.

    Raises: EngineError where there is none of that name, or it cannot be had here, saying why.
    """
    return _candidates(engine, precision)[0]


def obstacle(engine: str, precision: str) -> str | None:
    """Why this machine cannot compute in this precision on this engine, in words; None where it can.

    Raises: EngineError where there is no engine of that name.
    """
    if engine not in ENGINES:
        raise EngineError(f"engine: found {engine!r}, expected one of auto, {', '.join(ENGINES)}")
    computes = ENGINES[engine].graphs
    if precision not in computes:
        return f"this engine computes in {', '.join(computes)}"
    reason: str | None = _module(engine).obstacle(engine, precision)
    return reason


def open_session(
    engine: str,
    bundle: Bundle,
    graph: str,
    *,
    precision: str = "fp32",
    threads: int | None = None,
    transfer: str | None = None,
) -> Session:
    """Loads one graph of a bundle on an engine.

    Args:
        engine: 'auto' takes none that loads native code from the bundle; who names one trusts the bundle.
        precision: what it computes in: fp32, fp16, bf16, fp8 or int8.
        threads: CPU threads for one run; None lets the engine decide.
        transfer: the name of a transfer, whose graph it is then; None for the bundle's own.
    Raises: EngineError where the engine cannot be had, has no such precision or does not load the file; BundleError
        where the bundle has no such graph or transfer, or not in that precision.
    """
    name = choose_engine(engine, precision)
    spec = bundle.graph(graph, transfer, ENGINES[name].graphs[precision])
    loaded = engine_for(bundle, name, spec, _module(name).here(name)) if ENGINES[name].compiled else spec
    return open_graph(name, loaded, SessionOptions(precision, threads))


def open_graph(engine: str, graph: GraphSpec | CompiledGraph, options: SessionOptions) -> Session:
    """Loads one graph, of a bundle or not, on the engine of this name. Raises: EngineError where that fails."""
    session: Session = _module(engine).open_session(engine, graph, options)
    return session


def _candidates(engine: str, precision: str, trusted: Bundle | None = None) -> list[str]:
    """The engines that `engine` may stand for, in the order in which to try them, at least one; compiled ones where the
    bundle is trusted and holds all that playing it takes, fit for this machine. Raises as `choose_engine`."""
    if precision not in PRECISIONS:
        raise EngineError(f"precision: found {precision!r}, expected one of {', '.join(PRECISIONS)}")
    if engine != "auto":
        reason = obstacle(engine, precision)
        if reason is not None:
            raise EngineError(f"{engine} in {precision}: {reason}")
        return [engine]
    automatic = {name: each for name, each in ENGINES.items() if each.automatic}
    compiled = [name for name, each in automatic.items() if each.compiled]
    fitting = [name for name in compiled if trusted is not None and _is_compiled(trusted, name, precision)]
    reasons = {name: obstacle(name, precision) for name in automatic if name not in compiled}
    found = [name for name in automatic if name in fitting or (name in reasons and reasons[name] is None)]
    if found:
        return found
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise EngineError(f"precision: found {precision}, for which this machine has no engine ({listed})")


def _is_compiled(bundle: Bundle, engine: str, precision: str) -> bool:
    """Whether the bundle holds engines of all graphs that playing takes, which this machine can load."""
    if all(spec.engine != engine for spec in bundle.engines) or obstacle(engine, precision) is not None:
        return False
    graphs = [name for name in PLAYED_GRAPHS if name in bundle.manifest["graphs"]]
    return all(_has_engine(bundle, engine, name, precision) for name in graphs)


def _has_engine(bundle: Bundle, engine: str, graph: str, precision: str) -> bool:
    try:
        engine_for(bundle, engine, bundle.graph(graph, None, precision), _module(engine).here(engine))
    except (EngineError, BundleError):
        return False
    return True


def _module(engine: str) -> Any:
    return importlib.import_module(ENGINES[engine].module)


class Sessions(Closing):
    """What all rollouts of one bundle share: a session for each graph, opened when first asked for, and the motion
    network's weights. Threads may share it; closing it closes its sessions.

    Args:
        engine: 'auto' is the fastest that this machine has in this precision and on which the bundle's probe comes out
            right (see `probes.deviation`); one that fails is told in a RuntimeWarning, and the next one is tried.
        trust: compiled engines that the bundle holds are native code, which can do anything: 'auto' takes them only
            from a bundle that is trusted, such as one's own. Who names such an engine trusts the bundle.
    Raises: EngineError where the engine cannot be had in this precision, or none reproduces the probe; BundleError
        where the bundle has no graphs that it would load for it.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        engine: str = "auto",
        precision: str = "fp32",
        threads: int | None = None,
        trust: bool = False,
    ) -> None:
        self.bundle = bundle
        self.precision = precision
        candidates = _candidates(engine, precision, bundle if trust else None)
        self.engine = candidates[0]
        self._threads = threads
        self._open: dict[tuple[str, str | None], Session] = {}
        self._motion: MotionNetwork | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._check_graphs()
        if engine == "auto":
            self._choose_by_probe(candidates)

    @functools.cached_property
    def fused(self) -> bool:
        """Whether frames come straight from time codes, in one launch: where the engine has `frame` compiled."""
        return ENGINES[self.engine].compiled and _has_engine(self.bundle, self.engine, FUSED_GRAPH, self.precision)

    def session(self, graph: str, transfer: str | None = None) -> Session:
        """The session of this graph, of a transfer where one is named. Raises as `open_session`, and EngineError after
        `close`."""
        with self._lock:
            if self._closed:
                raise EngineError(f"{self.bundle.path}: found closed sessions, expected open ones")
            key = graph, transfer
            if key not in self._open:
                self._open[key] = self.load(graph, transfer)
            return self._open[key]

    def preload(self, transfer: str | None = None, *, fused: bool = False) -> None:
        """Opens what playing takes, so that the first frame need not wait for it; `fused` is whether frames come from
        the graph `frame`. Raises as `session`."""
        for graph in PLAYED_GRAPHS:
            if fused and graph == "latent":
                self.session(FUSED_GRAPH)
            elif graph in self.bundle.manifest["graphs"]:
                self.session(graph)
        self.session("synthesis", transfer)

    def load(self, graph: str, transfer: str | None) -> Session:
        """Opens the session of a graph; `session` keeps it. Raises as `open_session`."""
        return open_session(
            self.engine, self.bundle, graph, precision=self.precision, threads=self._threads, transfer=transfer
        )

    def motion_network(self) -> MotionNetwork:
        """The motion network of the bundle. Raises BundleError where its file does not fit the manifest."""
        with self._lock:
            if self._motion is None:
                source = str(self.bundle.path / MOTION_FILE)
                self._motion = MotionNetwork(self.bundle.motion_tensors(), self.bundle.motion, source)
            return self._motion

    def close(self) -> None:
        """Closes every session. Closing twice is allowed."""
        with self._lock:
            self._closed = True
            self._close_all()

    def _check_graphs(self) -> None:
        """Raises where the bundle has no graphs, or engines, for this engine."""
        first = next(iter(self.bundle.manifest["graphs"]))
        graph = self.bundle.graph(first, precision=ENGINES[self.engine].graphs[self.precision])
        if ENGINES[self.engine].compiled:
            engine_for(self.bundle, self.engine, graph)

    def _choose_by_probe(self, candidates: list[str]) -> None:
        """Takes the first of these engines on which the probe comes out right."""
        failures: list[str] = []
        for name in candidates:
            self.engine = name
            try:
                self._check_graphs()
                reason = deviation(self)
            except (EngineError, BundleError) as error:
                reason = str(error)
            if reason is None:
                for failure in failures:
                    warnings.warn(f"{self.bundle.path}: {failure}; playing on {name}", RuntimeWarning, stacklevel=4)
                return
            self._close_all()
            failures.append(f"{name}: {reason}")
        raise EngineError(
            f"{self.bundle.path}: found no engine on which the bundle's probe comes out right ({'; '.join(failures)})"
        )

    def _close_all(self) -> None:
        while self._open:
            self._open.popitem()[1].close()
