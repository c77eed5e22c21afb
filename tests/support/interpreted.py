"""Kernels in Triton's interpreter: launched with tiles of a test's choice, into memory that is watched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from styleinv.kernels import launch
from styleinv.kernels.tiles import Tile, fitted, tile_for

MARGIN = 4096  # bytes before and behind a result


@contextmanager
def watched(tile: Tile | None = None) -> Iterator[None]:
    """What a launch allocates is NaN, or 255 in bytes, until it is written, and so is what lies beside it, which must
    stay so. With a tile, that one is used in place of the tables', fitted to the layer as theirs are."""
    buffers: list[Tensor] = []
    new_empty = Tensor.new_empty

    def poisoned(like: Tensor, *size: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        if device is not None:  # the interpreter's own
            return new_empty(like, *size, dtype=dtype or like.dtype, device=device)
        dtype, shape = dtype or like.dtype, torch.Size(size[0] if isinstance(size[0], tuple) else size)
        buffer = torch.full((shape.numel() * dtype.itemsize + 2 * MARGIN,), 255, dtype=torch.uint8)
        buffers.append(buffer)
        return buffer[MARGIN:-MARGIN].view(dtype).view(shape)

    def forced(operator: str, dtype: torch.dtype, layer: tuple[int, int, int, int], device: str) -> Tile:
        return tile_for(operator, dtype, layer, device) if tile is None else fitted(tile, operator, layer)

    with (
        mock.patch.object(Tensor, "new_empty", poisoned),
        mock.patch.object(torch, "empty_like", lambda like: poisoned(like, *like.shape)),
        mock.patch.object(launch, "tile_for", forced),
    ):
        yield
    assert buffers, "nothing was allocated"
    for buffer in buffers:
        beside = torch.cat([buffer[:MARGIN], buffer[-MARGIN:]])
        assert (beside == 255).all(), f"a result of {buffer.numel() - 2 * MARGIN} bytes: written beside it"
