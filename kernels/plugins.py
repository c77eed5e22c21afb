"""The fused operators as plugins of an inference engine: their names, what they take and give, what they launch.

A plugin has a fixed number of inputs, so an operator is one plugin for each choice of its optional operands, which its
name tells: `modulated_conv2d__style__bias`. Its inputs are those operands in the order of the kernel's parameters, its
attributes the operator's numbers, which a kernel is compiled with, as it is with the picture's size. Then the kernel's
parameters are the inputs and the outputs, in this order, and nothing else.

A plugin has no bytes as outputs: `modulated_conv2d_image` is `modulated_conv2d_frame` without the frame, and there is
no `to_rgb_skip_frame`. `filtered_layer` is the second step of `modulated_conv2d_up2` where that is two. A plugin
launches one kernel, so `adain_lrelu` and `style_demod` are none.

There is no engine's library here: `tensorrt_plugin.py` registers them with TensorRT.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from styleinv.kernels import launch
from styleinv.kernels.launches import Launch, recorded
from styleinv.kernels.operands import Epilogue, ToRgb
from styleinv.kernels.tiles import DEFAULT

NAMESPACE = "styleinv"
NO_CLAMP = math.inf  # attributes are numbers
SEPARATOR = "__"
CONVOLVES = ("x", "weight", "style", "demodulation", "noise", "bias", "next_style")
FILTERS = ("x", "demodulation", "noise", "bias", "next_style")
DRAWS = ("rgb_weight", "rgb_style", "rgb_bias", "previous")
ACTIVATES = ("noise_strength", "slope", "gain", "clamp")


@dataclass(frozen=True)
class Operator:
    """An operator: its operands and attributes, those that may be missing, and what it gives: out, image."""

    operands: tuple[str, ...]
    optional: tuple[str, ...]
    attributes: tuple[str, ...]
    outputs: tuple[str, ...]


OPERATORS = {
    "modulated_conv2d": Operator(CONVOLVES, CONVOLVES[2:], ACTIVATES, ("out",)),
    "modulated_conv2d_up2": Operator(CONVOLVES, CONVOLVES[2:], ACTIVATES, ("out",)),
    "modulated_conv2d_rgb": Operator(
        (*CONVOLVES, *DRAWS), (*CONVOLVES[2:], "previous"), (*ACTIVATES, "rgb_clamp"), ("out", "image")
    ),
    "modulated_conv2d_image": Operator(
        (*CONVOLVES[:-1], *DRAWS), (*CONVOLVES[2:-1], "previous"), (*ACTIVATES, "rgb_clamp"), ("image",)
    ),
    "filtered_layer": Operator(FILTERS, FILTERS[1:], ACTIVATES, ("out",)),
    "to_rgb_skip": Operator(("x", "weight", "style", "bias", "previous"), ("previous",), ("clamp",), ("image",)),
}


@dataclass(frozen=True)
class Plugin:
    """An operator with some of its optional operands."""

    operator: str
    inputs: tuple[str, ...]

    @classmethod
    def with_operands(cls, operator: str, operands: Sequence[str]) -> Plugin:
        """The plugin that takes these operands, in whatever order they are."""
        return cls(operator, tuple(name for name in OPERATORS[operator].operands if name in operands))

    @classmethod
    def named(cls, name: str) -> Plugin:
        """The plugin of this name. Raises ValueError where there is none."""
        operator, *optional = name.split(SEPARATOR)
        if operator in OPERATORS:
            known = OPERATORS[operator]
            plugin = cls.with_operands(operator, [*(set(known.operands) - set(known.optional)), *optional])
            if plugin.name == name:
                return plugin
        raise ValueError(f"plugin: found {name!r}, expected one of {', '.join(OPERATORS)}, with its optional operands")

    @property
    def name(self) -> str:
        optional = OPERATORS[self.operator].optional
        return SEPARATOR.join([self.operator, *(name for name in self.inputs if name in optional)])

    @property
    def attributes(self) -> tuple[str, ...]:
        return OPERATORS[self.operator].attributes

    @property
    def outputs(self) -> tuple[str, ...]:
        return OPERATORS[self.operator].outputs

    def output_shapes(self, inputs: Mapping[str, Sequence[Any]]) -> list[tuple[Any, ...]]:
        """Shapes of the outputs from those of the inputs by name, whose sizes may be symbolic."""
        batch, height, width, channels = inputs["x"]
        if self.operator == "filtered_layer":
            height, width = height - 1, width - 1
        elif self.operator == "modulated_conv2d_up2":
            height, width = height * 2, width * 2
        if self.operator.startswith("modulated"):
            channels = inputs["weight"][-4]
        shapes = {"out": (batch, height, width, channels), "image": (batch, 3, height, width)}
        return [shapes[name] for name in self.outputs]

    def launch(self, operands: Mapping[str, Tensor], attributes: Mapping[str, float], device: str = DEFAULT) -> Launch:
        """What it launches for operands of these shapes and dtypes, on the device 'meta', by the tuning tables of
        `device`."""
        numbers = {name: None if value == NO_CLAMP else value for name, value in attributes.items()}
        with recorded(device) as launches:
            _CALLS[self.operator]({**operands, **numbers})
        (made,) = launches
        named = zip(made.kernel.arg_names, made.operands, strict=False)
        return replace(made, operands=tuple(None if name == "frame" else operand for name, operand in named))


def _epilogue(given: Mapping[str, Any]) -> Epilogue:
    return Epilogue(**{field.name: given[field.name] for field in fields(Epilogue) if field.name in given})


def _rgb(given: Mapping[str, Any], prefix: str = "") -> ToRgb:
    named = {name: given[prefix + name] for name in ("weight", "style", "bias", "clamp")}
    return ToRgb(**named, previous=given.get("previous"))


def _layer(operator: Callable[..., object], given: Mapping[str, Any], *, draws: bool = False) -> None:
    rgb = [_rgb(given, "rgb_")] if draws else []
    operator(given["x"], given["weight"], *rgb, given.get("style"), _epilogue(given))


_CALLS: dict[str, Callable[[Mapping[str, Any]], object]] = {
    "modulated_conv2d": lambda given: _layer(launch.modulated_layer, given),
    "modulated_conv2d_up2": lambda given: _layer(launch.upsampling_layer, given),
    "modulated_conv2d_rgb": lambda given: _layer(launch.modulated_layer_to_rgb, given, draws=True),
    "modulated_conv2d_image": lambda given: _layer(launch.modulated_layer_to_frame, given, draws=True),
    "filtered_layer": lambda given: launch.filtered_layer(given["x"], _epilogue(given)),
    "to_rgb_skip": lambda given: launch.to_rgb_skip(given["x"], _rgb(given)),
}
