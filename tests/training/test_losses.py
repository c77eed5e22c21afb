"""Losses and moving averages against their formulas, on cases that can be worked out by hand."""

import math

import pytest
import torch

from styleinv.training.ema import averaged_copy, ramped_half_life, update_average
from styleinv.training.losses import (
    discriminator_loss,
    feature_distance,
    generator_loss,
    path_lengths,
    r1_penalty,
)
from styleinv.training.stages.common import lazy_adam, to_pictures


def test_logistic_losses_at_zero_are_log_two():
    zero = torch.zeros(4)
    assert generator_loss(zero).item() == pytest.approx(math.log(2))
    assert discriminator_loss(zero, zero).item() == pytest.approx(2 * math.log(2))


def test_losses_fall_when_the_judgement_is_right():
    assert generator_loss(torch.tensor([5.0])) < generator_loss(torch.tensor([-5.0]))
    right = discriminator_loss(torch.tensor([5.0]), torch.tensor([-5.0]))
    assert right < discriminator_loss(torch.tensor([-5.0]), torch.tensor([5.0]))


def test_r1_is_half_the_squared_gradient():
    real = torch.zeros(2, 3, 2, 2, requires_grad=True)
    slope = torch.arange(12.0).view(3, 2, 2)
    logits = (real * slope).sum(dim=(1, 2, 3))
    assert r1_penalty(real, logits).item() == pytest.approx(slope.square().sum().item() / 2)


def test_path_length_of_a_scaling_is_its_factor():
    torch.manual_seed(0)
    latents = torch.randn(4, 1, 3 * 32 * 32, requires_grad=True)
    lengths = path_lengths((latents * 5).view(4, 3, 32, 32), latents, torch.randn(4, 3, 32, 32))
    assert lengths.shape == (4,)
    assert lengths.mean().item() == pytest.approx(5 * math.sqrt(3), rel=0.1)  # three channels share one pixel's scale


def test_feature_distance_ignores_lengths():
    features = [torch.rand(2, 4, 3, 3) + 0.1]
    assert feature_distance(features, [features[0] * 7]).item() == pytest.approx(0, abs=1e-10)
    assert feature_distance([torch.tensor([[[[1.0]], [[0.0]]]])], [torch.tensor([[[[0.0]], [[1.0]]]])]).item() == 2


def test_average_moves_half_way_in_a_half_life():
    network = torch.nn.BatchNorm2d(1)
    average = averaged_copy(network)
    with torch.no_grad():
        network.weight.fill_(3.0)
        network.running_mean.fill_(9.0)
    update_average(average, network, batch=10, half_life=10)
    assert average.weight.item() == pytest.approx(2.0)
    assert average.running_mean.item() == 9.0
    assert not average.weight.requires_grad


def test_the_half_life_is_short_early_in_training():
    assert ramped_half_life(1000, 0.05, images_seen=100) == pytest.approx(5)
    assert ramped_half_life(1000, 0.05, images_seen=10**6) == 1000
    assert ramped_half_life(1000, 0.0, images_seen=1) == 1000


def test_lazy_adam_shrinks_rate_and_memory_together():
    (group,) = lazy_adam([torch.nn.Parameter(torch.zeros(1))], 0.002, interval=16).param_groups
    assert group["lr"] == pytest.approx(0.002 * 16 / 17)
    assert group["betas"] == pytest.approx((0.0, 0.99 ** (16 / 17)))


def test_pictures_span_minus_one_to_one():
    frames = torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8).numpy()
    assert to_pictures(frames).shape == (1, 3, 1, 1)
    assert to_pictures(frames).flatten().tolist() == pytest.approx([-1, 0.00392, 1], abs=1e-4)
