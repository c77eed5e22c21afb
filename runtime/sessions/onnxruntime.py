"""Sessions on ONNX Runtime's CPU provider: runs on every machine, and the other engines are measured against it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from styleinv.runtime.bundle import Bundle, GraphSpec
from styleinv.runtime.closing import Closing
from styleinv.runtime.errors import EngineError
from styleinv.runtime.sessions.base import Arrays, check_file_names, check_inputs, wanted_outputs


def open_session(
    bundle: Bundle, graph: str, *, threads: int | None = None, transfer: str | None = None
) -> OnnxRuntimeSession:
    """Loads one graph of a bundle. Raises BundleError (no such graph) or EngineError (see `OnnxRuntimeSession`)."""
    return OnnxRuntimeSession(bundle.graph(graph, transfer), threads=threads)


class OnnxRuntimeSession(Closing):
    """One graph on the CPU.

    The model is opened by its path, so its external weights are found beside it and memory-mapped: the graphs of a
    bundle, and all processes that play it, share those pages.

    Args:
        threads: CPU threads for one run; None lets ONNX Runtime take all cores.
    Raises: EngineError where onnxruntime is missing, doubled, or does not load the file.
    """

    def __init__(self, graph: GraphSpec, *, threads: int | None = None) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0  # 0: as many as there are cores
        options.log_severity_level = 3  # errors only; warnings are about graph rewriting
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(graph.file), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base class
            raise EngineError(f"{graph.file}: found a file that onnxruntime does not load: {error}") from error
        self._graph = graph
        self.name = f"onnxruntime {onnxruntime.__version__} (CPU)"
        check_file_names(
            graph,
            [array.name for array in self._session.get_inputs()],
            [array.name for array in self._session.get_outputs()],
        )

    def run(self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Iterable[str] | None = None) -> Arrays:
        """Runs the graph; see `Session.run`."""
        session = self._session  # another thread may close it meanwhile
        if session is None:
            raise EngineError(f"{self._graph.file}: found a closed session, expected an open one")
        check_inputs(self._graph, inputs)
        wanted = wanted_outputs(self._graph, outputs)
        try:
            results = session.run(wanted, {name: np.ascontiguousarray(array) for name, array in inputs.items()})
        except Exception as error:
            raise EngineError(f"{self._graph.file}: onnxruntime failed: {error}") from error
        return dict(zip(wanted, results, strict=True))

    def close(self) -> None:
        """Frees the model; a run under way in another thread ends first."""
        self._session = None


def import_onnxruntime() -> Any:
    """The module. Raises EngineError where it is missing, or installed twice under its two names."""
    if _is_installed("onnxruntime") and _is_installed("onnxruntime-gpu"):
        raise EngineError(
            "found both onnxruntime and onnxruntime-gpu installed, expected one of them: they are the same module, "
            "each overwriting parts of the other; uninstall both, then install the one you want"
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            f"the engine onnxruntime cannot be had ({error}); install it with `pip install 'styleinv[runtime-cpu]'`"
        ) from error
    return onnxruntime


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
