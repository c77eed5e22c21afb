"""Sessions on ONNX Runtime's CPU provider: runs on every machine, and the other engines are measured against it."""

from __future__ import annotations

import functools
import importlib.metadata
from typing import Any

from styleinv.runtime.bundle import GraphSpec
from styleinv.runtime.errors import EngineError
from styleinv.runtime.sessions.base import Array, Bound, CpuSession, SessionOptions, check_file_names, output_buffers


def open_session(engine: str, graph: GraphSpec, options: SessionOptions) -> OnnxRuntimeSession:
    """Loads one graph. Raises EngineError (see `OnnxRuntimeSession`)."""
    return OnnxRuntimeSession(graph, options)


def obstacle(engine: str, precision: str) -> str | None:
    """Why this machine has no session in this precision, in words; None where it has."""
    try:
        import_onnxruntime()
    except EngineError as error:
        return str(error)
    return None


class OnnxRuntimeSession(CpuSession):
    """One graph on the CPU. Graphs in fp16 run, too, for checking them: each step is computed in float32 and rounded.

    The model is opened by its path, so its external weights are found beside it and memory-mapped: the graphs of a
    bundle, and all processes that play it, share those pages.

    Raises: EngineError where onnxruntime is missing, doubled, or does not load the file.
    """

    def __init__(self, graph: GraphSpec, options: SessionOptions) -> None:
        onnxruntime = import_onnxruntime()
        super().__init__(graph, f"onnxruntime {onnxruntime.__version__} (CPU, {options.precision})")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(graph.file), sess_options=session_settings(options), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base class
            raise EngineError(f"{graph.file}: found a file that onnxruntime does not load: {error}") from error
        check_session_names(graph, self._session)

    def bind(self, batch: int) -> Bound:
        binding = self._session.io_binding()
        buffers = output_buffers(self.graph, batch)
        for name, buffer in buffers.items():
            binding.bind_output(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)

        def attach(name: str, array: Array) -> None:
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

        return Bound(buffers, attach, functools.partial(self._session.run_with_iobinding, binding))

    def release(self) -> None:
        self._session = None


def check_session_names(graph: GraphSpec, session: Any) -> None:
    """Raises EngineError where a session's inputs or outputs are not those that the manifest says it has."""
    inputs, outputs = ([array.name for array in arrays] for arrays in (session.get_inputs(), session.get_outputs()))
    check_file_names(graph, inputs, outputs)


def session_settings(options: SessionOptions) -> Any:
    """`onnxruntime.SessionOptions` of all sessions on any provider."""
    settings = import_onnxruntime().SessionOptions()
    settings.intra_op_num_threads = options.threads or 0  # 0: as many as there are cores
    settings.log_severity_level = 3  # errors only; warnings are about graph rewriting
    # Each session has threads of its own. Where they wait by spinning, those of one graph take the cores from the next:
    # a frame of 256 pixels then takes a fifth longer.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return settings


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
