"""The inversion encoder: an IR-SE backbone, modulated over time by temporal blocks (StyleInV section 3.2).

Without temporal blocks it is the pSp encoder (picture -> latent) that initialises the modulated one.

Shapes: B batch, C channels, H W height and width, W size of a latent, S size of a temporal style.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from styleinv.kernels import reference
from styleinv.training.layers import EqualizedConv2d, EqualizedLinear, ModulatedConv2d

REDUCTION = 16  # of the squeeze-and-excitation


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from all channels' means (Hu et al. 2018). [B, C, H, W] -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // REDUCTION, 1, bias=False)
        self.excite = nn.Conv2d(channels // REDUCTION, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.excite(torch.relu(self.squeeze(x.mean(dim=(2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class Bottleneck(nn.Module):
    """One IR-SE residual unit. [B, I, H, W] -> [B, O, H/stride, W/stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.PReLU(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            SqueezeExcitation(out_channels),
        )
        self.shortcut: nn.Module
        if in_channels == out_channels:
            self.shortcut = nn.MaxPool2d(1, stride)
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.residual(x) + self.shortcut(x)
        return out


class TemporalBlock(nn.Module):
    """AdaIN, leaky ReLU, convolution, twice, around a shortcut: where the temporal style enters the encoder.

    The first AdaIN's normalisation does not depend on time, so it is computed once per clip (`prepare`).
    """

    def __init__(self, channels: int, style_dim: int, normalize_residual: bool, lr_multiplier: float = 1.0) -> None:
        super().__init__()
        self.affine1 = EqualizedLinear(style_dim, 2 * channels, lr_multiplier=lr_multiplier)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.affine2 = EqualizedLinear(style_dim, 2 * channels, lr_multiplier=lr_multiplier)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.gain = math.sqrt(0.5) if normalize_residual else 1.0

    def prepare(self, x: Tensor) -> Tensor:
        """The part that does not see the style. [B, C, H, W] -> same."""
        return reference.instance_normalize(x)

    def modulate(self, x: Tensor, prepared: Tensor, style: Tensor) -> Tensor:
        """x and prepare(x) [B, C, H, W], temporal style [B, S] -> [B, C, H, W]."""
        y = F.leaky_relu(reference.modulate(prepared, self.affine1(style)), reference.LEAKY_SLOPE)
        y = reference.instance_normalize(self.conv1(y))
        y = F.leaky_relu(reference.modulate(y, self.affine2(style)), reference.LEAKY_SLOPE)
        return (x + self.conv2(y)) * self.gain

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return self.modulate(x, self.prepare(x), style)

    def affines(self) -> list[EqualizedLinear]:
        """The layers that take in the style."""
        return [self.affine1, self.affine2]


class ModulatedBlock(nn.Module):
    """The other kind of temporal block: two modulated convolutions beside a 1x1 one, halves of the sum's variance each.

    The 1x1 convolution does not depend on time, so it is computed once per clip (`prepare`).
    """

    def __init__(self, channels: int, style_dim: int) -> None:
        super().__init__()
        self.skip = EqualizedConv2d(channels, channels, 1, bias=False, gain=math.sqrt(0.5))
        self.conv1 = ModulatedConv2d(channels, channels, style_dim)
        self.conv2 = ModulatedConv2d(channels, channels, style_dim, gain=math.sqrt(0.5))

    def prepare(self, x: Tensor) -> Tensor:
        """The part that does not see the style. [B, C, H, W] -> same."""
        skipped: Tensor = self.skip(x)
        return skipped

    def modulate(self, x: Tensor, prepared: Tensor, style: Tensor) -> Tensor:
        """x and prepare(x) [B, C, H, W], temporal style [B, S] -> [B, C, H, W]."""
        return prepared + self.conv2(self.conv1(x, style), style)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return self.modulate(x, self.prepare(x), style)

    def affines(self) -> list[EqualizedLinear]:
        """The layers that take in the style."""
        return [self.conv1.affine, self.conv2.affine]


class PcaHead(nn.Module):
    """Keeps a latent offset inside the principal directions of the generator's latents. [B, C] -> [B, W]."""

    def __init__(self, channels: int, w_dim: int, components: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, components) / math.sqrt(channels))
        self.bias = nn.Parameter(torch.zeros(components))
        self.register_buffer("directions", torch.randn(components, w_dim) / math.sqrt(components))
        self.scale = scale

    directions: Tensor  # [components, W]

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * ((x @ self.weight + self.bias) @ self.directions)


class Encoder(nn.Module):
    """Picture [B, 3, H, W] and, where it has temporal blocks, temporal style [B, S] -> latent offset [B, W].

    `temporal_blocks` says where temporal blocks stand: after each 'stage', after each 'bottleneck', or nowhere (None);
    `modulation` which kind they are: 'adain' or 'convolution'. S is W where `style_dim` is not given. A PCA head stands
    behind a head that keeps the encoder's own width.
    """

    def __init__(
        self,
        w_dim: int,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        *,
        temporal_blocks: str | None = None,
        modulation: str = "adain",
        style_dim: int | None = None,
        normalize_residual: bool = True,
        lr_multiplier: float = 1.0,
        pca_components: int = 0,
        pca_scale: float = 0.2,
    ) -> None:
        super().__init__()
        style_dim = style_dim or w_dim

        def temporal_block(channels: int) -> TemporalBlock | ModulatedBlock:
            if modulation == "convolution":
                return ModulatedBlock(channels, style_dim)
            return TemporalBlock(channels, style_dim, normalize_residual, lr_multiplier)

        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.PReLU(widths[0])
        )
        self.bottlenecks = nn.ModuleList()
        self.temporal = nn.ModuleDict()  # keyed by the index of the bottleneck that it follows
        channels = widths[0]
        for width, depth in zip(widths, depths, strict=True):
            for unit in range(depth):
                self.bottlenecks.append(Bottleneck(channels, width, stride=2 if unit == 0 else 1))
                channels = width
                if temporal_blocks == "bottleneck" or (temporal_blocks == "stage" and unit == depth - 1):
                    self.temporal[str(len(self.bottlenecks) - 1)] = temporal_block(width)
        self.head = EqualizedLinear(channels, channels if pca_components else w_dim, lr_multiplier=lr_multiplier)
        self.pca = PcaHead(channels, w_dim, pca_components, pca_scale) if pca_components else None
        self.content_depth = min((int(index) for index in self.temporal), default=len(self.bottlenecks) - 1) + 1

    def content(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What does not depend on time, once per clip: the features at the first temporal block, and prepared for it.

        image [B, 3, H, W] -> two [B, C, h, w].
        """
        x = self.stem(image)
        for bottleneck in self.bottlenecks[: self.content_depth]:
            x = bottleneck(x)
        return x, self._first_temporal.prepare(x)

    def offset(self, features: Tensor, prepared: Tensor, style: Tensor) -> Tensor:
        """What depends on time, once per frame: content [B, C, h, w] twice, temporal style [B, S] -> [B, W]."""
        x = self._first_temporal.modulate(features, prepared, style)
        for index, bottleneck in enumerate(self.bottlenecks[self.content_depth :], start=self.content_depth):
            x = bottleneck(x)
            if str(index) in self.temporal:
                x = self.temporal[str(index)](x, style)
        return self._offset_of(x)

    def forward(self, image: Tensor, style: Tensor | None = None) -> Tensor:
        if style is not None:
            return self.offset(*self.content(image), style)
        x = self.stem(image)
        for bottleneck in self.bottlenecks:
            x = bottleneck(x)
        return self._offset_of(x)

    def temporal_blocks(self) -> list[TemporalBlock | ModulatedBlock]:
        """Where the temporal style enters, in order."""
        return [block for block in self.temporal.values() if isinstance(block, (TemporalBlock, ModulatedBlock))]

    @property
    def _first_temporal(self) -> TemporalBlock | ModulatedBlock:
        return self.temporal_blocks()[0]

    def _offset_of(self, x: Tensor) -> Tensor:
        delta: Tensor = self.head(x.mean(dim=(2, 3)))
        return delta if self.pca is None else self.pca(delta)
