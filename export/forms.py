"""Which of several exact forms a convolution is exported in: the one that was fastest in the layer most like it.

forms.json holds, for each engine and kind of layer, the layers that were timed and the fastest form of each;
`form_times.py` writes it.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, Literal

from styleinv.export.upsampling import Form as UpsamplingForm

ConvolutionForm = Literal["direct", "winograd"]

TARGETS = ("openvino", "onnxruntime")  # engines that the forms were timed on
TABLE = Path(__file__).with_name("forms.json")


def upsampling_form(target: str, inputs: int, outputs: int, size: int) -> UpsamplingForm:
    """The fastest form of a layer that doubles pictures of size x size pixels, from `inputs` channels to `outputs`, on
    the engine `target`, one of `TARGETS`."""
    form: UpsamplingForm = _fastest(target, "upsampling", inputs, outputs, size)
    return form


def convolution_form(target: str, inputs: int, outputs: int, size: int) -> ConvolutionForm:
    """The same of a 3x3 convolution at size x size pixels; Winograd's takes an even number of rows."""
    if size % 2:
        return "direct"
    form: ConvolutionForm = _fastest(target, "convolution", inputs, outputs, size)
    return form


def _fastest(target: str, kind: str, *layer: int) -> Any:
    """The form of the timed layer nearest in input channels, output channels and size, by their ratios."""

    def distance(timed: list[Any]) -> float:
        return math.dist([math.log2(number) for number in timed[:3]], [math.log2(number) for number in layer])

    return min(_table()[target][kind], key=distance)[3]


@functools.cache
def _table() -> dict[str, dict[str, list[list[Any]]]]:
    """For each target and kind of layer: input channels, output channels, resolution, fastest form."""
    table: dict[str, dict[str, list[list[Any]]]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table
