"""How a run is launched: enqueued call by call at first, then, where that can be, replayed as one CUDA graph.

fresh --enqueue--> warm --capture--> replaying         a refused enqueue, or a launch that fails, leads to fresh
                     \\--cannot be captured--> plain    where every run is enqueued, for ever
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from styleinv.runtime.errors import EngineError
from styleinv.runtime.sessions.device import Device, Stream

State = Literal["fresh", "warm", "replaying", "plain"]


class Launcher:
    """Launches one fixed piece of work: the same buffers, the same shapes.

    It is enqueued once before it is captured, as an engine does some of its work in its first run only. What was
    captured has not been done, and is launched after.

    Args:
        enqueue: puts the work in the stream's queue; False where it is refused.
        capture: whether to try it; else every run is enqueued.
        what: for messages.
    """

    def __init__(self, device: Device, stream: Stream, enqueue: Callable[[], bool], capture: bool, what: str) -> None:
        self._device, self._stream, self._enqueue, self._what = device, stream, enqueue, what
        self._first: State = "fresh" if capture else "plain"
        self.state: State = self._first
        self._graph: Any = None

    def launch(self) -> None:
        """Puts the work in the stream's queue. Raises EngineError where the engine refuses it or CUDA fails; the next
        run begins anew."""
        try:
            if self.state == "warm":
                self._capture()
            if self.state == "replaying":
                self._device.launch(self._graph, self._stream)
                return
            if not self._enqueue():
                raise EngineError(f"{self._what}: found a run that the engine refused, expected one that it takes")
        except BaseException:
            self.free()
            raise
        if self.state == "fresh":
            self.state = "warm"

    def free(self) -> None:
        """Lets go of the graph, if there is one; the next run begins anew."""
        graph, self._graph, self.state = self._graph, None, self._first
        if graph is not None:
            self._device.free_graph(graph)

    def _capture(self) -> None:
        self.state = self._first = "plain"
        try:
            self._device.begin_capture(self._stream)
        except EngineError:
            return
        taken = False
        try:
            taken = self._enqueue()
        finally:
            graph = self._device.end_capture(self._stream)  # in any case: the stream does nothing before
            if taken and graph is not None:
                self._graph, self.state, self._first = graph, "replaying", "fresh"
            elif graph is not None:
                self._device.free_graph(graph)
