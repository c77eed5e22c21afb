"""A GPU and its library, made of numpy, for tests of all that a session does around a real one.

Device memory is arrays of the host. Work stands in the queues of streams and is done only when somebody waits for an
event that stands behind it, and then no more of it than that event needs: so a wait that is missing gives wrong bytes.
The device writes down what is asked of it, in `log`, each entry an operation and what it was about.
"""

from __future__ import annotations

import contextlib
import types
from typing import Any

import numpy as np

from styleinv.runtime.errors import EngineError
from styleinv.runtime.sessions.device import Memory, Stream


class FakeDevice:
    """See `styleinv.runtime.sessions.device.Device`. `fails` names methods that raise; `graph` is None where nothing
    that is captured can be launched."""

    name, number, compute_capability = "a GPU of numpy", 3, "8.9"

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.memory: dict[int, np.ndarray] = {}  # by address; what is freed is gone
        self.arrays: list[np.ndarray] = []  # pinned
        self.queues: dict[int, list[tuple[str, Any]]] = {}
        self.depth = 0  # how often it was made current
        self.fails: set[str] = set()
        self.can_capture = True
        self.capturing: list[Any] | None = None
        self._next = 1000

    @contextlib.contextmanager
    def current(self):
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def allocate(self, size):
        self._asked("allocate", size)
        self._next += 1000
        self.memory[self._next] = np.full(size, 0xEE, np.uint8)
        return Memory(self._next, size, None)

    def pinned(self, shape, dtype):
        self._asked("pinned", shape)
        self.arrays.append(np.full(shape, 77, dtype))
        return self.arrays[-1]

    def free(self, memory):
        self._asked("free", memory)
        if isinstance(memory, Memory):
            del self.memory[memory.address]
        else:
            self.arrays = [array for array in self.arrays if array is not memory]

    def stream(self):
        self._asked("stream")
        handle = len(self.queues) + 1
        self.queues[handle] = []
        return Stream(handle, None)

    def event(self):
        self._asked("event")
        return Event()

    def copy_in(self, memory, array, stream):
        self._asked("copy_in", stream.handle, array.nbytes)
        self._put(stream, lambda: self._bytes(memory.address).__setitem__(slice(None), array.view(np.uint8).ravel()))

    def copy_out(self, array, memory, stream):
        self._asked("copy_out", stream.handle, array.nbytes)
        self._put(stream, lambda: np.copyto(array, self.read(memory.address, array.shape, array.dtype)))

    def copy_across(self, destination, source, stream):
        self._asked("copy_across", stream.handle)
        self._put(stream, lambda: np.copyto(self._bytes(destination.address), self._bytes(source.address)))

    def record(self, event, stream):
        self._asked("record", stream.handle)
        event.last = mark = object()
        self.queues[stream.handle].append(("record", mark))

    def wait(self, stream, event):
        self._asked("wait", stream.handle)
        self.queues[stream.handle].append(("wait", event.last))

    def synchronize(self, event):
        self._asked("synchronize")
        self._reach(event.last)

    def begin_capture(self, stream):
        self._asked("begin_capture", stream.handle)
        self.capturing = []

    def end_capture(self, stream):
        self._asked("end_capture", stream.handle)
        captured, self.capturing = self.capturing, None
        return captured if self.can_capture else None

    def launch(self, graph, stream):
        self._asked("launch", stream.handle)
        for work in graph:
            self._put(stream, work)

    def free_graph(self, graph):
        self._asked("free_graph")

    def read(self, address, shape, dtype):
        return self._bytes(address).view(dtype).reshape(shape)

    def compute(self, stream, work):
        """What an engine puts in a stream's queue."""
        self._asked("enqueue", stream)
        if self.capturing is not None:
            self.capturing.append(work)
        else:
            self.queues[stream].append(("work", work))

    def operations(self):
        """The log without what was asked with it."""
        return [entry[0] for entry in self.log]

    def _asked(self, operation, *about):
        assert self.depth > 0, f"{operation}: found a device that is not current"
        self.log.append((operation, *about))
        if operation in self.fails:
            raise EngineError(f"{self.name}: {operation} failed")

    def _bytes(self, address):
        return self.memory[address]

    def _put(self, stream, work):
        self.queues[stream.handle].append(("work", work))

    def _reach(self, mark):
        """Does what stands before this mark, in its stream and in those that it waits for; a mark passed is gone."""
        for queue in self.queues.values():
            if ("record", mark) in queue:
                while True:
                    kind, what = queue.pop(0)
                    if kind == "work":
                        what()
                    elif kind == "wait":
                        self._reach(what)
                    elif what is mark:
                        return


class Event:
    last: object = None


class FakeLibrary(types.SimpleNamespace):
    """The module tensorrt, or with `own_graphs` tensorrt_rtx, whose engines compute a function of numpy's.

    Args:
        compute: arrays by name -> arrays by name.
        spec: what the engine was compiled from.
    """

    def __init__(self, device: FakeDevice, spec: Any, compute: Any, own_graphs: bool = False) -> None:
        super().__init__(
            __version__="1.2.3",
            ILogger=object,
            TensorIOMode=types.SimpleNamespace(INPUT="input", OUTPUT="output"),
            EngineValidity=types.SimpleNamespace(VALID=0, INVALID=2),
            nptype=np.dtype,
            accepts=True,  # whether runs are taken
            contexts=[],
        )
        self.engine = FakeEngine(self, device, spec, compute)
        self.Runtime = lambda logger: FakeRuntime(self, logger, own_graphs)
        self.complaint: str | None = None
        self.diagnostics = 0
        self.loaded: list[bytes] = []
        if own_graphs:
            self.CudaGraphStrategy = types.SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")


class FakeRuntime:
    engine_header_size = 4

    def __init__(self, library, logger, validates):
        self._library, self._logger = library, logger
        if validates:
            self.get_engine_validity = lambda header: (2 if library.diagnostics else 0, library.diagnostics)

    def deserialize_cuda_engine(self, content):
        self._library.loaded.append(content)
        if self._library.complaint is not None:
            self._logger.log("Severity.ERROR", self._library.complaint)
            return None
        return self._library.engine


class FakeEngine:
    def __init__(self, library, device, spec, compute):
        self.library, self.device, self.spec, self.compute = library, device, spec, compute
        self.arrays = {**spec.inputs, **spec.outputs}
        self.num_io_tensors = len(self.arrays)

    def get_tensor_name(self, index):
        return list(self.arrays)[index]

    def get_tensor_mode(self, name):
        return "input" if name in self.spec.inputs else "output"

    def get_tensor_dtype(self, name):
        return self.arrays[name].dtype

    def get_tensor_shape(self, name):
        return [size if isinstance(size, int) else -1 for size in self.arrays[name].shape]

    def create_runtime_config(self):
        return types.SimpleNamespace(create_runtime_cache=object, set_runtime_cache=lambda cache: None)

    def create_execution_context(self, config=None):
        context = FakeContext(self, config)
        self.library.contexts.append(context)
        return context


class FakeContext:
    def __init__(self, engine, config):
        self.engine, self.config = engine, config
        self.addresses, self.batch = {}, 0

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def set_input_shape(self, name, shape):
        self.batch = shape[0]
        return True

    def execute_async_v3(self, handle):
        if not self.engine.library.accepts:
            return False
        self.engine.device.compute(handle, self._work)
        return True

    def _work(self):
        engine = self.engine

        def array(name):
            shape = (self.batch, *engine.arrays[name].shape[1:])
            return engine.device.read(self.addresses[name], shape, engine.arrays[name].dtype)

        found = engine.compute({name: array(name).copy() for name in engine.spec.inputs})
        for name in engine.spec.outputs:
            np.copyto(array(name), found[name])
