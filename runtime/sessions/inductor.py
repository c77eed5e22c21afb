"""Sessions on packages of PyTorch's Inductor: graphs compiled ahead of time, with the fused operators in them.

A package is native code, for a GPU or for this kind of CPU, and wants the very version of PyTorch that built it; of
this project it wants nothing. It knows its arrays by their place: inputs and outputs are in the order of their names.
PyTorch is imported when a session is opened.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import threading
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from styleinv.runtime.bundle import EngineSpec, file_sha256
from styleinv.runtime.closing import Closing
from styleinv.runtime.device_array import DeviceArray
from styleinv.runtime.engine_library import ENGINE_LIBRARIES, import_engine_library
from styleinv.runtime.errors import BundleError, EngineError
from styleinv.runtime.machine import cuda_driver_version, describe_machine
from styleinv.runtime.manifest_fields import CPU_TARGET
from styleinv.runtime.sessions.base import (
    Array,
    Arrays,
    Deferred,
    Pending,
    SessionOptions,
    check_inputs,
    wanted_outputs,
)
from styleinv.runtime.sessions.engine_choice import CompiledGraph, Here, check_batch, misfit, rebuild_command

# What a CPU must have for a precision: one of these. bfloat16 without instructions for it is slower than float32.
INSTRUCTION_SETS = {"fp32": ("AVX2",), "bf16": ("AVX-512 BF16", "AMX BF16")}


def open_session(engine: str, graph: CompiledGraph, options: SessionOptions) -> InductorSession:
    """Loads one package. Raises as `InductorSession`."""
    return InductorSession(graph, options)


def obstacle(engine: str, precision: str) -> str | None:
    """Why this machine has no session in this precision, in words; None where it has. PyTorch is not imported."""
    if importlib.util.find_spec("torch") is None:
        return f"PyTorch cannot be had; install it with `pip install '{ENGINE_LIBRARIES[engine].pip}'`"
    if cuda_driver_version()[0] is not None:
        return None
    if precision not in INSTRUCTION_SETS:
        return f"on a CPU this engine computes in {', '.join(INSTRUCTION_SETS)}"
    wanted = INSTRUCTION_SETS[precision]
    if set(wanted).isdisjoint(describe_machine().instruction_sets.split(", ")):
        return f"this CPU has no {' or '.join(wanted)}"
    return None


def here(engine: str) -> Here:
    """What a package must fit on this machine. Raises EngineError where PyTorch cannot be had."""
    torch = import_engine_library(engine)
    if torch.cuda.is_available():
        return Here(torch.__version__, "{}.{}".format(*torch.cuda.get_device_capability()))
    return Here(torch.__version__, CPU_TARGET)


class InductorSession(Closing):
    """One package, on the GPU or the CPU that it was compiled for.

    `SessionOptions.threads` is PyTorch's setting for the whole process.

    Raises: EngineError where PyTorch is missing, or another version or other hardware than the package's, or does not
        load it; BundleError where its file is damaged.
    """

    def __init__(self, compiled: CompiledGraph, options: SessionOptions) -> None:
        spec, self.graph = compiled.engine, compiled.graph
        self._torch, self._spec = import_engine_library(spec.engine), spec
        machine = here(spec.engine)
        if (reason := misfit(spec, machine)) is not None:
            raise _refused(spec, machine, reason)
        self._on_gpu = machine.target != CPU_TARGET
        if options.threads is not None:
            self._torch.set_num_threads(options.threads)
        where = self._torch.cuda.get_device_name() if self._on_gpu else "CPU"
        self.name = f"inductor {spec.version} ({where}, {spec.precision})"
        self._stream = self._torch.cuda.Stream() if self._on_gpu else None
        self._held: dict[str, tuple[Array, Any]] = {}  # read-only inputs, and where they lie on the GPU
        self._lock = threading.Lock()
        try:
            self._package: Any = _load(self._torch, spec)
        except RuntimeError as error:
            raise _refused(spec, machine, str(error)) from error

    @property
    def overlaps(self) -> bool:
        """A GPU computes beside the program."""
        return self._on_gpu

    def run(self, inputs: Mapping[str, Array], outputs: Iterable[str] | None = None) -> Arrays:
        """Runs the graph; see `Session.run`."""
        if self._on_gpu:
            return self.submit(inputs, outputs).result()
        return {name: tensor.numpy() for name, tensor in self._computed(inputs, outputs).items()}

    def submit(self, inputs: Mapping[str, Array], outputs: Iterable[str] | None = None) -> Pending:
        """Begins a run on a GPU; on a CPU it takes place when its result is asked for."""
        if not self._on_gpu:
            return Deferred(lambda: self.run(inputs, outputs))
        tensors = self._computed(inputs, outputs)
        with self._current():
            copies = {name: _pinned(self._torch, tensor) for name, tensor in tensors.items()}
            return Running(self._torch.cuda.current_stream().record_event(), copies, str(self._spec.file))

    def run_on_device(self, inputs: Mapping[str, Array], outputs: Iterable[str]) -> dict[str, DeviceArray]:
        """As `run`, but the outputs stay on the GPU, in memory of their own. Raises EngineError on a CPU."""
        if self._stream is None:
            raise EngineError(
                f"{self._spec.file}: found {self.name}, expected a session on a GPU, to leave its output there"
            )
        tensors = self._computed(inputs, outputs)
        self._stream.synchronize()
        return {
            name: DeviceArray(
                tensor.data_ptr(),
                tuple(tensor.shape),
                self.graph.outputs[name].dtype,
                tensor,
                number=tensor.get_device(),
            )
            for name, tensor in tensors.items()
        }

    def close(self) -> None:
        """Frees the package; a run under way in another thread ends first."""
        with self._lock:
            if self._stream is not None:
                self._stream.synchronize()
            self._package = None
            self._held.clear()

    def _computed(self, inputs: Mapping[str, Array], outputs: Iterable[str] | None) -> dict[str, Any]:
        """The outputs wanted, contiguous tensors, where the package computes. On a GPU they stand in its queue."""
        with self._lock:
            if self._package is None:
                raise EngineError(f"{self._spec.file}: found a closed session, expected an open one")
            check_inputs(self.graph, inputs)
            wanted = wanted_outputs(self.graph, outputs)
            check_batch(self._spec, next(iter(inputs.values())).shape[0])
            try:
                with self._current(), exact_float32(self._torch):
                    tensors = self._package.boxed_run([self._tensor(name, inputs[name]) for name in sorted(inputs)])
                    named = dict(zip(sorted(self.graph.outputs), tensors, strict=True))
                    return {name: named[name].contiguous() for name in wanted}
            except (RuntimeError, ValueError) as error:
                raise EngineError(f"{self._spec.file}: {self.name} failed: {error}") from error

    def _tensor(self, name: str, array: Array) -> Any:
        """An input where the package computes: on a CPU it shares the array's memory."""
        if not self._on_gpu:
            return self._torch.from_numpy(np.require(array, requirements=("C", "W")))  # it warns of what is read-only
        held = self._held.get(name)
        if held is None or held[0] is not array:
            copy = self._torch.from_numpy(np.array(array, order="C")).pin_memory()
            held = array, copy.to("cuda", non_blocking=True)
            self._held.pop(name, None)
            if not array.flags.writeable:
                self._held[name] = held
        return held[1]

    def _current(self) -> AbstractContextManager[Any]:
        """The session's stream is the one that work goes to."""
        return nullcontext() if self._stream is None else self._torch.cuda.stream(self._stream)


def exact_float32(torch: Any) -> AbstractContextManager[None]:
    """cuDNN multiplies float32 as float32: by default it drops digits, and fp32 is the precision that keeps them."""
    settings: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return settings


class Running:
    """A run on a GPU that was submitted: `copies` are its outputs in the host's memory once the event is over."""

    def __init__(self, event: Any, copies: Mapping[str, Any], where: str) -> None:
        self._event, self._where = event, where
        self._arrays = {name: tensor.numpy() for name, tensor in copies.items()}

    def result(self) -> Arrays:
        """See `Pending.result`."""
        try:
            self._event.synchronize()
        except RuntimeError as error:
            raise EngineError(f"{self._where}: found CUDA's error {error}, expected none") from error
        return self._arrays


def _load(torch: Any, spec: EngineSpec) -> Any:
    """What runs the package. It is loaded from a copy that nobody else can change, whose hash is compared in any case:
    it is code that is going to run. Raises RuntimeError where PyTorch does not load it."""
    with tempfile.TemporaryDirectory(prefix="styleinv-package-") as folder:  # of mode 0700
        copy = Path(folder) / "graph.pt2"
        try:
            shutil.copyfile(spec.file, copy)
        except OSError as error:
            raise BundleError(f"{spec.file}: found {error}, expected a readable file") from error
        if (found := file_sha256(copy)) != spec.sha256:
            raise BundleError(f"{spec.file}: found SHA-256 {found}, expected {spec.sha256}: it is damaged")
        # The class behind `torch._inductor.aoti_load_package`, which imports the compiler, too, and tries it.
        return torch._C._aoti.AOTIModelPackageLoader(str(copy), "model", False, 1, -1)


def _pinned(torch: Any, tensor: Any) -> Any:
    """A copy in page-locked memory of the host, which is under way when this returns."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _refused(spec: EngineSpec, machine: Here, reason: str) -> EngineError:
    command = rebuild_command(spec.engine, spec.precision)
    return EngineError(
        f"{spec.file}: found a package that torch {machine.version} does not load: {reason}; build it with `{command}`"
    )
