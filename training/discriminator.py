"""The discriminators: of single pictures (StyleGAN2's residual one), and of clips of four frames (StyleGAN-V's).

Shapes: B batch, T frames of a clip, C channels, R resolution, E size of the time embedding.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from styleinv.training.layers import EqualizedConv2d, EqualizedLinear, normalize_second_moment

CLIP_FRAMES = 4
INITIAL_SPREAD = 0.25  # of the time embedding, next to its constant part


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the second halving the size, beside a 1x1 shortcut. [B, I, R, R] -> [B, O, R/2, R/2]."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, clamp: float | None) -> None:
        super().__init__()
        gain = math.sqrt(0.5)
        self.conv0 = EqualizedConv2d(in_channels, hidden, 3, activate=True, clamp=clamp)
        self.conv1 = EqualizedConv2d(hidden, out_channels, 3, activate=True, downsample=True, gain=gain, clamp=clamp)
        self.skip = EqualizedConv2d(in_channels, out_channels, 1, bias=False, downsample=True, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.skip(x) + self.conv1(self.conv0(x))
        return out


class Judge(nn.Module):
    """The last block: minibatch standard deviation, a convolution, two linear layers. [B, C, 4, 4] -> [B, O]."""

    def __init__(self, channels: int, out_features: int, group_size: int, clamp: float | None) -> None:
        super().__init__()
        self.group_size = group_size
        self.conv = EqualizedConv2d(channels + 1, channels, 3, activate=True, clamp=clamp)
        self.hidden = EqualizedLinear(channels * 16, channels, activate=True)
        self.out = EqualizedLinear(channels, out_features)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(torch.cat([x, minibatch_deviation(x, self.group_size)], dim=1))
        logits: Tensor = self.out(self.hidden(x.flatten(1)))
        return logits


def minibatch_deviation(x: Tensor, group_size: int) -> Tensor:
    """How much the pictures of a group differ, as one more channel: [B, C, H, W] -> [B, 1, H, W].

    Groups are strided (0, n, 2n, ... with n = B / group), as in StyleGAN2.
    """
    batch, _, height, width = x.shape
    group = math.gcd(min(group_size, batch), batch)
    grouped = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(0, (group, -1))  # [group, n, C, H, W]
    variance = (grouped - grouped.mean(dim=0)).square().mean(dim=0)  # eight times as fast as `var` over this dimension
    deviation = (variance + 1e-8).sqrt().mean(dim=(1, 2, 3))  # [n]
    return deviation.to(x.dtype).repeat(group)[:, None, None, None].expand(-1, 1, height, width)


class ImageDiscriminator(nn.Module):
    """Is this picture real? [B, 3, R, R] -> logits [B].

    With `sees_texture` every block also has its say, the mean over all places of one number at each: a direct view of
    what surfaces look like, which a short training would have to find through all the blocks (after the patches of
    Isola et al. 2017, section 3.2.2).
    """

    def __init__(
        self,
        resolution: int,
        channel_base: int,
        channel_max: int,
        group_size: int,
        clamp: float | None,
        sees_texture: bool = False,
    ) -> None:
        super().__init__()
        channels = channel_plan(resolution, channel_base, channel_max)
        self.from_rgb = EqualizedConv2d(3, channels[0], 1, activate=True, clamp=clamp)
        self.blocks = nn.ModuleList(
            ResidualBlock(before, before, after, clamp) for before, after in itertools.pairwise(channels)
        )
        self.judge = Judge(channels[-1], 1, group_size, clamp)
        self.textures = nn.ModuleList(EqualizedConv2d(width, 1, 1) for width in channels[1:] if sees_texture)

    def features(self, image: Tensor) -> list[Tensor]:
        """What each residual block makes of the picture: a perceptual space where no other is at hand."""
        x = self.from_rgb(image)
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def forward(self, image: Tensor) -> Tensor:
        maps = self.features(image)
        logits: Tensor = self.judge(maps[-1])[:, 0]
        for texture, x in zip(self.textures, maps, strict=False):  # none where it does not see them
            logits = logits + texture(x).mean(dim=(1, 2, 3))
        return logits


class TimeDifferences(nn.Module):
    """Embeds the distances between a clip's frames: Fourier features and a learned vector, then two layers.

    times [B, T] in frames -> [B, E].
    """

    def __init__(self, max_span: int, time_dim: int, out_features: int) -> None:
        super().__init__()
        periods = torch.logspace(1, math.log2(max(4 * max_span, 4)), time_dim // 2, base=2.0)
        self.register_buffer("frequencies", 2 * math.pi / periods)
        self.learned = nn.Embedding(max_span + 1, time_dim)
        hidden = EqualizedLinear((CLIP_FRAMES - 1) * 2 * time_dim, out_features, lr_multiplier=0.01, activate=True)
        last = EqualizedLinear(out_features, out_features, bias=1.0, lr_multiplier=0.01, activate=True)
        # At first all times look much alike, so that clips are judged before times are told apart.
        with torch.no_grad():
            last.weight.mul_(INITIAL_SPREAD)
        self.layers = nn.Sequential(hidden, last)

    frequencies: Tensor

    def forward(self, times: Tensor) -> Tensor:
        distance = times.diff(dim=1).to(self.frequencies.dtype)  # [B, T-1]
        angle = distance[..., None] * self.frequencies
        learned = self.learned(distance.round().long().clamp(0, self.learned.num_embeddings - 1))
        x = torch.cat([angle.sin(), angle.cos(), learned], dim=-1).flatten(1)
        embedding: Tensor = self.layers(normalize_second_moment(x))
        return normalize_second_moment(embedding)


class ClipDiscriminator(nn.Module):
    """Is this clip of four frames real, given the times between them? [B, 4, 3, R, R], [B, 4] -> logits [B].

    Each frame is seen alone down to `join_resolution`; there the frames' channels, halved first, are put side by
    side, and the rest sees the clip as one picture (StyleGAN-V section 3.3).
    """

    def __init__(
        self,
        resolution: int,
        channel_base: int,
        channel_max: int,
        join_resolution: int,
        max_span: int,
        time_dim: int,
        group_size: int,
        clamp: float | None,
    ) -> None:
        super().__init__()
        channels = channel_plan(resolution, channel_base, channel_max)
        alone = (resolution // join_resolution).bit_length() - 1  # blocks that see one frame
        self.from_rgb = EqualizedConv2d(3, channels[0], 1, activate=True, clamp=clamp)
        outputs = [*channels[1:alone], channels[alone] // 2] if alone else []
        self.frame_blocks = nn.ModuleList(
            ResidualBlock(before, before, after, clamp) for before, after in zip(channels, outputs, strict=False)
        )
        joined = CLIP_FRAMES * (outputs[-1] if outputs else channels[0])
        inputs = [joined, *channels[alone + 1 : -1]]
        self.clip_blocks = nn.ModuleList(
            ResidualBlock(before, hidden, after, clamp)
            for before, hidden, after in zip(inputs, channels[alone:], channels[alone + 1 :], strict=False)
        )
        embedding_dim = channels[-1]
        self.judge = Judge(channels[-1], embedding_dim, group_size, clamp)
        self.time_differences = TimeDifferences(max_span, time_dim, embedding_dim)

    def forward(self, clip: Tensor, times: Tensor) -> Tensor:
        x = self.from_rgb(clip.flatten(0, 1))
        for block in self.frame_blocks:
            x = block(x)
        x = x.unflatten(0, (-1, CLIP_FRAMES)).flatten(1, 2)  # [B, 4C, r, r]
        for block in self.clip_blocks:
            x = block(x)
        embedding = self.time_differences(times)
        return (self.judge(x) * embedding).sum(dim=1) / math.sqrt(embedding.shape[1])


def channel_plan(resolution: int, channel_base: int, channel_max: int) -> list[int]:
    """Channels at resolution R, R/2, ... 4."""
    levels = range(resolution.bit_length() - 1, 1, -1)
    return [min(channel_base // 2**level, channel_max) for level in levels]
