"""Reference operators, in plain torch: the definition that every faster form is held to.

Shapes: B batch, I input channels, O output channels, C channels, H W height and width, S size of a style.
Sources: StyleGAN2 (Karras et al. 2020, arXiv 1912.04958), StyleInV (Wang et al. 2023, arXiv 2308.16909).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LEAKY_SLOPE = 0.2
FIR_TAPS = (1.0, 3.0, 3.0, 1.0)


def fir_kernel(like: Tensor, gain: float = 1.0) -> Tensor:
    """The binomial low-pass filter outer([1,3,3,1], [1,3,3,1]) / 64, times `gain`, one for each channel of `like`.

    Returns [C, 1, 4, 4], in the dtype and on the device of `like` [B, C, H, W].
    """
    taps = [[vertical * horizontal * gain / 64 for horizontal in FIR_TAPS] for vertical in FIR_TAPS]
    return like.new_tensor(taps).repeat(like.shape[1], 1, 1, 1)


def leaky_relu(x: Tensor, gain: float = math.sqrt(2.0), clamp: float | None = None) -> Tensor:
    """Leaky ReLU with slope 0.2, times `gain`, then clamped to +-`clamp`, which no gain scales."""
    x = F.leaky_relu(x, LEAKY_SLOPE)
    x = x if gain == 1.0 else x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def demodulation(style: Tensor, weight: Tensor) -> Tensor:
    """Coefficients that give a modulated convolution's outputs unit variance (StyleGAN2 equation 3).

    d_o = rsqrt(sum_i s_i^2 sum_k W_oik^2 + 1e-8); style [B, I], weight [O, I, K, K] -> [B, O].
    """
    return torch.rsqrt(style.square() @ weight.square().sum(dim=(2, 3)).t() + 1e-8)


def modulated_conv2d(
    x: Tensor, weight: Tensor, style: Tensor, *, demodulate: bool = True, upsample: bool = False, gain: float = 1.0
) -> Tensor:
    """Convolution whose weight is scaled per input channel by the style (StyleGAN2 section 2.2).

    Written as d * conv(x * s; W), which equals conv(x; W * s * d): the weight stays the same for the whole batch.
    x [B, I, H, W], weight [O, I, K, K], style [B, I] -> [B, O, H, W], or [B, O, 2H, 2W] with `upsample`. With
    `demodulate` the result is also times `gain`, at no cost.
    """
    x = x * style[:, :, None, None]
    if upsample:
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # [B, O, 2H+1, 2W+1]
        x = F.conv2d(x, fir_kernel(x, gain=4.0), padding=1, groups=x.shape[1])
    else:
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    if demodulate:
        x = x * (demodulation(style, weight) * gain)[:, :, None, None]
    return x


def upsample2d(image: Tensor) -> Tensor:
    """Double a picture's size: zeros in between, then the FIR filter times 4. [B, C, H, W] -> [B, C, 2H, 2W]."""
    return F.conv_transpose2d(image, fir_kernel(image, gain=4.0), stride=2, padding=1, groups=image.shape[1])


def downsample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The FIR filter, then a convolution of stride 2 (discriminator). [B, I, H, W] -> [B, O, H/2, W/2]."""
    padding = 1 + weight.shape[-1] // 2
    x = F.conv2d(x, fir_kernel(x), padding=padding, groups=x.shape[1])  # the 1x1 and 3x3 cases both end at H/2
    return F.conv2d(x, weight, bias, stride=2)


def instance_normalize(x: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Zero mean and unit variance per picture and channel, [B, C, H, W]; `epsilon` is added to the variance."""
    mean = x.mean(dim=(2, 3), keepdim=True)
    centred = x - mean
    return centred * torch.rsqrt(centred.square().mean(dim=(2, 3), keepdim=True) + epsilon)


def modulate(normalized: Tensor, gamma_beta: Tensor) -> Tensor:
    """(1 + gamma) * x + beta, the affine half of AdaIN. normalized [B, C, H, W], gamma_beta [B, 2C]."""
    gamma, beta = gamma_beta[:, :, None, None].chunk(2, dim=1)
    return (1 + gamma) * normalized + beta


def to_uint8(image: Tensor) -> Tensor:
    """Pictures in about [-1, 1], [B, 3, H, W], to RGB bytes [B, H, W, 3]: floor(clamp(x * 127.5 + 128, 0, 255)).

    The cast comes last because TensorRT has bytes as outputs of a graph only.
    """
    pixels = image.permute(0, 2, 3, 1).contiguous()
    return (pixels * 127.5 + 128).clamp(0, 255).to(torch.uint8)
