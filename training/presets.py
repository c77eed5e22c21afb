"""Named configurations, from a laptop's to the paper's.

`tiny64` learns in minutes on a CPU, `sky64`, that of the sample, in hours; `small128` is for one consumer GPU;
`paper256` and `paper1024` have the settings of the authors' presets of the same sizes (paper section 4).
"""

from __future__ import annotations

import dataclasses

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
    TransferStageConfig,
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
        images=200_000,
        batch=16,  # on two cores a picture costs a third of what it does in a batch of 4
        learning_rate=4e-3,
        r1_gamma=3.0,
        path_length_interval=0,
        style_mixing=0.0,
        ema_images=5_000,
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
    transfer=TransferStageConfig(images=10_000, batch=4, r1_gamma=10.0, r1_interval=4, ema_images=300, ema_rampup=0.0),
    snapshot_images=2_000,
)
SKY64 = dataclasses.replace(
    TINY64,
    preset="sky64",
    model=dataclasses.replace(
        TINY64.model,
        generator=dataclasses.replace(
            TINY64.model.generator, z_dim=4, mapping_layers=3, mapping_lr_multiplier=0.3, channel_base=2048
        ),
        motion=dataclasses.replace(TINY64.model.motion, max_period=256.0),
    ),
    discriminator=dataclasses.replace(
        TINY64.discriminator, channel_base=2048, clip_channel_base=2048, sees_texture=True
    ),
    image=ImageStageConfig(
        images=250_000,
        batch=16,
        learning_rate=4e-3,
        r1_gamma=0.1,
        path_length_interval=0,
        style_mixing=0.0,
        ema_images=5_000,
        noise="const",
        pair_weight=10.0,
        pair_interval=2_368,  # twice all frames
        pair_images=80_000,
        initial_contrast=0.3,
    ),
    inversion=InversionStageConfig(images=40_000, batch=16, learning_rate=1e-3, ema_images=1_000),
    motion=dataclasses.replace(
        TINY64.motion,
        images=40_000,
        batch=8,
        head_start=800,
        initial_motion=4.0,
        first_frame_weight=30.0,
        r1_gamma=1.0,
        ema_images=1_000,
        ema_rampup=0.05,
    ),
    transfer=TransferStageConfig(images=40_000, batch=16, ema_images=1_000),
    snapshot_images=8_000,
)
SMALL128 = Config(
    preset="small128",
    model=ModelConfig(
        generator=GeneratorConfig(
            resolution=128, z_dim=256, w_dim=256, mapping_layers=4, channel_base=8192, channel_max=256
        ),
        encoder=EncoderConfig(widths=(32, 64, 128, 256), depths=(2, 3, 6, 2)),
        motion=MotionConfig(
            noise_dim=128, code_dim=256, anchor_distance=64, frequencies=128, min_period=16.0, max_period=512.0
        ),
    ),
    discriminator=DiscriminatorConfig(
        channel_base=8192, channel_max=256, group_size=8, clip_channel_base=8192, time_dim=128
    ),
    image=ImageStageConfig(images=5_000_000, batch=32, r1_gamma=0.5, ema_images=10_000),
    inversion=InversionStageConfig(images=500_000, batch=16, ema_images=5_000),
    motion=MotionStageConfig(images=1_000_000, clip_length=64, max_span=64, ema_images=10_000),
    transfer=TransferStageConfig(images=300_000, batch=16, r1_gamma=0.5, ema_images=5_000),
)
PAPER256 = Config()
PAPER1024 = dataclasses.replace(
    PAPER256,
    preset="paper1024",
    model=dataclasses.replace(
        PAPER256.model,
        generator=dataclasses.replace(PAPER256.model.generator, resolution=1024, channel_base=32768),
    ),
    discriminator=dataclasses.replace(
        PAPER256.discriminator, channel_base=32768, clip_channel_base=32768, group_size=4
    ),
    image=dataclasses.replace(PAPER256.image, batch=32, learning_rate=2e-3, r1_gamma=2.0, ema_images=10_000),
)

PRESETS: dict[str, Config] = {config.preset: config for config in (TINY64, SKY64, SMALL128, PAPER256, PAPER1024)}


def preset(name: str) -> Config:
    """The preset of that name; ConfigError names those that exist."""
    if name not in PRESETS:
        raise ConfigError(f"preset: found {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
