"""The fastest arithmetic of the machine that `styleinv bench` runs on, as measured on it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from styleinv.runtime.errors import EngineError
from styleinv.runtime.sessions.openvino import import_openvino
from styleinv.runtime.signal_stack import kept_signal_stack

STACKS = ((256, 32), (512, 16))  # channels, and height and width, of stacks of equal 3x3 convolutions
LAYERS = 6
RUNS = 20


@dataclass(frozen=True)
class Convolutions:
    """The fastest convolutions measured: multiply-accumulates per second, in 10^9, and what computed them, how."""

    gmac_per_s: float
    by: str


def fastest_convolutions(precision: str, threads: int | None) -> Convolutions:
    """Stacks of large convolutions, which are all arithmetic, through OpenVINO: the best of several runs.

    The same yardstick for every engine: what this processor can do when nothing else holds it up.

    Args:
        precision: bf16, or else fp32, which CPUs compute fp16 graphs in.
        threads: CPU threads; None lets OpenVINO decide.
    Raises: EngineError where openvino is not installed.
    """
    hint = "bf16" if precision == "bf16" else "f32"
    best = max(_stack_rate(channels, size, hint, threads) for channels, size in STACKS)
    return Convolutions(best, f"openvino in {'bf16' if hint == 'bf16' else 'fp32'}")


def _stack_rate(channels: int, size: int, hint: str, threads: int | None) -> float:
    openvino = import_openvino()
    try:
        from openvino import opset13 as operators
    except ImportError as error:
        raise EngineError(f"the operators of openvino cannot be had ({error})") from error
    random = np.random.default_rng(0)
    picture = features = operators.parameter([1, channels, size, size], np.float32)
    for _ in range(LAYERS):
        weight = random.standard_normal((channels, channels, 3, 3), np.float32) / math.sqrt(9 * channels)
        constant = operators.constant(weight.astype(np.float32))
        features = operators.convolution(features, constant, [1, 1], [1, 1], [1, 1], [1, 1])
    properties = {
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads or 0,
    }
    model = openvino.Model([features], [picture])
    with kept_signal_stack():
        request = openvino.Core().compile_model(model, "CPU", properties).create_infer_request()
    request.set_input_tensor(openvino.Tensor(random.standard_normal((1, channels, size, size), np.float32)))
    seconds = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        request.infer()
        seconds.append(time.perf_counter() - begin)
    return LAYERS * 9 * channels**2 * size**2 / min(seconds) / 1e9
