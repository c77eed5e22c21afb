"""StyleInV: the picture generator, and the inversion encoder that says which latent comes next.

    w0  = mapping(z)                            once per clip
    x0  = synthesis(w0)
    v_t = motion(anchors' noise, t)             once per frame
    s_t = style(w0, v_t)
    w_t = w0 + encoder(x0, s_t)
    frame t = synthesis(w_t)

Frame t depends on z, the noise and t alone: frames can be computed in any order (paper section 3, figure 2).
Shapes: B batch, T frames, K anchors, Z size of z, W size of a latent, R resolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from styleinv.training.config import Config, GeneratorConfig, ModelConfig
from styleinv.training.discriminator import ClipDiscriminator, ImageDiscriminator
from styleinv.training.encoder import Encoder
from styleinv.training.generator import Generator, MappingNetwork, SynthesisNetwork
from styleinv.training.motion import MotionNetwork, TemporalStyle


class StyleInV(nn.Module):
    """The whole model. `latent_average` is the base of the offsets where `input_residual` is off."""

    def __init__(
        self, generator: Generator, motion: MotionNetwork, style: TemporalStyle, encoder: Encoder, input_residual: bool
    ) -> None:
        super().__init__()
        self.generator = generator
        self.motion = motion
        self.style = style
        self.encoder = encoder
        self.input_residual = input_residual
        if not input_residual:
            self.register_buffer("latent_average", torch.zeros_like(generator.mapping.latent_average))

    latent_average: Tensor  # [W]

    def latent(self, features: Tensor, normalized: Tensor, w0: Tensor, v: Tensor) -> Tensor:
        """The latent of one frame: content [B, C, h, w] twice, w0 [B, W], time code v [B, V] -> w_t [B, W]."""
        delta = self.encoder.offset(features, normalized, self.style(w0, v))
        return (w0 if self.input_residual else self.latent_average) + delta

    def latents(self, w0: Tensor, x0: Tensor, v: Tensor) -> Tensor:
        """Latents of several frames: w0 [B, W], x0 [B, 3, R, R], time codes [B, T, V] -> [B, T, W]."""
        frames = v.shape[1]
        features, normalized = self.encoder.content(x0)
        flat = self.latent(
            features.repeat_interleave(frames, 0),
            normalized.repeat_interleave(frames, 0),
            w0.repeat_interleave(frames, 0),
            v.flatten(0, 1).to(w0.dtype),
        )
        return flat.unflatten(0, (-1, frames))

    def forward(
        self,
        z: Tensor,
        motion_noise: Tensor,
        t: Tensor,
        truncation: float = 1.0,
        noise: str = "const",
        label: Tensor | None = None,
    ) -> Tensor:
        """z [B, Z], anchors' noise [B, K, Z], frame indices [B, T] float64 -> frames [B, T, 3, R, R]."""
        w0 = self.generator.mapping(z, truncation, label)
        x0 = self.generator.synthesis(w0, noise)
        w = self.latents(w0, x0, self.motion(motion_noise, t))
        frames: Tensor = self.generator.synthesis(w.flatten(0, 1), noise)
        return frames.unflatten(0, (-1, t.shape[1]))


class InversionModel(nn.Module):
    """The pSp encoder: picture [B, 3, R, R] -> latent [B, W], as an offset from the average latent."""

    def __init__(self, encoder: Encoder, latent_average: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("latent_average", latent_average.clone())

    latent_average: Tensor  # [W]

    def forward(self, image: Tensor) -> Tensor:
        return self.latent_average + self.encoder(image)


def build_generator(config: GeneratorConfig) -> Generator:
    mapping = MappingNetwork(
        config.z_dim, config.w_dim, config.label_dim, config.mapping_layers, config.mapping_lr_multiplier
    )
    synthesis = SynthesisNetwork(
        config.resolution, config.w_dim, config.channel_base, config.channel_max, config.use_noise, config.conv_clamp
    )
    return Generator(mapping, synthesis)


def build_inversion(config: ModelConfig) -> InversionModel:
    encoder = Encoder(config.generator.w_dim, config.encoder.widths, config.encoder.depths, temporal_blocks=None)
    return InversionModel(encoder, torch.zeros(config.generator.w_dim))


def build_styleinv(config: ModelConfig) -> StyleInV:
    motion, encoder, w_dim = config.motion, config.encoder, config.generator.w_dim
    return StyleInV(
        build_generator(config.generator),
        MotionNetwork(
            motion.noise_dim,
            motion.code_dim,
            motion.anchor_distance,
            motion.kernel_size,
            motion.lr_multiplier,
            motion.frequencies,
            motion.min_period,
            motion.max_period,
        ),
        TemporalStyle(
            w_dim, 2 * motion.frequencies, motion.style_layers, motion.style_lr_multiplier, motion.style_sees_content
        ),
        Encoder(
            w_dim,
            encoder.widths,
            encoder.depths,
            encoder.temporal_blocks,
            encoder.normalize_residual,
            encoder.pca_components,
            encoder.pca_scale,
        ),
        config.input_residual,
    )


def build_image_discriminator(config: Config) -> ImageDiscriminator:
    settings = config.discriminator
    return ImageDiscriminator(
        config.model.generator.resolution,
        settings.channel_base,
        settings.channel_max,
        settings.group_size,
        settings.conv_clamp,
    )


def build_clip_discriminator(config: Config) -> ClipDiscriminator:
    settings = config.discriminator
    return ClipDiscriminator(
        config.model.generator.resolution,
        settings.clip_channel_base,
        settings.channel_max,
        settings.join_resolution,
        config.motion.max_span,
        settings.time_dim,
        settings.group_size,
        settings.conv_clamp,
    )
