"""What a layer of a synthesis network has beside its pictures and weights, as the kernels and their reference take it.

Shapes: B batch, O output channels, C channels, H W height and width of the picture that is made.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

LEAKY_SLOPE = 0.2


@dataclass(frozen=True)
class Epilogue:
    """What follows a layer's product: clamp(gain leaky_relu(d product + strength noise + b)) s'.

    Args:
        demodulation: d [B, O].
        noise: [H, W].
        bias: b [O].
        next_style: s' [B, O], the style of the layer that reads the result.
        slope: of the leaky ReLU; 1 leaves it out.
        clamp: the largest magnitude before s'.
    """

    demodulation: Tensor | None = None
    noise: Tensor | None = None
    bias: Tensor | None = None
    next_style: Tensor | None = None
    noise_strength: float = 1.0
    slope: float = LEAKY_SLOPE
    gain: float = 1.0
    clamp: float | None = None


@dataclass(frozen=True)
class ToRgb:
    """A block's contribution to the picture: clamp(sum_c x_c s_c w_kc + b_k) + up(previous).

    Args:
        weight: w [3, C].
        style: s [B, C].
        bias: b [3].
        previous: the picture of the blocks before, [B, 3, H/2, W/2] float32.
        clamp: the largest magnitude of the contribution.
    """

    weight: Tensor
    style: Tensor
    bias: Tensor
    previous: Tensor | None = None
    clamp: float | None = None
