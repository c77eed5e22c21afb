"""What the stages share: Adam as GAN training uses it, real pictures and networks in the form they are used in."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from styleinv.training.losses import discriminator_loss, r1_penalty


def lazy_adam(parameters: Iterable[nn.Parameter], learning_rate: float, interval: int = 0) -> torch.optim.Adam:
    """Adam (0, 0.99), adjusted for a regularisation term that is taken every `interval` steps only.

    Source: StyleGAN2 appendix B, 'lazy regularization'.
    """
    ratio = interval / (interval + 1) if interval else 1.0
    return torch.optim.Adam(list(parameters), lr=learning_rate * ratio, betas=(0.0, 0.99**ratio), eps=1e-8)


def discriminator_step(
    optimizer: torch.optim.Optimizer,
    judge_real: Callable[[Tensor], Tensor],
    judge_fake: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    *,
    r1_weight: float,
) -> tuple[dict[str, float], Tensor]:
    """One step of a discriminator on real and fake samples [B, ...]; with R1 where `r1_weight` is above 0.

    Returns the losses by name, and the real samples' logits [B].
    """
    real.requires_grad_(r1_weight > 0)
    real_logits = judge_real(real)
    loss = discriminator_loss(real_logits, judge_fake(fake))
    losses = {"discriminator": loss.item(), "real": real_logits.mean().item()}
    if r1_weight > 0:
        penalty = r1_penalty(real, real_logits)
        loss = loss + penalty * r1_weight
        losses["r1"] = penalty.item()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return losses, real_logits.detach()


def to_pictures(frames: np.ndarray) -> Tensor:
    """Bytes [..., H, W, 3] -> float pictures [..., 3, H, W] in [-1, 1]."""
    return torch.from_numpy(frames).movedim(-1, -3).float() / 127.5 - 1


def channels_last(*networks: nn.Module) -> None:
    """Lay out the networks' weights as convolutions on a CPU are fastest with."""
    for network in networks:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
