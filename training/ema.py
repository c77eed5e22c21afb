"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def averaged_copy(network: Network) -> Network:
    """A copy that `update_average` moves along; it takes no gradients and stays in evaluation mode."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, batch: int, half_life: float) -> None:
    """Move `average` towards `network` after a step of `batch` images; `half_life` in images. Buffers are copied."""
    decay = 0.5 ** (batch / max(half_life, 1e-8))
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    for kept, current in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(current)


def ramped_half_life(half_life: float, rampup: float, images_seen: int) -> float:
    """The half-life early in training: at most `rampup` of the images seen, so the average forgets the beginning."""
    return min(half_life, images_seen * rampup) if rampup > 0 else half_life
