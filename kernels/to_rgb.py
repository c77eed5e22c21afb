"""A block's contribution to the picture, added to the doubled picture of the blocks before, in one Triton kernel.

It stands where a block has too many channels for the convolution before it to do this in registers (`convolution.py`).
Activations are channels last, [B, H, W, C]; the running picture is float32, [B, 3, H, W].
"""

from __future__ import annotations

import triton
import triton.language as tl

from styleinv.kernels.convolution import draw


@triton.jit
def to_rgb_kernel(
    x,  # [B, H, W, C]
    weight,  # [3, C]
    style,  # [B, C]
    bias,  # [3]
    previous,  # [B, 3, H / 2, W / 2] float32 or None
    image,  # [B, 3, H, W] float32 or None
    frame,  # [B, H, W, 3] uint8 or None
    height,
    width,
    clamp,  # or None
    CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """One run of pixels of one picture."""
    batch = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    inside = pixel < height * width
    x += batch * height * width * CHANNELS
    style += batch * CHANNELS
    red = tl.zeros((BLOCK_PIXELS,), dtype=tl.float32)
    green = tl.zeros((BLOCK_PIXELS,), dtype=tl.float32)
    blue = tl.zeros((BLOCK_PIXELS,), dtype=tl.float32)
    for first in range(0, CHANNELS, BLOCK_CHANNELS):
        channel = first + tl.arange(0, BLOCK_CHANNELS)
        exists = channel < CHANNELS
        value = tl.load(
            x + pixel[:, None] * CHANNELS + channel[None, :], mask=inside[:, None] & exists[None, :], other=0.0
        )
        value = value.to(tl.float32) * tl.load(style + channel, mask=exists, other=0.0).to(tl.float32)[None, :]
        red += mixed(value, weight, channel, exists)
        green += mixed(value, weight + CHANNELS, channel, exists)
        blue += mixed(value, weight + 2 * CHANNELS, channel, exists)
    row = pixel // width
    column = pixel % width
    draw(red, bias, previous, image, frame, batch, 0, row, column, inside, height, width, clamp)
    draw(green, bias, previous, image, frame, batch, 1, row, column, inside, height, width, clamp)
    draw(blue, bias, previous, image, frame, batch, 2, row, column, inside, height, width, clamp)


@triton.jit
def mixed(value, weight, channel, exists):
    """One colour of each pixel: value [pixels, channels] -> [pixels]."""
    return tl.sum(value * tl.load(weight + channel, mask=exists, other=0.0).to(tl.float32)[None, :], axis=1)
