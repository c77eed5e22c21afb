"""Stage 1: the picture generator, StyleGAN2-ADA on single frames (paper section 3.3, first paragraph)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from styleinv.training.augment import AdaptiveProbability, augment
from styleinv.training.config import Config
from styleinv.training.data import ClipSet, frame_batch
from styleinv.training.ema import averaged_copy, ramped_half_life, update_average
from styleinv.training.generator import Generator
from styleinv.training.losses import generator_loss, path_lengths
from styleinv.training.model import build_generator, build_image_discriminator
from styleinv.training.stages.common import channels_last, discriminator_step, lazy_adam, to_pictures

LATENT_AVERAGE_DECAY = 0.998  # per step, as StyleGAN2 tracks the mean latent
PATH_LENGTH_DECAY = 0.01
PREVIEW = 16


class ImageStage:
    """Trains `generator` against `discriminator`; the moving average of the generator is the result."""

    name = "image"

    def __init__(self, config: Config, clips: ClipSet, seed: int) -> None:
        torch.manual_seed(seed)
        settings, picture = config.image, config.model.generator
        self.config = config
        self.clips = clips
        self.seed = seed
        self.images_per_step = settings.batch
        self.generator = build_generator(picture)
        with torch.no_grad():
            for layer in self.generator.synthesis.picture_layers():
                layer.weight.mul_(settings.initial_contrast)
        self.discriminator = build_image_discriminator(config)
        self.average: Generator = averaged_copy(self.generator)
        channels_last(self.generator, self.discriminator)
        self.networks: dict[str, nn.Module] = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "average": self.average,
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "generator": lazy_adam(self.generator.parameters(), settings.learning_rate, settings.path_length_interval),
            "discriminator": lazy_adam(self.discriminator.parameters(), settings.learning_rate, settings.r1_interval),
        }
        self.probability = AdaptiveProbability(
            config.augment.target, config.augment.speed_images, config.augment.interval
        )
        self.mean_path_length = 0.0
        self.preview_z = torch.randn(PREVIEW, picture.z_dim)

    def step(self, index: int) -> dict[str, float]:
        settings = self.config.image
        real = to_pictures(frame_batch(self.clips, self.seed, index * settings.batch, settings.batch, settings.mirror))
        losses = self._train_generator() | self._train_discriminator(real, index)
        if settings.path_length_interval and index % settings.path_length_interval == 0:
            losses |= self._regularize_path_lengths()
        half_life = ramped_half_life(settings.ema_images, settings.ema_rampup, (index + 1) * settings.batch)
        update_average(self.average, self.generator, settings.batch, half_life)
        return losses | {"augment": self.probability.p}

    def _train_generator(self) -> dict[str, float]:
        self.discriminator.requires_grad_(False)
        fake = self._generate(self.config.image.batch)
        loss = generator_loss(self.discriminator(self._augment(fake)))
        self.optimizers["generator"].zero_grad()
        loss.backward()
        self.optimizers["generator"].step()
        return {"generator": loss.item()}

    def _train_discriminator(self, real: Tensor, index: int) -> dict[str, float]:
        settings = self.config.image
        self.discriminator.requires_grad_(True)
        with torch.no_grad():
            fake = self._augment(self._generate(settings.batch))
            # R1 is taken at the augmented pictures: bilinear warps have no second derivative to go through.
            real = self._augment(real)
        losses, real_logits = discriminator_step(
            self.optimizers["discriminator"],
            self.discriminator,
            self.discriminator,
            real,
            fake,
            r1_weight=settings.r1_gamma * settings.r1_interval if index % settings.r1_interval == 0 else 0.0,
        )
        self.probability.update(real_logits, settings.batch)
        return losses

    def _regularize_path_lengths(self) -> dict[str, float]:
        """Keep steps in latent space the same size everywhere (StyleGAN2 section 3.2), on half a batch."""
        settings = self.config.image
        ws = self._latents(max(1, settings.batch // 2))
        lengths = path_lengths(self.generator.synthesis(ws, "random"), ws)
        target = self.mean_path_length + PATH_LENGTH_DECAY * (lengths.mean().item() - self.mean_path_length)
        self.mean_path_length = target
        loss = (lengths - target).square().mean()
        self.optimizers["generator"].zero_grad()
        (loss * settings.path_length_weight * settings.path_length_interval).backward()
        self.optimizers["generator"].step()
        return {"path_length": loss.item()}

    def _generate(self, batch: int) -> Tensor:
        image: Tensor = self.generator.synthesis(self._latents(batch), "random")
        return image

    def _latents(self, batch: int) -> Tensor:
        """Latents [B, L, W], some of them mixed: the layers behind a random one take another latent."""
        mapping, count = self.generator.mapping, self.generator.synthesis.num_latents
        w = mapping(torch.randn(batch, self.config.model.generator.z_dim))
        with torch.no_grad():
            mapping.latent_average.lerp_(w.detach().mean(dim=0), 1 - LATENT_AVERAGE_DECAY)
        ws = w[:, None].repeat(1, count, 1)
        if torch.rand(()) < self.config.image.style_mixing:
            crossover = int(torch.randint(1, count, ()))
            other = mapping(torch.randn(batch, self.config.model.generator.z_dim))
            ws = torch.cat([ws[:, :crossover], other[:, None].expand(-1, count - crossover, -1)], dim=1)
        return ws

    def _augment(self, images: Tensor) -> Tensor:
        return augment(images[:, None], self.probability.p)[:, 0]

    def numbers(self) -> dict[str, Any]:
        return {
            "p": self.probability.p,
            "signs": self.probability.signs,
            "mean_path_length": self.mean_path_length,
            "preview_z": self.preview_z,
        }

    def restore_numbers(self, numbers: dict[str, Any]) -> None:
        self.probability.p = numbers["p"]
        self.probability.signs = list(numbers["signs"])
        self.mean_path_length = numbers["mean_path_length"]
        self.preview_z = numbers["preview_z"]

    def result(self) -> Generator:
        return self.average

    @torch.no_grad()
    def preview(self) -> Tensor:
        image: Tensor = self.average(self.preview_z)
        return image
