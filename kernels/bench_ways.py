"""The ways in which a call of the plan is timed: the fused operator, and torch's own operators without it.

The latter are the same layer in the dtype of its pictures, an operator of torch for each step, on operands that were
brought into its dtype and layout before: a filter, a style or a weight is never converted while time runs.

Shapes: B batch, I input channels, O output channels, C channels, H W height and width, S D number of all styles and
coefficients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from styleinv.kernels.operands import LEAKY_SLOPE
from styleinv.kernels.plan import Call
from styleinv.kernels.random_operands import Operands, as_tuned, run, without_tf32
from styleinv.kernels.reference import fir_kernel

Results = tuple[Tensor, ...]
Way = Callable[[], Results]
WAYS = {
    "fused": "the fused operator",
    "eager": "torch's operators one after another, pictures [B, C, H, W] in memory as in most code",
    "cudnn": "the same, channels last, and cuDNN tries all its algorithms first (torch.backends.cudnn.benchmark)",
    "compile": "the same as cudnn, through torch.compile",
}


def way_of(name: str, call: Call, operands: Operands) -> Way:
    """A call in one of the ways, as a function without arguments. `operands` are those of `random_operands`."""
    if name == "fused":
        steps: Callable[..., Results] = functools.partial(run, call.operator)
        arguments: Operands = {"operands": as_tuned(call, operands)}
    else:
        steps, arguments = _steps(call.operator, operands, torch.contiguous_format if name == "eager" else None)
    if name == "compile":
        steps = torch.compile(steps, fullgraph=True, dynamic=False)

    def compute() -> Results:
        with without_tf32(benchmark=name in ("cudnn", "compile")):
            return steps(**arguments)

    return compute


def _steps(
    operator: str, operands: Operands, layout: torch.memory_format | None
) -> tuple[Callable[..., Results], Operands]:
    """A function of tensors and its arguments; channels last is the layout that the operands have."""
    if operator == "style_demod":
        return style_steps, _style_arguments(operands)
    x = operands["x"]
    ready: Operands = {"x": _pictures(x, layout)}
    if operator == "adain_lrelu":
        return adain_steps, ready | {"gamma_beta": operands["gamma_beta"].to(x.dtype)[:, :, None, None]}
    if "previous" in operands:
        rgb = _rgb_arguments(operands, x.dtype, with_prefix="rgb_weight" in operands)
        if operator in ("to_rgb_skip", "to_rgb_skip_frame"):
            return rgb_steps, ready | rgb | {"frame": operator == "to_rgb_skip_frame"}
        ready |= {"rgb": rgb, "frame": operator == "modulated_conv2d_frame"}
    weight = operands["weight"].permute(0, 3, 1, 2)
    upsample = operator == "modulated_conv2d_up2"
    if upsample:
        weight = weight.transpose(0, 1)
        ready["filter"] = fir_kernel(weight, gain=4.0)  # [O, 1, 4, 4]
    ready["weight"] = weight.contiguous(memory_format=layout or torch.channels_last)
    for name in ("style", "demodulation", "next_style"):
        value = operands.get(name)
        ready[name] = None if value is None else value.to(x.dtype)[:, :, None, None]
    ready["noise"] = None if operands["noise"] is None else operands["noise"].to(x.dtype)
    ready["bias"] = operands["bias"].to(x.dtype)[:, None, None]
    return layer_steps, ready | {"clamp": operands["clamp"]}


def layer_steps(
    x: Tensor,  # [B, I, H, W]
    weight: Tensor,  # [O, I, 3, 3]; with a filter [I, O, 3, 3]
    style: Tensor | None,  # [B, I, 1, 1]
    demodulation: Tensor,  # [B, O, 1, 1]
    noise: Tensor | None,  # [H, W]
    bias: Tensor,  # [O, 1, 1]
    next_style: Tensor | None,  # [B, O, 1, 1]
    clamp: float | None,
    filter: Tensor | None = None,  # [O, 1, 4, 4]
    rgb: Operands | None = None,
    frame: bool = False,
) -> Results:
    """A modulated convolution and what follows it (`reference.modulated_layer`), and its picture."""
    x = x if style is None else x * style
    if filter is None:
        x = F.conv2d(x, weight, padding=1)
    else:
        x = F.conv2d(F.conv_transpose2d(x, weight, stride=2), filter, padding=1, groups=filter.shape[0])
    x = x * demodulation
    x = x if noise is None else x + noise
    x = F.leaky_relu(x + bias, LEAKY_SLOPE)
    x = x if clamp is None else x.clamp(-clamp, clamp)
    y = x if next_style is None else x * next_style
    if rgb is None:
        return (y.permute(0, 2, 3, 1),)
    pictures = rgb_steps(x, frame=frame, **rgb)
    return pictures if frame else (y.permute(0, 2, 3, 1), *pictures)


def rgb_steps(
    x: Tensor,  # [B, C, H, W]
    weight: Tensor,  # [3, C, 1, 1]
    style: Tensor,  # [B, C, 1, 1]
    bias: Tensor,  # [3, 1, 1]
    previous: Tensor | None,  # [B, 3, H/2, W/2] float32
    filter: Tensor,  # [3, 1, 4, 4]
    clamp: float | None,
    frame: bool,
) -> Results:
    """A block's contribution to the picture (`reference.to_rgb_skip`), and the bytes of the picture."""
    rgb = F.conv2d(x * style, weight) + bias
    image = (rgb if clamp is None else rgb.clamp(-clamp, clamp)).float()
    if previous is not None:
        image = image + F.conv_transpose2d(previous, filter, stride=2, padding=1, groups=3)
    if not frame:
        return (image,)
    return image, (image.permute(0, 2, 3, 1) * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def adain_steps(x: Tensor, gamma_beta: Tensor) -> Results:
    """`reference.adain_lrelu`: x [B, C, H, W], gamma_beta [B, 2C, 1, 1]."""
    gamma, beta = gamma_beta.chunk(2, dim=1)
    y = F.leaky_relu(F.instance_norm(x, eps=1e-5) * (1 + gamma) + beta, LEAKY_SLOPE)
    return (y.permute(0, 2, 3, 1),)


def style_steps(
    w: Tensor,  # [B, W]
    affines: list[tuple[Tensor, Tensor]],  # of each layer, [I, W] and [I]
    squares: list[Tensor | None],  # of each layer that is demodulated, [O, I]
) -> Results:
    """Two products a layer (`reference.style_demod`, with its scaling of styles)."""
    styles, coefficients = [], []
    for (weight, bias), square in zip(affines, squares, strict=True):
        style = F.linear(w, weight, bias).float()
        if square is not None:
            largest = style.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
            style = style / largest
            power = F.linear(style.square().to(square.dtype), square).float()
            coefficients.append(torch.rsqrt(power + 1e-8 / largest.square()))
        styles.append(style)
    return tuple(styles + coefficients)


def _pictures(x: Tensor, layout: torch.memory_format | None) -> Tensor:
    x = x.permute(0, 3, 1, 2)
    return x if layout is None else x.contiguous(memory_format=layout)


def _rgb_arguments(operands: Operands, dtype: torch.dtype, with_prefix: bool) -> Operands:
    weight, style, bias, clamp = (
        operands[f"rgb_{name}" if with_prefix else name] for name in ("weight", "style", "bias", "clamp")
    )
    return {
        "weight": weight.to(dtype)[:, :, None, None], "style": style.to(dtype)[:, :, None, None],
        "bias": bias.to(dtype)[:, None, None], "clamp": clamp, "previous": operands["previous"],
        "filter": fir_kernel(weight.new_empty(1, 3, 1, 1), gain=4.0),
    }  # fmt: skip


def _style_arguments(operands: Operands) -> Operands:
    dtype, inputs, outputs = operands["affine"].dtype, operands["inputs"], operands["outputs"]
    affine, bias = operands["affine"].split(inputs), operands["bias"].to(dtype).split(inputs)
    sizes = [o * i for i, o in zip(inputs, outputs, strict=True)]
    squares: list[Any] = [
        part.view(o, i) if o else None
        for part, i, o in zip(operands["squares"].split(sizes), inputs, outputs, strict=True)
    ]
    return {"w": operands["w"].to(dtype), "affines": list(zip(affine, bias, strict=True)), "squares": squares}
