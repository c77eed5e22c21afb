"""Style transfer: low resolutions learn another style, and latents keep their meaning (paper, style transfer).

A copy of the generator is fine-tuned on pictures of the style, with an adversarial loss as in the image stage. Its
mapping and its blocks above `transfer.trainable_resolution` stay as they are, and its picture of a latent w is held to
that of the original generator. So the latents w_t of a clip can go through it as they are, which draws the clip anew.

Shapes: B pictures of a batch, P of a part of it, Z size of z, R resolution.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from styleinv.training.config import Config
from styleinv.training.data import ClipSet
from styleinv.training.discriminator import ImageDiscriminator
from styleinv.training.ema import averaged_copy, ramped_half_life, update_average
from styleinv.training.generator import Generator, SynthesisNetwork
from styleinv.training.model import build_image_discriminator
from styleinv.training.perceptual import Distance
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

PREVIEW = 8  # latents


@dataclass(frozen=True)
class Draws:
    """The random numbers of a whole batch, so that a picture's do not depend on the part that it is in."""

    z: Tensor  # [B, Z]
    noise_seed: Tensor  # [B]


class TransferStage:
    """Fine-tunes a copy of `generator`; the moving average of the copy is the result, to be stored as `kind`.

    `distance` holds pictures to the original's; so does `identity`, a distance between the faces in them, where the
    caller has a face network (none comes with this package). `discriminator` is a trained one to start from.
    """

    name = "transfer"
    kind = "transfer"

    def __init__(
        self,
        config: Config,
        clips: ClipSet,
        seed: int,
        generator: Generator,
        distance: Distance,
        identity: Distance | None = None,
        discriminator: ImageDiscriminator | None = None,
    ) -> None:
        torch.manual_seed(seed)
        settings = config.transfer
        self.config = config
        self.clips = clips
        self.seed = seed
        self.images_per_step = settings.batch
        self.preview_z = torch.randn(PREVIEW, config.model.generator.z_dim)
        self.distance = distance
        self.identity = identity
        self.original = generator.eval().requires_grad_(False)
        self.generator = copy.deepcopy(self.original)
        trained = trainable_parameters(self.generator.synthesis, settings.trainable_resolution)
        for parameter in trained:
            parameter.requires_grad_(True)
        # Copied, because the same discriminator may be what `distance` compares pictures with.
        self.discriminator = (
            build_image_discriminator(config)
            if discriminator is None
            else copy.deepcopy(discriminator).train().requires_grad_(True)
        )
        self.average: Generator = averaged_copy(self.generator)
        channels_last(self.original, self.generator, self.discriminator)
        self.synthesis = compiled(self.generator.synthesis, config.compute)
        self.adversary = Adversary(self.discriminator, config, settings, settings.learning_rate)
        self.networks: dict[str, nn.Module] = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "average": self.average,
        }
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "generator": lazy_adam(trained, settings.learning_rate),
            "discriminator": self.adversary.optimizer,
        }

    def step(self, index: int) -> dict[str, float]:
        settings = self.config.transfer
        losses = Losses()
        self._add_gradients(index, losses)
        self.adversary.step()
        take_step(self.generator, self.optimizers["generator"])
        half_life = ramped_half_life(settings.ema_images, settings.ema_rampup, (index + 1) * settings.batch)
        update_average(self.average, self.generator, settings.batch, half_life)
        return self.adversary.end(losses)

    def _add_gradients(self, index: int, losses: Losses) -> None:
        """Those of both networks, from real pictures and fakes of every part of the batch."""
        settings, adversary = self.config.transfer, self.adversary
        draws = self._draw(settings.batch)
        adversary.begin(index)
        start = index * settings.batch
        for rows in adversary.parts:
            real = real_pictures(self.clips, self.seed, start, rows, settings.mirror)
            with mixed_precision(self.config.compute, draws.z.device):
                original, fake = self._generate(draws, rows)
                shown, gradient = adversary.oppose(rows, real, fake, losses)
            # In float32: what bfloat16 rounds off features would hide small distances.
            likeness = self._distances(fake, original, losses)
            torch.autograd.backward([shown, likeness * self.adversary.share], [gradient, None])

    def _distances(self, fake: Tensor, original: Tensor, losses: Losses) -> Tensor:
        """How far pictures [P, 3, R, R] are from the original generator's, weighted: a scalar."""
        settings = self.config.transfer
        perceptual = self.distance(fake, original)
        losses.add(self.adversary.share, perceptual=perceptual)
        total = perceptual * settings.perceptual_weight
        if self.identity is not None:
            identity = self.identity(fake, original)
            losses.add(self.adversary.share, identity=identity)
            total = total + identity * settings.identity_weight
        return total

    def _draw(self, batch: int) -> Draws:
        return Draws(torch.randn(batch, self.config.model.generator.z_dim), torch.randint(2**62, (batch,)))

    def _generate(self, draws: Draws, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What the original and the copy make of the same latents, [P, 3, R, R] each."""
        noise = self.original.synthesis.draw_noise(draws.noise_seed[rows].tolist())  # the same for both, too
        with torch.no_grad():
            w = self.original.mapping(draws.z[rows])
            original = self.original.synthesis(w, noise)
        return original, self.synthesis(w, noise)

    def numbers(self) -> dict[str, Any]:
        return self.adversary.numbers() | {"preview_z": self.preview_z}

    def restore_numbers(self, numbers: dict[str, Any]) -> None:
        self.adversary.restore_numbers(numbers)
        self.preview_z = numbers["preview_z"]

    def result(self) -> Generator:
        return self.average

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Pictures of the original generator and, beside each, the same latent in the new style."""
        w = self.original.mapping(self.preview_z)
        return torch.stack([self.original.synthesis(w), self.average.synthesis(w)], dim=1).flatten(0, 1)


def trainable_parameters(synthesis: SynthesisNetwork, resolution: int) -> list[nn.Parameter]:
    """The learned constant, and the weights of the blocks of 4, 8, ... `resolution` pixels."""
    blocks = resolution.bit_length() - 2
    return [synthesis.const, *synthesis.blocks[:blocks].parameters()]
