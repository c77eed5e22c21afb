"""Reference operators, in plain torch: the definition that every faster form is held to.

Shapes: B batch, I input channels, O output channels, C channels, K kernel size, H W height and width, S size of a
style or of all styles, D number of demodulation coefficients, W size of a latent.
Sources: StyleGAN2 (Karras et al. 2020, arXiv 1912.04958), StyleInV (Wang et al. 2023, arXiv 2308.16909).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from styleinv.kernels.operands import LEAKY_SLOPE as LEAKY_SLOPE
from styleinv.kernels.operands import Epilogue, ToRgb

SMALLEST_STYLE = 1e-12  # what a style's largest magnitude is taken to be at least, so that none divides by zero
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


# What the fused kernels compute: whole layers. Their pictures are channels last, [B, H, W, C], and their weights too,
# [O, K, K, I]; results have the dtype of x, and all between is computed in float32, or float64 where x has it.


def modulated_layer(
    x: Tensor, weight: Tensor, style: Tensor | None = None, epilogue: Epilogue | None = None, upsample: bool = False
) -> Tensor:
    """A modulated convolution and what follows it (StyleGAN2 section 2.2, figure 2c).

    clamp(gain leaky_relu(d conv(x s; W) + strength noise + b)) s': x [B, H, W, I], weight W [O, K, K, I] with K 1 or 3,
    style s [B, I] -> [B, H, W, O], or [B, 2H, 2W, O] with `upsample`. The weight may then be what `polyphase_weight`
    makes of it.
    """
    return stored(_activations(x, weight, style, epilogue or Epilogue(), upsample), epilogue, x.dtype)


def modulated_layer_to_rgb(
    x: Tensor, weight: Tensor, rgb: ToRgb, style: Tensor | None = None, epilogue: Epilogue | None = None
) -> tuple[Tensor, Tensor]:
    """`modulated_layer`, and `to_rgb_skip` of its result before s' and before it is rounded: y, image."""
    y = _activations(x, weight, style, epilogue or Epilogue())
    return stored(y, epilogue, x.dtype), to_rgb_skip(y.permute(0, 2, 3, 1), rgb)


def filtered_layer(x: Tensor, epilogue: Epilogue | None = None) -> Tensor:
    """The second step of an upsampling layer: what the transposed convolution gave is filtered, then goes on as in
    `modulated_layer`. x [B, 2H+1, 2W+1, O] -> [B, 2H, 2W, O]."""
    pictures = x.to(_wide(x)).permute(0, 3, 1, 2)
    product = F.conv2d(pictures, fir_kernel(pictures, gain=4.0), padding=1, groups=pictures.shape[1])
    return stored(_activated(product, epilogue or Epilogue()), epilogue, x.dtype)


def to_rgb_skip(x: Tensor, rgb: ToRgb) -> Tensor:
    """A block's contribution to the picture on top of those before (StyleGAN2 section 4.1 and figure 7b).

    clamp(sum_c x_c s_c w_kc + b_k) + up(previous): x [B, H, W, C] -> [B, 3, H, W], float32, or float64 where x is.
    """
    mixture = rgb.weight.to(_wide(x)) * rgb.style.to(_wide(x))[:, None]  # [B, 3, C]
    image = torch.einsum("bhwc,bkc->bkhw", x.to(_wide(x)), mixture) + rgb.bias.to(_wide(x))[:, None, None]
    image = image if rgb.clamp is None else image.clamp(-rgb.clamp, rgb.clamp)
    return image if rgb.previous is None else image + upsample2d(rgb.previous.to(_wide(x)))


def adain_lrelu(x: Tensor, gamma_beta: Tensor, *, epsilon: float = 1e-5, slope: float = LEAKY_SLOPE) -> Tensor:
    """leaky_relu((1 + gamma) (x - mean) / sqrt(variance + epsilon) + beta), statistics of each picture and channel
    (StyleInV section 3.2; Huang and Belongie 2017, equation 8). x [B, H, W, C], gamma_beta [B, 2C] -> [B, H, W, C]."""
    normalized = instance_normalize(x.to(_wide(x)).permute(0, 3, 1, 2), epsilon)
    return stored(F.leaky_relu(modulate(normalized, gamma_beta.to(_wide(x))), slope), None, x.dtype)


def style_demod(
    w: Tensor, affine: Tensor, bias: Tensor, squares: Tensor, epsilon: Tensor, layers: list[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """All layers' styles and demodulation coefficients of a synthesis network (StyleGAN2 equation 3).

    For a layer of I inputs and O outputs, with its rows of w affine^T + bias as s [B, I], its part of `squares` as
    q [O, I], q_oi = sum_k W_oik^2, and m = max |s|:

        style s / m        demodulation d_o = 1 / sqrt(sum_i (s_i / m)^2 q_oi + epsilon_o / m^2)

    so d conv(x s / m) is what d' conv(x s) is with the usual d', and x s / m is in range in any dtype. A layer that is
    not demodulated has O = 0, and its style stays s.

    w [B, W], affine [S, W], bias [S], squares [sum of O I], epsilon [D], layers (I, O) in order with S and D their
    sums -> styles [B S] and demodulation [B D], of each layer [B, I] and [B, O], one after another, so that each is
    contiguous (`style_layers.layers_of`).
    """
    raw = F.linear(w.to(_wide(w)), affine.to(_wide(w)), bias.to(_wide(w)))
    styles, coefficients = [], []
    parts = iter(squares.to(_wide(w)).split([inputs * outputs for inputs, outputs in layers]))
    epsilons = iter(epsilon.to(_wide(w)).split([outputs for _, outputs in layers]))
    for (inputs, outputs), style in zip(layers, raw.split([inputs for inputs, _ in layers], dim=1), strict=True):
        part, small = next(parts), next(epsilons)
        if outputs:
            largest = style.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST_STYLE)
            style = style / largest
            power = style.square() @ part.view(outputs, inputs).t() + small / largest.square()
            coefficients.append(torch.rsqrt(power).flatten())
        styles.append(style.flatten())
    return torch.cat(styles), torch.cat(coefficients)


def polyphase_weight(weight: Tensor) -> Tensor:
    """The weights of an upsampling layer's four phases, with the FIR filter folded in: [O, 3, 3, I] -> [4, O, 3, 3, I].

    The transposed convolution spreads a pixel over 3 x 3, the filter that over 6 x 6; every second row and column of
    them fall on the pixels (2i + a, 2j + b) of phase 2 a + b.
    """
    outputs, _, _, inputs = weight.shape
    spread = weight.double().permute(0, 3, 1, 2).reshape(-1, 1, 3, 3)
    spread = F.conv_transpose2d(spread, fir_kernel(spread, gain=4.0)).reshape(outputs, inputs, 6, 6)
    taps = [[4 + phase - 2 * offset for offset in range(3)] for phase in range(2)]  # of the pixel i - 1 + offset
    phases = [spread[:, :, rows][:, :, :, columns] for rows in taps for columns in taps]
    return torch.stack(phases).permute(0, 1, 3, 4, 2).contiguous().to(weight.dtype)


def stored(y: Tensor, epilogue: Epilogue | None, dtype: torch.dtype) -> Tensor:
    """y [B, O, H, W] times s' as it is written, [B, H, W, O]; what float16 cannot hold is its largest number."""
    if epilogue is not None and epilogue.next_style is not None:
        y = y * epilogue.next_style[:, :, None, None].to(y.dtype)
    if dtype is torch.float16:
        y = y.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max)
    return y.to(dtype).permute(0, 2, 3, 1).contiguous()


def _wide(x: Tensor) -> torch.dtype:
    """What is computed in."""
    return torch.promote_types(x.dtype, torch.float32)


def _activations(x: Tensor, weight: Tensor, style: Tensor | None, epilogue: Epilogue, upsample: bool = False) -> Tensor:
    """x [B, H, W, I] -> [B, O, H, W], or [B, O, 2H, 2W], before it is multiplied by s'."""
    if style is None:
        style = x.new_ones(x.shape[0], x.shape[3])
    pictures, style = x.to(_wide(x)).permute(0, 3, 1, 2), style.to(_wide(x))
    if weight.ndim == 5:
        phases = torch.stack([_convolved(pictures, phase, style) for phase in weight], dim=2)  # [B, O, 4, H, W]
        return _activated(F.pixel_shuffle(phases.flatten(1, 2), 2), epilogue)
    return _activated(_convolved(pictures, weight, style, upsample), epilogue)


def _convolved(x: Tensor, weight: Tensor, style: Tensor, upsample: bool = False) -> Tensor:
    weight = weight.to(x.dtype).permute(0, 3, 1, 2)
    return modulated_conv2d(x, weight, style, demodulate=False, upsample=upsample)


def _activated(x: Tensor, epilogue: Epilogue) -> Tensor:
    if epilogue.demodulation is not None:
        x = x * epilogue.demodulation[:, :, None, None].to(x.dtype)
    if epilogue.noise is not None:
        x = x + epilogue.noise.to(x.dtype) * epilogue.noise_strength
    if epilogue.bias is not None:
        x = x + epilogue.bias[:, None, None].to(x.dtype)
    x = F.leaky_relu(x, epilogue.slope) * epilogue.gain
    return x if epilogue.clamp is None else x.clamp(-epilogue.clamp, epilogue.clamp)
