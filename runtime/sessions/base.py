"""What a session is: a loaded graph that can run, on whichever engine."""

from __future__ import annotations

import functools
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from styleinv.runtime.bundle import ArraySpec, GraphSpec
from styleinv.runtime.closing import Closing
from styleinv.runtime.device_array import DeviceArray
from styleinv.runtime.errors import EngineError

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Item = TypeVar("Item")

BOUND_SHAPES = 2  # batch sizes that a session is kept ready for; one more makes it forget the one used longest ago


@dataclass(frozen=True)
class SessionOptions:
    """How a session runs: `precision` is what it computes in, `threads` the CPU threads of one run, None for as many as
    the engine finds best."""

    precision: str = "fp32"
    threads: int | None = None


class Pending(Protocol):
    """A run that was asked for. It may be asked for its result from any thread, or never."""

    def result(self) -> Arrays:
        """What `Session.run` returns, the same arrays each time; waits for them. Raises as `Session.run`."""


class Deferred:
    """A run that takes place when its result is asked for."""

    def __init__(self, run: Callable[[], Arrays]) -> None:
        self._run = functools.cache(run)

    def result(self) -> Arrays:
        return self._run()


def one_ahead(items: Iterable[Item], overlap: Callable[[], bool]) -> Iterator[Item]:
    """Yields the items, each when the one after it has been drawn, if they overlap, as runs that are submitted may.
    Where drawing one fails, the one before it still comes."""
    waiting: list[Item] = []
    most = 1 if overlap() else 0
    try:
        for item in items:
            waiting.append(item)
            if len(waiting) > most:
                yield waiting.pop(0)
    except Exception:
        yield from waiting
        raise
    yield from waiting


class Session(Protocol):
    """A loaded graph. `run` may be called from several threads; a closed session refuses to run.

    An input array that is read-only is taken not to change: passed again, it need not be copied again.
    """

    @property
    def name(self) -> str:
        """Engine, device and precision, for people: 'onnxruntime 1.20 (CPU, fp32)'."""

    @property
    def overlaps(self) -> bool:
        """Whether what is submitted is computed at once, beside the program, so that it pays to submit a run ahead."""

    def run(self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Iterable[str] | None = None) -> Arrays:
        """Runs the graph.

        Args:
            inputs: arrays by the names that the bundle gives them, with its dtypes and shapes.
            outputs: the outputs wanted, all by default; those not named need not be copied off the engine.
        Returns: new arrays by name, C-contiguous, owned by the caller.
        Raises: EngineError where an input or output does not fit the graph, or the engine fails.
        """

    def submit(self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Iterable[str] | None = None) -> Pending:
        """As `run`, without waiting for the result. The inputs may be changed when it returns where the session
        overlaps; elsewhere they are read, and errors raised, when the result is asked for."""

    def run_on_device(self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Iterable[str]) -> dict[str, DeviceArray]:
        """As `run`, but the outputs stay on the GPU, finished. Raises EngineError where the session is on no GPU."""

    def close(self) -> None:
        """Lets go of the engine's memory. Closing twice is allowed."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class CpuSession(Closing):
    """What the CPU's sessions share: one run at a time, on buffers that are bound once for each batch size and reused.

    An engine's session prepares a `Bound` for a batch size; `run` attaches the caller's arrays to it, without copying
    them, and copies the outputs that are wanted, since the next run overwrites them.
    """

    overlaps = False

    def __init__(self, graph: GraphSpec, name: str) -> None:
        self.graph, self.name = graph, name
        self._bound: OrderedDict[int, Bound] = OrderedDict()
        self._closed = False
        self._lock = threading.Lock()

    @abstractmethod
    def bind(self, batch: int) -> Bound:
        """Buffers for runs of this batch size. Raises whatever the engine raises."""

    def run(self, inputs: Mapping[str, Array], outputs: Iterable[str] | None = None) -> Arrays:
        """Runs the graph; see `Session.run`."""
        with self._lock:
            batch, wanted = self.checked(inputs, outputs)
            try:
                return self.bound(batch).run(inputs, wanted)
            except Exception as error:  # the engines' exceptions share no base class
                raise EngineError(f"{self.graph.file}: {self.name} failed: {error}") from error

    def checked(self, inputs: Mapping[str, Array], outputs: Iterable[str] | None) -> tuple[int, list[str]]:
        """The batch of a run, and the names of its outputs. Raises EngineError as `run`."""
        if self._closed:
            raise EngineError(f"{self.graph.file}: found a closed session, expected an open one")
        check_inputs(self.graph, inputs)
        return next(iter(inputs.values())).shape[0], wanted_outputs(self.graph, outputs)

    def submit(self, inputs: Mapping[str, Array], outputs: Iterable[str] | None = None) -> Pending:
        """A run that takes place when its result is asked for: nothing is computed ahead of what is shown."""
        return Deferred(lambda: self.run(inputs, outputs))

    def run_on_device(self, inputs: Mapping[str, Array], outputs: Iterable[str]) -> dict[str, DeviceArray]:
        """Raises EngineError: there is no GPU."""
        raise EngineError(
            f"{self.graph.file}: found {self.name}, expected a session on a GPU, to leave its output there"
        )

    def close(self) -> None:
        """Frees the model; a run under way in another thread ends first."""
        with self._lock:
            self._closed = True
            self._bound.clear()
            self.release()

    @abstractmethod
    def release(self) -> None:
        """Lets go of the engine's own objects. Called once or more, when nothing runs."""

    def bound(self, batch: int) -> Bound:
        """The buffers of this batch size, made where they are not at hand."""
        if batch not in self._bound:
            self.use(batch, self.bind(batch))
        self._bound.move_to_end(batch)
        return self._bound[batch]

    def use(self, batch: int, bound: Bound) -> None:
        """Takes in the buffers of a batch size, and lets go of those used longest ago where they are too many."""
        while len(self._bound) >= BOUND_SHAPES:
            self._bound.popitem(last=False)
        self._bound[batch] = bound


class Bound:
    """Buffers of one batch size: output arrays that a run fills, and inputs as the caller passed them last.

    Args:
        buffers: an array for each output, which the engine writes.
        attach: tells the engine where an input lies from now on.
        run_engine: runs the graph.
        copies: whether `attach` copies the input, so that it must be told again of one that may have changed.
    """

    def __init__(
        self,
        buffers: Arrays,
        attach: Callable[[str, Array], None],
        run_engine: Callable[[], object],
        copies: bool = False,
    ) -> None:
        self.buffers, self._attach, self._run_engine, self._copies = buffers, attach, run_engine, copies
        self._inputs: dict[str, tuple[Array, Array]] = {}  # as the caller passed it, and what is attached for it

    def compute(self, inputs: Mapping[str, Array]) -> None:
        """Attaches the inputs that are not, and runs the graph."""
        for name, array in inputs.items():
            passed, shared = self._inputs.get(name, (None, None))
            is_copy = self._copies or shared is not array
            if passed is not array or (is_copy and array.flags.writeable):
                shared = np.require(array, requirements=("C", "W"))  # engines want arrays that they could write
                self._attach(name, shared)
                self._inputs[name] = array, shared
        self._run_engine()

    def run(self, inputs: Mapping[str, Array], outputs: Iterable[str]) -> Arrays:
        """Computes; the result is new arrays of the outputs named."""
        self.compute(inputs)
        return {name: self.buffers[name].copy() for name in outputs}


def output_buffers(graph: GraphSpec, batch: int) -> Arrays:
    """An array for each output; its first size is the batch, all others are fixed."""
    return {name: np.empty((batch, *map(int, spec.shape[1:])), spec.dtype) for name, spec in graph.outputs.items()}


def check_inputs(graph: GraphSpec, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raises EngineError where names, dtypes, ranks or sizes are not the graph's; a named size is one size."""
    _check_names(graph, "inputs", set(inputs), set(graph.inputs))
    dynamic: dict[str, int] = {}
    for name, spec in graph.inputs.items():
        array = inputs[name]
        if array.dtype != np.dtype(spec.dtype):
            raise EngineError(f"{graph.file}: input {name}: found dtype {array.dtype}, expected {spec.dtype}")
        if not _fits(array.shape, spec, dynamic):
            expected = [dynamic.get(size, size) if isinstance(size, str) else size for size in spec.shape]
            raise EngineError(f"{graph.file}: input {name}: found shape {list(array.shape)}, expected {expected}")


def wanted_outputs(graph: GraphSpec, outputs: Iterable[str] | None) -> list[str]:
    """The names of the outputs to compute; raises EngineError where the graph has no such output."""
    wanted = list(graph.outputs if outputs is None else outputs)
    if not set(wanted) <= set(graph.outputs):
        _check_names(graph, "outputs", set(wanted), set(graph.outputs))
    return wanted


def check_file_names(graph: GraphSpec, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Raises EngineError where a loaded file's inputs or outputs are not those that the manifest says it has."""
    _check_names(graph, "inputs", set(inputs), set(graph.inputs))
    _check_names(graph, "outputs", set(outputs), set(graph.outputs))


def _check_names(graph: GraphSpec, what: str, found: set[str], expected: set[str]) -> None:
    if found != expected:
        raise EngineError(
            f"{graph.file}: {what} of graph {graph.name}: found {', '.join(sorted(found)) or 'none'}, "
            f"expected {', '.join(sorted(expected))}"
        )


def _fits(shape: tuple[int, ...], spec: ArraySpec, dynamic: dict[str, int]) -> bool:
    if len(shape) != len(spec.shape):
        return False
    for found, size in zip(shape, spec.shape, strict=True):
        if found != (dynamic.setdefault(size, found) if isinstance(size, str) else size):
            return False
    return True
