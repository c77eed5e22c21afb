"""Sessions on ONNX Runtime's providers for NVIDIA's GPUs: CUDA, TensorRT and TensorRT for RTX.

ONNX Runtime goes on, on the CPU, where a provider does not load, and says so in its log only. So the provider that a
session got is looked at. Within a graph it may still leave some arithmetic on shapes to the CPU: a few numbers.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from styleinv.runtime.bundle import GraphSpec
from styleinv.runtime.cache_folder import cache_folder
from styleinv.runtime.device_array import CPU, CUDA, DeviceArray
from styleinv.runtime.errors import EngineError
from styleinv.runtime.machine import cuda_driver_version
from styleinv.runtime.sessions.base import Array, Bound, CpuSession, SessionOptions, check_file_names, output_buffers
from styleinv.runtime.sessions.onnxruntime import import_onnxruntime, session_settings

PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"  # the module of the provider that comes apart
DEVICES = {"cpu": CPU, "cuda": CUDA}  # ONNX Runtime's names; the CPU is for tests


@dataclass(frozen=True)
class Provider:
    """ONNX Runtime's name of a provider, what pip installs it with, and its options in a precision."""

    name: str
    pip: str
    options: Callable[[str], dict[str, str]]


def _cuda_options(precision: str) -> dict[str, str]:
    return {"use_tf32": "0"}  # fp32 is exact


def _tensorrt_options(precision: str) -> dict[str, str]:
    folder = cache_folder("onnxruntime-tensorrt")  # it builds engines when it loads a graph, for minutes
    half = "1" if precision == "fp16" else "0"
    return {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder), "trt_fp16_enable": half}


def _rtx_options(precision: str) -> dict[str, str]:
    return {"nv_runtime_cache_path": str(cache_folder("onnxruntime-rtx"))}


PROVIDERS = {
    "onnxruntime-cuda": Provider("CUDAExecutionProvider", "styleinv[runtime-gpu]", _cuda_options),
    "onnxruntime-tensorrt": Provider("TensorrtExecutionProvider", "styleinv[runtime-gpu]", _tensorrt_options),
    "onnxruntime-rtx": Provider(
        "NvTensorRTRTXExecutionProvider", "onnxruntime-ep-nv-tensorrt-rtx' 'onnxruntime>=1.24", _rtx_options
    ),
}


def open_session(engine: str, graph: GraphSpec, options: SessionOptions) -> OnnxRuntimeGpuSession:
    """Loads one graph. Raises EngineError (see `OnnxRuntimeGpuSession`)."""
    onnxruntime, provider = import_onnxruntime(), PROVIDERS[engine]
    settings = session_settings(options)
    given = provider.options(options.precision)
    if engine == "onnxruntime-rtx":
        settings.add_provider_for_devices(_plugin_devices(onnxruntime), given)
        providers = None
    else:
        cuda = PROVIDERS["onnxruntime-cuda"]  # takes what TensorRT leaves
        providers = {provider.name: given} | {cuda.name: cuda.options(options.precision)}
    return OnnxRuntimeGpuSession(graph, options, provider.name, settings, providers)


def obstacle(engine: str, precision: str) -> str | None:
    """Why this machine has no session in this precision, in words; None where it has."""
    provider = PROVIDERS[engine]
    try:
        onnxruntime = import_onnxruntime()
    except EngineError as error:
        return str(error)
    apart = engine == "onnxruntime-rtx" and importlib.util.find_spec(PLUGIN) is not None
    if not apart and provider.name not in onnxruntime.get_available_providers():
        return f"onnxruntime {onnxruntime.__version__} has no {provider.name}, which `pip install '{provider.pip}'` brings"
    version, reason = cuda_driver_version()
    return None if version else f"this machine has no driver for NVIDIA's GPUs ({reason})"


class OnnxRuntimeGpuSession(CpuSession):
    """One graph on a GPU. Inputs are copied there when they change, which read-only arrays do not; outputs are copied
    to the host, into buffers that are bound once.

    Args:
        provider: ONNX Runtime's name of the one that must compute.
        settings: `onnxruntime.SessionOptions`.
        providers: those to ask for, with their options; None where `settings` say it.
        device: ONNX Runtime's name of where inputs lie.
    Raises: EngineError where onnxruntime does not load the file, or another provider than this one would compute.
    """

    def __init__(
        self,
        graph: GraphSpec,
        options: SessionOptions,
        provider: str,
        settings: Any,
        providers: Mapping[str, Mapping[str, str]] | None,
        device: str = "cuda",
    ) -> None:
        self._onnxruntime = import_onnxruntime()
        super().__init__(graph, f"onnxruntime {self._onnxruntime.__version__} ({provider}, {options.precision})")
        self._device = device
        self._bindings: dict[int, Any] = {}
        asked = None if providers is None else list(providers.items())
        try:
            self._session: Any = self._onnxruntime.InferenceSession(
                str(graph.file), sess_options=settings, providers=asked
            )
        except Exception as error:  # its exceptions share no base class
            raise EngineError(f"{graph.file}: found a file that {self.name} does not load: {error}") from error
        self._session.disable_fallback()  # which would compute on the CPU when a run fails
        found = self._session.get_providers()
        if found[0] != provider:
            raise EngineError(
                f"{graph.file}: found {', '.join(found)}, expected {provider}: its libraries do not load here; "
                "onnxruntime says above which"
            )
        check_file_names(
            graph,
            [array.name for array in self._session.get_inputs()],
            [array.name for array in self._session.get_outputs()],
        )

    def bind(self, batch: int) -> Bound:
        binding = self._session.io_binding()
        values: dict[str, Any] = {}  # inputs, on the device

        def attach(name: str, array: Array) -> None:
            if name in values:
                values[name].update_inplace(array)
                return
            values[name] = self._onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device, 0)
            binding.bind_ortvalue_input(name, values[name])

        buffers = output_buffers(self.graph, batch)
        self._bindings[batch] = binding
        self._bind_outputs(binding, buffers)
        compute = functools.partial(self._session.run_with_iobinding, binding)
        return Bound(buffers, attach, compute, copies=True)

    def run_on_device(self, inputs: Mapping[str, Array], outputs: Iterable[str]) -> dict[str, DeviceArray]:
        """As `run`, but the outputs stay on the GPU, in memory of their own, which lives as long as the arrays."""
        with self._lock:
            batch, wanted = self.checked(inputs, outputs)
            bound = self.bound(batch)
            binding = self._bindings[batch]
            allocate = self._onnxruntime.OrtValue.ortvalue_from_shape_and_type
            buffers = {name: bound.buffers[name] for name in wanted}
            kept = {name: allocate(buffer.shape, buffer.dtype, self._device) for name, buffer in buffers.items()}
            for name, value in kept.items():
                binding.bind_ortvalue_output(name, value)
            try:
                bound.compute(inputs)
                binding.synchronize_outputs()
            except Exception as error:
                raise EngineError(f"{self.graph.file}: {self.name} failed: {error}") from error
            finally:
                self._bind_outputs(binding, bound.buffers)
        return {
            name: DeviceArray(
                value.data_ptr(), tuple(value.shape()), self.graph.outputs[name].dtype, value, DEVICES[self._device]
            )
            for name, value in kept.items()
        }

    def release(self) -> None:
        self._bindings.clear()
        self._session = None

    def _bind_outputs(self, binding: Any, buffers: Mapping[str, Array]) -> None:
        for name, buffer in buffers.items():
            binding.bind_output(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)


@functools.cache
def _plugin_devices(onnxruntime: Any) -> list[Any]:
    """The GPUs that the provider which comes apart finds. Raises EngineError where it finds none."""
    plugin = importlib.import_module(PLUGIN)
    name = plugin.get_ep_name()
    try:
        onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
    except Exception as error:
        raise EngineError(f"{name}: found a library that onnxruntime does not load: {error}") from error
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
    if not devices:
        raise EngineError(f"{name}: found no GPU that it computes on, expected one")
    return devices[:1]
