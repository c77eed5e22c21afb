"""Adaptive discriminator augmentation: the 'bgc' transforms (pixel blits, geometry, colour) of StyleGAN2-ADA.

Each transform happens with probability p, drawn per clip and shared by all its frames. p rises while the
discriminator is too sure of real pictures, and falls again (section 3, heuristic r_t).

Geometry is one bilinear warp per picture with mirrored borders; colour is one affine map of RGB.
Shapes: B clips, T frames of a clip (1 for pictures), R resolution.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(clips: Tensor, p: float) -> Tensor:
    """Clips [B, T, 3, R, R] in about [-1, 1] -> transformed clips of the same shape; p = 0 returns them as they are."""
    if p <= 0:
        return clips
    batch, frames, _, resolution, _ = clips.shape
    geometry = _geometry(batch, p, resolution).repeat_interleave(frames, 0)[:, :2]
    grid = F.affine_grid(geometry, [batch * frames, 3, resolution, resolution], align_corners=False)
    warped = F.grid_sample(clips.flatten(0, 1), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    colour = _colour(batch, p).repeat_interleave(frames, 0)
    flat = warped.flatten(2)  # [B*T, 3, R*R]
    coloured = torch.baddbmm(colour[:, :3, 3:], colour[:, :3, :3], flat)
    return coloured.view_as(clips)


class AdaptiveProbability:
    """The controller of p: keeps the mean sign of the real logits at `target`."""

    def __init__(self, target: float, speed_images: int, interval: int) -> None:
        self.p = 0.0
        self.target = target
        self.speed_images = speed_images
        self.interval = interval
        self.signs: list[float] = []

    def update(self, real_logits: Tensor, images: int) -> None:
        """Take in one step's real logits [B]; every `interval` steps move p by the images seen since."""
        if self.target <= 0:
            return
        self.signs.append(float(real_logits.sign().mean()))
        if len(self.signs) == self.interval:
            mean_sign = sum(self.signs) / len(self.signs)
            step = images * self.interval / self.speed_images
            self.p = min(max(self.p + math.copysign(step, mean_sign - self.target), 0.0), 1.0)
            self.signs.clear()


def _happens(batch: int, p: float) -> Tensor:
    return torch.rand(batch) < p


def _eye(batch: int, size: int) -> Tensor:
    return torch.eye(size).repeat(batch, 1, 1)


def _geometry(batch: int, p: float, resolution: int) -> Tensor:
    """Maps of output to input coordinates in [-1, 1], [B, 3, 3]."""
    # Pixel blits: mirror, quarter turns, whole-pixel shifts.
    mirror = torch.where(_happens(batch, p / 2), -1.0, 1.0)
    turn = torch.where(_happens(batch, p), torch.randint(0, 4, (batch,)), 0) * (math.pi / 2)
    pixels = torch.round((torch.rand(batch, 2) * 2 - 1) * 0.125 * resolution) * (2 / resolution)
    shift = torch.where(_happens(batch, p)[:, None], pixels, 0.0)
    # General geometry: scale, rotation before and after stretching, fractional shifts.
    scale = torch.where(_happens(batch, p), torch.exp2(torch.randn(batch) * 0.2), 1.0)
    p_rotation = 1 - math.sqrt(1 - min(p, 1.0))  # of either, so that some rotation happens with probability p
    before = torch.where(_happens(batch, p_rotation), (torch.rand(batch) * 2 - 1) * math.pi, 0.0)
    stretch = torch.where(_happens(batch, p), torch.exp2(torch.randn(batch) * 0.2), 1.0)
    after = torch.where(_happens(batch, p_rotation), (torch.rand(batch) * 2 - 1) * math.pi, 0.0)
    drift = torch.where(_happens(batch, p)[:, None], torch.randn(batch, 2) * 0.125 * 2, 0.0)
    return (
        _scaling(mirror, torch.ones(batch))
        @ _rotation(turn)
        @ _translation(shift)
        @ _scaling(scale, scale)
        @ _rotation(before)
        @ _scaling(stretch, 1 / stretch)
        @ _rotation(after)
        @ _translation(drift)
    )


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], dim=1))


def _rotation(angle: Tensor) -> Tensor:
    matrix = _eye(len(angle), 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
    matrix[:, 0, 1] = -angle.sin()
    matrix[:, 1, 0] = angle.sin()
    return matrix


def _translation(shift: Tensor) -> Tensor:
    matrix = _eye(len(shift), 3)
    matrix[:, :2, 2] = shift
    return matrix


def _colour(batch: int, p: float) -> Tensor:
    """Affine maps of RGB in [-1, 1], [B, 4, 4]: brightness, contrast, luma flip, hue, saturation."""
    luma = torch.ones(3) / math.sqrt(3)
    projection = torch.outer(luma, luma)  # onto the grey axis
    colour = _eye(batch, 4)

    brightness = torch.where(_happens(batch, p), torch.randn(batch) * 0.2, 0.0)
    colour[:, :3, 3] += brightness[:, None]
    contrast = torch.where(_happens(batch, p), torch.exp2(torch.randn(batch) * 0.5), 1.0)
    colour[:, :3] *= contrast[:, None, None]

    flip = _happens(batch, p / 2).float()[:, None, None]
    hue = torch.where(_happens(batch, p), (torch.rand(batch) * 2 - 1) * math.pi, 0.0)[:, None, None]
    saturation = torch.where(_happens(batch, p), torch.exp2(torch.randn(batch)), 1.0)[:, None, None]
    identity = torch.eye(3)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    rotation = hue.cos() * identity + hue.sin() * cross + (1 - hue.cos()) * projection  # about the grey axis
    linear = projection + (identity - projection) * saturation
    linear = linear @ rotation @ (identity - 2 * flip * projection)
    return torch.cat([linear @ colour[:, :3], colour[:, 3:]], dim=1)
