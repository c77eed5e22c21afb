"""Sessions on ONNX Runtime's providers for NVIDIA's GPUs: CUDA, TensorRT and TensorRT for RTX.

ONNX Runtime goes on, on the CPU, where a provider does not load, and says so in its log only. So the provider that a
session got is looked at. Within a graph it may still leave some arithmetic on shapes to the CPU: a few numbers.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import importlib.util
import io
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from styleinv.runtime.bundle import GraphSpec, file_sha256
from styleinv.runtime.cache_folder import cache_folder
from styleinv.runtime.device_array import CPU, CUDA, DeviceArray
from styleinv.runtime.errors import EngineError
from styleinv.runtime.graph_file import read_graph_file
from styleinv.runtime.machine import cuda_driver_version
from styleinv.runtime.onnx_file import OnnxFileError
from styleinv.runtime.sessions.base import (
    Array,
    Arrays,
    Bound,
    CpuSession,
    SessionOptions,
    output_buffers,
)
from styleinv.runtime.sessions.onnxruntime import check_session_names, import_onnxruntime, session_settings

PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"  # the module of the provider that comes apart


@dataclass(frozen=True)
class Memory:
    """Memory of one device: what `OrtValue.ortvalue_from_shape_and_type` is told of it, and DLPack's number of it."""

    where: Mapping[str, Any]
    device: int = CUDA

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An `onnxruntime.OrtValue`, not filled."""
        return import_onnxruntime().OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, **self.where)

    def fill(self, value: Any, array: Array) -> None:
        """Copies an array into a value that was allocated here."""
        # The memory of a provider that comes apart is the provider's own, and so is copying into it.
        apart = "memory_info" in self.where
        value.update_inplace(import_onnxruntime().OrtValue.ortvalue_from_numpy(array) if apart else array)


ON_CPU, ON_CUDA = Memory({"device_type": "cpu"}, CPU), Memory({"device_type": "cuda"})  # the CPU is for tests


@dataclass(frozen=True)
class Provider:
    """ONNX Runtime's name of a provider and of its library, what pip installs it with, what that library wants besides,
    and its options for a graph in a precision."""

    name: str
    library: str
    pip: str
    wants: str
    options: Callable[[GraphSpec, str], dict[str, str]]


def _cuda_options(graph: GraphSpec, precision: str) -> dict[str, str]:
    return {"use_tf32": "0"}  # fp32 is exact


def _tensorrt_options(graph: GraphSpec, precision: str) -> dict[str, str]:
    folder = str(_cache("onnxruntime-tensorrt", graph))  # it builds engines for minutes, anew for a batch out of range
    half = str(precision == "fp16")  # 'True' or 'False': it refuses '1' and '0'
    return {"trt_engine_cache_enable": "True", "trt_engine_cache_path": folder, "trt_fp16_enable": half}


def _rtx_options(graph: GraphSpec, precision: str) -> dict[str, str]:
    return {"nv_runtime_cache_path": str(_cache("onnxruntime-rtx", graph))}


def _cache(engine: str, graph: GraphSpec) -> Path:
    """A folder for this graph with these weights alone: in one folder, providers take what they compiled from a file of
    the same name and operators, such as another style's synthesis, whatever its weights (microsoft/onnxruntime#6455).
    """
    model = read_graph_file(graph.file).model
    data = [] if isinstance(model, OnnxFileError) else model.external_data
    files = [graph.file, *(graph.file.parent / name for name in sorted({each.location for each in data}))]
    key = hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()
    return cache_folder(f"{engine}-{key[:16]}")


CUDA_LIBRARIES = "`pip install 'onnxruntime-gpu[cuda,cudnn]'` brings CUDA's libraries"
PROVIDERS = {
    "onnxruntime-cuda": Provider(
        "CUDAExecutionProvider", "cuda", "styleinv[runtime-gpu]", CUDA_LIBRARIES, _cuda_options
    ),
    "onnxruntime-tensorrt": Provider(
        "TensorrtExecutionProvider",
        "tensorrt",
        "styleinv[runtime-gpu]",
        f"{CUDA_LIBRARIES}; it takes the version of TensorRT that this onnxruntime was built for",
        _tensorrt_options,
    ),
    "onnxruntime-rtx": Provider(
        "NvTensorRTRTXExecutionProvider",
        "nv_tensorrt_rtx",
        "onnxruntime-ep-nv-tensorrt-rtx' 'onnxruntime>=1.31",
        "it takes an RTX GPU and its driver",
        _rtx_options,
    ),
}


def open_session(engine: str, graph: GraphSpec, options: SessionOptions) -> OnnxRuntimeGpuSession:
    """Loads one graph. Raises EngineError (see `OnnxRuntimeGpuSession`)."""
    onnxruntime, provider = import_onnxruntime(), PROVIDERS[engine]
    settings = session_settings(options)
    given = provider.options(graph, options.precision)
    if provider.name not in onnxruntime.get_available_providers():  # it comes apart
        device = _plugin_device(onnxruntime)
        settings.add_provider_for_devices([device], given)
        memory = Memory({"memory_info": device.memory_info(onnxruntime.OrtDeviceMemoryType.DEFAULT)})
        return OnnxRuntimeGpuSession(graph, options, provider, settings, None, memory)
    _preload_cuda(onnxruntime)
    cuda = PROVIDERS["onnxruntime-cuda"]  # takes what TensorRT leaves
    providers = {provider.name: given} | {cuda.name: cuda.options(graph, options.precision)}
    return OnnxRuntimeGpuSession(graph, options, provider, settings, providers, ON_CUDA)


def obstacle(engine: str, precision: str) -> str | None:
    """Why this machine has no session in this precision, in words; None where it has."""
    provider = PROVIDERS[engine]
    try:
        onnxruntime = import_onnxruntime()
    except EngineError as error:
        return str(error)
    apart = engine == "onnxruntime-rtx" and importlib.util.find_spec(PLUGIN) is not None
    if not apart and provider.name not in onnxruntime.get_available_providers():
        version = onnxruntime.__version__
        return f"onnxruntime {version} has no {provider.name}, which `pip install '{provider.pip}'` brings"
    driver, reason = cuda_driver_version()
    return None if driver else f"this machine has no driver for NVIDIA's GPUs ({reason})"


class OnnxRuntimeGpuSession(CpuSession):
    """One graph on a GPU. Inputs are copied there when they change, which read-only arrays do not; of the outputs those
    that are wanted are copied to the host, into buffers that are made once.

    Args:
        provider: the one that must compute.
        settings: `onnxruntime.SessionOptions`.
        providers: those to ask for, with their options; None where `settings` say it.
        memory: where inputs lie.
    Raises: EngineError where onnxruntime does not load the file, or another provider than this one would compute.
    """

    def __init__(
        self,
        graph: GraphSpec,
        options: SessionOptions,
        provider: Provider,
        settings: Any,
        providers: Mapping[str, Mapping[str, str]] | None,
        memory: Memory,
    ) -> None:
        onnxruntime = import_onnxruntime()
        super().__init__(graph, f"onnxruntime {onnxruntime.__version__} ({provider.name}, {options.precision})")
        self._memory = memory
        asked = None if providers is None else list(providers.items())
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(graph.file), sess_options=settings, providers=asked, enable_fallback=0
            )  # 0: else it prints errors, and goes on on the CPU, when it loads and in every run
        except Exception as error:  # its exceptions share no base class
            reason = _library_fault(onnxruntime, provider)
            why = "" if reason is None else f" ({reason}; {provider.wants})"
            raise EngineError(f"{graph.file}: found a file that {self.name} does not load: {error}{why}") from error
        found = self._session.get_providers()
        if found[0] != provider.name:
            reason = _library_fault(onnxruntime, provider) or "onnxruntime does not say why"
            raise EngineError(
                f"{graph.file}: found {', '.join(found)}, expected {provider.name}: {reason}; {provider.wants}"
            )
        check_session_names(graph, self._session)

    def bind(self, batch: int) -> Bound:
        binding = self._session.io_binding()
        values: dict[str, Any] = {}  # inputs, on the device
        for name, spec in self.graph.inputs.items():
            values[name] = self._memory.allocate((batch, *map(int, spec.shape[1:])), np.dtype(spec.dtype))
            binding.bind_ortvalue_input(name, values[name])

        def attach(name: str, array: Array) -> None:
            self._memory.fill(values[name], array)

        return DeviceBound(self._session, binding, output_buffers(self.graph, batch), attach)

    def run_on_device(self, inputs: Mapping[str, Array], outputs: Iterable[str]) -> dict[str, DeviceArray]:
        """As `run`, but the outputs stay on the GPU, in memory of their own, which lives as long as the arrays."""
        with self._lock:
            batch, wanted = self.checked(inputs, outputs)
            try:
                bound = self.bound(batch)
                assert isinstance(bound, DeviceBound)
                shapes = {name: bound.buffers[name].shape for name in wanted}
                dtypes = {name: self.graph.outputs[name].dtype for name in wanted}
                kept = {name: self._memory.allocate(shapes[name], np.dtype(dtypes[name])) for name in wanted}
                bound.run_into(inputs, kept)
            except Exception as error:
                raise EngineError(f"{self.graph.file}: {self.name} failed: {error}") from error
        return {
            name: DeviceArray(value.data_ptr(), shapes[name], dtypes[name], value, self._memory.device)
            for name, value in kept.items()
        }

    def release(self) -> None:
        self._session = None


class DeviceBound(Bound):
    """Buffers of one batch size, where `attach` copies inputs to the device; outputs go where each run wants them."""

    def __init__(self, session: Any, binding: Any, buffers: Arrays, attach: Callable[[str, Array], None]) -> None:
        super().__init__(buffers, attach, functools.partial(session.run_with_iobinding, binding), copies=True)
        self._binding = binding

    def run(self, inputs: Mapping[str, Array], outputs: Iterable[str]) -> Arrays:
        wanted = list(outputs)
        self._binding.clear_binding_outputs()
        for name in wanted:
            buffer = self.buffers[name]
            self._binding.bind_output(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        return super().run(inputs, wanted)

    def run_into(self, inputs: Mapping[str, Array], outputs: Mapping[str, Any]) -> None:
        """Computes into these values on the device; they are finished when it returns."""
        self._binding.clear_binding_outputs()
        for name, value in outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        try:
            self.compute(inputs)
            self._binding.synchronize_outputs()
        finally:
            self._binding.clear_binding_outputs()  # it would hold their memory


@functools.cache
def _preload_cuda(onnxruntime: Any) -> None:
    """Loads the libraries of CUDA that pip installed, which lie where no loader looks."""
    if hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(io.StringIO()):  # it prints what it does not find; standard output may carry frames
            onnxruntime.preload_dlls()


def _library_fault(onnxruntime: Any, provider: Provider) -> str | None:
    """Why a provider's library does not load, in words; None where it does, or there is none. Called after ONNX Runtime
    tried: before, the library would miss what that gives it."""
    for file in (Path(onnxruntime.__file__).parent / "capi").glob(f"*onnxruntime_providers_{provider.library}.*"):
        try:
            ctypes.CDLL(str(file))
        except OSError as error:
            return str(error)
    return None


@functools.cache
def _plugin_device(onnxruntime: Any) -> Any:
    """The GPU that the provider which comes apart computes on. Raises EngineError where it finds none."""
    plugin = importlib.import_module(PLUGIN)
    name = plugin.get_ep_name()
    try:
        onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
    except Exception as error:
        raise EngineError(f"{name}: found a library that onnxruntime does not load: {error}") from error
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
    if not devices:
        raise EngineError(f"{name}: found no GPU that it computes on, expected one")
    return devices[0]
