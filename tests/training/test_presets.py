"""The presets: the paper's settings one by one, and sizes that fit what each is for."""

from typing import Any

import pytest
import torch

from styleinv.training.config import Config
from styleinv.training.model import build_clip_discriminator, build_image_discriminator, build_styleinv
from styleinv.training.presets import PRESETS, preset

PAPER: dict[str, Any] = {  # what both paper presets share
    "model.generator.channel_max": 512,
    "model.generator.z_dim": 512,
    "model.generator.w_dim": 512,
    "model.generator.mapping_layers": 8,
    "model.generator.mapping_lr_multiplier": 0.01,
    "model.generator.label_dim": 0,
    "model.generator.use_noise": True,
    "model.generator.conv_clamp": 256,
    "model.generator.fp16_resolutions": 4,
    "model.encoder.widths": (64, 128, 256, 512),
    "model.encoder.depths": (3, 4, 14, 3),
    "model.motion.kernel_size": 11,
    "model.motion.lr_multiplier": 0.01,
    "model.motion.style_lr_multiplier": 0.01,
    "discriminator.channel_max": 512,
    "discriminator.conv_clamp": 256,
    "discriminator.join_resolution": 16,
    "augment.target": 0.6,
    "augment.speed_images": 500_000,
    "augment.interval": 4,
    "image.r1_interval": 16,
    "image.path_length_weight": 2,
    "image.path_length_interval": 4,
    "image.style_mixing": 0.9,
    "image.ema_rampup": 0.05,
    "image.initial_contrast": 1,
    "image.noise": "fresh",
    "image.pair_weight": 0,
    "discriminator.sees_texture": False,
    "inversion.learning_rate": 1e-4,
    "inversion.l2_weight": 1,
    "inversion.perceptual_weight": 0.8,
    "motion.learning_rate": 1e-4,
    "motion.discriminator_learning_rate": 2e-3,
    "motion.r1_gamma": 1,
    "motion.r1_interval": 16,
    "motion.first_frame_weight": 10,
    "motion.latent_weight": 0.05,
    "motion.max_span": 128,
    "motion.head_start": 0,
    "motion.initial_motion": 1,
    "transfer.learning_rate": 2e-3,
    "transfer.perceptual_weight": 30,
    "transfer.identity_weight": 1,
    "transfer.trainable_resolution": 64,
}
PAPER256 = {
    "model.generator.resolution": 256,
    "model.generator.channel_base": 16384,
    "discriminator.channel_base": 16384,
    "discriminator.clip_channel_base": 16384,
    "discriminator.group_size": 8,
    "image.batch": 64,
    "image.learning_rate": 2.5e-3,
    "image.r1_gamma": 1,
    "image.ema_images": 20_000,
}
PAPER1024 = {
    "model.generator.resolution": 1024,
    "model.generator.channel_base": 32768,
    "discriminator.channel_base": 32768,
    "discriminator.clip_channel_base": 32768,
    "discriminator.group_size": 4,
    "image.batch": 32,
    "image.learning_rate": 2e-3,
    "image.r1_gamma": 2,
    "image.ema_images": 10_000,
}
# Millions of parameters: of the whole model, of the discriminator of pictures.
SIZES = {"tiny64": (3, 1), "sky64": (3, 1), "small128": (13, 6), "paper256": (71, 24), "paper1024": (77, 29)}


def value(config: Config, path: str) -> Any:
    found: Any = config
    for name in path.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize(("name", "own"), [("paper256", PAPER256), ("paper1024", PAPER1024)])
def test_paper_presets_are_the_authors(name, own):
    expected = PAPER | own
    assert {path: value(preset(name), path) for path in expected} == expected


def test_names_and_sizes():
    assert list(PRESETS) == list(SIZES)
    for name, sizes in SIZES.items():
        config = preset(name)
        assert config.preset == name
        with torch.device("meta"):
            networks = build_styleinv(config.model), build_image_discriminator(config)
            build_clip_discriminator(config)
        assert tuple(round(sum(p.numel() for p in network.parameters()) / 1e6) for network in networks) == sizes


@pytest.mark.parametrize("name", PRESETS)
def test_batches_divide_into_groups_and_clips_hold_their_spans(name):
    config = preset(name)
    assert config.image.batch % min(config.discriminator.group_size, config.image.batch) == 0
    assert config.transfer.batch % min(config.discriminator.group_size, config.transfer.batch) == 0
    assert config.motion.max_span <= config.motion.clip_length
