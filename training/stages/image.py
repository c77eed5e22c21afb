"""Stage 1: the picture generator, StyleGAN2-ADA on single frames (paper section 3.3, first paragraph).

Shapes: B pictures of a batch, P of a part of it, Z size of z, L latents per picture, W size of a latent, R resolution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from styleinv.training import workers
from styleinv.training.config import Config
from styleinv.training.data import ClipSet, frame_numbers
from styleinv.training.ema import averaged_copy, ramped_half_life, update_average
from styleinv.training.generator import Generator
from styleinv.training.losses import path_lengths
from styleinv.training.model import build_generator, build_image_discriminator
from styleinv.training.stages.adversary import Adversary
from styleinv.training.stages.common import (
    Losses,
    channels_last,
    compiled,
    lazy_adam,
    mixed_precision,
    real_pictures,
    take_step,
)
from styleinv.training.stages.pairing import Pairing, pair_distance

LATENT_AVERAGE_DECAY = 0.998  # per step, as StyleGAN2 tracks the mean latent
PATH_LENGTH_DECAY = 0.01
PREVIEW = 16


@dataclass(frozen=True)
class Draws:
    """The random numbers of a whole batch, so that a picture's do not depend on the part that it is in."""

    z: Tensor  # [B, Z]
    other_z: Tensor  # [B, Z], whose latents the layers from `crossover` on take
    crossover: Tensor  # [B], L where styles are not mixed
    noise_seed: Tensor  # [B]


class ImageStage:
    """Trains `generator` against `discriminator`; the moving average of the generator is the result."""

    name = "image"
    kind = "image"

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
        self.synthesis = compiled(self.generator.synthesis, config.compute)
        self.adversary = Adversary(self.discriminator, config, settings, settings.learning_rate)
        self.networks: dict[str, nn.Module] = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "average": self.average,
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "generator": lazy_adam(self.generator.parameters(), settings.learning_rate, settings.path_length_interval),
            "discriminator": self.adversary.optimizer,
        }
        self.pairing = Pairing(clips, picture.z_dim) if settings.pair_weight else None
        self.mean_path_length = 0.0
        self.preview_z = torch.randn(PREVIEW, picture.z_dim)

    def step(self, index: int) -> dict[str, float]:
        settings = self.config.image
        losses = Losses()
        if self.pairing and (self.pairing.z is None or _begins(index, settings.batch, settings.pair_interval)):
            self.pairing.renew(self.average, self.config.compute)
        is_opposed = index * settings.batch >= settings.pair_images
        self._add_gradients(index, losses, is_opposed)
        if is_opposed:
            self.adversary.step()
        take_step(self.generator, self.optimizers["generator"])
        if settings.path_length_interval and index % settings.path_length_interval == 0:
            self._regularize_path_lengths(losses)
        half_life = ramped_half_life(settings.ema_images, settings.ema_rampup, (index + 1) * settings.batch)
        update_average(self.average, self.generator, settings.batch, half_life)
        return self.adversary.end(losses) if is_opposed else losses.means()

    def _add_gradients(self, index: int, losses: Losses, is_opposed: bool) -> None:
        """Those of both networks, from real frames and fakes of every part of the batch; the generator's alone, from
        pairs alone, where no discriminator opposes it yet."""
        settings, adversary = self.config.image, self.adversary
        draws = self._draw(settings.batch)
        if self.pairing:
            numbers, _ = frame_numbers(self.clips, self.seed, index * settings.batch, settings.batch, mirror=False)
            draws = dataclasses.replace(draws, z=self.pairing.of(numbers))
        if is_opposed:
            adversary.begin(index)
        average = torch.zeros_like(self.generator.mapping.latent_average)
        start = index * settings.batch
        for rows in adversary.parts:
            ws = self._latents(draws, rows)
            average += ws[:, 0].detach().mean(dim=0) * adversary.share
            real = real_pictures(self.clips, self.seed, start, rows, settings.mirror)
            with mixed_precision(self.config.compute, ws.device):
                fake = self.synthesis(ws, self._noise(draws, rows))
                ends = [adversary.oppose(rows, real, fake, losses)] if is_opposed else []
            if self.pairing:
                distance = pair_distance(fake, real)
                losses.add(adversary.share, pairs=distance)
                weight = torch.tensor(settings.pair_weight * adversary.share)
                ends.append((distance, weight))
            torch.autograd.backward([end for end, _ in ends], [gradient for _, gradient in ends])
        with torch.no_grad():
            self.generator.mapping.latent_average.lerp_(workers.total(average), 1 - LATENT_AVERAGE_DECAY)

    def _regularize_path_lengths(self, losses: Losses) -> None:
        """Keep steps in latent space the same size everywhere (StyleGAN2 section 3.2), on half of each part."""
        settings, resolution = self.config.image, self.config.model.generator.resolution
        draws = self._draw(settings.batch)
        directions = torch.randn(settings.batch, 3, resolution, resolution)
        halves = [rows[: max(1, len(rows) // 2)] for rows in self.adversary.parts]
        lengths = []
        for rows in halves:
            ws = self._latents(draws, rows)
            with mixed_precision(self.config.compute, ws.device):
                pictures = self.generator.synthesis(ws, self._noise(draws, rows))
            lengths.append(path_lengths(pictures, ws, directions[rows]))
        own = torch.stack([part.detach().mean() for part in lengths]).sum() * self.adversary.share
        mean = workers.total(own).item()
        self.mean_path_length += PATH_LENGTH_DECAY * (mean - self.mean_path_length)
        for part in lengths:
            loss = (part - self.mean_path_length).square().mean()
            losses.add(self.adversary.share, path_length=loss)
            (loss * (settings.path_length_weight * settings.path_length_interval * self.adversary.share)).backward()
        take_step(self.generator, self.optimizers["generator"])

    def _draw(self, batch: int) -> Draws:
        count, z_dim = self.generator.synthesis.num_latents, self.config.model.generator.z_dim
        z, other_z = torch.randn(2, batch, z_dim)
        mixes = torch.rand(batch) < self.config.image.style_mixing
        crossover = torch.where(mixes, torch.randint(1, count, (batch,)), count)
        return Draws(z, other_z, crossover, torch.randint(2**62, (batch,)))

    def _latents(self, draws: Draws, rows: Tensor) -> Tensor:
        """Latents [P, L, W], some of them mixed: the layers behind a random one take another latent."""
        mapping, count = self.generator.mapping, self.generator.synthesis.num_latents
        ws = mapping(draws.z[rows])[:, None].expand(-1, count, -1)
        if self.config.image.style_mixing:
            layers = torch.arange(count)[None, :, None]
            other: Tensor = mapping(draws.other_z[rows])[:, None]
            ws = torch.where(layers < draws.crossover[rows, None, None], ws, other)
        return ws

    def _noise(self, draws: Draws, rows: Tensor) -> str | Sequence[Tensor]:
        if self.config.image.noise == "const":
            return "const"
        return self.generator.synthesis.draw_noise(draws.noise_seed[rows].tolist())

    def numbers(self) -> dict[str, Any]:
        found = {"mean_path_length": self.mean_path_length, "preview_z": self.preview_z}
        return self.adversary.numbers() | found | ({"pairs": self.pairing.z} if self.pairing else {})

    def restore_numbers(self, numbers: dict[str, Any]) -> None:
        self.adversary.restore_numbers(numbers)
        self.mean_path_length = numbers["mean_path_length"]
        self.preview_z = numbers["preview_z"]
        if self.pairing:
            self.pairing.restore(numbers.get("pairs"))  # None where the run had none so far

    def result(self) -> Generator:
        return self.average

    @torch.no_grad()
    def preview(self) -> Tensor:
        image: Tensor = self.average(self.preview_z)
        return image


def _begins(index: int, batch: int, interval: int) -> bool:
    """Whether a span of `interval` images begins with this step."""
    return index == 0 or index * batch // interval > (index - 1) * batch // interval
