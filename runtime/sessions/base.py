"""What a session is: a loaded graph that can run, on whichever engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from styleinv.runtime.bundle import ArraySpec, GraphSpec
from styleinv.runtime.errors import EngineError

Arrays = dict[str, npt.NDArray[Any]]


class Session(Protocol):
    """A loaded graph. `run` may be called from several threads; a closed session refuses to run."""

    @property
    def name(self) -> str:
        """Engine and device, for people: 'onnxruntime 1.20 (CPU)'."""

    def run(self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Iterable[str] | None = None) -> Arrays:
        """Runs the graph.

        Args:
            inputs: arrays by the names that the bundle gives them, with its dtypes and shapes.
            outputs: the outputs wanted, all by default; those not named need not be copied off the engine.
        Returns: new arrays by name, C-contiguous, owned by the caller.
        Raises: EngineError where an input or output does not fit the graph, or the engine fails.
        """

    def close(self) -> None:
        """Lets go of the engine's memory. Closing twice is allowed."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


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
