"""What operands the operators take: ValueError names the operand, what was found and what was expected.

Sizes of a batch may be symbolic, so they are compared only where they must be equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from styleinv.kernels.operands import Epilogue, ToRgb

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CPU_DTYPES = (*DTYPES, torch.float64)


def check_layer(x: Tensor, weight: Tensor, style: Tensor | None, epilogue: Epilogue, upsample: bool = False) -> None:
    """Operands of a modulated convolution (see `ops.modulated_conv2d`)."""
    _check_picture(x)
    batch, height, width, inputs = x.shape
    if upsample:
        expected = f"[4, O, 3, 3, {inputs}] or [{inputs}, 3, 3, O]"
        phases = weight.ndim == 5 and weight.shape[0] == 4 and tuple(weight.shape[2:]) == (3, 3, inputs)
        fits = phases or (weight.ndim == 4 and tuple(weight.shape[:3]) == (inputs, 3, 3))
        outputs = weight.shape[1] if phases else weight.shape[-1]
        height, width = 2 * height, 2 * width
    else:
        expected = f"[O, K, K, {inputs}] with K 1 or 3"
        fits = weight.ndim == 4 and tuple(weight.shape[1:]) in ((1, 1, inputs), (3, 3, inputs))
        outputs = weight.shape[0]
    if not fits:
        raise ValueError(f"weight: found shape {list(weight.shape)}, expected {expected}")
    if weight.dtype != x.dtype:
        raise ValueError(f"weight: found {weight.dtype}, expected {x.dtype}, as x has")
    _check("weight", weight, tuple(weight.shape), x)
    _check("style", style, (batch, inputs), x)
    _check("demodulation", epilogue.demodulation, (batch, outputs), x)
    _check("noise", epilogue.noise, (height, width), x)
    _check("bias", epilogue.bias, (outputs,), x)
    _check("next_style", epilogue.next_style, (batch, outputs), x)


def check_rgb(x: Tensor, channels: int, rgb: ToRgb) -> None:
    """Operands of a contribution to the picture (see `ops.to_rgb_skip`), of so many channels."""
    _check_picture(x)
    batch, height, width, _ = x.shape
    _check("rgb weight", rgb.weight, (3, channels), x)
    _check("rgb style", rgb.style, (batch, channels), x)
    _check("rgb bias", rgb.bias, (3,), x)
    previous = rgb.previous
    if previous is not None and (height % 2 or width % 2):
        raise ValueError(f"x: found {height} x {width} pixels, expected even numbers, twice those of previous")
    _check("previous", previous, (batch, 3, height // 2, width // 2), x)
    if previous is not None and previous.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"previous: found {previous.dtype}, expected torch.float32, as the running picture has")


def check_adain(x: Tensor, gamma_beta: Tensor) -> None:
    """Operands of `ops.adain_lrelu`."""
    _check_picture(x)
    _check("gamma_beta", gamma_beta, (x.shape[0], 2 * x.shape[3]), x)


def check_style_demod(
    w: Tensor,
    affine: Tensor,
    bias: Tensor,
    squares: Tensor,
    epsilon: Tensor,
    table: Tensor,
    inputs: Sequence[int],
    outputs: Sequence[int],
) -> None:
    """Operands of `ops.style_demod`."""
    if w.ndim != 2:
        raise ValueError(f"w: found shape {list(w.shape)}, expected [B, W]")
    if len(inputs) != len(outputs) or not inputs:
        raise ValueError(f"outputs: found {len(outputs)} layers, expected {len(inputs)}, as inputs has, at least 1")
    _check("w", w, tuple(w.shape), w)
    _check("affine", affine, (sum(inputs), w.shape[1]), w)
    _check("bias", bias, (sum(inputs),), w)
    _check("squares", squares, (sum(i * o for i, o in zip(inputs, outputs, strict=True)),), w)
    _check("epsilon", epsilon, (sum(outputs),), w)
    if table.ndim != 2 or table.shape[1] != 6 or table.dtype != torch.int64:
        raise ValueError(f"table: found {table.dtype} {list(table.shape)}, expected torch.int64 [blocks, 6]")


def _check_picture(x: Tensor) -> None:
    if x.ndim != 4:
        raise ValueError(f"x: found shape {list(x.shape)}, expected [B, H, W, C]")
    dtypes = DTYPES if x.is_cuda else CPU_DTYPES
    if x.dtype not in dtypes:
        raise ValueError(f"x: found {x.dtype}, expected one of {', '.join(map(str, dtypes))}")
    _check("x", x, tuple(x.shape), x)


def _check(name: str, operand: Tensor | None, shape: tuple[int, ...], x: Tensor) -> None:
    if operand is None:
        return
    if operand.ndim != len(shape) or any(found != size for found, size in zip(operand.shape, shape, strict=True)):
        raise ValueError(f"{name}: found shape {list(operand.shape)}, expected {list(shape)}")
    if operand.device != x.device:
        raise ValueError(f"{name}: found it on {operand.device}, expected {x.device}, where x is")
    if not operand.is_contiguous():
        raise ValueError(f"{name}: found strides {operand.stride()}, expected a contiguous tensor")
