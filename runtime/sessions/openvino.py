"""Sessions on OpenVINO's CPU device: the fastest on most x86 machines, and the one that has bfloat16 there."""

from __future__ import annotations

import functools
from typing import Any

from styleinv.runtime.bundle import GraphSpec
from styleinv.runtime.errors import EngineError
from styleinv.runtime.machine import usable_cores
from styleinv.runtime.mapped_pages import release_mapped_pages
from styleinv.runtime.sessions.base import Array, Bound, CpuSession, SessionOptions, check_file_names, output_buffers
from styleinv.runtime.signal_stack import kept_signal_stack

HINTS = {"fp32": "f32", "bf16": "bf16"}  # said always: OpenVINO's own default on a CPU with bfloat16 is bfloat16

# Graphs that give w0, once per clip. They are computed in float32 in every precision, as w0 is in every latent of the
# clip: rounding it would cost frames some 5 dB, and computing it exactly costs milliseconds.
EXACT_GRAPHS = ("mapping", "inversion")


def open_session(engine: str, graph: GraphSpec, options: SessionOptions) -> OpenVinoSession:
    """Loads one graph. Raises EngineError (see `OpenVinoSession`)."""
    return OpenVinoSession(graph, options)


def obstacle(engine: str, precision: str) -> str | None:
    """Why this machine has no session in this precision, in words; None where it has."""
    try:
        openvino = import_openvino()
    except EngineError as error:
        return str(error)
    if precision == "bf16" and "BF16" not in _capabilities(openvino):
        return "this CPU has no bfloat16 instructions (AVX-512 BF16 or AMX)"
    return None


class OpenVinoSession(CpuSession):
    """One graph on the CPU.

    It is compiled for one shape, which is faster than for all: half of the synthesis would run twice as long. So the
    rows of a batch are runs of their own, as many at a time as there are threads: threads that wait for each other less
    get more done than one batch computed by all of them. Weights are memory-mapped, read once and packed for this CPU.

    Raises: EngineError where openvino is missing or does not load the file.
    """

    def __init__(self, graph: GraphSpec, options: SessionOptions) -> None:
        openvino = import_openvino()
        precision = "fp32" if graph.name in EXACT_GRAPHS else options.precision
        super().__init__(graph, f"openvino {_version(openvino)} (CPU, {precision})")
        self._core: Any = openvino.Core()
        self._tensor = openvino.Tensor
        self._properties = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": options.threads or 0,  # 0: as many as there are cores
        }
        self._threads = options.threads or usable_cores()
        try:
            model = self._core.read_model(str(graph.file))
            check_file_names(graph, [port.any_name for port in model.inputs], [port.any_name for port in model.outputs])
            self.use(1, self._bound_to(model, 1))
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"{graph.file}: found a file that openvino does not load: {error}") from error

    def bind(self, batch: int) -> Bound:
        return self._bound_to(self._core.read_model(str(self.graph.file)), batch)

    def _bound_to(self, model: Any, batch: int) -> Bound:
        """Buffers of a batch, and a request of the compiled model for each of its rows."""
        model.reshape({port.any_name: [1, *list(port.partial_shape)[1:]] for port in model.inputs})
        properties = {**self._properties, "NUM_STREAMS": str(min(batch, self._threads))}
        with kept_signal_stack():
            compiled = self._core.compile_model(model, "CPU", properties)
            requests = [compiled.create_infer_request() for _ in range(batch)]
        # OpenVINO keeps the file mapped and has packed the weights for this CPU: half of the memory would be unused.
        release_mapped_pages(self.graph.file.parent)

        def attach(name: str, array: Array) -> None:
            for row, request in enumerate(requests):
                request.set_tensor(name, self._tensor(array[row : row + 1], shared_memory=True))

        def compute() -> None:
            if batch == 1:
                requests[0].infer(share_outputs=True)
                return
            for request in requests:
                request.start_async()
            for request in requests:
                request.wait()

        buffers = output_buffers(self.graph, batch)
        for name, buffer in buffers.items():
            attach(name, buffer)
        return Bound(buffers, attach, compute)

    def release(self) -> None:
        self._core = None


def import_openvino() -> Any:
    """The module. Raises EngineError where it is missing."""
    try:
        import openvino
    except ImportError as error:
        raise EngineError(
            f"the engine openvino cannot be had ({error}); install it with `pip install 'styleinv[runtime-cpu]'`"
        ) from error
    return openvino


@functools.cache
def _capabilities(openvino: Any) -> tuple[str, ...]:
    """What OpenVINO finds this CPU able to compute in: 'FP32', 'BF16', ..."""
    with kept_signal_stack():
        return tuple(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _version(openvino: Any) -> str:
    """'2026.4.1' of '2026.4.1-22982-...'."""
    return str(openvino.__version__).partition("-")[0]
