"""The 3x3 convolution with fewer multiplications: Winograd's F(2, 3) along columns of pixels (Lavin and Gray 2016).

Two neighbouring outputs of a 3-tap filter take 4 products instead of 6. With rows of a picture parted into even and odd
ones, all of it is whole rows added and subtracted, and four convolutions of 1x3 taps with constant weights:

    t0 = odd[i-1] - odd[i]    t1 = even[i] + odd[i]    t2 = odd[i] - even[i]    t3 = even[i] - even[i+1]
    m_k = conv(t_k; W_k)      W_0 = w_0, W_1 = (w_0 + w_1 + w_2) / 2, W_2 = (w_0 - w_1 + w_2) / 2, W_3 = w_2
    even[i] = m0 + m1 + m2    odd[i] = m1 - m2 - m3

Pictures are kept with their rows paired, [B, C, H, W] seen as [B, C, H/2, 2W]: even rows are then the left half. What
works on each pixel or on all of them alike does not see the difference, so a row of layers pairs rows once.

It is exact but for rounding. A CPU that is busy multiplying gains a quarter; where few channels or many pixels make it
wait for memory, it loses. So it is chosen layer by layer, by measurement (`forms.py`).

Shapes: B batch, I input channels, O output channels, H W height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from styleinv.export.folding import constant


class PairedWinogradConv2d(nn.Module):
    """conv(x; weight) + bias, padded by one pixel, of a picture whose rows are paired; weight [O, I, 3, 3], bias [O].

    [B, I, H/2, 2W] -> [B, O, H/2, 2W].
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        first, middle, last = weight.double().split(1, dim=2)  # [O, I, 1, 3]
        parts = (first, (first + middle + last) / 2, (first - middle + last) / 2, last)
        self.weights = nn.ParameterList(constant(part) for part in parts)
        self.bias = None if bias is None else constant(bias)

    def forward(self, x: Tensor) -> Tensor:
        even, odd = x.chunk(2, dim=3)  # [B, I, H/2, W]
        above, below = F.pad(odd, (0, 0, 1, -1)), F.pad(even, (0, 0, -1, 1))  # odd[i-1], even[i+1]; zero outside
        parts = (above - odd, even + odd, odd - even, even - below)
        biases = (None, self.bias, None, None)  # the second part is in both sums
        m0, m1, m2, m3 = (
            F.conv2d(part, weight, bias, padding=(0, 1))
            for part, weight, bias in zip(parts, self.weights, biases, strict=True)
        )
        return torch.cat([m0 + m1 + m2, m1 - m2 - m3], dim=3)


class WinogradConv2d(PairedWinogradConv2d):
    """The same of a picture as it is: [B, I, H, W] -> [B, O, H, W], H even."""

    def forward(self, x: Tensor) -> Tensor:
        return unpaired(super().forward(paired(x)))


def paired(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, H/2, 2W]: the same numbers in the same order."""
    _, channels, height, width = x.shape
    return x.reshape(-1, channels, height // 2, 2 * width)


def unpaired(x: Tensor) -> Tensor:
    """[B, C, H/2, 2W] -> [B, C, H, W]."""
    _, channels, height, width = x.shape
    return x.reshape(-1, channels, 2 * height, width // 2)
