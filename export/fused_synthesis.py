"""The synthesis network made of the fused operators: w [B, W] -> image [B, 3, R, R] in about [-1, 1], and its bytes.

It computes what `inference_synthesis.py` computes, in the calls that `styleinv.kernels.plan.fused_calls` lists.
Pictures are channels last and have the network's dtype; styles, coefficients and the running picture are float32.

Shapes: B batch, W size of a latent, I input channels, O output channels, H W height and width, R resolution.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from styleinv.export.folding import constant, row_scale, weight_and_bias
from styleinv.export.inference_synthesis import EPSILON
from styleinv.kernels import ops
from styleinv.kernels.style_layers import block_table, layers_of
from styleinv.kernels.tiles import device_name, fuses_rgb, upsampling_weight
from styleinv.training.generator import SynthesisBlock, SynthesisNetwork
from styleinv.training.layers import EqualizedLinear, ModulatedConv2d

SQUARES = {torch.float16: torch.bfloat16}  # float16 cannot hold the squares of weights as small as it wants them


class FusedSynthesis(nn.Module):
    """Built from the training form, which stays as it is, for the device where that is.

    Args:
        noise: 'const' or 'none'.
        dtype: float16, bfloat16 or float32.
    """

    def __init__(self, synthesis: SynthesisNetwork, noise: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.const = constant(synthesis.const.permute(1, 2, 0)[None], dtype)
        blocks: list[FusedBlock] = []
        layers: list[StyledLayer] = []
        for block in synthesis.blocks:
            assert isinstance(block, SynthesisBlock)
            multiplied = bool(blocks) and blocks[-1].fuses
            blocks.append(FusedBlock(block, noise, 2 ** (len(blocks) + 2), dtype, multiplied))
            layers += blocks[-1].layers
        self.styles = FusedStyles(layers, dtype)
        self.blocks, self.last = nn.ModuleList(blocks[:-1]), blocks[-1]

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """w [B, W] -> image [B, 3, R, R] float32, frame [B, R, R, 3] uint8."""
        styles, coefficients = self.styles(w)
        x = self.const.repeat(w.shape[0], 1, 1, 1)
        image: Tensor | None = None
        for block in self.blocks:
            assert isinstance(block, FusedBlock)
            x, image = block(x, image, styles, coefficients)
            styles, coefficients = styles[len(block.layers) :], coefficients[len(block.layers) - 1 :]
        return self.last.frame(x, image, styles, coefficients)


class StyledLayer(NamedTuple):
    """A layer's affine and a factor of its style; and where it is demodulated the squares q [O, I] of its weight and
    the epsilons [O], both as the weight's scale makes them."""

    affine: EqualizedLinear
    gain: float
    squares: Tensor | None = None
    epsilon: Tensor | None = None


class FusedStyles(nn.Module):
    """w [B, W] -> every layer's style [B, I], and the coefficients [B, O] of those that are demodulated."""

    def __init__(self, layers: list[StyledLayer], dtype: torch.dtype) -> None:
        super().__init__()
        weights, biases = zip(*(weight_and_bias(layer.affine, layer.gain) for layer in layers), strict=True)
        squares = [layer.squares for layer in layers if layer.squares is not None]
        self.inputs = [len(bias) for bias in biases]
        self.outputs = [0 if layer.squares is None else len(layer.squares) for layer in layers]
        self.affine, self.bias = constant(torch.cat(weights), dtype), constant(torch.cat(biases))
        self.squares = constant(torch.cat([square.flatten() for square in squares]), SQUARES.get(dtype, dtype))
        self.epsilon = constant(torch.cat([layer.epsilon for layer in layers if layer.epsilon is not None]))
        self.register_buffer("table", block_table(self.inputs, self.outputs).to(self.bias.device))

    table: Tensor

    def forward(self, w: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        styles, coefficients = ops.style_demod(
            w, self.affine, self.bias, self.squares, self.epsilon, self.table, self.inputs, self.outputs
        )
        batch, demodulated = w.shape[0], [size for size in self.outputs if size]
        return layers_of(styles, batch, self.inputs), layers_of(coefficients, batch, demodulated)


class FusedConv(nn.Module):
    """The constants of a modulated 3x3 convolution, which reads pictures of `size`."""

    def __init__(self, layer: ModulatedConv2d, noise: str, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        weight = layer.weight.detach().double()
        rows = row_scale(weight)  # so that nothing overflows float16 where a layer is two steps
        weight = weight / rows[:, None, None, None]
        self.styled = StyledLayer(layer.affine, 1.0, weight.square().sum(dim=(2, 3)), EPSILON / rows.square())
        weight = weight.permute(0, 2, 3, 1)  # [O, 3, 3, I]
        self.weight = constant(upsampling_weight(weight, size, size, dtype) if layer.upsample else weight, dtype)
        self.two_steps = layer.upsample and self.weight.ndim == 4
        self.bias = constant(layer.bias)
        self.noise: Tensor | None = None
        if layer.use_noise and noise == "const":
            self.noise = constant(layer.noise.double() * layer.noise_strength.double())
        self.gain, self.clamp = layer.gain, layer.clamp

    def epilogue(self, coefficients: Tensor) -> dict[str, Any]:
        """The operators' arguments of these names."""
        return {
            "demodulation": coefficients,
            "noise": self.noise,
            "bias": self.bias,
            "gain": self.gain,
            "clamp": self.clamp,
        }


class FusedBlock(nn.Module):
    """One resolution, in pixels: its convolutions, then its contribution to the picture.

    `multiplied` says whether the block before multiplies what it writes by the style of this block's first layer. This
    block does so for the next one where it `fuses`: where its last convolution's kernel draws the picture as well, so
    that nothing else reads what it writes.
    """

    def __init__(
        self, block: SynthesisBlock, noise: str, resolution: int, dtype: torch.dtype, multiplied: bool
    ) -> None:
        super().__init__()
        *first, conv = (layer for layer in block.convs if isinstance(layer, ModulatedConv2d))
        channels = len(conv.bias)
        self.up = FusedConv(first[0], noise, resolution // 2, dtype) if first else None
        self.conv = FusedConv(conv, noise, resolution, dtype)
        self.rgb_weight = constant(block.to_rgb.weight[:, :, 0, 0])
        self.rgb_bias, self.rgb_clamp = constant(block.to_rgb.bias), block.to_rgb.clamp
        picture = StyledLayer(block.to_rgb.affine, block.to_rgb.weight_gain)
        self.layers = [*([self.up.styled] if self.up else []), self.conv.styled, picture]
        self.multiplied = multiplied
        device = device_name(conv.weight.device)
        self.fuses = fuses_rgb(dtype, (channels, channels, resolution, resolution), device)

    def forward(
        self, x: Tensor, image: Tensor | None, styles: list[Tensor], coefficients: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """x [B, h, w, I], the picture so far, styles of this block's layers and after -> x [B, H, W, O], image."""
        x, style = self._doubled(x, styles, coefficients)
        rgb_style, next_style = styles[len(self.layers) - 1 : len(self.layers) + 1]
        rgb = self.rgb_weight, rgb_style, self.rgb_bias, image
        epilogue = self.conv.epilogue(coefficients[len(self.layers) - 2])
        if self.fuses:
            epilogue = {**epilogue, "next_style": next_style, "rgb_clamp": self.rgb_clamp}
            return ops.modulated_conv2d_rgb(x, self.conv.weight, *rgb, style, **epilogue)
        x = ops.modulated_conv2d(x, self.conv.weight, style, **epilogue)
        return x, ops.to_rgb_skip(x, *rgb, self.rgb_clamp)

    def frame(
        self, x: Tensor, image: Tensor | None, styles: list[Tensor], coefficients: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The same of the last block: image [B, 3, R, R] float32, frame [B, R, R, 3] uint8."""
        x, style = self._doubled(x, styles, coefficients)
        rgb = self.rgb_weight, styles[-1], self.rgb_bias, image
        epilogue = self.conv.epilogue(coefficients[-1])
        if self.fuses:
            epilogue = {**epilogue, "rgb_clamp": self.rgb_clamp}
            return ops.modulated_conv2d_frame(x, self.conv.weight, *rgb, style, **epilogue)
        x = ops.modulated_conv2d(x, self.conv.weight, style, **epilogue)
        return ops.to_rgb_skip_frame(x, *rgb, self.rgb_clamp)

    def _doubled(self, x: Tensor, styles: list[Tensor], coefficients: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """What the block's last convolution reads, and the style that it has still to be multiplied by."""
        style = None if self.multiplied else styles[0]
        if self.up is None:
            return x, style
        if self.up.two_steps and style is not None:  # for a compiler to merge with what is before and after
            x, style = (x.float() * style.view(-1, 1, 1, x.shape[3])).to(x.dtype), None
        epilogue = {**self.up.epilogue(coefficients[0]), "next_style": styles[1]}
        return ops.modulated_conv2d_up2(x, self.up.weight, style, **epilogue), None
