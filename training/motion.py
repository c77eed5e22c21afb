"""Motion: from anchors' noise to the time code and the temporal style of any frame (StyleInV section 3.1).

Shapes: B batch, T frames, K anchors, Z size of an anchor's noise, U size of a motion code, F frequencies,
V = 2F size of a time code, W size of a latent, S size of a temporal style.

Angles grow with t, so everything up to the time code is computed in float64, in training as at run time
(`styleinv.runtime.motion` is the same mathematics in numpy). It is a tiny part of the work.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from styleinv.kernels.reference import LEAKY_SLOPE
from styleinv.training.layers import EqualizedLinear


class AnchorConv1d(nn.Module):
    """Convolution over anchors; leaky ReLU follows, without the usual gain of sqrt(2).

    A causal one is padded with zeros by half its kernel, and only its first half, the centre of an odd kernel included,
    counts: it sees the past and, where the kernel is odd, the present. [B, I, K] -> [B, O, K]. The other kind has
    neither padding nor mask: it sees the present and the future. [B, I, K] -> [B, O, K - kernel_size + 1].
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, lr_multiplier: float, causal: bool
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size) / lr_multiplier)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.gain = lr_multiplier / math.sqrt(in_channels * kernel_size)
        self.bias_gain = lr_multiplier
        self.padding = kernel_size // 2 if causal else 0  # anchors of the past under one convolution
        self.taps = (kernel_size + 1) // 2 if causal else kernel_size

    def forward(self, x: Tensor) -> Tensor:
        anchors = x.shape[2]
        weight = self.weight[:, :, : self.taps].double() * self.gain
        x = F.conv1d(F.pad(x.double(), (self.padding, 0)), weight, self.bias.double() * self.bias_gain)
        return F.leaky_relu(x[:, :, :anchors], LEAKY_SLOPE)  # an even causal kernel reaches one row too far


class MotionNetwork(nn.Module):
    """Noise of the anchors -> motion codes -> time code.

    Anchors stand at frames 0, d, 2d, ... with d = `anchor_distance`. Where the motion is `first_frame_aware`, codes
    depend on the past, and anchor 0 has a learned constant in place of noise, so frame 0 is the same for every motion.
    Otherwise a code depends on its own anchor's noise and that of the next 2 (kernel_size - 1) anchors.
    """

    def __init__(
        self,
        noise_dim: int,
        code_dim: int,
        anchor_distance: int,
        kernel_size: int,
        lr_multiplier: float,
        frequencies: int,
        min_period: float,
        max_period: float,
        first_frame_aware: bool = True,
    ) -> None:
        super().__init__()
        if first_frame_aware:
            self.first_code_noise = nn.Parameter(torch.randn(noise_dim))
        self.conv = nn.Sequential(
            AnchorConv1d(noise_dim, noise_dim, kernel_size, lr_multiplier, causal=first_frame_aware),
            AnchorConv1d(noise_dim, code_dim, kernel_size, lr_multiplier, causal=first_frame_aware),
        )
        self.period = EqualizedLinear(code_dim, frequencies, bias=None)
        self.phase = EqualizedLinear(code_dim, frequencies, bias=None)
        self.aligner = EqualizedLinear(code_dim, 2 * frequencies, bias=None)
        periods = torch.logspace(math.log2(max_period), math.log2(min_period), frequencies, base=2.0)
        self.register_buffer("frequencies", 2 * math.pi / periods)  # radians per frame, that of max_period first
        self.noise_dim = noise_dim
        self.anchor_distance = anchor_distance
        self.first_frame_aware = first_frame_aware
        self.lookahead = 0 if first_frame_aware else 2 * (kernel_size - 1)  # anchors behind its own that a code sees
        self.max_period = max_period

    frequencies: Tensor  # [F]

    def anchors_needed(self, t: float) -> int:
        """How many anchors a clip that reaches frame t takes."""
        return math.floor(t / self.anchor_distance) + 2 + self.lookahead

    def codes(self, noise: Tensor) -> Tensor:
        """Anchors' noise [B, K, Z] -> motion codes u of all anchors but the last `lookahead`, float64 [B, ., U].

        Row 0 of the noise is not used where the motion is first-frame-aware.
        """
        if self.first_frame_aware:
            first = self.first_code_noise.expand(noise.shape[0], 1, -1)
            noise = torch.cat([first, noise[:, 1:]], dim=1)
        codes: Tensor = self.conv(noise.transpose(1, 2)).transpose(1, 2)
        return codes

    def forward(self, noise: Tensor, t: Tensor) -> Tensor:
        """Time codes v of frames t [B, T] (frame indices, float64) with anchors' noise [B, K, Z] -> [B, T, V] float64.

        v(t) = e(t) - lerp(e(t_l), e(t_r)) + lerp(a_l, a_r) with e = [sin, cos] of the angles and a the aligners:
        at an anchor v equals the anchor's own aligner, whatever came before (StyleGAN-V section 3.2).
        """
        codes = self.codes(noise)
        t = t.double()
        left = torch.div(t, self.anchor_distance, rounding_mode="floor").long()  # [B, T]
        rows = torch.arange(t.shape[0], device=t.device)[:, None]
        u_left, u_right = codes[rows, left], codes[rows, left + 1]  # [B, T, U]

        frequency = self.frequencies.double()
        speed = frequency * (torch.tanh(_project(self.period, u_left)) + 1)  # radians per frame
        phase = _project(self.phase, u_left) * (self.max_period / (2 * math.pi)) * frequency

        t_left = (left * self.anchor_distance)[..., None]
        alpha = (t[..., None] - t_left) / self.anchor_distance
        wave = _wave(speed * t[..., None] + phase)
        wave_left = _wave(speed * t_left + phase)
        wave_right = _wave(speed * (t_left + self.anchor_distance) + phase)
        aligner_left, aligner_right = _project(self.aligner, u_left), _project(self.aligner, u_right)
        return wave - torch.lerp(wave_left, wave_right, alpha) + torch.lerp(aligner_left, aligner_right, alpha)


class TemporalStyle(nn.Module):
    """Time code, together with the clip's content where `sees_content`, -> temporal style s.

    w0 [B, W], v [B, V] -> s [B, S]; S is W where `style_dim` is not given.
    """

    def __init__(
        self,
        w_dim: int,
        v_dim: int,
        num_layers: int,
        lr_multiplier: float,
        sees_content: bool,
        style_dim: int | None = None,
    ) -> None:
        super().__init__()
        widths = [v_dim + (w_dim if sees_content else 0)] + [style_dim or w_dim] * num_layers
        self.layers = nn.Sequential(
            *(
                EqualizedLinear(before, after, lr_multiplier=lr_multiplier, activate=True)
                for before, after in itertools.pairwise(widths)
            )
        )
        self.sees_content = sees_content
        self.style_dim = widths[-1]

    def forward(self, w0: Tensor, v: Tensor) -> Tensor:
        style: Tensor = self.layers(torch.cat([w0, v], dim=1) if self.sees_content else v)
        return style


def _project(linear: EqualizedLinear, x: Tensor) -> Tensor:
    return F.linear(x, linear.weight.double() * linear.gain)


def _wave(angle: Tensor) -> Tensor:
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
