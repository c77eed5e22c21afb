"""StyleInV: the picture generator, and the inversion encoder that says which latent comes next.

    w0  = mapping(z)                            once per clip
    x0  = synthesis(w0)
    v_t = motion(anchors' noise, t)             once per frame
    s_t = style(w0, v_t)
    w_t = w0 + encoder(x0, s_t)
    frame t = synthesis(w_t)

Frame t depends on z, the noise and t alone: frames can be computed in any order (paper section 3, figure 2).
Shapes: B batch, T frames, K anchors, Z size of z, W size of a latent, S size of a temporal style, R resolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from styleinv.training.config import Config, GeneratorConfig, ModelConfig
from styleinv.training.discriminator import ClipDiscriminator, ImageDiscriminator
from styleinv.training.encoder import Encoder
from styleinv.training.generator import Generator, MappingNetwork, SynthesisNetwork
from styleinv.training.layers import EqualizedLinear
from styleinv.training.motion import MotionNetwork, TemporalStyle


class StyleInV(nn.Module):
    """The whole model.

    `latent_average` is the base of the offsets where `input_residual` is off. Without an encoder (an ablation) the
    temporal style itself is the offset from w0. `recovery`, which takes the motion back out of a temporal style, serves
    training only and is there where `recovered_motion_dim` is above 0.
    """

    def __init__(
        self,
        generator: Generator,
        motion: MotionNetwork,
        style: TemporalStyle,
        encoder: Encoder | None,
        *,
        input_residual: bool = True,
        stores_latent_average: bool = False,
        recovered_motion_dim: int = 0,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.motion = motion
        self.style = style
        self.encoder = encoder
        self.input_residual = input_residual
        has_average = stores_latent_average or not input_residual
        average = torch.zeros_like(generator.mapping.latent_average) if has_average else None
        self.register_buffer("latent_average", average)
        if recovered_motion_dim:
            self.recovery = nn.Sequential(
                nn.Linear(style.style_dim, style.style_dim), nn.ReLU(), nn.Linear(style.style_dim, recovered_motion_dim)
            )

    latent_average: Tensor | None  # [W]

    def motion_gates(self) -> list[EqualizedLinear]:
        """The layers through which the temporal style moves the latents: the larger their weights, the more."""
        if self.encoder is None:
            last = self.style.layers[-1]
            assert isinstance(last, EqualizedLinear)
            return [last]
        return [layer for block in self.encoder.temporal_blocks() for layer in block.affines()]

    def content(self, x0: Tensor) -> tuple[Tensor, ...]:
        """What of the encoder does not depend on time: x0 [B, 3, R, R] -> features and prepared [B, C, h, w] each."""
        return () if self.encoder is None else self.encoder.content(x0)

    def latent(self, content: tuple[Tensor, ...], w0: Tensor, style: Tensor) -> Tensor:
        """The latent of one frame: content, w0 [B, W], temporal style [B, S] -> w_t [B, W]."""
        if self.encoder is None:
            return w0 + style
        features, prepared = content
        delta = self.encoder.offset(features, prepared, style)
        if self.input_residual:
            return w0 + delta
        assert self.latent_average is not None
        return self.latent_average + delta

    def latents(self, w0: Tensor, x0: Tensor, v: Tensor) -> Tensor:
        """Latents of several frames: w0 [B, W], x0 [B, 3, R, R], time codes [B, T, V] -> [B, T, W]."""
        frames = v.shape[1]
        content = tuple(part.repeat_interleave(frames, 0) for part in self.content(x0))
        w0 = w0.repeat_interleave(frames, 0)
        style = self.style(w0, v.flatten(0, 1).to(w0.dtype))
        return self.latent(content, w0, style).unflatten(0, (-1, frames))

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
        config.z_dim,
        config.w_dim,
        config.label_dim,
        config.mapping_layers,
        config.mapping_lr_multiplier,
        config.mapping_dim,
        config.label_embedding_dim,
    )
    synthesis = SynthesisNetwork(
        config.resolution, config.w_dim, config.channel_base, config.channel_max, config.use_noise, config.conv_clamp
    )
    return Generator(mapping, synthesis)


def build_inversion(config: ModelConfig) -> InversionModel:
    settings, w_dim = config.encoder, config.generator.w_dim
    encoder = Encoder(w_dim, settings.widths, settings.depths, lr_multiplier=settings.lr_multiplier)
    return InversionModel(encoder, torch.zeros(w_dim))


def build_styleinv(config: ModelConfig) -> StyleInV:
    motion, w_dim = config.motion, config.generator.w_dim
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
            motion.first_frame_aware,
        ),
        TemporalStyle(
            w_dim,
            2 * motion.frequencies,
            motion.style_layers,
            motion.style_lr_multiplier,
            motion.style_sees_content,
            motion.style_dim,
        ),
        None if config.skip_encoder else _build_modulated_encoder(config),
        input_residual=config.input_residual,
        stores_latent_average=config.stores_latent_average,
        recovered_motion_dim=config.recovered_motion_dim,
    )


def _build_modulated_encoder(config: ModelConfig) -> Encoder:
    encoder = config.encoder
    return Encoder(
        config.generator.w_dim,
        encoder.widths,
        encoder.depths,
        temporal_blocks=encoder.temporal_blocks,
        modulation=encoder.modulation,
        style_dim=config.motion.style_dim,
        normalize_residual=encoder.normalize_residual,
        lr_multiplier=encoder.lr_multiplier,
        pca_components=encoder.pca_components,
        pca_scale=encoder.pca_scale,
    )


def build_image_discriminator(config: Config) -> ImageDiscriminator:
    settings = config.discriminator
    return ImageDiscriminator(
        config.model.generator.resolution,
        settings.channel_base,
        settings.channel_max,
        settings.group_size,
        settings.conv_clamp,
        settings.sees_texture,
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
