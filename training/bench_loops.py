"""The image stage as a plain loop would train it, for the benchmark, and what can be changed in it one at a time.

The plain loop is the textbook's (StyleGAN2 appendix B): float32, no compiler, the generator's step on fakes of its own,
then the discriminator's on new ones, lazy regularisation, Adam and the moving average weight by weight. It has the
networks, losses, batch and settings of the package, whatever their layers already save, and takes R1 from the look at
the real pictures that it has anyway, where textbook code often looks once more. So it is on the fast side.

Shapes: B pictures of a batch, Z size of z, L latents per picture, W size of a latent, R resolution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from styleinv.training.augment import augment, draw_transforms
from styleinv.training.config import Config
from styleinv.training.data import ClipSet, frame_batch
from styleinv.training.ema import averaged_copy, ramped_half_life, update_average
from styleinv.training.layers import ModulatedConv2d
from styleinv.training.loop import step_seed
from styleinv.training.losses import discriminator_loss, generator_loss, path_lengths, r1_penalty
from styleinv.training.model import build_generator, build_image_discriminator
from styleinv.training.stages.adversary import adversarial_gradients
from styleinv.training.stages.common import (
    Losses,
    channels_last,
    lazy_adam,
    to_pictures,
    uses_bfloat16,
)
from styleinv.training.stages.image import LATENT_AVERAGE_DECAY, PATH_LENGTH_DECAY, ImageStage

Step = Callable[[int], object]  # trains on step number `index`


@dataclass(frozen=True)
class Changes:
    """What is changed in the plain loop."""

    shared_fakes: bool = False  # drawn once and judged once for both sides, which then move at once
    channels_last: bool = False
    fused: bool = False  # Adam, and the moving average, of all weights in one operation
    bfloat16: bool = False  # mixed precision
    compiled: bool = False  # networks through torch.compile, but where there are second derivatives


class PlainLoop:
    """Trains a generator against a discriminator, with augmentation of a fixed probability `p`."""

    def __init__(self, config: Config, clips: ClipSet, seed: int, p: float, changes: Changes | None = None) -> None:
        torch.manual_seed(seed)
        settings = config.image
        self.config, self.settings, self.clips, self.seed, self.p = config, settings, clips, seed, p
        self.changes = changes or Changes()
        self.generator = build_generator(config.model.generator)
        self.discriminator = build_image_discriminator(config)
        self.average = averaged_copy(self.generator)
        if self.changes.channels_last:
            channels_last(self.generator, self.discriminator)
        self.convs = [module for module in self.generator.synthesis.modules() if isinstance(module, ModulatedConv2d)]
        self.generator_adam = self._adam(self.generator, settings.path_length_interval)
        self.discriminator_adam = self._adam(self.discriminator, settings.r1_interval)
        self.draw: Callable[..., Tensor] = self.generator.synthesis
        self.judge: Callable[[Tensor], Tensor] = self.discriminator
        if self.changes.compiled:
            self.draw, self.judge = torch.compile(self.draw), torch.compile(self.judge)
        self.mean_path_length = 0.0

    def step(self, index: int) -> dict[str, float]:
        torch.manual_seed(step_seed(self.seed, index))
        settings = self.settings
        r1_weight = settings.r1_gamma * settings.r1_interval if index % settings.r1_interval == 0 else 0.0
        if self.changes.shared_fakes:
            losses = self._move_both(index, r1_weight)
        else:
            losses = {"generator": self._move_generator(), "discriminator": self._move_discriminator(index, r1_weight)}
        if settings.path_length_interval and index % settings.path_length_interval == 0:
            losses["path_length"] = self._regularize_path_lengths()
        self._average(ramped_half_life(settings.ema_images, settings.ema_rampup, (index + 1) * settings.batch))
        return losses

    def _move_generator(self) -> float:
        self.discriminator.requires_grad_(False)
        with self._precision():
            logits = self.judge(self._shown(self._fakes()))
        loss = generator_loss(logits.float())
        _minimize(loss, self.generator_adam)
        self.discriminator.requires_grad_(True)
        return loss.item()

    def _move_discriminator(self, index: int, r1_weight: float) -> float:
        judge = self.discriminator if r1_weight else self.judge
        with self._precision():
            with torch.no_grad():
                fake = self._fakes()
            fake_logits = judge(self._shown(fake)).float()
            real = self._shown(self._reals(index)).requires_grad_(r1_weight > 0)
            real_logits = judge(real).float()
            loss = discriminator_loss(real_logits, fake_logits)
            if r1_weight:
                loss = loss + r1_penalty(real, real_logits) * r1_weight
        _minimize(loss, self.discriminator_adam)
        return loss.item()

    def _move_both(self, index: int, r1_weight: float) -> dict[str, float]:
        losses = Losses()
        judge = self.discriminator if r1_weight else self.judge
        with self._precision():
            shown, real = self._shown(self._fakes()), self._shown(self._reals(index))
            gradient = adversarial_gradients(
                self.discriminator, judge, judge, real, shown, losses, share=1.0, r1_weight=r1_weight
            )
        shown.backward(gradient)
        for optimizer in (self.discriminator_adam, self.generator_adam):
            optimizer.step()
            optimizer.zero_grad()
        return losses.means()

    def _regularize_path_lengths(self) -> float:
        """On half of a batch of its own, as StyleGAN2 does (section 3.2)."""
        ws = self._latents(max(1, self.settings.batch // 2))
        with self._precision():
            pictures = self.generator.synthesis(ws, self._noise(len(ws)))
        lengths = path_lengths(pictures, ws, torch.randn(pictures.shape))
        self.mean_path_length += PATH_LENGTH_DECAY * (lengths.mean().item() - self.mean_path_length)
        loss = (lengths - self.mean_path_length).square().mean()
        _minimize(loss * self.settings.path_length_weight * self.settings.path_length_interval, self.generator_adam)
        return loss.item()

    @torch.no_grad()
    def _average(self, half_life: float) -> None:
        batch = self.settings.batch
        if self.changes.fused:
            update_average(self.average, self.generator, batch, half_life)
            return
        decay = 0.5 ** (batch / max(half_life, 1e-8))
        for kept, current in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            kept.lerp_(current, 1 - decay)
        for buffer, found in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            buffer.copy_(found)

    def _fakes(self) -> Tensor:
        """A batch of drawn pictures [B, 3, R, R]; the mean latent follows them."""
        ws = self._latents(self.settings.batch)
        with torch.no_grad():
            self.generator.mapping.latent_average.lerp_(ws[:, 0].mean(dim=0).float(), 1 - LATENT_AVERAGE_DECAY)
        return self.draw(ws, self._noise(len(ws)))

    def _latents(self, batch: int) -> Tensor:
        """[B, L, W], some of them mixed from two where the preset mixes styles."""
        mapping, count = self.generator.mapping, self.generator.synthesis.num_latents
        z_dim = self.config.model.generator.z_dim
        ws: Tensor = mapping(torch.randn(batch, z_dim))[:, None].expand(-1, count, -1)
        if self.settings.style_mixing:
            mixes = torch.rand(batch) < self.settings.style_mixing
            crossover = torch.where(mixes, torch.randint(1, count, (batch,)), count)
            other = mapping(torch.randn(batch, z_dim))[:, None]
            ws = torch.where(torch.arange(count)[None, :, None] < crossover[:, None, None], ws, other)
        return ws

    def _noise(self, batch: int) -> str | list[Tensor]:
        if not self.convs[0].use_noise:
            return "none"
        if self.settings.noise == "const":
            return "const"
        return [torch.randn(batch, 1, *conv.noise.shape) for conv in self.convs]

    def _reals(self, index: int) -> Tensor:
        batch = self.settings.batch
        return to_pictures(frame_batch(self.clips, self.seed, index * batch, batch, self.settings.mirror))

    def _shown(self, pictures: Tensor) -> Tensor:
        """What the discriminator is shown of them."""
        with torch.autocast(pictures.device.type, enabled=False):  # places of pixels take more than bfloat16 has
            transforms = draw_transforms(len(pictures), self.p, pictures.shape[-1])
        return augment(pictures[:, None], transforms)[:, 0]

    def _precision(self) -> torch.autocast:
        device = self.generator.synthesis.const.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.changes.bfloat16)

    def _adam(self, network: nn.Module, interval: int) -> torch.optim.Adam:
        fused = lazy_adam(network.parameters(), self.settings.learning_rate, interval)
        if self.changes.fused:
            return fused
        learning_rate, betas, epsilon = (fused.defaults[name] for name in ("lr", "betas", "eps"))
        return torch.optim.Adam(network.parameters(), learning_rate, betas, epsilon, foreach=False, fused=False)


def _minimize(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def stage_step(config: Config, clips: ClipSet, seed: int, p: float) -> Step:
    """A step of the package, with augmentation of a fixed probability `p`."""
    fixed = dataclasses.replace(config, augment=dataclasses.replace(config.augment, target=0.0))
    stage = ImageStage(fixed, clips, seed)
    stage.adversary.probability.p = p

    def step(index: int) -> dict[str, float]:
        torch.manual_seed(step_seed(seed, index))
        return stage.step(index)

    return step


def plain_and_package(config: Config, clips: ClipSet, seed: int, p: float) -> dict[str, Step]:
    """The two ends of the ladder, by name."""
    return {"plain loop": PlainLoop(config, clips, seed, p).step, "package": stage_step(config, clips, seed, p)}


def ladder(config: Config, clips: ClipSet, seed: int, p: float, compiled: bool) -> dict[str, Step]:
    """From the plain loop to the package, by name: each has the changes of those before, and one more.

    bfloat16 is among them where the device is made for it, as in the package; torch.compile where `compiled`.
    """
    changes = Changes()
    rungs = {"plain loop": changes}
    for name, field, is_tried in (
        ("+ fakes shared", "shared_fakes", True),
        ("+ channels last", "channels_last", True),
        ("+ fused Adam and average", "fused", True),
        ("+ bfloat16", "bfloat16", uses_bfloat16(config.compute.precision, torch.get_default_device())),
        ("+ torch.compile", "compiled", compiled),
    ):
        if is_tried:
            changes = dataclasses.replace(changes, **{field: True})
            rungs[name] = changes
    steps: dict[str, Step] = {name: PlainLoop(config, clips, seed, p, rung).step for name, rung in rungs.items()}
    return steps | {"package": stage_step(config, clips, seed, p)}
