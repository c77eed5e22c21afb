"""What a model draws: pictures and frames of clips, as bytes, a pure function of (seed, motion seed, t).

They are those that a bundle of the model plays for the same seeds, up to the rounding of its engine.

Shapes: B clips, T frames, H W size of a frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from styleinv.kernels.reference import to_uint8
from styleinv.training.evaluation.seeds import first_inputs, motion_noise
from styleinv.training.generator import Generator
from styleinv.training.model import StyleInV
from styleinv.training.motion import AnchorConv1d, MotionNetwork

CLIPS = 8  # drawn together
FRAMES = 32  # of a batch, over all its clips

Frames = NDArray[np.uint8]


def batches(seeds: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (seeds[start : start + size] for start in range(0, len(seeds), size))


def first_latents(generator: Generator, seeds: Sequence[int]) -> Tensor:
    """w0 [B, W] of seeds, without truncation; seeds of a conditional model go through its classes in turn."""
    mapping = generator.mapping
    label = torch.eye(mapping.label_dim)[torch.tensor(seeds) % mapping.label_dim] if mapping.label_dim else None
    w0: Tensor = mapping(first_inputs(seeds, mapping.z_dim), label=label)
    return w0


@torch.no_grad()
def draw_pictures(generator: Generator, seeds: Sequence[int]) -> Frames:
    """The pictures of seeds, uint8 [B, H, W, 3]."""
    drawn = [to_uint8(generator.synthesis(first_latents(generator, some))) for some in batches(seeds, FRAMES)]
    return torch.cat(drawn).numpy()


@torch.no_grad()
def draw_clips(
    model: StyleInV, seeds: Sequence[int], times: Sequence[float], motion_seeds: Sequence[int] | None = None
) -> tuple[Frames, Frames]:
    """Frames uint8 [B, T, H, W, 3] of clips at frame indices `times`, and the clips' first pictures x0 [B, H, W, 3].

    motion_seeds: of the clips' motions; None takes the seeds themselves, as a rollout does.
    """
    w0 = first_latents(model.generator, seeds)
    x0 = model.generator.synthesis(w0)
    v = time_codes(model.motion, motion_seeds or seeds, times)
    content = model.content(x0)
    drawn = []
    for part in v.split(max(1, FRAMES // len(seeds)), dim=1):
        count = part.shape[1]
        repeated = tuple(each.repeat_interleave(count, 0) for each in content)
        latents = w0.repeat_interleave(count, 0)
        style = model.style(latents, part.flatten(0, 1).to(latents.dtype))
        frames = model.generator.synthesis(model.latent(repeated, latents, style))
        drawn.append(to_uint8(frames).unflatten(0, (-1, count)))
    return torch.cat(drawn, dim=1).numpy(), to_uint8(x0).numpy()


def time_codes(motion: MotionNetwork, motion_seeds: Sequence[int], times: Sequence[float]) -> Tensor:
    """Time codes v [B, T, V], float64, of the same times in every clip."""
    t = torch.tensor(times, dtype=torch.float64).expand(len(motion_seeds), -1)
    total = motion.anchors_needed(max(times))
    noise = motion_noise(motion_seeds, total, anchors_seen(motion, times), motion.noise_dim)
    codes: Tensor = motion(noise, t)
    return codes


def anchors_seen(motion: MotionNetwork, times: Sequence[float]) -> list[int]:
    """The anchors on whose noise frames at these times depend: a few dozen, however far away the frames are."""
    past = sum(layer.padding for layer in motion.conv if isinstance(layer, AnchorConv1d))
    lefts = {math.floor(t / motion.anchor_distance) for t in times}
    return sorted({k for left in lefts for k in range(max(0, left - past), left + 2 + motion.lookahead)})
