"""How the styles and coefficients of many layers lie in one array each, and which program of a kernel makes which."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK_OUTPUTS = 8  # demodulation coefficients that one program makes


def block_table(inputs: Sequence[int], outputs: Sequence[int]) -> Tensor:
    """The work of `style.demodulation_kernel`, a row for each of its programs: int64 [blocks, 6].

    For layers of I inputs and O outputs, O being 0 where there is no demodulation. A row: where the layer's styles
    begin, I, where the block's squares begin, where its coefficients begin, how many there are, and 1 in the layer's
    first block, which writes its styles.
    """
    rows = []
    first_style = first_square = first_output = 0
    for size, number in zip(inputs, outputs, strict=True):
        for block in range(0, max(number, 1), BLOCK_OUTPUTS):
            count = min(BLOCK_OUTPUTS, number - block)
            rows.append([first_style, size, first_square + block * size, first_output + block, count, int(block == 0)])
        first_style += size
        first_square += size * number
        first_output += number
    return torch.tensor(rows, dtype=torch.int64)
