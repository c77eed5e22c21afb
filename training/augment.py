"""Adaptive discriminator augmentation: the 'bgc' transforms (pixel blits, geometry, colour) of StyleGAN2-ADA.

Each transform happens with probability p, drawn per clip (`draw_transforms`) and shared by all its frames (`augment`).
p rises while the discriminator is too sure of real pictures, and falls again (section 3, heuristic r_t).

Geometry is one bilinear warp per picture with mirrored borders; colour is one affine map of RGB.
Shapes: B clips, T frames of a clip (1 for pictures), R resolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Transforms:
    """What happens to each of B clips: maps of output to input coordinates in [-1, 1], and of colours."""

    geometry: Tensor  # [B, 2, 3]
    colour: Tensor  # [B, 3, 4]

    def of(self, rows: Tensor) -> Transforms:
        """Those of some of the clips."""
        return Transforms(self.geometry[rows], self.colour[rows])


def draw_transforms(batch: int, p: float, resolution: int) -> Transforms | None:
    """Transforms of `batch` clips of R = `resolution` pixels; None, which changes nothing, at p = 0."""
    return Transforms(_geometry(batch, p, resolution)[:, :2], _colour(batch, p)[:, :3]) if p > 0 else None


def augment(clips: Tensor, transforms: Transforms | None) -> Tensor:
    """Clips [B, T, 3, R, R] in about [-1, 1] -> transformed clips of the same shape, always float32."""
    if transforms is None:
        return clips
    batch, frames, _, resolution, _ = clips.shape
    geometry = transforms.geometry.repeat_interleave(frames, 0)
    colour = transforms.colour.repeat_interleave(frames, 0)
    with torch.autocast(clips.device.type, enabled=False):
        grid = F.affine_grid(geometry, [batch * frames, 3, resolution, resolution], align_corners=False)
        pictures = clips.float().flatten(0, 1)
        warped = F.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        coloured = torch.baddbmm(colour[:, :, 3:], colour[:, :, :3], warped.flatten(2))  # [B*T, 3, R*R]
    return coloured.view_as(clips)


class AdaptiveProbability:
    """The controller of p: keeps the mean sign of the real logits at `target`."""

    def __init__(self, target: float, speed_images: int, interval: int) -> None:
        self.p = 0.0
        self.target = target
        self.speed_images = speed_images
        self.interval = interval
        self.signs: list[float] = []

    def update(self, mean_sign: float, images: int) -> None:
        """Take in the mean sign of one step's real logits; every `interval` steps move p by the images seen since."""
        if self.target <= 0:
            return
        self.signs.append(mean_sign)
        if len(self.signs) == self.interval:
            excess = sum(self.signs) / len(self.signs) - self.target
            step = images * self.interval / self.speed_images
            self.p = min(max(self.p + math.copysign(step, excess), 0.0), 1.0)
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
