"""What a call of the plan launches: the very kernels, operands and constants, without a GPU and without memory.

`launch.py` is run on tensors that have shapes and no data, and each launch is written down instead of made. So what is
compiled ahead of time is what runs.

Shapes: I O input and output channels, H W height and width, S D numbers of all styles and coefficients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from styleinv.kernels import launch
from styleinv.kernels.operands import Epilogue, ToRgb
from styleinv.kernels.plan import Call, Network
from styleinv.kernels.style_layers import block_table
from styleinv.kernels.tiles import DEFAULT

CLAMP = 256.0
OPTIONS = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Launch:
    """One launch of a Triton kernel.

    Args:
        kernel: the JITFunction.
        grid: how many programs, in up to three directions.
        operands: what it takes by position; absent ones are None.
        constants: what it takes by name, its tile among them.
        options: how it runs: warps, stages.
    """

    kernel: Any
    grid: tuple[int, ...]
    operands: tuple[Any, ...]
    constants: dict[str, Any]
    options: dict[str, int]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)

    @property
    def moved(self) -> int:
        """Bytes of its operands, each of which it reads or writes once at least."""
        return sum(operand.nbytes for operand in self.operands if isinstance(operand, Tensor))


def launches_of(call: Call, network: Network, device: str = DEFAULT) -> list[Launch]:
    """The launches of one call at batch 1, by the tuning tables of a device. None where the call is a library's.

    Nothing may be launched in another thread at the same time.
    """
    if call.operator not in _OPERATORS:
        return []
    with recorded(device) as launches:
        _OPERATORS[call.operator](call, network)
    return launches


@contextmanager
def recorded(device: str = DEFAULT) -> Iterator[list[Launch]]:
    """What `launch.py` would launch meanwhile, by the tuning tables of a device; its tensors need no data."""
    launches: list[Launch] = []
    recorder = functools.partial(_Recorder, launches=launches)
    with mock.patch.multiple(launch, _kernel=recorder, device_name=lambda _: device):
        yield launches


@dataclass(frozen=True)
class _Recorder:
    """Stands for a kernel: recorder[grid](...) writes the launch down."""

    kernel: Any
    launches: list[Launch]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def record(*operands: Any, **named: Any) -> None:
            options = {name: value for name, value in named.items() if name in OPTIONS}
            constants = {name: value for name, value in named.items() if name not in OPTIONS}
            self.launches.append(Launch(self.kernel, grid, operands, constants, options))

        return record


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _epilogue(call: Call, network: Network, outputs: int, height: int, width: int) -> Epilogue:
    return Epilogue(
        demodulation=_empty(1, outputs),
        noise=_empty(height, width) if network.noise else None,
        bias=_empty(outputs),
        next_style=_empty(1, outputs) if call.next_styled else None,
        clamp=CLAMP if network.clamps else None,
    )


def _rgb(network: Network, channels: int, height: int, width: int) -> ToRgb:
    previous = _empty(1, 3, height // 2, width // 2) if height > network.resolutions()[0] else None
    clamp = CLAMP if network.clamps else None
    return ToRgb(_empty(3, channels), _empty(1, channels), _empty(3), previous, clamp)


def _layer(call: Call, network: Network) -> None:
    inputs, outputs, height, width = call.layer
    x = _empty(1, height, width, inputs, dtype=network.dtype)
    weight = _empty(outputs, 3, 3, inputs, dtype=network.dtype)
    style = _empty(1, inputs) if call.styled else None
    epilogue = _epilogue(call, network, outputs, height, width)
    if call.operator == "modulated_conv2d":
        launch.modulated_layer(x, weight, style, epilogue)
        return
    rgb = _rgb(network, outputs, height, width)
    frame = call.operator == "modulated_conv2d_frame"
    operator = launch.modulated_layer_to_frame if frame else launch.modulated_layer_to_rgb
    operator(x, weight, rgb, style, epilogue)


def _upsampling_layer(call: Call, network: Network) -> None:
    inputs, outputs, height, width = call.layer
    launch.upsampling_layer(
        _empty(1, height, width, inputs, dtype=network.dtype),
        _empty(4, outputs, 3, 3, inputs, dtype=network.dtype),
        _empty(1, inputs) if call.styled else None,
        _epilogue(call, network, outputs, 2 * height, 2 * width),
    )


def _filter(call: Call, network: Network) -> None:
    _, outputs, height, width = call.layer
    x = _empty(1, 2 * height + 1, 2 * width + 1, outputs, dtype=network.dtype)
    launch.filtered_layer(x, _epilogue(call, network, outputs, 2 * height, 2 * width))


def _to_rgb(call: Call, network: Network) -> None:
    channels, _, height, width = call.layer
    x = _empty(1, height, width, channels, dtype=network.dtype)
    operator = launch.to_rgb_skip_frame if call.operator == "to_rgb_skip_frame" else launch.to_rgb_skip
    operator(x, _rgb(network, channels, height, width))


def _adain(call: Call, network: Network) -> None:
    channels, _, height, width = call.layer
    launch.adain_lrelu(_empty(1, height, width, channels, dtype=network.dtype), _empty(1, 2 * channels))


def _styles(call: Call, network: Network) -> None:
    layers = network.styled_layers()
    inputs_of, outputs_of = [list(sizes) for sizes in zip(*layers, strict=True)]
    styles, coefficients = sum(inputs_of), sum(outputs_of)
    launch.style_demod(
        _empty(1, network.w_dim),
        _empty(styles, network.w_dim, dtype=network.dtype),
        _empty(styles),
        _empty(sum(inputs * outputs for inputs, outputs in layers), dtype=network.dtype),
        _empty(coefficients),
        block_table(inputs_of, outputs_of).to("meta"),
        max(inputs_of),
    )


_OPERATORS = {
    "modulated_conv2d": _layer,
    "modulated_conv2d_rgb": _layer,
    "modulated_conv2d_frame": _layer,
    "modulated_conv2d_up2": _upsampling_layer,
    "filter": _filter,
    "to_rgb_skip": _to_rgb,
    "to_rgb_skip_frame": _to_rgb,
    "adain_lrelu": _adain,
    "style_demod": _styles,
}
