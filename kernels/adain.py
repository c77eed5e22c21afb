"""Adaptive instance normalisation and a leaky ReLU, in two Triton kernels: statistics, then what is done with them.

A picture is cut into chunks of pixels. The first kernel gives each chunk's mean and sum of squared deviations, which it
finds in two passes over the chunk; the second one merges those of all chunks (Chan, Golub and LeVeque 1983, equation
2.1), which is as exact as two passes over the picture, and normalises its own chunk. All of it in float32, on the
differences from the picture's first pixel: a mean far from zero then takes no digits from what is left without it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def chunk_statistics_kernel(
    x,  # [B, H W, C]
    means,  # [B, chunks, C] float32: less the picture's first pixel
    deviations,  # [B, chunks, C] float32: sums of squared differences from the chunk's mean
    pixels,  # H W
    chunks,
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """One chunk of one picture, for some of its channels."""
    batch = tl.program_id(2).to(tl.int64)
    chunk = tl.program_id(0)
    pixel = chunk * CHUNK + tl.arange(0, CHUNK)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    exists = (pixel < pixels)[:, None] & (channel < CHANNELS)[None, :]
    x += batch * pixels * CHANNELS
    value = tl.load(x + pixel[:, None] * CHANNELS + channel[None, :], mask=exists, other=0.0).to(tl.float32)
    first = tl.load(x + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)
    value = tl.where(exists, value - first[None, :], 0.0)
    count = tl.minimum(CHUNK, pixels - chunk * CHUNK).to(tl.float32)
    mean = tl.sum(value, axis=0) / count
    difference = tl.where(exists, value - mean[None, :], 0.0)
    place = (batch * chunks + chunk) * CHANNELS + channel
    tl.store(means + place, mean, mask=channel < CHANNELS)
    tl.store(deviations + place, tl.sum(difference * difference, axis=0), mask=channel < CHANNELS)


@triton.jit
def adain_lrelu_kernel(
    x,  # [B, H W, C]
    means,  # [B, chunks, C]
    deviations,  # [B, chunks, C]
    gamma_beta,  # [B, 2 C]
    out,  # [B, H W, C]
    pixels,  # H W
    chunks,
    epsilon,
    slope,
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """One chunk of one picture, for some of its channels."""
    batch = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    named = channel < CHANNELS

    mean = tl.zeros((BLOCK_CHANNELS,), dtype=tl.float32)
    deviation = tl.zeros((BLOCK_CHANNELS,), dtype=tl.float32)
    seen = 0.0  # pixels
    for chunk in range(chunks):
        place = (batch * chunks + chunk) * CHANNELS + channel
        count = tl.minimum(CHUNK, pixels - chunk * CHUNK) * 1.0
        difference = tl.load(means + place, mask=named, other=0.0) - mean
        mean += difference * (count / (seen + count))
        deviation += tl.load(deviations + place, mask=named, other=0.0)
        deviation += difference * difference * (seen * count / (seen + count))
        seen += count
    scale = tl.rsqrt(deviation / pixels + epsilon)

    gamma = tl.load(gamma_beta + batch * 2 * CHANNELS + channel, mask=named, other=0.0).to(tl.float32)
    beta = tl.load(gamma_beta + (batch * 2 + 1) * CHANNELS + channel, mask=named, other=0.0).to(tl.float32)
    pixel = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    exists = (pixel < pixels)[:, None] & named[None, :]
    x += batch * pixels * CHANNELS
    place = pixel[:, None] * CHANNELS + channel[None, :]
    value = tl.load(x + place, mask=exists, other=0.0).to(tl.float32)
    first = tl.load(x + channel, mask=named, other=0.0).to(tl.float32)
    y = (value - first[None, :] - mean[None, :]) * (scale * (1.0 + gamma))[None, :] + beta[None, :]
    y = tl.where(y < 0, y * slope, y)
    if out.dtype.element_ty == tl.float16:
        y = tl.clamp(y, -65504.0, 65504.0)
    tl.store(out + batch * pixels * CHANNELS + place, y.to(out.dtype.element_ty), mask=exists)
