"""The other side of adversarial training: a discriminator, with its augmentation, its R1 and its optimizer.

Shapes: B samples of a whole batch, P of a part of it, T frames of a clip (a picture has none), R resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from styleinv.training import workers
from styleinv.training.augment import AdaptiveProbability, Transforms, augment, draw_transforms
from styleinv.training.config import Config, ImageStageConfig, MotionStageConfig, TransferStageConfig
from styleinv.training.losses import discriminator_loss, generator_loss, r1_penalty
from styleinv.training.stages.common import Losses, compiled, lazy_adam, take_step

Judge = Callable[[Tensor], Tensor]  # samples [P, ...] -> logits [P]


class Adversary:
    """Trains `discriminator` and says how a generator should move: `begin` a step, `oppose` every part, `end` it.

    `parts` are the rows of a batch that this process takes, each `share` of the batch.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        config: Config,
        settings: ImageStageConfig | MotionStageConfig | TransferStageConfig,
        learning_rate: float,
    ) -> None:
        self.discriminator = discriminator
        self.batch = settings.batch
        self.resolution = config.model.generator.resolution
        self.r1_gamma, self.r1_interval = settings.r1_gamma, settings.r1_interval
        self.parts = workers.own_parts(settings.batch, config.compute.accumulation, config.discriminator.group_size)
        self.share = workers.share_of(self.parts)
        self.optimizer = lazy_adam(discriminator.parameters(), learning_rate, settings.r1_interval)
        self.probability = AdaptiveProbability(
            config.augment.target, config.augment.speed_images, config.augment.interval
        )
        self._compiled = compiled(discriminator, config.compute)
        self._transforms: Transforms | None = None  # of all fakes, then of all real samples
        self._r1_weight = 0.0

    def begin(self, index: int) -> None:
        """Draw how step number `index` transforms fakes and real samples, of the whole batch."""
        self._transforms = draw_transforms(2 * self.batch, self.probability.p, self.resolution)
        self._r1_weight = self.r1_gamma * self.r1_interval if index % self.r1_interval == 0 else 0.0

    def oppose(
        self,
        rows: Tensor,
        real: Tensor,
        fake: Tensor,
        losses: Losses,
        real_times: Tensor | None = None,
        fake_times: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Take in one part of the batch, pictures [P, 3, R, R], or clips [P, T, 3, R, R] and their times [P, T].

        Returns the fakes as they were shown, transformed, and the gradient of the generator's loss there: for
        `shown.backward(gradient)`.
        """
        transforms = self._transforms
        shown = _transformed(fake, transforms and transforms.of(rows))
        # R1 is taken at the transformed samples: bilinear warps have no second derivative to go through.
        seen = _transformed(real, transforms and transforms.of(self.batch + rows))
        judge_real = self.discriminator if self._r1_weight > 0 else self._compiled
        gradient = adversarial_gradients(
            self.discriminator,
            _given(judge_real, real_times),
            _given(self._compiled, fake_times),
            seen,
            shown,
            losses,
            share=self.share,
            r1_weight=self._r1_weight,
        )
        return shown, gradient

    def end(self, losses: Losses) -> dict[str, float]:
        """Steer the augmentation by the step's losses, and return their means over the batch."""
        means = losses.means()
        self.probability.update(means.pop("sign"), self.batch)
        return means | {"augment": self.probability.p}

    def step(self) -> None:
        """Move the discriminator by the gradients of all parts."""
        take_step(self.discriminator, self.optimizer)

    def numbers(self) -> dict[str, Any]:
        """Its plain state, for `Stage.numbers`."""
        return {"p": self.probability.p, "signs": self.probability.signs}

    def restore_numbers(self, numbers: dict[str, Any]) -> None:
        self.probability.p = numbers["p"]
        self.probability.signs = list(numbers["signs"])


def adversarial_gradients(
    discriminator: nn.Module,
    judge_real: Judge,
    judge_fake: Judge,
    real: Tensor,
    fake: Tensor,
    losses: Losses,
    *,
    share: float,
    r1_weight: float,
) -> Tensor:
    """Both sides' gradients from one look of the discriminator at one set of fakes.

    real and fake [P, ...] become gradients of the logistic losses times `share`, their share of the batch: those of the
    discriminator, with R1 where `r1_weight` is above 0, are added to its parameters, and the generator's at `fake` is
    returned. Both sides then move at once. Textbook training moves one after the other, and for that draws the fakes
    twice and judges them three times.
    """
    seen = fake.detach().requires_grad_()
    fake_logits = judge_fake(seen).float()
    adversarial = generator_loss(fake_logits)
    (gradient,) = torch.autograd.grad(adversarial * share, seen, retain_graph=True)
    real = real.detach().requires_grad_(r1_weight > 0)
    real_logits = judge_real(real).float()
    loss = discriminator_loss(real_logits, fake_logits)
    losses.add(
        share, generator=adversarial, discriminator=loss, real=real_logits.mean(), sign=real_logits.sign().mean()
    )
    if r1_weight > 0:
        penalty = r1_penalty(real, real_logits)
        losses.add(share, r1=penalty)
        loss = loss + penalty * r1_weight
    (loss * share).backward(inputs=list(discriminator.parameters()))
    return gradient


def _given(judge: Callable[..., Tensor], times: Tensor | None) -> Judge:
    """A discriminator of clips knows the times between their frames."""
    return judge if times is None else lambda clips: judge(clips, times)


def _transformed(samples: Tensor, transforms: Transforms | None) -> Tensor:
    return augment(samples, transforms) if samples.ndim == 5 else augment(samples[:, None], transforms)[:, 0]
