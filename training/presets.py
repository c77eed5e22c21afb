"""Named configurations: `tiny64` for a laptop, `paper256` for the paper's model (section 4, 256x256)."""

from __future__ import annotations

from styleinv.runtime.errors import ConfigError
from styleinv.training.config import (
    AugmentConfig,
    Config,
    DiscriminatorConfig,
    EncoderConfig,
    GeneratorConfig,
    ImageStageConfig,
    InversionStageConfig,
    ModelConfig,
    MotionConfig,
    MotionStageConfig,
)

TINY64 = Config(
    preset="tiny64",
    model=ModelConfig(
        generator=GeneratorConfig(
            resolution=64,
            z_dim=64,
            w_dim=128,
            mapping_layers=2,
            channel_base=1024,
            channel_max=128,
            conv_clamp=None,
            fp16_resolutions=0,
        ),
        encoder=EncoderConfig(widths=(32, 64, 96, 128), depths=(1, 2, 3, 2)),
        motion=MotionConfig(
            noise_dim=64, code_dim=96, anchor_distance=16, frequencies=32, min_period=8.0, max_period=128.0
        ),
    ),
    discriminator=DiscriminatorConfig(
        channel_base=1024, channel_max=128, group_size=4, clip_channel_base=1024, time_dim=32, conv_clamp=None
    ),
    augment=AugmentConfig(speed_images=100_000),
    image=ImageStageConfig(
        images=100_000,
        batch=4,
        learning_rate=3.5e-3,
        r1_gamma=10.0,
        r1_interval=4,
        path_length_interval=0,
        style_mixing=0.0,
        ema_images=1000,
        ema_rampup=0.0,
        initial_contrast=0.1,
    ),
    inversion=InversionStageConfig(images=20_000, batch=16, learning_rate=1e-3, ema_images=300),
    motion=MotionStageConfig(
        images=20_000,
        batch=4,
        learning_rate=2e-4,
        discriminator_learning_rate=2e-3,
        clip_length=32,
        max_span=32,
        head_start=80,
        initial_motion=8.0,
        r1_gamma=5.0,
        r1_interval=8,
        ema_images=100,
        ema_rampup=0.0,
    ),
    snapshot_images=2_000,
)
PAPER256 = Config()

PRESETS: dict[str, Config] = {config.preset: config for config in (TINY64, PAPER256)}


def preset(name: str) -> Config:
    """The preset of that name; ConfigError names those that exist."""
    if name not in PRESETS:
        raise ConfigError(f"preset: found {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
