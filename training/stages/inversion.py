"""Stage 2: an encoder that finds the latent of a picture, against the frozen generator (pSp, paper section 3.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from styleinv.runtime.errors import CheckpointError
from styleinv.training import workers
from styleinv.training.config import Config
from styleinv.training.data import ClipSet
from styleinv.training.discriminator import ImageDiscriminator
from styleinv.training.ema import averaged_copy, update_average
from styleinv.training.generator import Generator
from styleinv.training.loop import read_state
from styleinv.training.model import InversionModel, build_image_discriminator, build_inversion
from styleinv.training.perceptual import Distance, discriminator_distance, load_lpips
from styleinv.training.shared_batch_norm import share_batch_norms
from styleinv.training.stages.common import (
    Losses,
    channels_last,
    mixed_precision,
    real_pictures,
    take_step,
)

PREVIEW = 8


def perceptual_distance(config: Config, lpips: Path | None, image_state: Path) -> Distance:
    """LPIPS where its weights are given, else the features of the image stage's discriminator.

    `image_state` is the image stage's training state; CheckpointError where neither can be read.
    """
    if lpips is not None:
        return load_lpips(lpips).to(torch.get_default_device())
    return discriminator_distance(trained_discriminator(config, image_state))


def trained_discriminator(config: Config, image_state: Path) -> ImageDiscriminator:
    """That of the image stage, from its training state; CheckpointError where it cannot be read."""
    if not image_state.is_file():
        raise CheckpointError(
            f"{image_state}: no such file, expected the image stage's training state, whose discriminator compares "
            "pictures; or give weights of LPIPS with --lpips"
        )
    discriminator = build_image_discriminator(config)
    try:
        discriminator.load_state_dict(read_state(image_state)["networks"]["discriminator"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{image_state}: networks.discriminator: does not fit this run: {error}") from error
    return discriminator


class InversionStage:
    """Trains `encoder` so that the generator redraws real frames: squared error and a perceptual distance."""

    name = "inversion"
    kind = "inversion"

    def __init__(self, config: Config, clips: ClipSet, seed: int, generator: Generator, distance: Distance) -> None:
        torch.manual_seed(seed)
        self.config = config
        self.clips = clips
        self.seed = seed
        self.images_per_step = config.inversion.batch
        self.parts = workers.own_parts(config.inversion.batch, config.compute.accumulation)
        self.share = workers.share_of(self.parts)
        self.generator = generator.eval().requires_grad_(False)
        self.distance = distance
        self.encoder = build_inversion(config.model).train()
        self.encoder.latent_average.copy_(generator.mapping.latent_average)
        channels_last(self.encoder)
        self.average: InversionModel = averaged_copy(self.encoder)
        share_batch_norms(self.encoder)
        self.networks: dict[str, nn.Module] = {"encoder": self.encoder, "average": self.average}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "encoder": torch.optim.Adam(self.encoder.parameters(), lr=config.inversion.learning_rate, fused=True)
        }

    def step(self, index: int) -> dict[str, float]:
        settings = self.config.inversion
        losses = Losses()
        for rows in self.parts:
            real = real_pictures(self.clips, self.seed, index * settings.batch, rows, settings.mirror)
            with mixed_precision(self.config.compute, real.device):
                redrawn = self.generator.synthesis(self.encoder(real))
            squared = F.mse_loss(redrawn, real)
            perceptual = self.distance(redrawn, real)
            losses.add(self.share, l2=squared, perceptual=perceptual)
            loss = settings.l2_weight * squared + settings.perceptual_weight * perceptual
            (loss * self.share).backward()
        take_step(self.encoder, self.optimizers["encoder"])
        update_average(self.average, self.encoder, settings.batch, settings.ema_images)
        return losses.means()

    def numbers(self) -> dict[str, Any]:
        return {}

    def restore_numbers(self, numbers: dict[str, Any]) -> None:
        pass

    def result(self) -> InversionModel:
        return self.average

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Real frames and, beside each, what the generator makes of its latent."""
        real = real_pictures(self.clips, 0, 0, torch.arange(PREVIEW), mirror=False)
        return torch.stack([real, self.generator.synthesis(self.average(real))], dim=1).flatten(0, 1)
