"""The fused operators, for torch: eager, torch.compile, torch.export and AOTInductor know them as operators.

On a GPU they are Triton kernels, which a compiler sees and compiles in; on a CPU they are `reference.py`, which a
compiler fuses as it fuses anything. They have no gradient, and asking for one raises RuntimeError: they are for models
that are done learning.

Pictures and weights are channels last, [B, H, W, C] and [O, K, K, I], and contiguous, of one dtype: float16, bfloat16
or float32. Styles, coefficients, noise and biases may have any of them. `reference.py` has formulas and sources.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.library import triton_op

from styleinv.kernels import reference
from styleinv.kernels.checks import (
    check_adain,
    check_layer,
    check_rgb,
    check_style_demod,
)
from styleinv.kernels.operands import LEAKY_SLOPE, Epilogue, ToRgb
from styleinv.kernels.reference import to_uint8


def _operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """`triton_op`, without its warning where Triton is not installed, as it need not be on a CPU."""

    def register(function: Callable[..., Any]) -> Any:
        logger = logging.getLogger("torch._library.triton")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            return triton_op(f"styleinv::{name}", function, mutates_args=())
        finally:
            logger.setLevel(level)

    return register


@_operator("modulated_conv2d")
def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    style: Tensor | None = None,
    demodulation: Tensor | None = None,
    noise: Tensor | None = None,
    bias: Tensor | None = None,
    next_style: Tensor | None = None,
    noise_strength: float = 1.0,
    slope: float = LEAKY_SLOPE,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Tensor:
    """clamp(gain leaky_relu(d conv(x s; W) + strength noise + b)) s' (StyleGAN2 section 2.2, figure 2c).

    x [B, H, W, I], weight W [O, K, K, I] with K 1 or 3, style s [B, I], demodulation d [B, O], noise [H, W], bias b
    [O], next_style s' [B, O] -> [B, H, W, O]. One kernel; see `reference.modulated_layer`. Raises ValueError where
    shapes, dtypes or devices do not go together.
    """
    epilogue = Epilogue(demodulation, noise, bias, next_style, noise_strength, slope, gain, clamp)
    check_layer(x, weight, style, epilogue)
    if x.is_cuda:
        from styleinv.kernels import launch

        return launch.modulated_layer(x, weight, style, epilogue)
    return reference.modulated_layer(x, weight, style, epilogue)


@_operator("modulated_conv2d_up2")
def modulated_conv2d_up2(
    x: Tensor,
    weight: Tensor,
    style: Tensor | None = None,
    demodulation: Tensor | None = None,
    noise: Tensor | None = None,
    bias: Tensor | None = None,
    next_style: Tensor | None = None,
    noise_strength: float = 1.0,
    slope: float = LEAKY_SLOPE,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Tensor:
    """The same, doubling the size: the convolution is a transposed one of stride 2 with the FIR filter behind it.

    x [B, H, W, I], noise [2H, 2W] -> [B, 2H, 2W, O]. The weight, prepared once by `tiles.upsampling_weight`, says in
    which form: [4, O, 3, 3, I], that of four phases, is one kernel; [I, 3, 3, O] is two steps, a transposed convolution
    and a kernel that filters what it wrote. The convolution is cuDNN's, which drops digits of float32 where
    `torch.backends.cudnn.allow_tf32` is set, as it is by default. Raises as `modulated_conv2d`.
    """
    epilogue = Epilogue(demodulation, noise, bias, next_style, noise_strength, slope, gain, clamp)
    check_layer(x, weight, style, epilogue, upsample=True)
    if x.is_cuda:
        from styleinv.kernels import launch

        return launch.upsampling_layer(x, weight, style, epilogue)
    weight = weight if weight.ndim == 5 else weight.permute(3, 1, 2, 0)
    return reference.modulated_layer(x, weight, style, epilogue, upsample=True)


@_operator("modulated_conv2d_rgb")
def modulated_conv2d_rgb(
    x: Tensor,
    weight: Tensor,
    rgb_weight: Tensor,
    rgb_style: Tensor,
    rgb_bias: Tensor,
    previous: Tensor | None = None,
    style: Tensor | None = None,
    demodulation: Tensor | None = None,
    noise: Tensor | None = None,
    bias: Tensor | None = None,
    next_style: Tensor | None = None,
    noise_strength: float = 1.0,
    slope: float = LEAKY_SLOPE,
    gain: float = 1.0,
    clamp: float | None = None,
    rgb_clamp: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`modulated_conv2d` and, of its result before s', `to_rgb_skip`, in one kernel: y [B, H, W, O], image.

    It is for layers of few channels, all of which one program has in registers: `tiles.fuses_rgb` says which.
    """
    epilogue = Epilogue(demodulation, noise, bias, next_style, noise_strength, slope, gain, clamp)
    rgb = ToRgb(rgb_weight, rgb_style, rgb_bias, previous, rgb_clamp)
    check_layer(x, weight, style, epilogue)
    check_rgb(x, weight.shape[0], rgb)
    if x.is_cuda:
        from styleinv.kernels import launch

        return launch.modulated_layer_to_rgb(x, weight, rgb, style, epilogue)
    return reference.modulated_layer_to_rgb(x, weight, rgb, style, epilogue)


@_operator("modulated_conv2d_frame")
def modulated_conv2d_frame(
    x: Tensor,
    weight: Tensor,
    rgb_weight: Tensor,
    rgb_style: Tensor,
    rgb_bias: Tensor,
    previous: Tensor | None = None,
    style: Tensor | None = None,
    demodulation: Tensor | None = None,
    noise: Tensor | None = None,
    bias: Tensor | None = None,
    noise_strength: float = 1.0,
    slope: float = LEAKY_SLOPE,
    gain: float = 1.0,
    clamp: float | None = None,
    rgb_clamp: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The last layer, of which only the picture is wanted: image [B, 3, H, W] and frame, uint8 [B, H, W, 3].

    As `modulated_conv2d_rgb`, whose y is not written.
    """
    epilogue = Epilogue(demodulation, noise, bias, None, noise_strength, slope, gain, clamp)
    rgb = ToRgb(rgb_weight, rgb_style, rgb_bias, previous, rgb_clamp)
    check_layer(x, weight, style, epilogue)
    check_rgb(x, weight.shape[0], rgb)
    if x.is_cuda:
        from styleinv.kernels import launch

        return launch.modulated_layer_to_frame(x, weight, rgb, style, epilogue)
    _, image = reference.modulated_layer_to_rgb(x, weight, rgb, style, epilogue)
    return image, to_uint8(image)


@_operator("to_rgb_skip")
def to_rgb_skip(
    x: Tensor, weight: Tensor, style: Tensor, bias: Tensor, previous: Tensor | None = None, clamp: float | None = None
) -> Tensor:
    """clamp(sum_c x_c s_c w_kc + b_k) + up(previous) (StyleGAN2 section 4.1), in one kernel.

    x [B, H, W, C], weight w [3, C], style s [B, C], bias b [3], previous [B, 3, H/2, W/2] float32 -> float32
    [B, 3, H, W]. Raises ValueError where shapes, dtypes or devices do not go together.
    """
    rgb = ToRgb(weight, style, bias, previous, clamp)
    check_rgb(x, x.shape[3], rgb)
    if x.is_cuda:
        from styleinv.kernels import launch

        return launch.to_rgb_skip(x, rgb)
    return reference.to_rgb_skip(x, rgb)


@_operator("to_rgb_skip_frame")
def to_rgb_skip_frame(
    x: Tensor, weight: Tensor, style: Tensor, bias: Tensor, previous: Tensor | None = None, clamp: float | None = None
) -> tuple[Tensor, Tensor]:
    """`to_rgb_skip` of the last block: image [B, 3, H, W] and frame, uint8 [B, H, W, 3]."""
    rgb = ToRgb(weight, style, bias, previous, clamp)
    check_rgb(x, x.shape[3], rgb)
    if x.is_cuda:
        from styleinv.kernels import launch

        return launch.to_rgb_skip_frame(x, rgb)
    image = reference.to_rgb_skip(x, rgb)
    return image, to_uint8(image)


@_operator("adain_lrelu")
def adain_lrelu(x: Tensor, gamma_beta: Tensor, epsilon: float = 1e-5, slope: float = LEAKY_SLOPE) -> Tensor:
    """leaky_relu((1 + gamma) (x - mean) / sqrt(variance + epsilon) + beta) (StyleInV section 3.2), in two kernels.

    x [B, H, W, C], gamma_beta [B, 2C] -> [B, H, W, C]. Raises ValueError where shapes or devices do not go together.
    """
    check_adain(x, gamma_beta)
    if x.is_cuda:
        from styleinv.kernels import launch

        return launch.adain_lrelu(x, gamma_beta, epsilon=epsilon, slope=slope)
    return reference.adain_lrelu(x, gamma_beta, epsilon=epsilon, slope=slope)


@_operator("style_demod")
def style_demod(
    w: Tensor,
    affine: Tensor,
    bias: Tensor,
    squares: Tensor,
    epsilon: Tensor,
    table: Tensor,
    inputs: Sequence[int],
    outputs: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Styles and demodulation coefficients of all layers, float32, in two kernels.

    Of each layer [B, I] and [B, O], one after another: `style_layers.layers_of` parts them. See
    `reference.style_demod`; `inputs` and `outputs` are I and O of its layers, of which `style_layers.block_table` makes
    the table. Raises ValueError where shapes or devices do not go together.
    """
    check_style_demod(w, affine, bias, squares, epsilon, table, inputs, outputs)
    if w.is_cuda:
        from styleinv.kernels import launch

        return launch.style_demod(w, affine, bias, squares, epsilon, table, max(inputs))
    return reference.style_demod(w, affine, bias, squares, epsilon, list(zip(inputs, outputs, strict=True)))
