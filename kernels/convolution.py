"""One Triton kernel for every modulated convolution of a synthesis network, and all that follows a convolution.

It is an implicit matrix product: rows are the pixels of a tile, columns output channels, and the inner dimension runs
over input channels and taps, of which no copy is made in memory. What StyleGAN2 does between two convolutions happens
in registers, before the result is written.

Pictures are channels last, [B, H, W, C]. Names in capitals are constants of a compiled kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

LARGEST_FLOAT16 = tl.constexpr(65504.0)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def convolution_kernel(
    x,  # [B, H, W, I]
    weight,  # [O, K, K, I]; where it doubles the size [4, O, 3, 3, I], one for each phase
    style,  # [B, I] or None
    demodulation,  # [B, O] or None
    noise,  # [H', W'] or None
    bias,  # [O] or None
    next_style,  # [B, O] or None
    rgb_weight,  # [3, O]; this and the next three are None where the picture is not made here
    rgb_style,  # [B, O]
    rgb_bias,  # [3]
    previous,  # [B, 3, H' / 2, W' / 2] float32 or None
    out,  # [B, H', W', O] or None
    image,  # [B, 3, H', W'] float32 or None
    frame,  # [B, H', W', 3] uint8 or None
    height,
    width,
    noise_strength,
    slope,
    gain,
    clamp,  # or None
    rgb_clamp,  # or None
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    KERNEL: tl.constexpr,
    DOUBLES: tl.constexpr,
    ALL_INPUTS: tl.constexpr,
    PRODUCTS: tl.constexpr,
    BLOCK_HEIGHT: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
):
    """One tile of pixels and output channels of one picture.

    DOUBLES: an input pixel (i, j) becomes four, (2i + a, 2j + b), each with the weight of its phase (a, b).
    ALL_INPUTS: where above 0, styles are divided by their largest magnitude, found among so many numbers, and the
        result multiplied by it, so that in float16 x * style is in range whatever the style is.
    PRODUCTS: how float32 is multiplied, see `tl.dot`.
    """
    batch = tl.program_id(2).to(tl.int64)
    tile = tl.program_id(0)
    phase = 0
    if DOUBLES:  # programs that run at the same time read the same pixels
        phase = tile % 4
        tile = tile // 4
    tiles_across = tl.cdiv(width, BLOCK_WIDTH)
    pixel = tl.arange(0, BLOCK_HEIGHT * BLOCK_WIDTH)
    row = tile // tiles_across * BLOCK_HEIGHT + pixel // BLOCK_WIDTH
    column = tile % tiles_across * BLOCK_WIDTH + pixel % BLOCK_WIDTH
    output = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    x += batch * height * width * INPUTS
    weight += phase * OUTPUTS * KERNEL * KERNEL * INPUTS

    largest = 1.0
    inverse = 1.0
    if style is not None:
        style += batch * INPUTS
        if ALL_INPUTS > 0:
            every = tl.arange(0, ALL_INPUTS)
            magnitudes = tl.abs(tl.load(style + every, mask=every < INPUTS, other=0.0).to(tl.float32))
            largest = tl.maximum(tl.max(magnitudes, axis=0), 1e-12)  # a style of zeros must not divide by zero
            inverse = 1.0 / largest

    products = tl.zeros((BLOCK_HEIGHT * BLOCK_WIDTH, BLOCK_OUTPUTS), dtype=tl.float32)
    for step in range(KERNEL * KERNEL * tl.cdiv(INPUTS, BLOCK_INPUTS)):
        tap = step % (KERNEL * KERNEL)  # innermost: nine steps read nearly the same pixels
        channel = step // (KERNEL * KERNEL) * BLOCK_INPUTS + tl.arange(0, BLOCK_INPUTS)
        source_row = row + tap // KERNEL - KERNEL // 2
        source_column = column + tap % KERNEL - KERNEL // 2
        read = ((source_row >= 0) & (source_row < height) & (source_column >= 0) & (source_column < width))[:, None]
        weigh = (output < OUTPUTS)[None, :]
        if INPUTS % BLOCK_INPUTS != 0:
            read = read & (channel < INPUTS)[None, :]
            weigh = weigh & (channel < INPUTS)[:, None]
        pixels = tl.load(
            x + (source_row * width + source_column)[:, None] * INPUTS + channel[None, :], mask=read, other=0.0
        )
        weights = tl.load(
            weight + (output * (KERNEL * KERNEL) + tap)[None, :] * INPUTS + channel[:, None], mask=weigh, other=0.0
        )
        if style is not None:
            scale = tl.load(style + channel, mask=channel < INPUTS, other=0.0).to(tl.float32) * inverse
            pixels = (pixels.to(tl.float32) * scale[None, :]).to(pixels.dtype)
        if INTERPRETED and pixels.dtype == tl.bfloat16:  # the interpreter multiplies the bits of bfloat16 as integers
            pixels = pixels.to(tl.float32)
            weights = weights.to(tl.float32)
        products = tl.dot(pixels, weights, products, input_precision=PRODUCTS)

    inside = (row < height) & (column < width)
    if DOUBLES:
        row = 2 * row + phase // 2
        column = 2 * column + phase % 2
        height = 2 * height
        width = 2 * width
    y = activated(
        products * largest, demodulation, noise, bias, batch, row, column, output, inside, width,
        noise_strength, slope, gain, clamp, OUTPUTS,
    )  # fmt: skip
    if rgb_weight is not None:  # this program has all channels of its pixels
        for colour in tl.static_range(3):
            mixture = tl.load(rgb_weight + colour * OUTPUTS + output, mask=output < OUTPUTS, other=0.0).to(tl.float32)
            mixture *= tl.load(rgb_style + batch * OUTPUTS + output, mask=output < OUTPUTS, other=0.0).to(tl.float32)
            rgb = tl.sum(y * mixture[None, :], axis=1)
            draw(rgb, rgb_bias, previous, image, frame, batch, colour, row, column, inside, height, width, rgb_clamp)
    if out is not None:
        store(y, next_style, out, batch, row, column, output, inside, height, width, OUTPUTS)


@triton.jit
def filter_kernel(
    x,  # [B, 2H + 1, 2W + 1, O]
    demodulation,  # [B, O] or None
    noise,  # [2H, 2W] or None
    bias,  # [O] or None
    next_style,  # [B, O] or None
    out,  # [B, 2H, 2W, O]
    height,  # 2H
    width,  # 2W
    noise_strength,
    slope,
    gain,
    clamp,  # or None
    OUTPUTS: tl.constexpr,
    BLOCK_HEIGHT: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
):
    """The second step behind a transposed convolution: the FIR filter outer([1,3,3,1]) / 16, and what follows it."""
    batch = tl.program_id(2).to(tl.int64)
    tiles_across = tl.cdiv(width, BLOCK_WIDTH)
    pixel = tl.arange(0, BLOCK_HEIGHT * BLOCK_WIDTH)
    row = tl.program_id(0) // tiles_across * BLOCK_HEIGHT + pixel // BLOCK_WIDTH
    column = tl.program_id(0) % tiles_across * BLOCK_WIDTH + pixel % BLOCK_WIDTH
    output = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    x += batch * (height + 1) * (width + 1) * OUTPUTS
    total = tl.zeros((BLOCK_HEIGHT * BLOCK_WIDTH, BLOCK_OUTPUTS), dtype=tl.float32)
    for vertical in tl.static_range(4):
        for horizontal in tl.static_range(4):
            source_row = row + vertical - 1
            source_column = column + horizontal - 1
            read = (source_row >= 0) & (source_row <= height) & (source_column >= 0) & (source_column <= width)
            value = tl.load(
                x + (source_row * (width + 1) + source_column)[:, None] * OUTPUTS + output[None, :],
                mask=read[:, None] & (output < OUTPUTS)[None, :],
                other=0.0,
            )
            tap = (1 + 2 * ((vertical == 1) | (vertical == 2))) * (1 + 2 * ((horizontal == 1) | (horizontal == 2)))
            total += value.to(tl.float32) * (tap / 16)
    inside = (row < height) & (column < width)
    y = activated(
        total, demodulation, noise, bias, batch, row, column, output, inside, width,
        noise_strength, slope, gain, clamp, OUTPUTS,
    )  # fmt: skip
    store(y, next_style, out, batch, row, column, output, inside, height, width, OUTPUTS)


@triton.jit
def activated(
    y, demodulation, noise, bias, batch, row, column, output, inside, width,
    noise_strength, slope, gain, clamp, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """y d + noise strength + bias, leaky ReLU, gain, clamp: a tile [pixels, channels] in float32."""
    if demodulation is not None:
        coefficient = tl.load(demodulation + batch * OUTPUTS + output, mask=output < OUTPUTS, other=0.0)
        y = y * coefficient.to(tl.float32)[None, :]
    if noise is not None:
        value = tl.load(noise + row * width + column, mask=inside, other=0.0)
        y = y + (value.to(tl.float32) * noise_strength)[:, None]
    if bias is not None:
        y = y + tl.load(bias + output, mask=output < OUTPUTS, other=0.0).to(tl.float32)[None, :]
    y = tl.where(y < 0, y * slope, y) * gain
    if clamp is not None:
        y = tl.clamp(y, -clamp, clamp)
    return y


@triton.jit
def store(y, next_style, out, batch, row, column, output, inside, height, width, OUTPUTS: tl.constexpr):
    """Writes a tile, times the style of the layer that reads it; float16 is saturated."""
    if next_style is not None:
        scale = tl.load(next_style + batch * OUTPUTS + output, mask=output < OUTPUTS, other=0.0)
        y = y * scale.to(tl.float32)[None, :]
    if out.dtype.element_ty == tl.float16:
        y = tl.clamp(y, -LARGEST_FLOAT16, LARGEST_FLOAT16)
    place = (row * width + column)[:, None] * OUTPUTS + output[None, :]
    tl.store(
        out + batch * height * width * OUTPUTS + place,
        y.to(out.dtype.element_ty),
        mask=inside[:, None] & (output < OUTPUTS)[None, :],
    )


@triton.jit
def draw(rgb, bias, previous, image, frame, batch, colour, row, column, inside, height, width, clamp):
    """Adds one colour of a block's contribution, a row of pixels, to the running picture, and writes it."""
    rgb = rgb + tl.load(bias + colour).to(tl.float32)
    if clamp is not None:
        rgb = tl.clamp(rgb, -clamp, clamp)
    if previous is not None:
        rgb += doubled(previous + (batch * 3 + colour) * (height // 2) * (width // 2), row, column, height, width)
    if image is not None:
        tl.store(image + (batch * 3 + colour) * height * width + row * width + column, rgb, mask=inside)
    if frame is not None:
        level = tl.clamp(rgb * 127.5 + 128.0, 0.0, 255.0)
        place = (batch * height * width + row * width + column) * 3 + colour
        tl.store(frame + place, level.to(tl.uint8), mask=inside)


@triton.jit
def doubled(image, row, column, height, width):
    """Pixels of a picture of half the size after the FIR filter: of the nearest two in each direction, 3/4 and 1/4."""
    near_row = row // 2
    near_column = column // 2
    far_row = near_row + row % 2 * 2 - 1
    far_column = near_column + column % 2 * 2 - 1
    width = width // 2
    rows = (near_row < height // 2) & (near_column < width)
    far_rows = (far_row >= 0) & (far_row < height // 2)
    far_columns = (far_column >= 0) & (far_column < width)
    value = tl.load(image + near_row * width + near_column, mask=rows, other=0.0) * 0.5625
    value += tl.load(image + near_row * width + far_column, mask=rows & far_columns, other=0.0) * 0.1875
    value += tl.load(image + far_row * width + near_column, mask=rows & far_rows, other=0.0) * 0.1875
    value += tl.load(image + far_row * width + far_column, mask=rows & far_rows & far_columns, other=0.0) * 0.0625
    return value
