"""The configuration of a model and of its training: one tree of frozen dataclasses.

It is stored as JSON in every checkpoint. This file imports no torch, so tools can read a configuration cheaply.
Modules never receive these objects: they take plain numbers (see `model.py` for where the tree is read).
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

import dacite

from styleinv.runtime.errors import ConfigError


@dataclass(frozen=True)
class GeneratorConfig:
    """The StyleGAN2 generator (StyleGAN2-ADA, 'skip' architecture)."""

    resolution: int = 256  # pixels; frames are square
    z_dim: int = 512
    w_dim: int = 512
    label_dim: int = 0  # 0: unconditional
    mapping_layers: int = 8
    mapping_lr_multiplier: float = 0.01
    mapping_dim: int | None = None  # width of the mapping network's hidden layers; None: w_dim
    label_embedding_dim: int | None = None  # None: w_dim
    channel_base: int = 16384  # block of resolution r has min(channel_base / r, channel_max) channels
    channel_max: int = 512
    use_noise: bool = True
    conv_clamp: float | None = 256.0
    fp16_resolutions: int = 4  # the top resolutions that the authors run in fp16

    def __post_init__(self) -> None:
        _require_power_of_two("generator.resolution", self.resolution, minimum=8)
        for name in ("z_dim", "w_dim", "mapping_layers", "channel_base", "channel_max"):
            _require_at_least(f"generator.{name}", getattr(self, name), 1)
        _require_at_least("generator.label_dim", self.label_dim, 0)
        for name in ("mapping_dim", "label_embedding_dim"):
            if getattr(self, name) is not None:
                _require_at_least(f"generator.{name}", getattr(self, name), 1)
        if self.channel_base < self.resolution:
            raise ConfigError(
                f"generator.channel_base: found {self.channel_base}, expected at least the resolution "
                f"({self.resolution}), or the last block would have no channels"
            )


@dataclass(frozen=True)
class EncoderConfig:
    """The inversion encoder: an IR-SE backbone, with temporal blocks when it is modulated over time (section 3.2)."""

    widths: tuple[int, ...] = (64, 128, 256, 512)  # channels of each stage
    depths: tuple[int, ...] = (3, 4, 14, 3)  # bottlenecks of each stage
    temporal_blocks: Literal["stage", "bottleneck"] = "stage"  # one after each stage, or after each bottleneck
    modulation: Literal["adain", "convolution"] = "adain"  # how the temporal style enters a temporal block
    normalize_residual: bool = True  # divide an AdaIN block's sum by sqrt(2)
    lr_multiplier: float = 1.0  # of the AdaIN affines and of the last layer
    pca_components: int = 0  # 0: no PCA head
    pca_scale: float = 0.2

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.depths) or not self.widths:
            raise ConfigError(
                f"encoder.depths: found {len(self.depths)} stages, expected as many as encoder.widths has "
                f"({len(self.widths)}, at least 1)"
            )
        for width in self.widths:
            _require_at_least("encoder.widths", width, 16)  # squeeze-and-excitation divides by 16
        for depth in self.depths:
            _require_at_least("encoder.depths", depth, 1)
        _require_at_least("encoder.pca_components", self.pca_components, 0)
        _require_positive("encoder.lr_multiplier", self.lr_multiplier)


@dataclass(frozen=True)
class MotionConfig:
    """Motion codes, time code and temporal style (section 3.1; StyleGAN-V's acyclic encoding)."""

    noise_dim: int = 512  # size of one anchor's noise
    code_dim: int = 512  # size of a motion code u
    anchor_distance: int = 128  # frames between neighbouring anchors
    kernel_size: int = 11  # anchors under one convolution, half of them masked
    first_frame_aware: bool = True  # frame 0 is the same for every motion; else (an ablation) no mask and no constant
    lr_multiplier: float = 0.01
    frequencies: int = 256  # the time code v has a sine and a cosine of each
    min_period: float = 32.0  # frames
    max_period: float = 1024.0  # frames; the phases are in its scale
    style_dim: int | None = None  # size of a temporal style; None: w_dim
    style_layers: int = 2
    style_sees_content: bool = True  # temporal style from [w0, v] rather than from v alone
    style_lr_multiplier: float = 0.01

    def __post_init__(self) -> None:
        for name in ("noise_dim", "code_dim", "anchor_distance", "kernel_size", "frequencies", "style_layers"):
            _require_at_least(f"motion.{name}", getattr(self, name), 1)
        for name in ("min_period", "max_period", "lr_multiplier", "style_lr_multiplier"):
            _require_positive(f"motion.{name}", getattr(self, name))
        if self.style_dim is not None:
            _require_at_least("motion.style_dim", self.style_dim, 1)


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shape and the output of a StyleInV model."""

    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    input_residual: bool = True  # w_t = w0 + delta; else w_t = latent_average + delta
    stores_latent_average: bool = False  # beside input_residual, where it is not used; the authors' files do
    skip_encoder: bool = False  # an ablation: w_t = w0 + s_t, without an encoder
    recovered_motion_dim: int = 0  # outputs of a head, used in training only, that recovers the motion; 0: none

    def __post_init__(self) -> None:
        _require_at_least("recovered_motion_dim", self.recovered_motion_dim, 0)
        if self.skip_encoder and self.motion.style_dim not in (None, self.generator.w_dim):
            raise ConfigError(
                f"motion.style_dim: found {self.motion.style_dim}, expected {self.generator.w_dim} (generator.w_dim), "
                "because skip_encoder adds the temporal style to a latent"
            )


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The discriminators of pictures and of clips."""

    channel_base: int = 16384
    channel_max: int = 512
    group_size: int = 8  # minibatch standard deviation, images
    clip_channel_base: int = 16384  # of the 4-frame discriminator
    join_resolution: int = 16  # where a clip's frames are concatenated by channel
    time_dim: int = 256  # of the embedding of time differences
    conv_clamp: float | None = 256.0
    sees_texture: bool = False  # images: each block has a say of its own, which shows a short training textures sooner

    def __post_init__(self) -> None:
        _require_power_of_two("discriminator.join_resolution", self.join_resolution, minimum=8)
        for name in ("channel_base", "channel_max", "group_size", "clip_channel_base", "time_dim"):
            _require_at_least(f"discriminator.{name}", getattr(self, name), 1)


@dataclass(frozen=True)
class AugmentConfig:
    """Adaptive discriminator augmentation (StyleGAN2-ADA section 3), the 'bgc' transforms."""

    target: float = 0.6  # of the sign of the real logits; 0 switches augmentation off
    speed_images: int = 500_000  # images in which p can move from 0 to 1
    interval: int = 4  # steps between adjustments of p


@dataclass(frozen=True)
class ImageStageConfig:
    """Stage 1: StyleGAN2-ADA on single frames."""

    images: int = 25_000_000
    batch: int = 64
    learning_rate: float = 2.5e-3
    r1_gamma: float = 1.0
    r1_interval: int = 16  # steps
    path_length_weight: float = 2.0
    path_length_interval: int = 4  # steps; 0: no path length regularisation
    style_mixing: float = 0.9
    ema_images: int = 20_000  # half-life of the moving average
    ema_rampup: float = 0.05
    mirror: bool = False
    noise: Literal["fresh", "const"] = "fresh"  # of a training picture; const: that which the model plays with
    pair_weight: float = 0.0  # of the distance to the real frame that a draw is paired with; 0: no pairs
    pair_interval: int = 2_000  # images from one pairing to the next
    pair_images: int = 0  # images in the beginning that are learned from pairs alone, without the discriminator
    initial_contrast: float = 1.0  # of untrained pictures; less saves a short training from unlearning loud ones

    def __post_init__(self) -> None:
        _check_stage("image", self)
        _require_at_least("image.r1_interval", self.r1_interval, 1)
        _require_at_least("image.path_length_interval", self.path_length_interval, 0)
        _require_at_least("image.pair_interval", self.pair_interval, 1)
        _require_at_least("image.pair_images", self.pair_images, 0)
        if not (math.isfinite(self.pair_weight) and self.pair_weight >= 0):
            raise ConfigError(f"image.pair_weight: found {self.pair_weight}, expected 0 or more")
        if self.pair_weight and (self.mirror or self.style_mixing):
            raise ConfigError(
                f"image.pair_weight: found {self.pair_weight} with image.mirror {self.mirror} and image.style_mixing "
                f"{self.style_mixing}, expected neither: a pair is one z and one frame"
            )
        if self.pair_images and not self.pair_weight:
            raise ConfigError(f"image.pair_images: found {self.pair_images}, expected 0 where image.pair_weight is 0")


@dataclass(frozen=True)
class InversionStageConfig:
    """Stage 2: an encoder that inverts the frozen generator (pSp)."""

    images: int = 2_000_000
    batch: int = 8
    learning_rate: float = 1e-4
    mirror: bool = False
    l2_weight: float = 1.0
    perceptual_weight: float = 0.8
    ema_images: int = 10_000

    def __post_init__(self) -> None:
        _check_stage("inversion", self)


@dataclass(frozen=True)
class MotionStageConfig:
    """Stage 3: the encoder modulated over time, against a discriminator of clips (section 3.3)."""

    images: int = 5_000_000  # clips
    batch: int = 16
    learning_rate: float = 1e-4
    discriminator_learning_rate: float = 2e-3
    mirror: bool = False
    clip_length: int = 128  # frames; training clips shorter than this are skipped
    max_span: int = 128  # frames
    head_start: int = 0  # clips that the discriminator sees before the model learns, so its first advice is sound
    initial_motion: float = 1.0  # of an untrained clip; more saves a short training from having to find motion
    r1_gamma: float = 1.0
    r1_interval: int = 16
    first_frame_weight: float = 10.0
    latent_weight: float = 0.05
    ema_images: int = 20_000
    ema_rampup: float = 0.05

    def __post_init__(self) -> None:
        _check_stage("motion", self)
        _require_at_least("motion.r1_interval", self.r1_interval, 1)
        if not 4 <= self.max_span <= self.clip_length:
            raise ConfigError(
                f"motion.max_span: found {self.max_span}, expected 4 to motion.clip_length ({self.clip_length})"
            )


@dataclass(frozen=True)
class TransferStageConfig:
    """Another style for the same latents: a copy of the generator is fine-tuned on pictures of that style."""

    images: int = 1_000_000
    batch: int = 32
    learning_rate: float = 2e-3
    r1_gamma: float = 1.0
    r1_interval: int = 16  # steps
    perceptual_weight: float = 30.0  # of the distance to the original generator's picture of the same latent
    identity_weight: float = 1.0  # of the distance between faces, where a face network is given
    trainable_resolution: int = 64  # pixels; blocks above it, and the mapping, stay as they are
    ema_images: int = 10_000
    ema_rampup: float = 0.05
    mirror: bool = False

    def __post_init__(self) -> None:
        _check_stage("transfer", self)
        _require_at_least("transfer.r1_interval", self.r1_interval, 1)
        _require_power_of_two("transfer.trainable_resolution", self.trainable_resolution, minimum=4)
        for name in ("r1_gamma", "perceptual_weight", "identity_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"transfer.{name}: found {value}, expected 0 or more")


@dataclass(frozen=True)
class ComputeConfig:
    """How steps are computed; what they compute stays the same but for rounding."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: mixed, with bfloat16, where the device is made for it
    accumulation: int = 1  # parts of a batch, in each process, that gradients are summed over
    compile: bool = False  # networks through torch.compile, but where second derivatives are taken

    def __post_init__(self) -> None:
        _require_at_least("compute.accumulation", self.accumulation, 1)


@dataclass(frozen=True)
class Config:
    """A model and how it is trained; the root that `--set a.b.c=value` addresses."""

    preset: str = "paper256"
    frame_rate: float = 25.0  # frames per second of the clips it learns from and plays
    model: ModelConfig = field(default_factory=ModelConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    image: ImageStageConfig = field(default_factory=ImageStageConfig)
    inversion: InversionStageConfig = field(default_factory=InversionStageConfig)
    motion: MotionStageConfig = field(default_factory=MotionStageConfig)
    transfer: TransferStageConfig = field(default_factory=TransferStageConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    snapshot_images: int = 50_000  # images between checkpoints

    def __post_init__(self) -> None:
        _require_positive("frame_rate", self.frame_rate)
        _require_at_least("snapshot_images", self.snapshot_images, 1)
        if self.discriminator.join_resolution > self.model.generator.resolution:
            raise ConfigError(
                f"discriminator.join_resolution: found {self.discriminator.join_resolution}, expected at most "
                f"model.generator.resolution ({self.model.generator.resolution})"
            )


def to_json(config: Config) -> str:
    """Canonical JSON: sorted keys, no white space."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True, separators=(",", ":"))


def from_json(text: str) -> Config:
    """The inverse of `to_json`. Unknown fields, wrong types and values out of range are a ConfigError."""
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"config: not JSON: {error}") from error
    return from_dict(tree)


def from_dict(tree: Any) -> Config:
    """A configuration from nested dictionaries. Missing fields take their defaults."""
    if not isinstance(tree, dict):
        raise ConfigError(f"config: found {type(tree).__name__}, expected a JSON object")
    try:
        return dacite.from_dict(Config, tree, dacite.Config(strict=True, cast=[tuple]))
    except dacite.UnexpectedDataError as error:
        raise ConfigError(f"config: unknown field {', '.join(sorted(map(str, error.keys)))}") from error
    except dacite.DaciteError as error:
        raise ConfigError(f"config: {error}") from error


def with_overrides(config: Config, overrides: list[str]) -> Config:
    """Apply `a.b.c=value` settings; values are JSON, or plain words where the field is a string.

    >>> with_overrides(Config(), ["model.generator.channel_base=1024"]).model.generator.channel_base
    1024
    """
    tree = dataclasses.asdict(config)
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"--set {override}: expected FIELD=VALUE, such as model.generator.channel_base=2048")
        *parents, leaf = path.split(".")
        node: Any = tree
        kind: Any = Config
        for name in parents:
            kind = _field_type(kind, name, path)
            node = node[name]
        if dataclasses.is_dataclass(_field_type(kind, leaf, path)):
            raise ConfigError(f"--set {path}: is a group of fields, expected one under it: {', '.join(node[leaf])}")
        try:
            node[leaf] = json.loads(text)
        except json.JSONDecodeError:
            node[leaf] = text
    return from_dict(tree)


def _field_type(kind: Any, name: str, path: str) -> Any:
    hints = get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
    if name not in hints:
        raise ConfigError(f"--set {path}: unknown field {name!r}, expected one of {', '.join(hints) or 'none'}")
    return hints[name]


def _check_stage(
    name: str, stage: ImageStageConfig | InversionStageConfig | MotionStageConfig | TransferStageConfig
) -> None:
    for number in ("images", "batch", "ema_images"):
        _require_at_least(f"{name}.{number}", getattr(stage, number), 1)
    if not stage.learning_rate > 0:
        raise ConfigError(f"{name}.learning_rate: found {stage.learning_rate}, expected above 0")


def _require_at_least(name: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise ConfigError(f"{name}: found {value}, expected at least {minimum}")


def _require_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name}: found {value}, expected a positive number")


def _require_power_of_two(name: str, value: int, minimum: int) -> None:
    if value < minimum or value & (value - 1):
        raise ConfigError(f"{name}: found {value}, expected a power of two, at least {minimum}")
