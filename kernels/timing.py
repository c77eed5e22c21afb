"""How long functions take on a GPU, and what it is a GPU of.

A function is captured as a CUDA graph first, so that neither Python nor the launches of its kernels count, which a
player does not pay for either. Functions take turns, so that a GPU that slows down is slow for all of them.
"""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable, Sequence

import torch

Function = Callable[[], object]
Timer = Callable[[Sequence[Function]], list[list[float]]]  # of each function, the milliseconds of each of its runs

FLUSH_BYTES = 256 * 2**20  # more than the second-level cache of any GPU here
FEWEST_ROUNDS = 20


def cuda_timer(seconds: float) -> Timer:
    """A timer that takes about so long for each function, and at least 20 rounds; the caches are flushed before a run.

    A function must not wait for the GPU. It runs three times before, so it is compiled by then.
    """

    def milliseconds(functions: Sequence[Function]) -> list[list[float]]:
        graphs = [_captured(function) for function in functions]
        flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
        samples: list[list[float]] = [[] for _ in functions]
        end = time.monotonic() + seconds * len(functions)
        while time.monotonic() < end or len(samples[0]) < FEWEST_ROUNDS:
            for graph, found in zip(graphs, samples, strict=True):
                before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                flush.zero_()
                before.record()
                graph.replay()
                after.record()
                after.synchronize()
                found.append(before.elapsed_time(after))
        return samples

    return milliseconds


def describe(device: torch.device) -> dict[str, str]:
    """A device, its driver, and the versions of what runs on it; '' for what there is none of."""
    import triton

    on_gpu = device.type == "cuda"
    major, minor = torch.cuda.get_device_capability(device) if on_gpu else (0, 0)
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "compute_capability": f"{major}.{minor}" if on_gpu else "",
        "driver": _driver() if on_gpu else "",
        "cuda": torch.version.cuda or "",
        "cudnn": str(torch.backends.cudnn.version() or "") if on_gpu else "",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }


def _captured(function: Function) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # first runs compile and choose algorithms, which a capture cannot
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.split("\n")[0].strip()
