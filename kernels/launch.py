"""Launches the Triton kernels: makes their results' memory, cuts the work into programs, looks up how they run.

The functions take what the operators of `ops.py` take, on a GPU; in Triton's interpreter (TRITON_INTERPRET=1) on a CPU.
Operands must have been checked.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import wrap_triton
from torch.nn import functional as F

from styleinv.kernels.adain import adain_lrelu_kernel, chunk_statistics_kernel
from styleinv.kernels.convolution import convolution_kernel, filter_kernel
from styleinv.kernels.operands import LEAKY_SLOPE, Epilogue, ToRgb
from styleinv.kernels.reference import SMALLEST_STYLE
from styleinv.kernels.style import demodulation_kernel, styles_kernel
from styleinv.kernels.style_layers import BLOCK_OUTPUTS
from styleinv.kernels.tiles import Tile, device_name, tile_for
from styleinv.kernels.to_rgb import to_rgb_kernel

BLOCK_STYLES, BLOCK_W = 16, 256  # rows and columns of the affine product that a program takes at a time


def modulated_layer(x: Tensor, weight: Tensor, style: Tensor | None, epilogue: Epilogue) -> Tensor:
    """`ops.modulated_conv2d`."""
    out = _activations(x, weight.shape[0])
    _convolve("modulated_conv2d", x, weight, style, epilogue, out=out)
    return out


def upsampling_layer(x: Tensor, weight: Tensor, style: Tensor | None, epilogue: Epilogue) -> Tensor:
    """`ops.modulated_conv2d_up2`."""
    if weight.ndim == 4:
        if style is not None:
            x, epilogue = _times_style(x, style, epilogue, weight.shape[3])
        return filtered_layer(_transposed(x, weight), epilogue)
    out = _activations(x, weight.shape[1], doubled=True)
    _convolve("modulated_conv2d_up2", x, weight, style, epilogue, out=out)
    return out


def modulated_layer_to_rgb(
    x: Tensor, weight: Tensor, rgb: ToRgb, style: Tensor | None, epilogue: Epilogue
) -> tuple[Tensor, Tensor]:
    """`ops.modulated_conv2d_rgb`."""
    out, image = _activations(x, weight.shape[0]), _image(x)
    _convolve("modulated_conv2d_rgb", x, weight, style, epilogue, rgb, out=out, image=image)
    return out, image


def modulated_layer_to_frame(
    x: Tensor, weight: Tensor, rgb: ToRgb, style: Tensor | None, epilogue: Epilogue
) -> tuple[Tensor, Tensor]:
    """`ops.modulated_conv2d_frame`."""
    image, frame = _image(x), _frame(x)
    _convolve("modulated_conv2d_rgb", x, weight, style, epilogue, rgb, image=image, frame=frame)
    return image, frame


def filtered_layer(x: Tensor, epilogue: Epilogue) -> Tensor:
    """`reference.filtered_layer`: x [B, 2H+1, 2W+1, O] -> [B, 2H, 2W, O]."""
    batch, height, width, outputs = x.shape
    height, width = height - 1, width - 1
    tile = tile_for("filter", x.dtype, (outputs, outputs, height // 2, width // 2), device_name(x.device))
    out = x.new_empty(batch, height, width, outputs)
    tiles = triton.cdiv(height, tile.rows) * triton.cdiv(width, tile.columns)
    _kernel(filter_kernel)[tiles, triton.cdiv(outputs, tile.outputs), batch](
        x, epilogue.demodulation, epilogue.noise, epilogue.bias, epilogue.next_style, out, height, width,
        epilogue.noise_strength, epilogue.slope, epilogue.gain, epilogue.clamp,
        OUTPUTS=outputs, BLOCK_HEIGHT=tile.rows, BLOCK_WIDTH=tile.columns, BLOCK_OUTPUTS=tile.outputs,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def to_rgb_skip(x: Tensor, rgb: ToRgb) -> Tensor:
    """`ops.to_rgb_skip`."""
    image = _image(x)
    _to_rgb(x, rgb, image, None)
    return image


def to_rgb_skip_frame(x: Tensor, rgb: ToRgb) -> tuple[Tensor, Tensor]:
    """`ops.to_rgb_skip_frame`."""
    image, frame = _image(x), _frame(x)
    _to_rgb(x, rgb, image, frame)
    return image, frame


def adain_lrelu(x: Tensor, gamma_beta: Tensor, *, epsilon: float = 1e-5, slope: float = LEAKY_SLOPE) -> Tensor:
    """`ops.adain_lrelu`."""
    batch, height, width, channels = x.shape
    tile = tile_for("adain_lrelu", x.dtype, (channels, channels, height, width), device_name(x.device))
    chunks = triton.cdiv(height * width, tile.pixels)
    grid = chunks, triton.cdiv(channels, tile.outputs), batch
    means = x.new_empty(batch, chunks, channels, dtype=torch.float32)
    deviations, out = torch.empty_like(means), torch.empty_like(x)
    sizes: dict[str, Any] = {"CHANNELS": channels, "CHUNK": tile.pixels, "BLOCK_CHANNELS": tile.outputs}
    runs = {"num_warps": tile.warps, "num_stages": tile.stages}
    _kernel(chunk_statistics_kernel)[grid](x, means, deviations, height * width, chunks, **sizes, **runs)
    _kernel(adain_lrelu_kernel)[grid](
        x, means, deviations, gamma_beta, out, height * width, chunks, epsilon, slope, **sizes, **runs
    )
    return out


def style_demod(
    w: Tensor, affine: Tensor, bias: Tensor, squares: Tensor, epsilon: Tensor, table: Tensor, most_inputs: int
) -> tuple[Tensor, Tensor]:
    """`ops.style_demod`; `most_inputs` is the largest I of its layers."""
    batch, size = w.shape
    raw = w.new_empty(batch, affine.shape[0], dtype=torch.float32)
    styles = w.new_empty(batch * affine.shape[0], dtype=torch.float32)
    demodulation = w.new_empty(batch * epsilon.shape[0], dtype=torch.float32)
    _kernel(styles_kernel)[triton.cdiv(affine.shape[0], BLOCK_STYLES), batch](
        w, affine, bias, raw, W=size, STYLES=affine.shape[0], BLOCK_STYLES=BLOCK_STYLES, BLOCK_W=BLOCK_W, num_warps=4
    )
    _kernel(demodulation_kernel)[table.shape[0], batch](
        raw, squares, epsilon, table, styles, demodulation, STYLES=affine.shape[0],
        BLOCK_OUTPUTS=BLOCK_OUTPUTS, ALL_INPUTS=triton.next_power_of_2(most_inputs), num_warps=4,
    )  # fmt: skip
    return styles, demodulation


def _convolve(
    operator: str,
    x: Tensor,
    weight: Tensor,
    style: Tensor | None,
    epilogue: Epilogue,
    rgb: ToRgb | None = None,
    *,
    out: Tensor | None = None,
    image: Tensor | None = None,
    frame: Tensor | None = None,
) -> None:
    batch, height, width, inputs = x.shape
    outputs, doubles = weight.shape[-4], weight.ndim == 5
    tile = tile_for(operator, x.dtype, (inputs, outputs, height, width), device_name(x.device))
    tiles = triton.cdiv(height, tile.rows) * triton.cdiv(width, tile.columns) * (4 if doubles else 1)
    picture = (None,) * 4 if rgb is None else (rgb.weight, rgb.style, rgb.bias, rgb.previous)
    _kernel(convolution_kernel)[tiles, triton.cdiv(outputs, tile.outputs), batch](
        x, weight, style, epilogue.demodulation, epilogue.noise, epilogue.bias, epilogue.next_style, *picture,
        out, image, frame, height, width, epilogue.noise_strength, epilogue.slope, epilogue.gain, epilogue.clamp,
        None if rgb is None else rgb.clamp,
        num_warps=tile.warps, num_stages=tile.stages,
        **constants(tile, x.dtype, inputs, outputs, weight.shape[-2], doubles, style is not None),
    )  # fmt: skip


def constants(
    tile: Tile, dtype: torch.dtype, inputs: int, outputs: int, kernel: int, doubles: bool, styled: bool
) -> dict[str, Any]:
    """What `convolution_kernel` is compiled with. In float16 x * style could overflow, so styles are scaled."""
    return {
        "INPUTS": inputs,
        "OUTPUTS": outputs,
        "KERNEL": kernel,
        "DOUBLES": doubles,
        "ALL_INPUTS": triton.next_power_of_2(inputs) if styled and dtype is torch.float16 else 0,
        "PRODUCTS": tile.products,
        "BLOCK_HEIGHT": tile.rows,
        "BLOCK_WIDTH": tile.columns,
        "BLOCK_INPUTS": tile.inputs,
        "BLOCK_OUTPUTS": tile.outputs,
    }


def _to_rgb(x: Tensor, rgb: ToRgb, image: Tensor, frame: Tensor | None) -> None:
    batch, height, width, channels = x.shape
    tile = tile_for("to_rgb_skip", x.dtype, (channels, 3, height, width), device_name(x.device))
    _kernel(to_rgb_kernel)[triton.cdiv(height * width, tile.pixels), batch](
        x, rgb.weight, rgb.style, rgb.bias, rgb.previous, image, frame, height, width, rgb.clamp,
        CHANNELS=channels, BLOCK_PIXELS=tile.pixels, BLOCK_CHANNELS=tile.inputs,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _times_style(x: Tensor, style: Tensor, epilogue: Epilogue, outputs: int) -> tuple[Tensor, Epilogue]:
    """x * style / m and the epilogue that makes up for m, the style's largest magnitude: in range in any dtype."""
    style = style.float()
    largest = style.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST_STYLE)
    x = (x.float() * (style / largest)[:, None, None]).to(x.dtype)
    demodulation = largest.expand(-1, outputs) if epilogue.demodulation is None else epilogue.demodulation * largest
    return x, dataclasses.replace(epilogue, demodulation=demodulation.contiguous())


def _transposed(x: Tensor, weight: Tensor) -> Tensor:
    """The first of two steps: x [B, H, W, I], weight [I, 3, 3, O] -> [B, 2H+1, 2W+1, O]."""
    spread = F.conv_transpose2d(x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), stride=2)
    return spread.permute(0, 2, 3, 1).contiguous()


def _activations(x: Tensor, channels: int, doubled: bool = False) -> Tensor:
    batch, height, width, _ = x.shape
    factor = 2 if doubled else 1
    return x.new_empty(batch, height * factor, width * factor, channels)


def _image(x: Tensor) -> Tensor:
    batch, height, width, _ = x.shape
    return x.new_empty(batch, 3, height, width, dtype=torch.float32)


def _frame(x: Tensor) -> Tensor:
    batch, height, width, _ = x.shape
    return x.new_empty(batch, height, width, 3, dtype=torch.uint8)


@functools.cache
def _kernel(kernel: Any) -> Any:
    """A kernel as compilers see it; the interpreter's is not for them."""
    return wrap_triton(kernel) if isinstance(kernel, triton.runtime.JITFunction) else kernel
