"""The picture generator: StyleGAN2 with the 'skip' architecture (Karras et al. 2020, section 4.1).

Shapes: B batch, Z size of z, W size of a latent w, C channels, R resolution in pixels, L latents per picture.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from styleinv.kernels import reference
from styleinv.training.layers import EqualizedLinear, ModulatedConv2d, normalize_second_moment


class MappingNetwork(nn.Module):
    """z [B, Z] (and a label [B, label_dim]) -> w [B, W], truncated towards the average latent.

    Hidden layers are `hidden_dim` wide and an embedded label has `label_embedding_dim` numbers; W where not given.
    """

    def __init__(
        self,
        z_dim: int,
        w_dim: int,
        label_dim: int = 0,
        num_layers: int = 8,
        lr_multiplier: float = 0.01,
        hidden_dim: int | None = None,
        label_embedding_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.z_dim, self.label_dim = z_dim, label_dim
        embedding_dim = (label_embedding_dim or w_dim) if label_dim else 0
        self.embed = EqualizedLinear(label_dim, embedding_dim) if label_dim else None
        widths = [z_dim + embedding_dim] + [hidden_dim or w_dim] * (num_layers - 1) + [w_dim]
        self.layers = nn.Sequential(
            *(
                EqualizedLinear(before, after, lr_multiplier=lr_multiplier, activate=True)
                for before, after in itertools.pairwise(widths)
            )
        )
        self.register_buffer("latent_average", torch.zeros(w_dim))

    latent_average: Tensor  # [W]

    def forward(self, z: Tensor, truncation: Tensor | float = 1.0, label: Tensor | None = None) -> Tensor:
        """`truncation` is psi: 1 keeps w, 0 gives the average latent; a number or [B]."""
        x = normalize_second_moment(z)
        if self.embed is not None:
            if label is None:
                raise ValueError("this generator is conditional: a label is needed")
            x = torch.cat([x, normalize_second_moment(self.embed(label))], dim=1)
        w: Tensor = self.layers(x)
        psi = truncation[:, None] if isinstance(truncation, Tensor) else truncation
        return self.latent_average + psi * (w - self.latent_average)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to three channels, without demodulation. [B, C, H, W] -> [B, 3, H, W]."""

    def __init__(self, in_channels: int, w_dim: int, clamp: float | None) -> None:
        super().__init__()
        self.affine = EqualizedLinear(w_dim, in_channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(3, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))
        self.weight_gain = 1 / math.sqrt(in_channels)
        self.clamp = clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.affine(w) * self.weight_gain
        rgb = reference.modulated_conv2d(x, self.weight, style, demodulate=False) + self.bias[:, None, None]
        return rgb if self.clamp is None else rgb.clamp(-self.clamp, self.clamp)


class SynthesisBlock(nn.Module):
    """One resolution: its convolutions, then its contribution to the picture."""

    def __init__(
        self, in_channels: int, channels: int, w_dim: int, resolution: int, use_noise: bool, clamp: float | None
    ) -> None:
        super().__init__()
        first = resolution == 4
        widths = [channels] if first else [in_channels, channels]
        self.convs = nn.ModuleList(
            ModulatedConv2d(
                width,
                channels,
                w_dim,
                upsample=not first and index == 0,
                noise_resolution=resolution if use_noise else None,
                clamp=clamp,
            )
            for index, width in enumerate(widths)
        )
        self.to_rgb = ToRGB(channels, w_dim, clamp)

    def forward(
        self, x: Tensor, image: Tensor | None, ws: Tensor, noise: str | Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """ws [B, convolutions + 1, W]: one latent for each convolution, and one for the picture."""
        for index, conv in enumerate(self.convs):
            x = conv(x, ws[:, index], noise if isinstance(noise, str) else noise[index])
        rgb = self.to_rgb(x, ws[:, len(self.convs)])
        return x, rgb if image is None else _add_to_picture(image, rgb)


class SynthesisNetwork(nn.Module):
    """Latents -> picture in about [-1, 1], [B, 3, R, R].

    A block of resolution r = 4, 8, ... R has min(channel_base / r, channel_max) channels. Each block's picture
    latent is the next block's first, so a picture takes L = 2 log2(R) - 2 latents.
    """

    def __init__(
        self,
        resolution: int,
        w_dim: int,
        channel_base: int,
        channel_max: int = 512,
        use_noise: bool = True,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        resolutions = [2**level for level in range(2, resolution.bit_length())]
        channels = [min(channel_base // r, channel_max) for r in resolutions]
        self.const = nn.Parameter(torch.randn(channels[0], 4, 4))
        self.blocks = nn.ModuleList(
            SynthesisBlock(before, after, w_dim, r, use_noise, conv_clamp)
            for before, after, r in zip([0, *channels], channels, resolutions, strict=False)
        )
        self.num_latents = 2 * len(resolutions)

    def picture_layers(self) -> list[ToRGB]:
        """The layers whose sum is the picture, from 4x4 up."""
        return [module for module in self.modules() if isinstance(module, ToRGB)]

    def draw_noise(self, seeds: Sequence[int]) -> str | list[Tensor]:
        """Fresh noise for every convolution, [B, 1, r, r] each, from one seed a picture; 'none' where there is none."""
        convs = [module for module in self.modules() if isinstance(module, ModulatedConv2d)]
        if not convs[0].use_noise:
            return "none"
        device = self.const.device
        draws = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        shapes = [(1, *conv.noise.shape) for conv in convs]
        return [torch.stack([torch.randn(shape, generator=each, device=device) for each in draws]) for shape in shapes]

    def forward(self, w: Tensor, noise: str | Sequence[Tensor] = "const") -> Tensor:
        """w [B, W] for all layers, or [B, L, W]; noise is 'const', 'none', or what `draw_noise` gave (training)."""
        ws = w[:, None].expand(-1, self.num_latents, -1) if w.ndim == 2 else w
        x = self.const.expand(ws.shape[0], -1, -1, -1)
        image: Tensor | None = None
        first = 0
        for index, block in enumerate(self.blocks):
            x, image = block(x, image, ws[:, first:], noise if isinstance(noise, str) else noise[first:])
            first += 1 if index == 0 else 2  # the block's convolutions
        assert image is not None
        return image


def _add_to_picture(image: Tensor, rgb: Tensor) -> Tensor:
    """A block's share on top of the picture of the blocks before. In mixed precision the sum stays in float32: its
    rounding would tell generated pictures from real ones."""
    if not torch.is_autocast_enabled(image.device.type):
        return reference.upsample2d(image) + rgb
    with torch.autocast(image.device.type, enabled=False):
        return reference.upsample2d(image.float()) + rgb.float()


class Generator(nn.Module):
    """Mapping and synthesis together: z [B, Z] -> picture [B, 3, R, R]."""

    def __init__(self, mapping: MappingNetwork, synthesis: SynthesisNetwork) -> None:
        super().__init__()
        self.mapping = mapping
        self.synthesis = synthesis

    def forward(self, z: Tensor, truncation: float = 1.0, noise: str = "const", label: Tensor | None = None) -> Tensor:
        image: Tensor = self.synthesis(self.mapping(z, truncation, label), noise)
        return image
