"""The upsampling convolution in three exact forms; `forms.py` says which of them a layer takes.

All of them are the stride-2 transposed convolution of a 3x3 weight, followed by the FIR filter outer([1,3,3,1]) / 16
(StyleGAN2-ADA's conv0). Seen as a polyphase filter, an output pixel (2i + a, 2j + b) depends on its phase (a, b).

    transposed   the transposed convolution as the engine has it (9 products per input pixel), then the filter
    split        the same as four small convolutions, of 4, 2, 2 and 1 taps, interleaved (9 products), then the filter
    polyphase    the filter folded into the weight: one 3x3 convolution with four times the outputs (36 products)

Shapes: B batch, I input channels, O output channels, H W height and width.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from styleinv.export.folding import constant
from styleinv.kernels import reference
from styleinv.kernels.reference import FIR_TAPS

Form = Literal["transposed", "split", "polyphase"]
FORMS: tuple[Form, ...] = get_args(Form)


class Transposed(nn.Module):
    """[B, I, H, W] -> [B, O, 2H, 2W]."""

    def __init__(self, weight: Tensor, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = constant(weight.transpose(0, 1), dtype)
        self.filter = constant(_filter(weight), dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv_transpose2d(x, self.weight, stride=2)  # [B, O, 2H+1, 2W+1]
        return F.conv2d(x, self.filter, padding=1, groups=x.shape[1])


class Split(nn.Module):
    """[B, I, H, W] -> [B, O, 2H, 2W].

    Even rows of the transposed convolution take taps 2 and 0 of two neighbouring rows, odd rows tap 1 of one; likewise
    columns. Each of the four convolutions is padded to [H+1, W+1], whose last odd row and column are the filter's own
    zero padding.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        even, odd = [2, 0], [1]
        self.even_even = constant(weight[:, :, even][:, :, :, even], dtype)
        self.even_odd = constant(weight[:, :, even][:, :, :, odd], dtype)
        self.odd_even = constant(weight[:, :, odd][:, :, :, even], dtype)
        self.odd_odd = constant(weight[:, :, odd][:, :, :, odd], dtype)
        self.filter = constant(_filter(weight), dtype)

    def forward(self, x: Tensor) -> Tensor:
        even = [F.conv2d(x, self.even_even, padding=1), F.conv2d(F.pad(x, (0, 1, 1, 1)), self.even_odd)]
        odd = [F.conv2d(F.pad(x, (1, 1, 0, 1)), self.odd_even), F.conv2d(F.pad(x, (0, 1, 0, 1)), self.odd_odd)]
        rows = [torch.stack(columns, dim=4).flatten(3) for columns in (even, odd)]  # [B, O, H+1, 2W+2]
        x = torch.stack(rows, dim=3).flatten(2, 3)  # [B, O, 2H+2, 2W+2]
        return F.conv2d(F.pad(x, (1, 0, 1, 0)), self.filter, groups=x.shape[1])


class Polyphase(nn.Module):
    """[B, I, H, W] -> [B, O, 2H, 2W]."""

    def __init__(self, weight: Tensor, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = constant(polyphase_weight(weight), dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(F.conv2d(x, self.weight, padding=1), 2)


MODULES: dict[Form, type[Transposed] | type[Split] | type[Polyphase]] = {
    "transposed": Transposed,
    "split": Split,
    "polyphase": Polyphase,
}


def polyphase_weight(weight: Tensor) -> Tensor:
    """The 3x3 weights of the four phases, with the filter folded in: [O, I, 3, 3] -> [4 O, I, 3, 3].

    Row 4 o + 2 a + b is that of output o, phase (a, b).
    """
    phases = reference.polyphase_weight(weight.double().permute(0, 2, 3, 1))  # [4, O, 3, 3, I]
    return phases.permute(1, 0, 4, 2, 3).flatten(0, 1)


def _filter(weight: Tensor) -> Tensor:
    """The FIR filter, once for each output: [O, 1, 4, 4]; its 16 taps add up to 4."""
    taps = torch.tensor(FIR_TAPS, dtype=torch.float64)
    fir = torch.outer(taps, taps) / taps.sum() ** 2 * 4.0
    return fir.repeat(weight.shape[0], 1, 1, 1)
