"""Styles and demodulation coefficients of all layers of a synthesis network, in two Triton kernels.

They depend on the latent alone, so they need not wait for a picture: one product gives all styles, a second one, over
the blocks of a table, all coefficients.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def styles_kernel(
    w,  # [B, W]
    affine,  # [S, W]
    bias,  # [S]
    styles,  # [B, S] float32
    W: tl.constexpr,
    STYLES: tl.constexpr,
    BLOCK_STYLES: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Some of the styles of one latent: w affine^T + bias."""
    batch = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK_STYLES + tl.arange(0, BLOCK_STYLES)
    total = tl.zeros((BLOCK_STYLES,), dtype=tl.float32)
    for first in range(0, W, BLOCK_W):
        column = first + tl.arange(0, BLOCK_W)
        weights = tl.load(
            affine + row[:, None] * W + column[None, :], mask=(row < STYLES)[:, None] & (column < W)[None, :], other=0.0
        )
        latent = tl.load(w + batch * W + column, mask=column < W, other=0.0)
        total += tl.sum(weights.to(tl.float32) * latent.to(tl.float32)[None, :], axis=1)
    total += tl.load(bias + row, mask=row < STYLES, other=0.0).to(tl.float32)
    tl.store(styles + batch * STYLES + row, total, mask=row < STYLES)


@triton.jit
def demodulation_kernel(
    styles,  # [B, S] float32
    squares,  # of each layer [O, I], one after another
    epsilon,  # [D]
    table,  # [blocks, 6] int64; see `style_layers.block_table`
    normalized,  # of each layer [B, I] float32, one after another
    demodulation,  # of each layer [B, O] float32, one after another
    STYLES: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    ALL_INPUTS: tl.constexpr,
):
    """Some of the coefficients of one layer and picture; the first block of a layer also writes its styles.

    With m the largest magnitude of the layer's style s: normalized = s / m, and demodulation d =
    rsqrt(sum_i (s_i / m)^2 q_oi + epsilon_o / m^2), which undoes both (StyleGAN2 equation 3).
    """
    batch = tl.program_id(1).to(tl.int64)
    batches = tl.num_programs(1)
    table += tl.program_id(0) * 6
    first_style = tl.load(table)
    inputs = tl.load(table + 1)
    first_square = tl.load(table + 2)
    first_coefficient = tl.load(table + 3)
    outputs = tl.load(table + 4)  # 0 where the layer is not demodulated
    first_output = tl.load(table + 5)

    every = tl.arange(0, ALL_INPUTS)
    exists = every < inputs
    style = tl.load(styles + batch * STYLES + first_style + every, mask=exists, other=0.0)
    largest = tl.where(outputs > 0, tl.maximum(tl.max(tl.abs(style), axis=0), 1e-12), 1.0)
    style = style / largest
    place = first_style * batches + batch * inputs + every
    tl.store(normalized + place, style, mask=every < tl.where(first_output == 0, inputs, 0))

    output = first_output + tl.arange(0, BLOCK_OUTPUTS)
    rows = tl.load(
        squares + first_square + output[:, None] * inputs + every[None, :],
        mask=(output < outputs)[:, None] & exists[None, :],
        other=0.0,
    )
    power = tl.sum(rows.to(tl.float32) * (style * style)[None, :], axis=1)
    power += tl.load(epsilon + first_coefficient + output, mask=output < outputs, other=1.0) / largest / largest
    place = first_coefficient * batches + batch * outputs + output
    tl.store(demodulation + place, tl.rsqrt(power), mask=output < outputs)
