"""Sessions: the graphs of a bundle, loaded on an engine. Each engine is one module here, imported when it is used."""

from __future__ import annotations

import importlib
import threading

from styleinv.runtime.bundle import MOTION_FILE, Bundle
from styleinv.runtime.closing import Closing
from styleinv.runtime.errors import EngineError
from styleinv.runtime.motion import MotionNetwork
from styleinv.runtime.sessions.base import Session

__all__ = ["ENGINES", "Session", "Sessions", "choose_engine", "open_session"]

# 'module:function' of every engine; the function takes (bundle, graph name, threads=..., transfer=...) and returns
# a Session.
ENGINES = {
    "onnxruntime": "styleinv.runtime.sessions.onnxruntime:open_session",
}


def choose_engine(engine: str = "auto") -> str:
    """The name of the engine that `engine` stands for. Raises EngineError where there is none of that name."""
    if engine == "auto":
        return "onnxruntime"
    if engine not in ENGINES:
        raise EngineError(f"engine: found {engine!r}, expected one of auto, {', '.join(ENGINES)}")
    return engine


def open_session(
    engine: str, bundle: Bundle, graph: str, *, threads: int | None = None, transfer: str | None = None
) -> Session:
    """Loads one graph of a bundle on an engine.

    Args:
        threads: CPU threads for one run; None lets the engine decide.
        transfer: the name of a transfer, whose graph it is then; None for the bundle's own.
    Raises: EngineError where the engine cannot be had or does not load the file; BundleError where the bundle has no
        such graph or transfer.
    """
    module, _, function = ENGINES[choose_engine(engine)].partition(":")
    session: Session = getattr(importlib.import_module(module), function)(
        bundle, graph, threads=threads, transfer=transfer
    )
    return session


class Sessions(Closing):
    """What all rollouts of one bundle share: a session for each graph, opened when first asked for, and the motion
    network's weights. Threads may share it; closing it closes its sessions."""

    def __init__(self, bundle: Bundle, *, engine: str = "auto", threads: int | None = None) -> None:
        self.bundle = bundle
        self.engine = choose_engine(engine)
        self._threads = threads
        self._open: dict[tuple[str, str | None], Session] = {}
        self._motion: MotionNetwork | None = None
        self._closed = False
        self._lock = threading.Lock()

    def session(self, graph: str, transfer: str | None = None) -> Session:
        """The session of this graph, of a transfer where one is named. Raises as `open_session`, and EngineError after
        `close`."""
        with self._lock:
            if self._closed:
                raise EngineError(f"{self.bundle.path}: found closed sessions, expected open ones")
            key = graph, transfer
            if key not in self._open:
                self._open[key] = open_session(
                    self.engine, self.bundle, graph, threads=self._threads, transfer=transfer
                )
            return self._open[key]

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
            while self._open:
                self._open.popitem()[1].close()
