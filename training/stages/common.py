"""What the stages share: losses of parts, mixed precision, Adam as GAN training uses it, real pictures.

Shapes: B samples of a whole batch, P of the part of it that is at work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor, nn

from styleinv.training import workers
from styleinv.training.config import ComputeConfig
from styleinv.training.data import ClipSet, frame_batch


class Losses:
    """Means over a batch of what its parts, in this process and in others, have lost."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, share: float, **losses: Tensor) -> None:
        """Take in one part's means; `share` is its share of the whole batch."""
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + loss.detach().float() * share

    def means(self) -> dict[str, float]:
        """All of them, by name; every process gets the same."""
        if not self._sums:
            return {}
        return dict(zip(self._sums, workers.total(torch.stack(list(self._sums.values()))).tolist(), strict=True))


def compiled(network: nn.Module, compute: ComputeConfig) -> Callable[..., Tensor]:
    """The network as it is called in most steps; it shares its weights. torch.compile has no second derivatives."""
    return torch.compile(network) if compute.compile else network


def take_step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Move a network by the gradients that its parts, here and in other processes, have added up; then forget them."""
    workers.reduce_gradients(network)
    optimizer.step()
    optimizer.zero_grad()


def mixed_precision(compute: ComputeConfig, device: torch.device) -> AbstractContextManager[None]:
    """Convolutions and products in bfloat16, weights and sums in float32, where `compute.precision` says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(compute.precision, device))


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """'auto' is bfloat16 where the device multiplies it faster than float32."""
    if precision == "auto":
        if device.type == "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return precision == "bf16"


def lazy_adam(parameters: Iterable[nn.Parameter], learning_rate: float, interval: int = 0) -> torch.optim.Adam:
    """Adam (0, 0.99), adjusted for a regularisation term that is taken every `interval` steps only.

    Source: StyleGAN2 appendix B, 'lazy regularization'.
    """
    ratio = interval / (interval + 1) if interval else 1.0
    betas = (0.0, 0.99**ratio)
    return torch.optim.Adam(list(parameters), lr=learning_rate * ratio, betas=betas, eps=1e-8, fused=True)


def real_pictures(clips: ClipSet, seed: int, start: int, rows: Tensor, mirror: bool) -> Tensor:
    """Those frames of the endless stream that are `rows` [P] behind number `start`, [P, 3, R, R]."""
    return to_pictures(np.concatenate([frame_batch(clips, seed, start + row, 1, mirror) for row in rows.tolist()]))


def to_pictures(frames: np.ndarray) -> Tensor:
    """Bytes [..., H, W, 3] -> float pictures [..., 3, H, W] in [-1, 1], on the default device."""
    return torch.as_tensor(frames, device=torch.get_default_device()).movedim(-1, -3).float() / 127.5 - 1


def channels_last(*networks: nn.Module) -> None:
    """Lay out the networks' weights as convolutions on a CPU are fastest with."""
    for network in networks:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
