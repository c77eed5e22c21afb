"""How the styles and coefficients of many layers lie in one array each, and which program of a kernel makes which."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK_OUTPUTS = 8  # demodulation coefficients that one program makes


def block_table(inputs: Sequence[int], outputs: Sequence[int]) -> Tensor:
    """The work of `style.demodulation_kernel`, a row for each of its programs: int64 [blocks, 6].

    For layers of I inputs and O outputs, O being 0 where there is no demodulation. A row: where the layer's styles
    begin, I, where its squares begin, where its coefficients begin, O, and which of its outputs is the block's first.
    """
    rows = []
    style = square = coefficient = 0
    for size, number in zip(inputs, outputs, strict=True):
        blocks = range(0, max(number, 1), BLOCK_OUTPUTS)
        rows += [[style, size, square, coefficient, number, first] for first in blocks]
        style, square, coefficient = style + size, square + size * number, coefficient + number
    return torch.tensor(rows, dtype=torch.int64)


def layers_of(flat: Tensor, batch: int, sizes: Sequence[int]) -> list[Tensor]:
    """What `ops.style_demod` gives, [B sum(sizes)], as the layers' own arrays [B, size], which share its memory."""
    parts = flat.split([batch * size for size in sizes])
    return [part.view(batch, size) for part, size in zip(parts, sizes, strict=True)]
