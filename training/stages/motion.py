"""Stage 3: the encoder modulated over time, against a discriminator of clips (paper section 3.3).

The generator is frozen. A fake clip has four frames: t = 0 and three random times ('first-frame-aware sparse
training'); its frame at t = 0 is shown to the discriminator as x0 itself.

Shapes: B clips of a batch, P of a part of it, K anchors, Z size of z and of an anchor's noise, W size of a latent,
R resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from styleinv.training.config import Config
from styleinv.training.data import ClipSet, clip_batch, sample_times
from styleinv.training.discriminator import CLIP_FRAMES
from styleinv.training.ema import averaged_copy, ramped_half_life, update_average
from styleinv.training.encoder import Encoder
from styleinv.training.generator import Generator
from styleinv.training.model import InversionModel, StyleInV, build_clip_discriminator, build_styleinv
from styleinv.training.stages.adversary import Adversary
from styleinv.training.stages.common import (
    Losses,
    channels_last,
    compiled,
    lazy_adam,
    mixed_precision,
    take_step,
    to_pictures,
)

PREVIEW = 4  # clips
FAKE_TIMES_DOMAIN = 3  # keeps the fakes' times apart from the draws of the data


@dataclass(frozen=True)
class Fakes:
    """What the fake clips of a batch are made from; a clip's draws do not depend on who draws them."""

    times: Tensor  # [B, 4], of which the first is 0
    z: Tensor  # [B, Z]
    noise: Tensor  # [B, K, Z]


class MotionStage:
    """Trains motion codes, temporal style and encoder; the moving average of the whole model is the result.

    The encoder starts from the inversion model's; without one it is for the caller to load a model's weights.
    """

    name = "motion"
    kind = "styleinv"

    def __init__(
        self, config: Config, clips: ClipSet, seed: int, generator: Generator, inversion: InversionModel | None
    ) -> None:
        torch.manual_seed(seed)
        settings = config.motion
        self.config = config
        self.clips = clips
        self.seed = seed
        self.images_per_step = settings.batch
        self.model = build_styleinv(config.model)
        self.model.generator.load_state_dict(generator.state_dict())
        with torch.no_grad():
            for layer in self.model.motion_gates():
                layer.weight.mul_(settings.initial_motion)
        if self.model.encoder is not None and inversion is not None:
            _start_from(inversion.encoder, self.model.encoder)
        if self.model.latent_average is not None:
            self.model.latent_average.copy_(generator.mapping.latent_average)
        # The backbone's statistics stay those of the inversion stage: a step sees a handful of scenes only.
        self.model.eval()
        self.model.generator.requires_grad_(False)
        self.discriminator = build_clip_discriminator(config)
        channels_last(self.model, self.discriminator)
        self.average: StyleInV = averaged_copy(self.model)
        self.synthesis = compiled(self.model.generator.synthesis, config.compute)
        self.adversary = Adversary(self.discriminator, config, settings, settings.discriminator_learning_rate)
        self.networks: dict[str, nn.Module] = {
            "model": self.model,
            "discriminator": self.discriminator,
            "average": self.average,
        }
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "model": lazy_adam(trained, settings.learning_rate),
            "discriminator": self.adversary.optimizer,
        }

    def step(self, index: int) -> dict[str, float]:
        settings, adversary = self.config.motion, self.adversary
        learns = index * settings.batch >= settings.head_start
        losses, fakes = Losses(), self._draw(index)
        adversary.begin(index)
        for rows in adversary.parts:
            times = fakes.times[rows]
            frames, real_times = self._real(index, rows)
            with mixed_precision(self.config.compute, times.device), torch.set_grad_enabled(learns):
                clip, first_frame, w0, w = self._generate(fakes, rows)
            with mixed_precision(self.config.compute, times.device):
                shown, gradient = adversary.oppose(rows, frames, clip, losses, real_times, times)
            if learns:
                first = F.mse_loss(first_frame, clip[:, 0])
                drift = (w - w0[:, None]).norm(dim=2).mean()
                losses.add(adversary.share, first_frame=first, drift=drift)
                loss = settings.first_frame_weight * first + settings.latent_weight * drift
                torch.autograd.backward([shown, loss * adversary.share], [gradient, None])
        adversary.step()
        if learns:
            take_step(self.model, self.optimizers["model"])
        half_life = ramped_half_life(settings.ema_images, settings.ema_rampup, (index + 1) * settings.batch)
        update_average(self.average, self.model, settings.batch, half_life)
        return adversary.end(losses)

    def _draw(self, index: int) -> Fakes:
        settings, model = self.config.motion, self.config.model
        draws = np.random.Generator(np.random.Philox(key=[self.seed, FAKE_TIMES_DOMAIN], counter=[0, 0, index, 0]))
        times = sample_times(draws, settings.batch, settings.max_span, fractional=True)
        z = torch.randn(settings.batch, model.generator.z_dim)
        anchors = self.model.motion.anchors_needed(float(times.max()))
        noise = torch.randn(settings.batch, anchors, model.motion.noise_dim)
        return Fakes(torch.as_tensor(times, device=z.device), z, noise)

    def _real(self, index: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Real clips [P, 4, 3, R, R] and their times [P, 4]."""
        settings = self.config.motion
        start = index * settings.batch
        clips = [
            clip_batch(self.clips, self.seed, start + row, 1, max_span=settings.max_span, mirror=settings.mirror)
            for row in rows.tolist()
        ]
        frames, times = (np.concatenate(arrays) for arrays in zip(*clips, strict=True))
        return to_pictures(frames), torch.as_tensor(times, device=rows.device)

    def _generate(self, fakes: Fakes, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the clips as the discriminator sees them [P, 4, 3, R, R] (x0 first), the model's own frame at t = 0
        [P, 3, R, R], w0 [P, W] and the frames' latents [P, 4, W]."""
        model = self.model
        with torch.no_grad():
            w0 = model.generator.mapping(fakes.z[rows])
            x0 = model.generator.synthesis(w0)
        w = model.latents(w0, x0, model.motion(fakes.noise[rows], fakes.times[rows]))
        frames = self.synthesis(w.flatten(0, 1)).unflatten(0, (-1, CLIP_FRAMES))
        return torch.cat([x0[:, None], frames[:, 1:]], dim=1), frames[:, 0], w0, w

    def numbers(self) -> dict[str, Any]:
        return self.adversary.numbers()

    def restore_numbers(self, numbers: dict[str, Any]) -> None:
        self.adversary.restore_numbers(numbers)

    def result(self) -> StyleInV:
        return self.average

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Each row a clip over time."""
        draws = torch.Generator(torch.get_default_device()).manual_seed(0)
        span, model = self.config.motion.max_span, self.config.model
        t = torch.linspace(0, span - 1, PREVIEW, dtype=torch.float64).expand(PREVIEW, -1)
        z = torch.randn(PREVIEW, model.generator.z_dim, generator=draws)
        anchors = self.average.motion.anchors_needed(span)
        noise = torch.randn(PREVIEW, anchors, model.motion.noise_dim, generator=draws)
        frames: Tensor = self.average(z, noise, t)
        return frames.flatten(0, 1)


def _start_from(inversion: Encoder, encoder: Encoder) -> None:
    """Take over all that the inversion encoder has: no temporal blocks, and no head of use to PCA's components."""
    state = inversion.state_dict()
    if encoder.pca is not None:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    encoder.load_state_dict(state, strict=False)
