"""From the settings of the authors' networks to a configuration of ours; what we cannot compute is refused by name.

Settings that a file does not have take the defaults of the authors' constructors.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from styleinv.export.official_settings import Network, Settings
from styleinv.runtime.errors import CheckpointError
from styleinv.training.config import (
    Config,
    DiscriminatorConfig,
    EncoderConfig,
    GeneratorConfig,
    ModelConfig,
    MotionConfig,
    MotionStageConfig,
)

PRESET = "imported"
GENERATOR_ARGUMENTS = (
    "z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "mapping_kwargs", "synthesis_kwargs",
)  # fmt: skip
STYLEINV_ARGUMENTS = (
    "checkpoint", "mapping_opts", "encoder_opts", "input_residual", "clip_len", "fps", "mutual_recon", "skip_encoder",
)  # fmt: skip
ENCODER_ARGUMENTS = (
    "num_layers", "mode", "input_nc", "adain_mode", "style_dim", "normalize_adain", "lr_multiplier", "use_modulation",
)  # fmt: skip
BACKBONE_ARGUMENTS = ("num_layers", "mode", "opts")
DEPTHS = {50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 152: (3, 8, 36, 3)}  # bottlenecks of each stage, by layers
MOST_LAYERS = 64
ENCODER_WIDTH = 512  # of the last stage, and of the encoder's output
TEMPORAL_BLOCKS = {"block": "stage", "bottleneck": "bottleneck"}  # their adain_mode, our temporal_blocks
SHORTEST_CLIP = 4  # frames
JOIN_RESOLUTION = 16  # of the clips' discriminator


def generator_config(network: Network, where: str) -> GeneratorConfig:
    """The configuration of a `Generator` of StyleGAN2-ADA. CheckpointError where it is one that we cannot compute."""
    settings = network.settings(GENERATOR_ARGUMENTS, where)
    settings.only(*GENERATOR_ARGUMENTS)
    settings.require("img_channels", 3)
    mapping, synthesis = settings.group("mapping_kwargs"), settings.group("synthesis_kwargs")
    mapping.only("num_layers", "embed_features", "layer_features", "activation", "lr_multiplier", "w_avg_beta")
    mapping.require("activation", "lrelu", default="lrelu")
    synthesis.only(
        "channel_base", "channel_max", "num_fp16_res", "conv_clamp", "architecture", "resample_filter", "use_noise",
        "activation", "kernel_size", "fp16_channels_last",
    )  # fmt: skip
    synthesis.require("architecture", "skip", default="skip")
    synthesis.require("activation", "lrelu", default="lrelu")
    synthesis.require("kernel_size", 3, default=3)
    synthesis.require("resample_filter", [1, 3, 3, 1], default=[1, 3, 3, 1])
    w_dim = settings.whole("w_dim")
    label_dim = settings.whole("c_dim", minimum=0)
    return GeneratorConfig(
        resolution=_power_of_two(settings, "img_resolution"),
        z_dim=settings.whole("z_dim"),
        w_dim=w_dim,
        label_dim=label_dim,
        mapping_layers=mapping.whole("num_layers", 8, maximum=MOST_LAYERS),
        mapping_lr_multiplier=mapping.number("lr_multiplier", 0.01),
        mapping_dim=_unless(w_dim, mapping.whole("layer_features", w_dim)),
        label_embedding_dim=_unless(w_dim, mapping.whole("embed_features", w_dim)) if label_dim else None,
        channel_base=synthesis.whole("channel_base", 32768),
        channel_max=synthesis.whole("channel_max", 512),
        use_noise=synthesis.flag("use_noise", True),
        conv_clamp=synthesis.number("conv_clamp") if "conv_clamp" in synthesis.values else None,
        fp16_resolutions=synthesis.whole("num_fp16_res", 0, minimum=0),
    )


def image_config(network: Network, where: str) -> Config:
    """The configuration of an image model."""
    return _config(ModelConfig(generator=generator_config(network, where)))


def inversion_config(network: Network, generator: GeneratorConfig | None, where: str) -> Config:
    """The configuration of a `pSp` that inverts this generator, where the file has it."""
    options = network.settings(("opts", "rank"), where).group("opts")
    options.require("encoder_type", "BackboneEncoderUsingLastLayerIntoW", default="BackboneEncoderUsingLastLayerIntoW")
    options.require("start_from_latent_avg", True, default=True)
    options.require("learn_in_w", True, default=True)
    options.require("input_nc", 3, default=3)
    encoder = network.child("encoder", where).settings(BACKBONE_ARGUMENTS, f"{where}.encoder")
    if generator is None:
        resolution = _power_of_two(options, "output_size", 256)
        generator = GeneratorConfig(resolution=resolution, channel_base=max(16384, resolution))
    if generator.w_dim != ENCODER_WIDTH:
        raise CheckpointError(f"{where}: found latents of {ENCODER_WIDTH}, expected the generator's {generator.w_dim}")
    return _config(ModelConfig(generator=generator, encoder=EncoderConfig(depths=_depths(encoder))))


def styleinv_config(network: Network, generator: GeneratorConfig, where: str) -> Config:
    """The configuration of a `StyleInV` over this generator. CheckpointError where it is one we cannot compute."""
    settings = network.settings(STYLEINV_ARGUMENTS, where)
    settings.only(*STYLEINV_ARGUMENTS)
    mapping, options = settings.group("mapping_opts"), settings.group("encoder_opts")
    mapping.require("c_dim", 0, default=0)
    motion, style_dim = _motion_config(mapping, generator), mapping.whole("w_dim")
    skip_encoder, recovers = settings.flag("skip_encoder", False), settings.flag("mutual_recon", False)
    encoder = EncoderConfig()
    if not skip_encoder:
        encoder = _encoder_config(network.child("encoder", where), options, style_dim, f"{where}.encoder")
    if skip_encoder and _pca_components(options):
        raise options.group("pca").error("use_pca", "false, where skip_encoder leaves the encoder out")
    if not skip_encoder and not encoder.pca_components and generator.w_dim != ENCODER_WIDTH:
        raise mapping.error("content_dim", f"{ENCODER_WIDTH}, which is what the encoder gives without a PCA head")
    model = ModelConfig(
        generator=generator,
        encoder=encoder,
        motion=dataclasses.replace(motion, style_dim=_unless(generator.w_dim, style_dim)),
        input_residual=settings.flag("input_residual", False),
        stores_latent_average=settings.flag("input_residual", False) and "latent_avg" in network.tensors,
        skip_encoder=skip_encoder,
        recovered_motion_dim=mapping.whole("motion_dim") if recovers else 0,
    )
    clip_length = max(SHORTEST_CLIP, settings.whole("clip_len", 128))  # these two matter to fine-tuning only
    max_span = mapping.group("sampling").whole("max_dist", clip_length)
    stage = MotionStageConfig(clip_length=clip_length, max_span=max(SHORTEST_CLIP, min(max_span, clip_length)))
    return _config(model, frame_rate=settings.number("fps", 30.0), motion=stage)


def _motion_config(mapping: Settings, generator: GeneratorConfig) -> MotionConfig:
    motion = mapping.group("motion")
    motion.require("type", "acyclic_pe", default="acyclic_pe")
    motion.require("fourier", True, default=True)
    strategy = motion.require("gen_strategy", "conv", "abl_no_ffa", default="conv")
    time = motion.group("time_enc")
    sees_content = mapping.flag("concat_content", True)
    if sees_content and mapping.whole("content_dim", generator.w_dim) != generator.w_dim:
        raise mapping.error("content_dim", f"{generator.w_dim}, the generator's w_dim")
    return MotionConfig(
        noise_dim=motion.whole("z_dim"),
        code_dim=motion.whole("v_dim"),
        anchor_distance=motion.whole("motion_z_distance"),
        kernel_size=motion.whole("kernel_size"),
        first_frame_aware=strategy == "conv",
        frequencies=time.whole("dim"),
        min_period=time.number("min_period_len"),
        max_period=time.number("max_period_len"),
        style_layers=mapping.whole("layers_after_fuse", maximum=MOST_LAYERS),
        style_sees_content=sees_content,
        style_lr_multiplier=mapping.number("lr_multiplier", 0.01),
    )


def _encoder_config(network: Network, options: Settings, style_dim: int, where: str) -> EncoderConfig:
    """What the encoder itself was made with goes first; older files say less, and leave it to the options."""
    made = network.settings(ENCODER_ARGUMENTS, where)
    made.only(*ENCODER_ARGUMENTS)
    encoder = Settings({**options.values, **made.values}, where)
    encoder.require("input_nc", 3, default=3)
    encoder.require("style_dim", style_dim, default=style_dim)
    convolution = encoder.flag("use_modulation", False)
    return EncoderConfig(
        depths=_depths(encoder),
        temporal_blocks=TEMPORAL_BLOCKS[encoder.require("adain_mode", *TEMPORAL_BLOCKS, default="block")],  # type: ignore[arg-type]
        modulation="convolution" if convolution else "adain",
        normalize_residual=encoder.flag("normalize_adain", False),
        lr_multiplier=encoder.number("lr_multiplier", 1.0),
        pca_components=_pca_components(options),
        pca_scale=options.group("pca").number("pca_lambda") if _pca_components(options) else EncoderConfig.pca_scale,
    )


def _pca_components(options: Settings) -> int:
    """Components of the PCA head, 0 where there is none."""
    pca = options.group("pca")
    return pca.whole("n_pca") if pca.flag("use_pca", False) else 0


def _depths(encoder: Settings) -> tuple[int, ...]:
    encoder.require("mode", "ir_se", default="ir_se")
    depths: tuple[int, ...] = DEPTHS[encoder.require("num_layers", *DEPTHS, default=50)]
    return depths


def _power_of_two(settings: Settings, name: str, default: int | None = None) -> int:
    resolution = settings.whole(name, default, minimum=16)
    if resolution & (resolution - 1) or resolution > 4096:
        raise settings.error(name, "a power of two from 16 to 4096")
    return resolution


def _unless(usual: int, value: int) -> int | None:
    """None where the value is the one that None stands for."""
    return None if value == usual else value


def _config(model: ModelConfig, **stages: Any) -> Config:
    join = min(JOIN_RESOLUTION, model.generator.resolution)
    return Config(preset=PRESET, model=model, discriminator=DiscriminatorConfig(join_resolution=join), **stages)
