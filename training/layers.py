"""Layers with equalized learning rate: weights are stored at unit scale and multiplied by a gain when used.

Shapes: B batch, I input features or channels, O output features or channels.
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


def normalize_second_moment(x: Tensor) -> Tensor:
    """x * rsqrt(mean(x^2) + 1e-8) over the last dimension (StyleGAN2's normalisation of z)."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-8)
