"""Stage 3: the encoder modulated over time, against a discriminator of clips (paper section 3.3).

The generator is frozen. A fake clip has four frames: t = 0 and three random times ('first-frame-aware sparse
training'); its frame at t = 0 is shown to the discriminator as x0 itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from styleinv.training.augment import AdaptiveProbability, augment
from styleinv.training.config import Config
from styleinv.training.data import ClipSet, clip_batch, sample_times
from styleinv.training.discriminator import CLIP_FRAMES
from styleinv.training.ema import averaged_copy, ramped_half_life, update_average
from styleinv.training.encoder import Encoder
from styleinv.training.generator import Generator
from styleinv.training.losses import generator_loss
from styleinv.training.model import InversionModel, StyleInV, build_clip_discriminator, build_styleinv
from styleinv.training.stages.common import channels_last, discriminator_step, lazy_adam, to_pictures

PREVIEW = 4  # clips
FAKE_TIMES_DOMAIN = 3  # keeps the fakes' times apart from the draws of the data


class MotionStage:
    """Trains motion codes, temporal style and encoder; the moving average of the whole model is the result.

    The encoder starts from the inversion model's; without one it is for the caller to load a model's weights.
    """

    name = "motion"

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
        self.networks: dict[str, nn.Module] = {
            "model": self.model,
            "discriminator": self.discriminator,
            "average": self.average,
        }
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "model": lazy_adam(trained, settings.learning_rate),
            "discriminator": lazy_adam(
                self.discriminator.parameters(), settings.discriminator_learning_rate, settings.r1_interval
            ),
        }
        self.probability = AdaptiveProbability(
            config.augment.target, config.augment.speed_images, config.augment.interval
        )

    def step(self, index: int) -> dict[str, float]:
        settings = self.config.motion
        frames, real_times = clip_batch(
            self.clips, self.seed, index * settings.batch, settings.batch, max_span=settings.max_span, mirror=False
        )
        draws = np.random.Generator(np.random.Philox(key=[self.seed, FAKE_TIMES_DOMAIN], counter=[0, 0, index, 0]))
        times = torch.from_numpy(sample_times(draws, settings.batch, settings.max_span, fractional=True))
        losses, fake = self._train_model(times, learns=index * settings.batch >= settings.head_start)
        losses |= self._train_discriminator(to_pictures(frames), torch.from_numpy(real_times), fake, times, index)
        half_life = ramped_half_life(settings.ema_images, settings.ema_rampup, (index + 1) * settings.batch)
        update_average(self.average, self.model, settings.batch, half_life)
        return losses | {"augment": self.probability.p}

    def _train_model(self, times: Tensor, learns: bool) -> tuple[dict[str, float], Tensor]:
        """Returns the losses and the fake clips, which the discriminator then learns from."""
        settings = self.config.motion
        self.discriminator.requires_grad_(False)
        with torch.set_grad_enabled(learns):
            clip, first_frame, w0, w = self._generate(times)
        if not learns:
            return {}, clip
        adversarial = generator_loss(self.discriminator(augment(clip, self.probability.p), times))
        first = F.mse_loss(first_frame, clip[:, 0])
        drift = (w - w0[:, None]).norm(dim=2).mean()
        loss = adversarial + settings.first_frame_weight * first + settings.latent_weight * drift
        self.optimizers["model"].zero_grad()
        loss.backward()
        self.optimizers["model"].step()
        return {"model": adversarial.item(), "first_frame": first.item(), "drift": drift.item()}, clip.detach()

    def _train_discriminator(
        self, real: Tensor, real_times: Tensor, fake: Tensor, fake_times: Tensor, index: int
    ) -> dict[str, float]:
        settings = self.config.motion
        self.discriminator.requires_grad_(True)
        with torch.no_grad():
            fake, real = augment(fake, self.probability.p), augment(real, self.probability.p)
        losses, real_logits = discriminator_step(
            self.optimizers["discriminator"],
            lambda clips: self.discriminator(clips, real_times),
            lambda clips: self.discriminator(clips, fake_times),
            real,
            fake,
            r1_weight=settings.r1_gamma * settings.r1_interval if index % settings.r1_interval == 0 else 0.0,
        )
        self.probability.update(real_logits, settings.batch)
        return losses

    def _generate(self, times: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fake clips for times [B, 4], of which the first is 0.

        Returns the clip as the discriminator sees it [B, 4, 3, R, R] (x0 first), the model's own frame at t = 0
        [B, 3, R, R], w0 [B, W] and the frames' latents [B, 4, W].
        """
        model, picture, motion = self.model, self.config.model.generator, self.config.model.motion
        batch = len(times)
        with torch.no_grad():
            w0 = model.generator.mapping(torch.randn(batch, picture.z_dim))
            x0 = model.generator.synthesis(w0)
        anchors = model.motion.anchors_needed(float(times.max()))
        v = model.motion(torch.randn(batch, anchors, motion.noise_dim), times)
        w = model.latents(w0, x0, v)
        frames = model.generator.synthesis(w.flatten(0, 1)).unflatten(0, (batch, CLIP_FRAMES))
        return torch.cat([x0[:, None], frames[:, 1:]], dim=1), frames[:, 0], w0, w

    def numbers(self) -> dict[str, Any]:
        return {"p": self.probability.p, "signs": self.probability.signs}

    def restore_numbers(self, numbers: dict[str, Any]) -> None:
        self.probability.p = numbers["p"]
        self.probability.signs = list(numbers["signs"])

    def result(self) -> StyleInV:
        return self.average

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Each row a clip over time."""
        draws = torch.Generator().manual_seed(0)
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
