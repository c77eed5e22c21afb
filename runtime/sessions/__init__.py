"""Sessions: the graphs of a bundle, loaded on an engine. Each engine is one module here, imported when it is used."""

from __future__ import annotations

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
    """A module with the functions `open_session(graph, options)` and `obstacle(precision)`, and for each precision that
    it computes in, the precision of the graphs that it loads for it."""

    module: str
    graphs: Mapping[str, str]


# In the order in which 'auto' tries them: on a CPU, OpenVINO is faster than ONNX Runtime, which runs everywhere.
ENGINES = {
    "openvino": Engine("styleinv.runtime.sessions.openvino", {"fp32": "fp32", "bf16": "fp32"}),
    "onnxruntime": Engine("styleinv.runtime.sessions.onnxruntime", {"fp32": "fp32", "fp16": "fp16"}),
}

PLAYED_GRAPHS = ("mapping", "synthesis", "content", "latent")  # that a clip takes


def choose_engine(engine: str = "auto", precision: str = "fp32") -> str:
    """The name of the engine that `engine` stands for: 'auto' is the first that this machine has in this precision.

    Raises: EngineError where there is none of that name, or it cannot be had here, saying why.
    """
    if precision not in PRECISIONS:
        raise EngineError(f"precision: found {precision!r}, expected one of {', '.join(PRECISIONS)}")
    if engine != "auto":
        reason = obstacle(engine, precision)
        if reason is not None:
            raise EngineError(f"{engine} in {precision}: {reason}")
        return engine
    reasons = {name: obstacle(name, precision) for name in ENGINES}
    for name, reason in reasons.items():
        if reason is None:
            return name
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise EngineError(f"precision: found {precision}, for which this machine has no engine ({listed})")


def obstacle(engine: str, precision: str) -> str | None:
    """Why this machine cannot compute in this precision on this engine, in words; None where it can.

    Raises: EngineError where there is no engine of that name.
    """
    if engine not in ENGINES:
        raise EngineError(f"engine: found {engine!r}, expected one of auto, {', '.join(ENGINES)}")
    computes = ENGINES[engine].graphs
    if precision not in computes:
        return f"this engine computes in {' and '.join(computes)} on a CPU"
    reason: str | None = _module(engine).obstacle(precision)
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
        precision: what it computes in: fp32, fp16 or bf16.
        threads: CPU threads for one run; None lets the engine decide.
        transfer: the name of a transfer, whose graph it is then; None for the bundle's own.
    Raises: EngineError where the engine cannot be had, has no such precision or does not load the file; BundleError
        where the bundle has no such graph or transfer, or not in that precision.
    """
    name = choose_engine(engine, precision)
    spec = bundle.graph(graph, transfer, ENGINES[name].graphs[precision])
    return open_graph(name, spec, SessionOptions(precision, threads))


def open_graph(engine: str, graph: GraphSpec, options: SessionOptions) -> Session:
    """Loads one graph, of a bundle or not, on the engine of this name. Raises: EngineError where that fails."""
    session: Session = _module(engine).open_session(graph, options)
    return session


def _module(engine: str) -> Any:
    return importlib.import_module(ENGINES[engine].module)


class Sessions(Closing):
    """What all rollouts of one bundle share: a session for each graph, opened when first asked for, and the motion
    network's weights. Threads may share it; closing it closes its sessions.

    Args:
        engine: 'auto' is the fastest that this machine has in this precision and on which the bundle's probe comes out
            right (see `probes.deviation`); one that fails is told in a RuntimeWarning, and the next one is tried.
    Raises: EngineError where the engine cannot be had in this precision, or none reproduces the probe; BundleError
        where the bundle has no graphs that it would load for it.
    """

    def __init__(
        self, bundle: Bundle, *, engine: str = "auto", precision: str = "fp32", threads: int | None = None
    ) -> None:
        self.bundle = bundle
        self.precision = precision
        self.engine = choose_engine(engine, precision)
        self._threads = threads
        self._open: dict[tuple[str, str | None], Session] = {}
        self._motion: MotionNetwork | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._check_graphs()
        if engine == "auto":
            self._choose_by_probe()

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

    def preload(self, transfer: str | None = None) -> None:
        """Opens what playing takes, so that the first frame need not wait for it. Raises as `session`."""
        for graph in PLAYED_GRAPHS:
            if graph in self.bundle.manifest["graphs"]:
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
        first = next(iter(self.bundle.manifest["graphs"]))
        self.bundle.graph(first, precision=ENGINES[self.engine].graphs[self.precision])  # raises where it has none

    def _choose_by_probe(self) -> None:
        """Stays with the engine, or goes on to the next one that this machine has, until the probe comes out right."""
        candidates = list(ENGINES)[list(ENGINES).index(self.engine) :]
        failures: list[str] = []
        for name in candidates:
            reason = obstacle(name, self.precision)
            if reason is None:
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
