"""The synthesis network in its inference form: w [B, W] -> image [B, 3, R, R] in about [-1, 1], float32.

Convolution weights are constants: conv(x; W s d) = d conv(x s; W), with d_o = rsqrt(sum_i s_i^2 q_oi + 1e-8) and
q_oi = sum_k W_oik^2 (StyleGAN2 section 2.2, equation 3). All layers' styles come from one matrix product, as they
depend on w alone. Styles are divided by their largest magnitude m, which demodulation cancels but for its epsilon,
1e-8 / m^2; so in half precision a style of any size keeps x s in range.

Styles, demodulation, everything between a convolution and the next, and the picture are float32; a convolution's
operands have the network's dtype.

Shapes: B batch, W size of a latent, I input channels, O output channels, H W height and width, R resolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from styleinv.export.arithmetic import Arithmetic
from styleinv.export.folding import constant, row_scale, stored, weight_and_bias
from styleinv.export.upsampling import MODULES as UPSAMPLING
from styleinv.export.winograd import PairedWinogradConv2d, WinogradConv2d
from styleinv.kernels.reference import LEAKY_SLOPE, upsample2d
from styleinv.training.generator import SynthesisBlock, SynthesisNetwork, ToRGB
from styleinv.training.layers import EqualizedLinear, ModulatedConv2d

EPSILON = 1e-8  # of the demodulation
SMALLEST_STYLE = 1e-12  # what a style's largest magnitude is taken to be at least, so that none divides by zero


class Styles(nn.Module):
    """The styles of several layers from one product: w [B, W] -> for each layer [B, I], float32."""

    def __init__(self, affines: list[EqualizedLinear], gains: list[float]) -> None:
        super().__init__()
        folded = [weight_and_bias(layer, gain) for layer, gain in zip(affines, gains, strict=True)]
        weights, biases = zip(*folded, strict=True)
        self.weight = constant(torch.cat(weights))
        self.bias = constant(torch.cat(biases))
        self.sizes = [len(bias) for bias in biases]

    def forward(self, w: Tensor) -> tuple[Tensor, ...]:
        return F.linear(w, self.weight, self.bias).split(self.sizes, dim=1)


class InferenceModulatedConv2d(nn.Module):
    """A modulated 3x3 convolution and what follows it: x [B, I, H, W] of `dtype`, style [B, I] -> the same dtype,
    [B, O, H, W], or [B, O, 2H, 2W] where it upsamples; `size` is H.

    With `pairs_rows` it has pictures with their rows paired, in and out (see `winograd.py`); then without noise.
    """

    def __init__(
        self,
        layer: ModulatedConv2d,
        noise: str,
        size: int,
        arithmetic: Arithmetic,
        pairs_rows: bool = False,
    ) -> None:
        super().__init__()
        weight = layer.weight.double()
        outputs, inputs = weight.shape[:2]
        rows = row_scale(weight) * (4 if layer.upsample else 1)  # the upsampling filter's taps add up to 4
        weight = weight / rows[:, None, None, None]
        gain = layer.gain
        if layer.upsample:
            form = arithmetic.upsampling(inputs, outputs, size)
            self.conv: nn.Module = UPSAMPLING[form](weight, arithmetic.dtype)
        elif pairs_rows:
            self.conv = PairedWinogradConv2d(weight)
        elif arithmetic.convolution(inputs, outputs, size) == "winograd":
            self.conv = WinogradConv2d(weight)
        else:
            self.conv = PlainConv2d(weight, arithmetic.dtype)
        # gain / sqrt(sum s^2 q + eps / m^2) = 1 / sqrt(sum s^2 (q / gain^2) + (eps / gain^2) / m^2)
        self.squares = constant(weight.square().sum(dim=(2, 3)).t() / gain**2)  # [I, O]
        self.epsilon = constant(EPSILON / (rows * gain).square())  # [O]
        self.bias = constant(layer.bias.double()[:, None, None] * gain)
        self.noise: Tensor | None = None
        if layer.use_noise and noise == "const":
            self.noise = constant(layer.noise.double() * layer.noise_strength.double() * gain)  # [R, R]
        self.clamp = layer.clamp
        self.dtype = arithmetic.dtype

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        style, largest = normalized(style)
        demodulation = torch.rsqrt(style.square() @ self.squares + self.epsilon / largest.square())  # [B, O]
        x = self.conv(x * style.to(self.dtype)[:, :, None, None])
        x = x.float() * demodulation[:, :, None, None] + self.bias
        if self.noise is not None:
            x = x + self.noise
        x = F.leaky_relu(x, LEAKY_SLOPE)
        if self.clamp is not None:
            x = x.clamp(-self.clamp, self.clamp)
        return stored(x, self.dtype)


class InferenceToRGB(nn.Module):
    """A block's contribution to the picture: x [B, C, H, W] of `dtype`, style [B, C] -> [B, 3, H, W] float32."""

    def __init__(self, layer: ToRGB, dtype: torch.dtype) -> None:
        super().__init__()
        weight = layer.weight.double()
        rows = row_scale(weight)
        self.weight = constant(weight / rows[:, None, None, None], dtype)
        self.rows = constant(rows)
        self.bias = constant(layer.bias.double()[:, None, None])
        self.clamp = layer.clamp
        self.dtype = dtype

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        style, largest = normalized(style)
        x = F.conv2d(x * style.to(self.dtype)[:, :, None, None], self.weight)
        rgb = x.float() * (largest * self.rows)[:, :, None, None] + self.bias
        return rgb if self.clamp is None else rgb.clamp(-self.clamp, self.clamp)


class PlainConv2d(nn.Module):
    """[B, I, H, W] -> [B, O, H, W], padded by one pixel, all of `dtype`."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = constant(weight, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1)


class InferenceSynthesis(nn.Module):
    """Built from the training form, which stays as it is; `noise` is 'const' or 'none'."""

    def __init__(self, synthesis: SynthesisNetwork, noise: str, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.const = constant(synthesis.const[None], arithmetic.dtype)
        self.convs = nn.ModuleList()
        self.pictures = nn.ModuleList()
        affines: list[EqualizedLinear] = []
        gains: list[float] = []
        self.convs_of_block: list[int] = []
        size = 4
        for block in synthesis.blocks:
            assert isinstance(block, SynthesisBlock)
            for conv in block.convs:
                assert isinstance(conv, ModulatedConv2d)
                self.convs.append(InferenceModulatedConv2d(conv, noise, size, arithmetic))
                affines.append(conv.affine)
                gains.append(1.0)
                size *= 2 if conv.upsample else 1
            self.convs_of_block.append(len(block.convs))
            self.pictures.append(InferenceToRGB(block.to_rgb, arithmetic.dtype))
            affines.append(block.to_rgb.affine)
            gains.append(block.to_rgb.weight_gain)
        self.styles = Styles(affines, gains)

    def forward(self, w: Tensor) -> Tensor:
        styles, convs = iter(self.styles(w)), iter(self.convs)
        x = self.const.expand(w.shape[0], -1, -1, -1)
        image: Tensor | None = None
        for count, picture in zip(self.convs_of_block, self.pictures, strict=True):
            for _ in range(count):
                x = next(convs)(x, next(styles))
            rgb = picture(x, next(styles))
            image = rgb if image is None else upsample2d(image) + rgb
        assert image is not None
        return image


def normalized(style: Tensor) -> tuple[Tensor, Tensor]:
    """A style over its largest magnitude, and that magnitude: [B, I] -> [B, I], [B, 1]."""
    largest = style.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST_STYLE)
    return style / largest, largest
