"""What a GPU could do at best, by its data sheet: the roofline (Williams, Waterman and Patterson 2009).

A call takes as long as the slower of two: moving its bytes at the peak bandwidth, computing at the peak rate. An
estimate: nobody measured it, and launch overheads and caches are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from styleinv.kernels.plan import Call


@dataclass(frozen=True)
class Gpu:
    """Peaks of a GPU.

    Args:
        name: for people.
        device: what its tuning tables are called, see `tiles.device_name`.
        target: its compute capability, 89 for 8.9.
        bandwidth: of its memory, in GB/s.
        tensor: of its tensor cores in TFLOP/s: float16 or bfloat16, dense, accumulated in float32.
        float32: of its other cores in TFLOP/s.
        source: where the three numbers stand.
    """

    name: str
    device: str
    target: int
    bandwidth: float
    tensor: float
    float32: float
    source: str


GPUS = {
    "A100": Gpu("A100 SXM 80 GB", "NVIDIA_A100-SXM4-80GB", 80, 2039, 312, 19.5, "NVIDIA A100 data sheet"),
    "3090": Gpu("RTX 3090", "NVIDIA_GeForce_RTX_3090", 86, 936, 71, 35.6, "NVIDIA Ampere GA102 white paper"),
    "4090": Gpu("RTX 4090", "NVIDIA_GeForce_RTX_4090", 89, 1008, 165.2, 82.6, "NVIDIA Ada architecture white paper"),
    "L4": Gpu("L4", "NVIDIA_L4", 89, 300, 121, 30.3, "NVIDIA L4 data sheet"),
    "H100": Gpu("H100 SXM", "NVIDIA_H100_80GB_HBM3", 90, 3350, 989, 67, "NVIDIA H100 data sheet"),
    "B200": Gpu("B200", "NVIDIA_B200", 100, 8000, 2250, 80, "NVIDIA Blackwell architecture technical brief, HGX B200"),
    "5090": Gpu("RTX 5090", "NVIDIA_GeForce_RTX_5090", 120, 1792, 209.5, 104.8, "NVIDIA RTX Blackwell white paper"),
}
ON_TENSOR_CORES = (
    "modulated_conv2d",
    "modulated_conv2d_rgb",
    "modulated_conv2d_frame",
    "modulated_conv2d_up2",
    "transposed",
    "product",
)


def milliseconds(calls: Iterable[Call], dtype: torch.dtype, gpu: Gpu) -> float:
    """The least time of some calls, one after another."""
    return sum(_milliseconds(call, dtype, gpu) for call in calls)


def _milliseconds(call: Call, dtype: torch.dtype, gpu: Gpu) -> float:
    tensor = call.operator in ON_TENSOR_CORES and dtype is not torch.float32
    rate = (gpu.tensor if tensor else gpu.float32) * 1e9  # flops in a millisecond
    return max(call.moved / (gpu.bandwidth * 1e6), call.flops / rate)
