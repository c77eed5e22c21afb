"""A GPU of NVIDIA's: memory, streams and events through PyCUDA, graphs, which PyCUDA has not, through cuda-bindings.

Both are thin layers of the one CUDA driver interface, so a stream of the first is, by its handle, one of the second.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from styleinv.runtime.errors import EngineError
from styleinv.runtime.machine import cuda_driver_version
from styleinv.runtime.sessions.device import Array, Memory, Stream

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for an application's work in the default stream


def obstacle(pip: str) -> str | None:
    """Why this machine has no GPU that can be used, in words; None where it has. `pip` installs what is missing."""
    try:
        _import(pip)
        open_device()
    except EngineError as error:
        return str(error)
    return None


@functools.cache
def open_device(number: int = 0) -> CudaDevice:
    """The GPU of this number, which CUDA counts among those of the environment's CUDA_VISIBLE_DEVICES; always the same
    object. Raises EngineError where there is none, or what is needed for it is not installed."""
    return CudaDevice(number)


class CudaDevice:
    """See `device.Device`. It works in the GPU's primary context, which an application that uses CUDA's runtime, as
    PyTorch and CuPy do, has made current already and shares with it. The context is kept until the process ends.

    PyCUDA frees memory silently not at all in a thread in which its context is not current, so all is within `current`.
    """

    def __init__(self, number: int) -> None:
        self._cuda, self._graphs = _import("styleinv[runtime-gpu]")
        with _errors("a GPU"):
            self._cuda.init()
            count = self._cuda.Device.count()
            if number >= count:
                raise EngineError(f"CUDA: found {count} GPUs, expected one of number {number}")
            device = self._cuda.Device(number)
            self._context = device.retain_primary_context()
        self.number = number
        self.name = str(device.name())
        self.compute_capability = "{}.{}".format(*device.compute_capability())

    @contextmanager
    def current(self) -> Iterator[None]:
        with _errors(self.name):
            self._context.push()
            try:
                yield
            finally:
                self._context.pop()

    def allocate(self, size: int) -> Memory:
        allocation = self._cuda.mem_alloc(size)
        return Memory(int(allocation), size, allocation)

    def pinned(self, shape: tuple[int, ...], dtype: str) -> Array:
        array: Array = self._cuda.pagelocked_empty(shape, dtype)
        return array

    def free(self, memory: Memory | Array) -> None:
        owner: Any = memory.owner if isinstance(memory, Memory) else memory.base
        owner.free()

    def stream(self) -> Stream:
        stream = self._cuda.Stream(NON_BLOCKING)
        return Stream(int(stream.handle), stream)

    def event(self) -> Any:
        flags = self._cuda.event_flags
        return self._cuda.Event(flags.DISABLE_TIMING | flags.BLOCKING_SYNC)  # a thread that waits leaves its core

    def copy_in(self, memory: Memory, array: Array, stream: Stream) -> None:
        self._cuda.memcpy_htod_async(memory.address, array, stream.owner)

    def copy_out(self, array: Array, memory: Memory, stream: Stream) -> None:
        self._cuda.memcpy_dtoh_async(array, memory.address, stream.owner)

    def copy_across(self, destination: Memory, source: Memory, stream: Stream) -> None:
        self._cuda.memcpy_dtod_async(destination.address, source.address, source.size, stream.owner)

    def record(self, event: Any, stream: Stream) -> None:
        event.record(stream.owner)

    def wait(self, stream: Stream, event: Any) -> None:
        stream.owner.wait_for_event(event)

    def synchronize(self, event: Any) -> None:
        event.synchronize()

    def begin_capture(self, stream: Stream) -> None:
        # Calls that other threads make meanwhile do not spoil it.
        mode = self._graphs.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._checked(self._graphs.cuStreamBeginCapture(self._handle(stream), mode))

    def end_capture(self, stream: Stream) -> Any:
        status, graph = self._graphs.cuStreamEndCapture(self._handle(stream))
        if status != self._graphs.CUresult.CUDA_SUCCESS or not int(graph):
            return None
        status, launchable = self._graphs.cuGraphInstantiate(graph, 0)
        self._graphs.cuGraphDestroy(graph)
        return launchable if status == self._graphs.CUresult.CUDA_SUCCESS else None

    def launch(self, graph: Any, stream: Stream) -> None:
        self._checked(self._graphs.cuGraphLaunch(graph, self._handle(stream)))

    def free_graph(self, graph: Any) -> None:
        self._checked(self._graphs.cuGraphExecDestroy(graph))

    def _handle(self, stream: Stream) -> Any:
        return self._graphs.CUstream(stream.handle)

    def _checked(self, answer: tuple[Any, ...]) -> None:
        if answer[0] != self._graphs.CUresult.CUDA_SUCCESS:
            raise EngineError(f"{self.name}: found CUDA's error {answer[0].name}, expected none")


@contextmanager
def _errors(where: str) -> Iterator[None]:
    """Turns PyCUDA's errors into EngineErrors."""
    import pycuda.driver

    try:
        yield
    except pycuda.driver.Error as error:  # MemoryError, LaunchError, ... are kinds of it
        raise EngineError(f"{where}: found CUDA's error {error}, expected none") from error


def _import(pip: str) -> tuple[Any, Any]:
    """PyCUDA's driver module and that of cuda-bindings. Raises EngineError where one is not to be had, or no driver."""
    version, reason = cuda_driver_version()
    if version is None:
        raise EngineError(f"this machine has no driver for NVIDIA's GPUs ({reason}): install it as NVIDIA says")
    try:
        import pycuda.driver
        from cuda.bindings import driver
    except (ImportError, OSError) as error:
        raise EngineError(
            f"PyCUDA and cuda-bindings cannot be had ({error}); install them with `pip install '{pip}'`"
        ) from error
    return pycuda.driver, driver
