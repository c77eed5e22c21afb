"""The inversion encoder in its inference form, cut where time enters it (StyleInV section 3.2).

What does not depend on time, up to the first temporal block and its normalisation, is `content`, once per clip; the
rest is `offset`, once per frame. Batch normalisations are folded into the convolutions beside them, all temporal
blocks' affines are one product, and the PCA head is one matrix with the head in front of it.

Statistics, gates, styles and sums are computed in float32; what goes into a convolution, and from block to block, has
the encoder's dtype.

Shapes: B batch, C channels, H W height and width, W size of a latent, S size of a temporal style.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from styleinv.export.arithmetic import Arithmetic
from styleinv.export.folding import after_norm, before_norm, constant, stored, weight_and_bias
from styleinv.export.inference_synthesis import InferenceModulatedConv2d, Styles
from styleinv.export.winograd import paired, unpaired
from styleinv.kernels.reference import LEAKY_SLOPE, instance_normalize, modulate
from styleinv.training.encoder import Bottleneck, Encoder, ModulatedBlock, SqueezeExcitation, TemporalBlock
from styleinv.training.layers import EqualizedLinear


class FoldedBottleneck(nn.Module):
    """[B, I, H, W] -> [B, O, H/stride, W/stride], of `dtype`. Whether rows are paired is said for what comes in and for
    what goes out; both are the same where the stride is 1."""

    def __init__(self, unit: Bottleneck, arithmetic: Arithmetic, pairs_in: bool, pairs_out: bool) -> None:
        super().__init__()
        first_norm, first, activation, second, second_norm, excitation = unit.residual
        assert isinstance(first_norm, nn.BatchNorm2d) and isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.Conv2d) and isinstance(second_norm, nn.BatchNorm2d)
        assert isinstance(activation, nn.PReLU) and isinstance(excitation, SqueezeExcitation)
        self.stride = second.stride[0]
        weight, shift = after_norm(first_norm, first, arithmetic.dtype)
        self.shift = constant(shift[:, None, None])
        self.first = arithmetic.conv2d(weight, pairs_rows=pairs_in)
        self.slope = constant(activation.weight)
        weight, bias = before_norm(second, second_norm)
        self.second = arithmetic.conv2d(weight, bias, stride=self.stride, pairs_rows=pairs_out)
        self.squeeze = constant(excitation.squeeze.weight[:, :, 0, 0])
        self.excite = constant(excitation.excite.weight[:, :, 0, 0])
        self.shortcut: nn.Module | None = None
        if isinstance(unit.shortcut, nn.Sequential):
            conv, norm = unit.shortcut
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            self.shortcut = arithmetic.conv2d(*before_norm(conv, norm), stride=self.stride)
        self.unpairs, self.pairs = self.stride > 1 and pairs_in, self.stride > 1 and pairs_out
        self.dtype = arithmetic.dtype

    def forward(self, x: Tensor) -> Tensor:
        y = stored(F.prelu(self.first(stored(x + self.shift, self.dtype)), self.slope), self.dtype)
        if self.unpairs:  # every other row is asked for
            x, y = unpaired(x), unpaired(y)
        y = self.second(y)
        gate = F.linear(torch.relu(F.linear(y.mean(dim=(2, 3)), self.squeeze)), self.excite)
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        x = stored(y * torch.sigmoid(gate)[:, :, None, None] + x, self.dtype)
        return paired(x) if self.pairs else x


class InferenceTemporalBlock(nn.Module):
    """AdaIN, leaky ReLU, convolution, twice, around a shortcut: x [B, C, H, W] of `dtype` -> the same."""

    def __init__(self, block: TemporalBlock, arithmetic: Arithmetic, pairs_rows: bool) -> None:
        super().__init__()
        first, second = block.conv1, block.conv2
        assert first.bias is not None and second.bias is not None
        weight, bias = second.weight.double() * block.gain, second.bias.double() * block.gain
        self.conv1 = arithmetic.conv2d(first.weight.double(), first.bias.double(), pairs_rows=pairs_rows)
        self.conv2 = arithmetic.conv2d(weight, bias, pairs_rows=pairs_rows)
        self.gain, self.dtype = block.gain, arithmetic.dtype

    def prepare(self, x: Tensor) -> Tensor:
        """The normalisation, which does not see the style: float32 [B, C, H, W]."""
        return instance_normalize(x.float())

    def modulate(self, x: Tensor, prepared: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """`first` and `second` [B, 2C] are gamma and beta of the two AdaINs."""
        y = instance_normalize(self.conv1(self._adapted(prepared, first)))
        y = self.conv2(self._adapted(y, second))
        return stored(y + (x if self.gain == 1.0 else x.float() * self.gain), self.dtype)

    def _adapted(self, normalized: Tensor, gamma_beta: Tensor) -> Tensor:
        return stored(F.leaky_relu(modulate(normalized, gamma_beta), LEAKY_SLOPE), self.dtype)


class InferenceModulatedBlock(nn.Module):
    """Two modulated convolutions beside a 1x1 one: x [B, C, H, W] of `dtype` -> the same."""

    def __init__(self, block: ModulatedBlock, arithmetic: Arithmetic, pairs_rows: bool, size: int) -> None:
        super().__init__()
        self.skip = arithmetic.conv2d(block.skip.weight.double() * block.skip.weight_gain)
        self.conv1 = InferenceModulatedConv2d(block.conv1, "none", size, arithmetic, pairs_rows)
        self.conv2 = InferenceModulatedConv2d(block.conv2, "none", size, arithmetic, pairs_rows)
        self.dtype = arithmetic.dtype

    def prepare(self, x: Tensor) -> Tensor:
        """The 1x1 convolution, which does not see the style: float32 [B, C, H, W]."""
        return self.skip(x)

    def modulate(self, x: Tensor, prepared: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """`first` and `second` [B, C] are the styles of the two convolutions."""
        return stored(prepared + self.conv2(self.conv1(x, first), second), self.dtype)


class InferenceEncoder(nn.Module):
    """Built from the training form, which stays as it is. `resolution` is that of the pictures it will see, in pixels;
    `base` [W] is added to what the head gives."""

    def __init__(self, encoder: Encoder, resolution: int, arithmetic: Arithmetic, base: Tensor | None = None) -> None:
        super().__init__()
        conv, norm, activation = encoder.stem
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and isinstance(activation, nn.PReLU)
        self.stem = arithmetic.conv2d(*before_norm(conv, norm))
        self.stem_slope = constant(activation.weight)
        self.bottlenecks = nn.ModuleList()
        self.temporal = nn.ModuleDict()  # keyed by the index of the bottleneck that it follows
        affines: list[EqualizedLinear] = []
        size, pairs_rows = resolution, False  # those of the picture, and of what the stem makes of it
        for index, unit in enumerate(encoder.bottlenecks):
            assert isinstance(unit, Bottleneck)
            last = unit.residual[3]
            assert isinstance(last, nn.Conv2d)
            size = -(-size // last.stride[0])
            pairs_out = arithmetic.pairs_rows(last.out_channels, size) if last.stride[0] > 1 else pairs_rows
            self.bottlenecks.append(FoldedBottleneck(unit, arithmetic, pairs_rows, pairs_out))
            pairs_rows = pairs_out
            if str(index) in encoder.temporal:
                block = encoder.temporal[str(index)]
                assert isinstance(block, (TemporalBlock, ModulatedBlock))
                self.temporal[str(index)] = _inference_block(block, arithmetic, pairs_rows, size)
                affines += block.affines()
            if index == encoder.content_depth - 1:
                self.content_pairs_rows = pairs_rows
        self.styles = Styles(affines, [1.0] * len(affines)) if affines else None
        self.content_depth = encoder.content_depth
        self.head_weight, self.head_bias = _head(encoder, base)
        self.dtype = arithmetic.dtype

    def content(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image [B, 3, H, W] -> features at the first temporal block, and prepared for it: two float32 [B, C, h, w]."""
        x = self._stem(image)
        for bottleneck in self.bottlenecks[: self.content_depth]:
            x = bottleneck(x)
        prepared = self._temporal(self.content_depth - 1).prepare(x)
        return (unpaired(x).float(), unpaired(prepared)) if self.content_pairs_rows else (x.float(), prepared)

    def offset(self, features: Tensor, prepared: Tensor, style: Tensor) -> Tensor:
        """Content [B, C, h, w] twice, temporal style [B, S] -> base + delta [B, W]."""
        assert self.styles is not None
        styles = iter(self.styles(style))
        x = stored(features, self.dtype)
        if self.content_pairs_rows:
            x, prepared = paired(x), paired(prepared)
        x = self._temporal(self.content_depth - 1).modulate(x, prepared, next(styles), next(styles))
        for index in range(self.content_depth, len(self.bottlenecks)):
            x = self.bottlenecks[index](x)
            if str(index) in self.temporal:
                block = self._temporal(index)
                x = block.modulate(x, block.prepare(x), next(styles), next(styles))
        return self._head_of(x)

    def forward(self, image: Tensor) -> Tensor:
        """Without temporal blocks: image [B, 3, H, W] -> base + delta [B, W]."""
        x = self._stem(image)
        for bottleneck in self.bottlenecks:
            x = bottleneck(x)
        return self._head_of(x)

    def _temporal(self, index: int) -> InferenceTemporalBlock | InferenceModulatedBlock:
        """The temporal block behind this bottleneck."""
        block = self.temporal[str(index)]
        assert isinstance(block, (InferenceTemporalBlock, InferenceModulatedBlock))
        return block

    def _stem(self, image: Tensor) -> Tensor:
        return stored(F.prelu(self.stem(stored(image, self.dtype)), self.stem_slope), self.dtype)

    def _head_of(self, x: Tensor) -> Tensor:
        return F.linear(x.float().mean(dim=(2, 3)), self.head_weight, self.head_bias)


def _inference_block(
    block: TemporalBlock | ModulatedBlock, arithmetic: Arithmetic, pairs_rows: bool, size: int
) -> InferenceTemporalBlock | InferenceModulatedBlock:
    if isinstance(block, TemporalBlock):
        return InferenceTemporalBlock(block, arithmetic, pairs_rows)
    return InferenceModulatedBlock(block, arithmetic, pairs_rows, size)


def _head(encoder: Encoder, base: Tensor | None) -> tuple[nn.Parameter, nn.Parameter]:
    """The last layer, the PCA head behind it and the base, as one matrix [W, C] and one bias [W]."""
    weight, bias = weight_and_bias(encoder.head)
    if encoder.pca is not None:
        inwards = encoder.pca.weight.double()  # [C, components]
        outwards = encoder.pca.directions.double() * encoder.pca.scale  # [components, W]
        weight = (inwards @ outwards).t() @ weight
        bias = (bias @ inwards + encoder.pca.bias.double()) @ outwards
    return constant(weight), constant(bias if base is None else bias + base.double())
