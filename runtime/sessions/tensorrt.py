"""Sessions on TensorRT and TensorRT for RTX: engines of a bundle, which hold native code compiled for some GPUs.

A run goes through one of two slots, in turn, each with buffers of its own:

    compute stream   inputs to the GPU -> engine -> `computed`
    copy stream                                     wait for it -> outputs to the host -> `copied`

so frame n is copied to the host while frame n + 1 is computed. A slot is used again when `copied` is over.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from styleinv.runtime.bundle import EngineSpec
from styleinv.runtime.closing import Closing
from styleinv.runtime.device_array import DeviceArray
from styleinv.runtime.engine_library import ENGINE_LIBRARIES, import_engine_library
from styleinv.runtime.errors import BundleError, EngineError
from styleinv.runtime.sessions import cuda
from styleinv.runtime.sessions.base import (
    BOUND_SHAPES,
    Array,
    Arrays,
    Pending,
    SessionOptions,
    check_file_names,
    check_inputs,
    wanted_outputs,
)
from styleinv.runtime.sessions.device import Device
from styleinv.runtime.sessions.engine_choice import CompiledGraph, Here, check_batch, findings, misfit, rebuild_command
from styleinv.runtime.sessions.slot import Slot, Transfer

SLOTS = 2


def open_session(engine: str, graph: CompiledGraph, options: SessionOptions) -> TensorRtSession:
    """Loads one engine. Raises: EngineError (see `TensorRtSession`) or where the library or a GPU is missing."""
    library = import_engine_library(engine)
    return TensorRtSession(library, cuda.open_device(), graph)


def obstacle(engine: str, precision: str) -> str | None:
    """Why this machine has no session in this precision, in words; None where it has."""
    try:
        import_engine_library(engine)
    except EngineError as error:
        return str(error)
    return cuda.obstacle(ENGINE_LIBRARIES[engine].pip)


def here(engine: str) -> Here:
    """What an engine must fit on this machine. Raises EngineError where the library or a GPU is missing."""
    return Here(str(import_engine_library(engine).__version__), cuda.open_device().compute_capability)


class TensorRtSession(Closing):
    """One engine on a GPU.

    All buffers of a batch size are allocated at its first run. The engine is replayed as a CUDA graph: TensorRT for RTX
    captures it by itself, for TensorRT it is done here, and the session's name says where it could not be.

    Args:
        library: the module tensorrt or tensorrt_rtx.
        compiled: the engine, built by this very version for this device, and the graph that it computes.
    Raises: EngineError where it was not, or the library does not load it or refuses the graph's weights; BundleError
        where its file is damaged.
    """

    overlaps = True

    def __init__(self, library: Any, device: Device, compiled: CompiledGraph) -> None:
        spec, self.graph = compiled.engine, compiled.graph
        self._library, self._device, self._spec = library, device, spec
        self._rebuild = rebuild_command(spec.engine, spec.precision, device.compute_capability)
        if (reason := misfit(spec, Here(str(library.__version__), device.compute_capability))) is not None:
            raise self._refused(reason)
        content = _read(spec)
        self._plans: OrderedDict[int, list[Slot]] = OrderedDict()
        self._turn = itertools.count()
        self._closed = False
        self._lock = threading.RLock()
        self._captures = not hasattr(library, "CudaGraphStrategy")
        self._captured = True  # as far as it was tried
        with device.current():
            self._load(content)
            self._compute, self._copy = device.stream(), device.stream()

    @property
    def name(self) -> str:
        """Engine, version, GPU and precision."""
        graph = "" if self._captured else ", without CUDA graph"
        return f"{self._spec.engine} {self._spec.version} ({self._device.name}, {self.graph.precision}{graph})"

    def run(self, inputs: Mapping[str, Array], outputs: Iterable[str] | None = None) -> Arrays:
        """Runs the engine; see `Session.run`."""
        return self.submit(inputs, outputs).result()

    def submit(self, inputs: Mapping[str, Array], outputs: Iterable[str] | None = None) -> Pending:
        """Begins a run; see `Session.submit`. Where both slots are under way, it waits for the older one."""
        with self._lock:
            wanted = wanted_outputs(self.graph, outputs)
            slot = self._begun(inputs)
            with self._device.current():
                return Running(self, slot.copy_out(wanted, self._copy))

    def arrived(self, transfer: Transfer) -> Arrays:
        """The outputs of a run that was submitted; waits for them."""
        with self._lock, self._device.current():
            transfer.arrive()
        return transfer.arrays()

    def run_on_device(self, inputs: Mapping[str, Array], outputs: Iterable[str]) -> dict[str, DeviceArray]:
        """As `run`, but the outputs stay on the GPU, in memory of their own, which lives as long as the arrays."""
        with self._lock:
            wanted = wanted_outputs(self.graph, outputs)
            slot = self._begun(inputs)
            with self._device.current():
                kept = slot.keep(wanted)
        number, specs = self._device.number, self.graph.outputs
        return {
            name: DeviceArray(address, slot.shape(name), specs[name].dtype, owner, number=number)
            for name, (address, owner) in kept.items()
        }

    def close(self) -> None:
        """Frees everything on the GPU; runs under way end first, and their results can still be had."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with self._device.current():
                while self._plans:
                    self._free(self._plans.popitem()[1])
                del self._compute, self._copy, self._config, self._engine, self._runtime  # in this order

    def _load(self, content: bytes) -> None:
        library = self._library
        self._complaints: list[str] = []
        logger = _logger(library, self._complaints)
        self._runtime: Any = library.Runtime(logger)
        if hasattr(self._runtime, "get_engine_validity"):
            validity, diagnostics = self._runtime.get_engine_validity(content[: self._runtime.engine_header_size])
            if validity == library.EngineValidity.INVALID:
                raise self._refused(findings(int(diagnostics)))
        self._engine: Any = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:  # it does not raise
            raise self._refused("; ".join(self._complaints) or "the library does not say why")
        if self.graph != self._spec.graph:
            self._refit(logger)
        self._check_arrays()
        self._config: Any = None
        if not self._captures:
            self._config = self._engine.create_runtime_config()
            self._config.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._config.set_runtime_cache(self._config.create_runtime_cache())  # slots share their compiled kernels

    def _refit(self, logger: Any) -> None:
        """Exchanges the engine's weights for those of the graph."""
        refitter = self._library.Refitter(self._engine, logger)
        parser = self._library.OnnxParserRefitter(refitter, logger)
        if not (parser.refit_from_file(str(self.graph.file)) and refitter.refit_cuda_engine()):
            reason = "; ".join(self._complaints) or "the library does not say why"
            raise self._refused(f"it does not take the weights of {self.graph.file}: {reason}")

    def _check_arrays(self) -> None:
        """The engine's arrays must be the graph's: the buffers are of the graph's sizes."""
        engine, modes = self._engine, self._library.TensorIOMode
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == modes.INPUT]
        check_file_names(self.graph, inputs, [name for name in names if name not in inputs])
        for name, spec in {**self.graph.inputs, **self.graph.outputs}.items():
            dtype = np.dtype(self._library.nptype(engine.get_tensor_dtype(name)))
            shape = tuple(engine.get_tensor_shape(name))
            if dtype != np.dtype(spec.dtype) or shape[1:] != spec.shape[1:]:
                raise self._refused(f"its {name} is {dtype} {list(shape)}, not {spec.dtype} {list(spec.shape)}")

    def _refused(self, reason: str) -> EngineError:
        library = f"{self._spec.engine} {self._library.__version__}"
        return EngineError(
            f"{self._spec.file}: found an engine that {library} does not load on {self._device.name}: {reason}; build "
            f"it with `{self._rebuild}`"
        )

    def _begun(self, inputs: Mapping[str, Array]) -> Slot:
        """The slot in which the engine is computing these inputs."""
        if self._closed:
            raise EngineError(f"{self._spec.file}: found a closed session, expected an open one")
        check_inputs(self.graph, inputs)
        batch = next(iter(inputs.values())).shape[0]
        check_batch(self._spec, batch)
        with self._device.current():
            slot = self._plan(batch)[next(self._turn) % SLOTS]
            slot.finish()
            slot.compute(inputs)
        self._captured = self._captured and not (self._captures and slot.launcher.state == "plain")
        return slot

    def _plan(self, batch: int) -> list[Slot]:
        """The slots of this batch size, made where they are not at hand."""
        if batch not in self._plans:
            while len(self._plans) >= BOUND_SHAPES:
                self._free(self._plans.popitem(last=False)[1])
            slots: list[Slot] = []
            try:
                for _ in range(SLOTS):
                    context = self._context()
                    slots.append(Slot(self._device, context, self.graph, batch, self._compute, self._captures))
            except BaseException:
                self._free(slots)
                raise
            self._plans[batch] = slots
        self._plans.move_to_end(batch)
        return self._plans[batch]

    def _context(self) -> Any:
        create = self._engine.create_execution_context
        context = create() if self._config is None else create(self._config)
        if context is None:  # it does not raise
            raise self._refused("; ".join(self._complaints) or "there may be too little memory")
        return context

    def _free(self, slots: Iterable[Slot]) -> None:
        for slot in slots:
            slot.free()


class Running:
    """A run that was submitted."""

    def __init__(self, session: TensorRtSession, transfer: Transfer) -> None:
        self._session, self._transfer = session, transfer

    def result(self) -> Arrays:
        """See `Pending.result`."""
        return self._session.arrived(self._transfer)


def _read(spec: EngineSpec) -> bytes:
    """The engine's file. Its hash is compared in any case, as it is code that is going to run."""
    try:
        content = spec.file.read_bytes()
    except OSError as error:
        raise BundleError(f"{spec.file}: found {error}, expected a readable file") from error
    if (found := hashlib.sha256(content).hexdigest()) != spec.sha256:
        raise BundleError(f"{spec.file}: found SHA-256 {found}, expected {spec.sha256}: it is damaged")
    return content


def _logger(library: Any, complaints: list[str]) -> Any:
    """What the library tells of errors, without printing it."""

    class Logger(library.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:
            if str(severity).rpartition(".")[2] in ("ERROR", "INTERNAL_ERROR"):
                complaints.append(message)

    return Logger()
