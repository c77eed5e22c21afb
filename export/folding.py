"""What inference forms are made of: layers whose every constant factor is folded into a weight, once, in float64.

A layer computes in one of three dtypes. In float32 it is the plain layer. In float16 and bfloat16 only the
convolution's operands have that dtype: what comes out of it is brought to float32, and goes back when it is stored for
the next convolution. In float16 nothing can overflow: rows of a weight are scaled to at most 1 in sum (by powers of
two, exactly), so a convolution never gives more than the largest of its inputs, and storing saturates.

Shapes: B batch, I input features or channels, O output features or channels, K kernel size, H W height and width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from styleinv.kernels.reference import LEAKY_SLOPE
from styleinv.training.layers import EqualizedLinear

LARGEST_STORED = 61440.0  # in float16; below its largest number, 65504, by more than what rounding adds


class FoldedLinear(nn.Module):
    """y = x W^T + b, float32 [B, I] -> [B, O], of an `EqualizedLinear` that has a bias: gain, multiplier and the leaky
    ReLU's sqrt(2) are in W and b."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        assert isinstance(layer, EqualizedLinear)
        weight, bias = weight_and_bias(layer, math.sqrt(2.0) if layer.activate else 1.0)
        self.weight, self.bias = constant(weight), constant(bias)
        self.activate = layer.activate

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.weight, self.bias)
        return F.leaky_relu(x, LEAKY_SLOPE) if self.activate else x


class FoldedConv2d(nn.Module):
    """y = conv(x; W) + b, padded to the size of x over the stride: x [B, I, H, W] of `dtype` -> float32 [B, O, ...]."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, weight.shape[-1] // 2
        self.bias = None if bias is None else constant(bias)
        self.rows: Tensor | None = None
        if dtype is not torch.float32:
            rows = row_scale(weight)
            weight = weight / rows[:, None, None, None]
            self.rows = constant(rows[:, None, None])
        self.weight = constant(weight, dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.rows is None:
            return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        x = F.conv2d(x, self.weight, None, self.stride, self.padding).float() * self.rows
        return x if self.bias is None else x + self.bias[:, None, None]


def weight_and_bias(layer: EqualizedLinear, gain: float = 1.0) -> tuple[Tensor, Tensor]:
    """What a layer with a bias multiplies with and adds, float64 [O, I] and [O], both times `gain`."""
    assert layer.bias is not None
    return layer.weight.double() * (layer.gain * gain), layer.bias.double() * (layer.bias_gain * gain)


def constant(value: Tensor, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    """A weight that is not trained, contiguous and of `dtype`."""
    return nn.Parameter(value.detach().to(dtype).contiguous(), requires_grad=False)


def stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as the next convolution takes it; in float16 saturated, so that what is too large is not infinite."""
    if dtype is torch.float16:
        x = x.clamp(-LARGEST_STORED, LARGEST_STORED)
    return x.to(dtype)


def row_scale(weight: Tensor) -> Tensor:
    """The power of two at or above the sum of each row's magnitudes: weight [O, I, K, K] -> [O].

    A row of zeros has one, too, whose inverse square float32 holds.
    """
    return torch.exp2(torch.ceil(torch.log2(weight.abs().sum(dim=(1, 2, 3)).clamp(min=1e-12))))


def affine_of(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A batch normalisation at inference as scale and shift of each channel, float64 [C] twice."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def before_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of a convolution with the normalisation behind it."""
    scale, shift = affine_of(norm)
    return conv.weight.double() * scale[:, None, None, None], shift


def after_norm(norm: nn.BatchNorm2d, conv: nn.Conv2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A normalisation a x + c in front of a convolution, as conv(x + shift; weight): float64 weight [O, I, K, K] and
    shift [I].

    The convolution pads with zeros what is normalised, so c cannot become a bias without being wrong at the borders;
    but a goes into the weight, and c / a is added before the padding. A scale too small beside its c for `dtype` to
    hold both is raised until it can: a x is then below what rounding c loses.
    """
    scale, shift = affine_of(norm)
    least = (shift.abs() * torch.finfo(dtype).eps / 2).clamp(min=1e-30)
    scale = torch.where(scale.abs() < least, least.copysign(scale), scale)
    return conv.weight.double() * scale[:, None, None], shift / scale
