"""How graphs compute: in which dtype, and each convolution in which of its exact forms."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from styleinv.export.folding import FoldedConv2d
from styleinv.export.forms import ConvolutionForm, convolution_form, upsampling_form
from styleinv.export.upsampling import Form as UpsamplingForm
from styleinv.export.winograd import PairedWinogradConv2d

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# Graphs in fp16 and bf16 are for TensorRT and CUDA, where no form has been timed; TensorRT for RTX has no transposed
# convolution in bfloat16.
UNTIMED_UPSAMPLING: dict[str, UpsamplingForm] = {"fp16": "transposed", "bf16": "split"}


@dataclass(frozen=True)
class Arithmetic:
    """The dtype of what goes into convolutions; and, for a layer of so many input channels, output channels and pixels
    on a side, the form of an upsampling convolution and of a plain one of 3x3 taps."""

    dtype: torch.dtype
    upsampling: Callable[[int, int, int], UpsamplingForm]
    convolution: Callable[[int, int, int], ConvolutionForm]

    def pairs_rows(self, channels: int, size: int) -> bool:
        """Whether layers in a row, of so many channels and pixels on a side, have the rows of their pictures paired, as
        Winograd's form wants them."""
        return self.convolution(channels, channels, size) == "winograd"

    def conv2d(
        self, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, pairs_rows: bool = False
    ) -> nn.Module:
        """A convolution, weight [O, I, K, K] and bias [O]: [B, I, H, W] of the dtype -> float32 [B, O, H/s, W/s].

        One of 1x1 taps does not see which pixels are neighbours, so it takes paired rows, too.
        """
        if pairs_rows and stride == 1 and weight.shape[-1] == 3:
            return PairedWinogradConv2d(weight, bias)
        return FoldedConv2d(weight, bias, stride=stride, dtype=self.dtype)


def arithmetic_in(precision: str, target: str = "openvino") -> Arithmetic:
    """The arithmetic of graphs in this precision; those in fp32 are made fastest for the engine `target` on a CPU."""
    if precision == "fp32":
        return Arithmetic(
            torch.float32,
            functools.partial(upsampling_form, target),
            functools.partial(convolution_form, target),
        )
    return Arithmetic(DTYPES[precision], lambda *layer: UNTIMED_UPSAMPLING[precision], lambda *layer: "direct")


EXACT = arithmetic_in("fp32")
