"""One of the places that runs of an engine go through in turn: its buffers on the GPU and on the host, filled once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from styleinv.runtime.bundle import ArraySpec, GraphSpec
from styleinv.runtime.errors import EngineError
from styleinv.runtime.sessions.base import Array, Arrays
from styleinv.runtime.sessions.capture import Launcher
from styleinv.runtime.sessions.device import Device, Kept, Memory, Stream


class Slot:
    """Buffers of one batch size, which an execution context of its own computes in. The device is current in all calls.

    Args:
        context: of TensorRT's, for this slot alone; its arrays' addresses are set once.
        stream: in which it computes.
        capture: whether to replay its work as a CUDA graph.
    Raises: EngineError where the engine refuses the batch, or there is no memory.
    """

    def __init__(
        self, device: Device, context: Any, graph: GraphSpec, batch: int, stream: Stream, capture: bool
    ) -> None:
        self._device, self._context, self._graph, self._batch, self._stream = device, context, graph, batch, stream
        self._memory: dict[str, Memory] = {}
        self._pinned: Arrays = {}
        self._held: Arrays = {}  # read-only inputs that lie on the device
        self._pending: Transfer | None = None
        self._computed, self._copied = device.event(), device.event()
        self.launcher = Launcher(
            device, stream, lambda: bool(context.execute_async_v3(stream.handle)), capture, str(graph.file)
        )
        try:
            for name, spec in {**graph.inputs, **graph.outputs}.items():
                self._bind(name, spec)
        except BaseException:
            self.free()
            raise

    def shape(self, name: str) -> tuple[int, ...]:
        """Of this input or output, with its batch."""
        spec = self._graph.inputs.get(name) or self._graph.outputs[name]
        return (self._batch, *map(int, spec.shape[1:]))

    def compute(self, inputs: Mapping[str, Array]) -> None:
        """Begins a run. The one before must be finished, as its inputs and outputs are written over."""
        for name, array in inputs.items():
            if self._held.get(name) is array:
                continue
            np.copyto(self._pinned[name], array)
            self._held.pop(name, None)
            self._device.copy_in(self._memory[name], self._pinned[name], self._stream)
            if not array.flags.writeable:
                self._held[name] = array
        try:
            self.launcher.launch()
        finally:  # the pinned inputs are in use till then, whether the engine took the run or not
            self._device.record(self._computed, self._stream)

    def copy_out(self, outputs: Iterable[str], stream: Stream) -> Transfer:
        """Has these outputs of the run that was begun copied to the host, in another stream."""
        names = list(outputs)
        self._device.wait(stream, self._computed)
        for name in names:
            self._device.copy_out(self._pinned[name], self._memory[name], stream)
        self._device.record(self._copied, stream)
        self._pending = Transfer(lambda: self._arrived(names))
        return self._pending

    def keep(self, outputs: Iterable[str]) -> dict[str, tuple[int, Kept]]:
        """Copies these outputs of the run that was begun into new memory on the device, and waits for them; for each
        its address, and what holds the memory."""
        kept: dict[str, tuple[int, Kept]] = {}
        for name in outputs:
            source = self._memory[name]
            memory = self._device.allocate(source.size)
            kept[name] = memory.address, Kept(self._device, memory)
            self._device.copy_across(memory, source, self._stream)
        self._device.record(self._computed, self._stream)
        self._device.synchronize(self._computed)
        return kept

    def finish(self) -> None:
        """Waits for the run that was begun; its result is kept for whoever asks for it, as is its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.arrive()
        else:  # one that was not copied
            self._device.synchronize(self._computed)

    def free(self) -> None:
        """Waits for the run that was begun, and frees all that the slot holds."""
        with suppress(EngineError):  # of the run
            self.finish()
        self.launcher.free()
        self._context = None
        for memory in self._memory.values():
            self._device.free(memory)
        for array in self._pinned.values():
            self._device.free(array)
        self._memory, self._pinned, self._held = {}, {}, {}
        self._computed = self._copied = None

    def _bind(self, name: str, spec: ArraySpec) -> None:
        shape = self.shape(name)
        self._memory[name] = memory = self._device.allocate(math.prod(shape) * np.dtype(spec.dtype).itemsize)
        self._pinned[name] = self._device.pinned(shape, spec.dtype)
        fits = self._context.set_tensor_address(name, memory.address)
        if name in self._graph.inputs:
            fits = self._context.set_input_shape(name, shape) and fits
        if not fits:
            raise EngineError(f"{self._graph.file}: {name}: found an engine that refuses the shape {list(shape)}")

    def _arrived(self, names: Iterable[str]) -> Arrays:
        self._device.synchronize(self._copied)
        return {name: self._pinned[name].copy() for name in names}


class Transfer:
    """Outputs on their way to the host; `arrive` is called with the device current, and by one thread at a time."""

    def __init__(self, wait: Callable[[], Arrays]) -> None:
        self._wait: Callable[[], Arrays] | None = wait
        self._arrays: Arrays = {}
        self._error: EngineError | None = None

    def arrive(self) -> None:
        """Waits for them, once."""
        wait, self._wait = self._wait, None
        if wait is not None:
            try:
                self._arrays = wait()
            except EngineError as error:
                self._error = error

    def arrays(self) -> Arrays:
        """The outputs, once they arrived. Raises EngineError where the device failed meanwhile."""
        if self._error is not None:
            raise self._error
        return self._arrays
