"""Which launch parameters are worth trying for a layer: products of a few sizes, less what no GPU has room for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import astuple

import torch

from styleinv.kernels.tiles import Layer, Tile, fitted

SHARED_BYTES = 99 * 1024  # that a block may have where nobody says more: compute capability 8.6, 8.9 and 12.0
NUMBERS_PER_THREAD = (2, 128)  # of a tile, in float32, in registers, of which a thread has 255
PIXELS = ((4, 4), (4, 8), (8, 8), (8, 16), (16, 16))  # rows and columns
PRODUCTS = {torch.float32: ("ieee", "tf32x3")}  # tf32 alone is not float32


def candidates(
    operator: str, dtype: torch.dtype, layer: Layer, first: Tile, shared_bytes: int = SHARED_BYTES
) -> list[Tile]:
    """Tiles that fit the layer, each once: `first`, then the others, those that differ in less from it before.

    shared_bytes: what one block may have of shared memory.
    """
    first = fitted(first, operator, layer)
    tiles = {fitted(tile, operator, layer) for tile in _product(operator, dtype)} - {first}
    roomy = [tile for tile in tiles if _has_room(tile, operator, dtype, shared_bytes)]
    return [first, *sorted(roomy, key=lambda tile: (_differences(tile, first), astuple(tile)))]


def _product(operator: str, dtype: torch.dtype) -> Iterator[Tile]:
    if operator == "adain_lrelu":
        for pixels, outputs, warps in itertools.product((32, 64, 128, 256, 512), (8, 16, 32, 64), (2, 4, 8)):
            yield Tile(1, pixels, 1, outputs, warps, 1)
    elif operator == "filter":
        for (rows, columns), outputs, warps in itertools.product(PIXELS, (16, 32, 64, 128), (2, 4, 8)):
            yield Tile(rows, columns, 1, outputs, warps, 1)
    elif operator == "to_rgb_skip":
        for pixels, inputs, warps in itertools.product((16, 32, 64, 128, 256), (16, 32, 64, 128), (2, 4, 8)):
            yield Tile(1, pixels, inputs, 4, warps, 2)
    else:
        sizes = itertools.product(PIXELS, (32, 64, 128), (16, 32, 64, 128))
        runs = itertools.product((4, 8), (2, 3, 4), PRODUCTS.get(dtype, ("ieee",)))
        for ((rows, columns), inputs, outputs), (warps, stages, products) in itertools.product(sizes, runs):
            yield Tile(rows, columns, inputs, outputs, warps, stages, products)


def _has_room(tile: Tile, operator: str, dtype: torch.dtype, shared_bytes: int) -> bool:
    held = tile.pixels * (tile.inputs if operator == "to_rgb_skip" else tile.outputs)
    if not NUMBERS_PER_THREAD[0] <= held // (32 * tile.warps) <= NUMBERS_PER_THREAD[1]:
        return False
    loaded = tile.stages * (tile.pixels + tile.outputs) * tile.inputs * dtype.itemsize
    return not operator.startswith("modulated_conv2d") or loaded <= shared_bytes


def _differences(tile: Tile, other: Tile) -> int:
    return sum(one != another for one, another in zip(astuple(tile), astuple(other), strict=True))
