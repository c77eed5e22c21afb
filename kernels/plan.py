"""Which kernels draw one picture of a synthesis network, what they move and what they compute.

The plan follows from plain numbers; `styleinv.export.fused_synthesis` makes the very calls that stand here. Device
memory is counted as it must be moved at least: what a call reads once, what it writes once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from styleinv.kernels.style_layers import block_table
from styleinv.kernels.tiles import DEFAULT, Layer, fuses_rgb, upsampling_form

FLOAT32 = 4  # bytes
PICTURE = 3 * FLOAT32  # bytes of a pixel of the running picture


@dataclass(frozen=True)
class Network:
    """A synthesis network (see `styleinv.training.generator.SynthesisNetwork`) and how it computes."""

    resolution: int
    channel_base: int = 16384
    channel_max: int = 512
    w_dim: int = 512
    noise: bool = True
    clamps: bool = True
    dtype: torch.dtype = torch.float16

    def channels(self, resolution: int) -> int:
        """Of the block of this resolution."""
        return min(self.channel_base // resolution, self.channel_max)

    def resolutions(self) -> list[int]:
        """Of its blocks: 4, 8, ... in pixels."""
        return [2**level for level in range(2, self.resolution.bit_length())]

    def styled_layers(self) -> list[tuple[int, int]]:
        """Inputs and outputs of all layers that have a style, in order; outputs 0 where there is no demodulation."""
        layers = []
        for resolution in self.resolutions():
            channels = self.channels(resolution)
            if resolution > 4:
                layers.append((self.channels(resolution // 2), channels))
            layers += [(channels, channels), (channels, 0)]  # the last one is the picture's
        return layers


@dataclass(frozen=True)
class Call:
    """One call of an operator.

    Args:
        operator: its name in `ops`; 'transposed' and 'filter' are the two steps of an upsampling layer.
        layer: input channels, output channels, height and width of the picture that it reads.
        styled: whether it multiplies what it reads by a style.
        next_styled: whether it multiplies what it writes by the style of the layer that reads it.
        read, written: bytes at batch 1.
        flops: multiplications and additions at batch 1.
    """

    operator: str
    layer: Layer
    styled: bool = False
    next_styled: bool = False
    read: int = 0
    written: int = 0
    flops: int = 0

    @property
    def moved(self) -> int:
        return self.read + self.written

    @property
    def table(self) -> str:
        """The operator of `tiles.OPERATORS` whose tuning table holds for it."""
        return {"modulated_conv2d_frame": "modulated_conv2d_rgb", "to_rgb_skip_frame": "to_rgb_skip"}.get(
            self.operator, self.operator
        )


def fused_calls(network: Network, device: str = DEFAULT) -> list[Call]:
    """The calls that draw a picture with the fused operators, in order."""
    calls = [_styles(network)]
    styled, last = True, network.resolutions()[-1]  # the constant is not multiplied by a style before
    for resolution in network.resolutions():
        outputs = network.channels(resolution)
        if resolution > 4:
            calls += _upsampling(network, resolution, styled, device)
        layer = (outputs, outputs, resolution, resolution)
        fused, ends = fuses_rgb(network.dtype, layer, device), resolution == last
        name = "modulated_conv2d_frame" if fused and ends else "modulated_conv2d_rgb" if fused else "modulated_conv2d"
        calls.append(_convolution(network, name, layer, styled=resolution == 4, next_styled=fused and not ends))
        if not fused:
            calls.append(_to_rgb(network, "to_rgb_skip_frame" if ends else "to_rgb_skip", resolution))
        styled = not fused
    return calls


def unfused_calls(network: Network) -> list[Call]:
    """The same picture with one pass over memory for each elementwise operator, filter and product.

    Gains are folded into weights and noise is multiplied by its strength beforehand, as an exporter does.
    """
    calls = [_styles(network)]
    for resolution in network.resolutions():
        outputs = network.channels(resolution)
        if resolution > 4:
            inputs, half = network.channels(resolution // 2), resolution // 2
            calls.append(_pass(network, "times style", inputs, half, inputs * FLOAT32))
            calls.append(_transposed(network, (inputs, outputs, half, half)))
            calls.append(_filter(network, resolution, elementwise=False))
            calls += _activation(network, resolution)
        calls.append(_pass(network, "times style", outputs, resolution, outputs * FLOAT32))
        calls.append(_product(network, (outputs, outputs, resolution, resolution)))
        calls += _activation(network, resolution)
        calls += _unfused_picture(network, resolution)
    return [*calls, *_unfused_frame(network)]


def moved(calls: Iterable[Call]) -> int:
    """Bytes that the calls read and write at batch 1."""
    return sum(call.moved for call in calls)


def _styles(network: Network) -> Call:
    """All affines and coefficients, of weights in 16 bits where the network computes in 16 bits."""
    inputs, outputs = zip(*network.styled_layers(), strict=True)
    styles, coefficients = sum(inputs), sum(outputs)
    squares = sum(size * number for size, number in zip(inputs, outputs, strict=True))
    products = styles * network.w_dim + squares
    raw = styles * FLOAT32  # written by the first kernel, read by the second
    read = products * network.dtype.itemsize + (network.w_dim + styles + coefficients) * FLOAT32 + raw
    read += block_table(inputs, outputs).nbytes
    written = raw + (styles + coefficients) * FLOAT32
    return Call("style_demod", (network.w_dim, styles, 1, 1), read=read, written=written, flops=2 * products)


def _upsampling(network: Network, resolution: int, styled: bool, device: str) -> list[Call]:
    half = resolution // 2
    inputs, outputs = network.channels(half), network.channels(resolution)
    layer = (inputs, outputs, half, half)
    if upsampling_form(network.dtype, layer, device) == "polyphase":
        return [_convolution(network, "modulated_conv2d_up2", layer, styled, next_styled=True)]
    first = [_pass(network, "times style", inputs, half, inputs * FLOAT32)] if styled else []
    return [*first, _transposed(network, layer), _filter(network, resolution, elementwise=True)]


def _convolution(network: Network, operator: str, layer: Layer, styled: bool, next_styled: bool) -> Call:
    inputs, outputs, height, width = layer
    phases = 4 if operator == "modulated_conv2d_up2" else 1
    size, pixels = network.dtype.itemsize, height * width
    read = (pixels * inputs + phases * 9 * inputs * outputs) * size
    read += _epilogue(network, outputs, phases * pixels, next_styled) + styled * inputs * FLOAT32
    written = phases * pixels * outputs * size
    flops = 2 * 9 * phases * pixels * inputs * outputs
    if operator in ("modulated_conv2d_rgb", "modulated_conv2d_frame"):
        picture = _picture(outputs, height, frame=operator == "modulated_conv2d_frame")
        read, written, flops = read + picture.read, written + picture.written, flops + picture.flops
        if operator == "modulated_conv2d_frame":
            written -= pixels * outputs * size
    return Call(operator, layer, styled, next_styled, read, written, flops)


def _to_rgb(network: Network, operator: str, resolution: int) -> Call:
    channels, pixels = network.channels(resolution), resolution**2
    picture = _picture(channels, resolution, frame=operator == "to_rgb_skip_frame")
    read = pixels * channels * network.dtype.itemsize + picture.read
    return Call(operator, (channels, 3, resolution, resolution), True, False, read, picture.written, picture.flops)


def _picture(channels: int, resolution: int, frame: bool) -> Call:
    """What adding a contribution to the running picture moves, the activations aside."""
    pixels = resolution**2
    previous = pixels // 4 * PICTURE if resolution > 4 else 0
    read = previous + (4 * channels + 3) * FLOAT32
    return Call("picture", (channels, 3, resolution, resolution), read=read,
                written=pixels * (PICTURE + 3 * frame), flops=2 * 3 * pixels * channels)  # fmt: skip


def _epilogue(network: Network, outputs: int, pixels: int, next_styled: bool) -> int:
    """Bytes read by what follows a product: coefficients, bias, noise, the next layer's style."""
    return (2 * outputs + network.noise * pixels + next_styled * outputs) * FLOAT32


def _transposed(network: Network, layer: Layer) -> Call:
    inputs, outputs, height, width = layer
    size = network.dtype.itemsize
    read = (height * width * inputs + 9 * inputs * outputs) * size
    written = (2 * height + 1) * (2 * width + 1) * outputs * size
    return Call("transposed", layer, read=read, written=written, flops=2 * 9 * height * width * inputs * outputs)


def _filter(network: Network, resolution: int, elementwise: bool) -> Call:
    outputs, size = network.channels(resolution), network.dtype.itemsize
    read = (resolution + 1) ** 2 * outputs * size
    read += _epilogue(network, outputs, resolution**2, next_styled=True) if elementwise else 0
    layer = (outputs, outputs, resolution // 2, resolution // 2)
    flops = 2 * 16 * resolution**2 * outputs
    return Call("filter", layer, False, elementwise, read, resolution**2 * outputs * size, flops)


def _product(network: Network, layer: Layer, kernel: int = 3) -> Call:
    inputs, outputs, height, width = layer
    size, taps = network.dtype.itemsize, kernel * kernel
    read = (height * width * inputs + taps * inputs * outputs) * size
    flops = 2 * taps * height * width * inputs * outputs
    return Call("product", layer, read=read, written=height * width * outputs * size, flops=flops)


def _pass(network: Network, name: str, channels: int, resolution: int, other: int = 0, size: int | None = None) -> Call:
    """One elementwise operator over a picture, of so many bytes a number, which reads `other` bytes beside it."""
    numbers, size = resolution**2 * channels, size or network.dtype.itemsize
    layer = (channels, channels, resolution, resolution)
    return Call(name, layer, read=numbers * size + other, written=numbers * size, flops=numbers)


def _activation(network: Network, resolution: int) -> list[Call]:
    outputs = network.channels(resolution)
    calls = [_pass(network, "times demodulation", outputs, resolution, outputs * FLOAT32)]
    if network.noise:
        calls.append(_pass(network, "plus noise", outputs, resolution, resolution**2 * FLOAT32))
    calls.append(_pass(network, "plus bias", outputs, resolution, outputs * FLOAT32))
    calls.append(_pass(network, "leaky ReLU", outputs, resolution))
    return calls + [_pass(network, "clamp", outputs, resolution)] * network.clamps


def _unfused_picture(network: Network, resolution: int) -> list[Call]:
    channels = network.channels(resolution)
    calls = [_pass(network, "times style", channels, resolution, channels * FLOAT32)]
    calls.append(_product(network, (channels, 3, resolution, resolution), kernel=1))
    calls.append(_pass(network, "plus bias", 3, resolution, 3 * FLOAT32))
    calls += [_pass(network, "clamp", 3, resolution)] * network.clamps
    if resolution > 4:
        pixels, layer = resolution**2, (3, 3, resolution // 2, resolution // 2)
        calls.append(Call("filter", layer, read=pixels // 4 * PICTURE, written=pixels * PICTURE, flops=24 * pixels))
        calls.append(_pass(network, "plus picture", 3, resolution, pixels * PICTURE, FLOAT32))
    return calls


def _unfused_frame(network: Network) -> list[Call]:
    """The picture as bytes: scale, shift, clamp, and a cast that also puts channels last."""
    pixels = network.resolution**2
    calls = [_pass(network, name, 3, network.resolution, 0, FLOAT32) for name in ("scale", "shift", "clamp")]
    layer = (3, 3, network.resolution, network.resolution)
    return [*calls, Call("cast", layer, read=pixels * PICTURE, written=pixels * 3, flops=0)]
