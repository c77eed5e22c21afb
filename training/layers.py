"""Layers with equalized learning rate: weights are stored at unit scale and multiplied by a gain when used.

Shapes: B batch, I input features or channels, O output features or channels, R resolution, S size of a style.
Source: MODEL facts of StyleGAN2-ADA; 'equalized learning rate' is from Karras et al. 2018, section 4.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from styleinv.kernels import reference


class EqualizedLinear(nn.Module):
    """y = x (W g)^T + b m, with g = m / sqrt(I); m is the learning rate multiplier. [B, I] -> [B, O]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: float | None = 0.0,
        lr_multiplier: float = 1.0,
        activate: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = None if bias is None else nn.Parameter(torch.full((out_features,), bias / lr_multiplier))
        self.gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias * self.bias_gain
        x = F.linear(x, self.weight * self.gain, bias)
        return reference.leaky_relu(x) if self.activate else x


class EqualizedConv2d(nn.Module):
    """Convolution with weight gain 1/sqrt(fan_in), optional downsampling by 2 and activation.

    [B, I, H, W] -> [B, O, H, W], or [B, O, H/2, W/2] with `downsample`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        bias: bool = True,
        activate: bool = False,
        downsample: bool = False,
        gain: float = 1.0,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        # The leaky ReLU's gain goes through it (slopes do not depend on scale), into the weight and the bias.
        self.gain = gain * (math.sqrt(2.0) if activate else 1.0)
        self.weight_gain = self.gain / math.sqrt(in_channels * kernel_size**2)
        self.activate = activate
        self.downsample = downsample
        self.clamp = None if clamp is None else clamp * gain

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.weight_gain
        bias = None if self.bias is None else self.bias * self.gain
        if self.downsample:
            x = reference.downsample_conv2d(x, weight, bias)
        else:
            x = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
        return reference.leaky_relu(x, gain=1.0, clamp=self.clamp) if self.activate else x


class ModulatedConv2d(nn.Module):
    """Modulated 3x3 convolution, fixed noise where it has any, bias, leaky ReLU; what StyleGAN2's synthesis is made of.

    x [B, I, H, W], style [B, S] (in the generator a latent) -> [B, O, H, W], or [B, O, 2H, 2W] with `upsample`. With
    `noise_resolution` R it has noise [R, R], the size of its output. `gain` comes on top of the leaky ReLU's sqrt(2);
    it also scales `clamp`, which bounds what comes out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style_dim: int,
        *,
        upsample: bool = False,
        noise_resolution: int | None = None,
        gain: float = 1.0,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.affine = EqualizedLinear(style_dim, in_channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.upsample = upsample
        self.gain = gain * math.sqrt(2.0)
        self.clamp = None if clamp is None else clamp * gain
        self.use_noise = noise_resolution is not None
        if noise_resolution is not None:
            self.register_buffer("noise", torch.randn(noise_resolution, noise_resolution))
            self.noise_strength = nn.Parameter(torch.zeros(()))

    noise: Tensor  # [R, R], the 'const' noise

    def forward(self, x: Tensor, style: Tensor, noise: str | Tensor = "none") -> Tensor:
        """`noise` is 'const', 'none', or what one batch has drawn [B, 1, R, R]."""
        # The leaky ReLU's gain goes through it (slopes do not depend on scale), into everything it acts on.
        x = reference.modulated_conv2d(x, self.weight, self.affine(style), upsample=self.upsample, gain=self.gain)
        return reference.leaky_relu(x + self._shift(noise, x), gain=1.0, clamp=self.clamp)

    def _shift(self, noise: str | Tensor, x: Tensor) -> Tensor:
        """Noise and bias, to be added to x [B, O, R, R], in its dtype: in mixed precision it stays bfloat16.

        They are one tensor that lies in memory as x does, because few channels in bfloat16 are slow to broadcast.
        """
        bias = self.bias * self.gain
        if isinstance(noise, Tensor):
            noise = noise[:, 0]  # [B, R, R]
        elif self.use_noise and noise == "const":
            noise = self.noise  # [R, R]
        else:
            return bias[:, None, None].to(x.dtype)
        noise = noise * (self.noise_strength * self.gain)
        if x.is_contiguous(memory_format=torch.channels_last):
            return (noise[..., None] + bias).to(x.dtype).movedim(-1, -3)
        return (bias[:, None, None] + noise.unsqueeze(-3)).to(x.dtype)


def normalize_second_moment(x: Tensor) -> Tensor:
    """x * rsqrt(mean(x^2) + 1e-8) over the last dimension (StyleGAN2's normalisation of z)."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-8)
