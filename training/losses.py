"""The losses of adversarial training (paper section 3.3; StyleGAN2 appendix B; StyleGAN2-ADA).

Shapes: B batch, C channels, R resolution, W size of a latent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating logistic loss: mean of -log sigmoid(D(fake)). fake_logits [B]."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Logistic loss: mean of -log sigmoid(D(real)) - log(1 - sigmoid(D(fake))). Both [B]."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def r1_penalty(real: Tensor, real_logits: Tensor) -> Tensor:
    """Half the squared gradient of the logits at real pictures, mean over the batch (Mescheder et al. 2018).

    `real` [B, ...] requires gradients and led to `real_logits` [B].
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean() / 2


def path_lengths(images: Tensor, latents: Tensor, directions: Tensor) -> Tensor:
    """How far a picture moves for a step in latent space, [B] (StyleGAN2 section 3.2).

    images [B, 3, R, R] made from latents [B, L, W]; directions are standard normals of the pictures' shape.
    """
    scale = 1 / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * directions).sum() * scale, latents, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


def feature_distance(features: list[Tensor], target: list[Tensor]) -> Tensor:
    """Mean squared distance of unit-length feature vectors, summed over maps [B, C, H, W] (as in LPIPS)."""
    distances = [
        (F.normalize(found, dim=1) - F.normalize(wanted, dim=1)).square().sum(dim=1).mean()
        for found, wanted in zip(features, target, strict=True)
    ]
    return torch.stack(distances).sum()
