"""Launch parameters of the kernels: how they are cut into programs, from tables that a GPU was tuned for.

A table is a JSON file, tuning/OPERATOR.DTYPE.DEVICE.json, whose entries are looked through in order: the first one
whose bounds hold for a layer is taken. `styleinv kernels tune` writes tables for the GPU at hand, an entry for each
layer it measured; everything else is in those of the device 'default', estimates that nobody measured. bfloat16 takes
the tables of float16 where it has none.

A layer is its input channels, output channels, height and width, of the picture that it reads.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from styleinv.kernels.reference import polyphase_weight

TABLES = Path(__file__).with_name("tuning")
DEFAULT = "default"  # the device whose tables hold where there are no others
OPERATORS = (
    "modulated_conv2d",
    "modulated_conv2d_rgb",  # and modulated_conv2d_frame
    "modulated_conv2d_up2",
    "filter",  # the second step of modulated_conv2d_up2 where that is two
    "to_rgb_skip",
    "adain_lrelu",
)

Layer = tuple[int, int, int, int]
Form = Literal["polyphase", "two_steps"]


@dataclass(frozen=True)
class Tile:
    """What one program computes, rows x columns pixels and so many output channels, how many input channels it takes at
    a time, and how it runs: warps, stages of its pipeline, and how float32 is multiplied (`tl.dot`'s input_precision).
    """

    rows: int
    columns: int
    inputs: int
    outputs: int
    warps: int
    stages: int
    products: str = "ieee"

    @property
    def pixels(self) -> int:
        return self.rows * self.columns


def device_name(device: torch.device) -> str:
    """What a device's tables are called: its name, with _ for what is no letter, digit or hyphen."""
    if device.type != "cuda":
        return DEFAULT
    name = torch.cuda.get_device_name(device)
    return "".join(letter if letter.isalnum() or letter == "-" else "_" for letter in name)


def tile_for(operator: str, dtype: torch.dtype, layer: Layer, device: str = DEFAULT) -> Tile:
    """The launch parameters of an operator for a layer, no larger than the layer is."""
    return fitted(Tile(**entry_for(operator, dtype, layer, device)["tile"]), operator, layer)


def entry_for(operator: str, dtype: torch.dtype, layer: Layer, device: str = DEFAULT) -> dict[str, Any]:
    """The entry of the tables for a layer. Raises KeyError where none holds, which the default tables rule out."""
    for folder in dict.fromkeys((device, DEFAULT)):
        for entry in table(folder, operator, dtype_name(dtype)):
            if _holds(entry, layer):
                return entry
    raise KeyError(f"tuning/{operator}.{dtype_name(dtype)}.{DEFAULT}.json: no entry for {layer}")


@functools.cache
def table(device: str, operator: str, dtype: str) -> tuple[dict[str, Any], ...]:
    """The entries of a table, none where there is no such file."""
    for name in (dtype, "float16") if dtype == "bfloat16" else (dtype,):
        file = TABLES / f"{operator}.{name}.{device}.json"
        if file.is_file():
            return tuple(json.loads(file.read_text())["entries"])
    return ()


def dtype_name(dtype: torch.dtype) -> str:
    """float16, bfloat16 or float32."""
    return str(dtype).removeprefix("torch.")


def fitted(tile: Tile, operator: str, layer: Layer) -> Tile:
    """A tile without parts that the layer has no pixels or channels for; products of matrices want 16 of each."""
    inputs, outputs, height, width = layer
    if operator == "adain_lrelu":  # its pixels lie in a row
        return Tile(1, min(tile.columns, _power(height * width)), 1, min(tile.outputs, _power(outputs)), *_runs(tile))
    if operator == "filter":
        height, width = 2 * height, 2 * width
    if operator == "to_rgb_skip":
        pixels = min(tile.columns, max(_power(height * width), 16))
        return Tile(1, pixels, min(tile.inputs, _power(inputs)), 4, *_runs(tile))
    columns = min(tile.columns, _power(width))
    rows = max(min(tile.rows, _power(height)), 16 // columns)
    most = outputs if operator == "modulated_conv2d_rgb" else min(tile.outputs, outputs)
    return Tile(rows, columns, max(min(tile.inputs, _power(inputs)), 16), max(_power(most), 16), *_runs(tile))


def upsampling_form(dtype: torch.dtype, layer: Layer, device: str = DEFAULT) -> Form:
    """Whether an upsampling layer is one kernel, 'polyphase', or 'two_steps'."""
    form: Form = entry_for("modulated_conv2d_up2", dtype, layer, device)["form"]
    return form


def upsampling_weight(weight: Tensor, height: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
    """The weight [O, 3, 3, I] of an upsampling layer, as `ops.modulated_conv2d_up2` wants it for pictures of this size:
    [4, O, 3, 3, I] where one kernel is faster on the weight's device, [I, 3, 3, O] where two steps are.

    It gets `dtype`, if one is given.
    """
    outputs, _, _, inputs = weight.shape
    dtype = dtype or weight.dtype
    form = upsampling_form(dtype, (inputs, outputs, height, width), device_name(weight.device))
    prepared = polyphase_weight(weight) if form == "polyphase" else weight.permute(3, 1, 2, 0)
    return prepared.to(dtype).contiguous()


def fuses_rgb(dtype: torch.dtype, layer: Layer, device: str = DEFAULT) -> bool:
    """Whether a layer's picture is made by the kernel of its convolution, a program of which then has all channels."""
    fuses: bool = entry_for("modulated_conv2d_rgb", dtype, layer, device)["fuse"]
    return fuses


def _holds(entry: dict[str, Any], layer: Layer) -> bool:
    inputs, outputs, height, width = layer
    sizes = {"inputs": inputs, "outputs": outputs, "height": height, "width": width, "pixels": height * width}
    bounds = {name: entry.get(name, [None, None]) for name in sizes}
    return all(
        (least is None or sizes[name] >= least) and (most is None or sizes[name] <= most)
        for name, (least, most) in bounds.items()
    )


def _power(size: int) -> int:
    """The least power of two that is not below a size."""
    return 1 << (size - 1).bit_length()


def _runs(tile: Tile) -> tuple[int, int, str]:
    return tile.warps, tile.stages, tile.products
