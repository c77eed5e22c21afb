"""Style transfer: what is frozen stays, the rest learns the style, and a latent keeps its picture."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from styleinv.runtime.errors import ConfigError
from styleinv.training.checkpoint import load_checkpoint, save_checkpoint
from styleinv.training.config import with_overrides
from styleinv.training.data import ClipSet
from styleinv.training.initialize import initialize
from styleinv.training.model import build_image_discriminator
from styleinv.training.perceptual import discriminator_distance
from styleinv.training.presets import preset
from styleinv.training.stages.common import Losses
from styleinv.training.stages.transfer import TransferStage, trainable_parameters

STEPS = 50
QUICK = ["transfer.batch=4", "transfer.learning_rate=0.01", "transfer.trainable_resolution=8", "transfer.r1_interval=4",
         "transfer.r1_gamma=1", "transfer.ema_images=8", "augment.target=0"]  # fmt: skip


@pytest.fixture(scope="module")
def orange():
    """One clip of flat orange frames, a little brighter or darker each."""
    light = np.linspace(0.8, 1, 16)[:, None, None, None]
    frames = (light * np.array([250, 120, 10]) * np.ones((16, 16, 16, 1))).astype(np.uint8)
    return ClipSet(("orange",), np.array([16]), np.array([0]), frames)


@pytest.fixture
def make_stage(small_config, orange):
    def build(*overrides, identity=None, discriminator=None):
        config = with_overrides(small_config, [*QUICK, *overrides])
        torch.manual_seed(11)
        distance = discriminator_distance(build_image_discriminator(config))
        generator = initialize(config, seed=5).generator
        return TransferStage(config, orange, 3, generator, distance, identity, discriminator)

    return build


def trained(stage, steps=STEPS):
    for index in range(steps):
        torch.manual_seed(index)
        losses = stage.step(index)
        assert all(math.isfinite(value) for value in losses.values())
    return stage


def drawn(stage):
    """Pictures of 32 latents by the original generator and by the result [32, 3, R, R]."""
    with torch.no_grad():
        w = stage.original.mapping(torch.randn(32, 8, generator=torch.Generator().manual_seed(1)))
        return stage.original.synthesis(w), stage.result().synthesis(w)


def likeness(first, second):
    """Correlation [B, B] of the patterns of pictures, without what all pictures of a set share."""
    flat = [((x := images.mean(dim=1).flatten(1)) - x.mean(dim=0)) for images in (first, second)]
    return torch.nn.functional.normalize(flat[0], dim=1) @ torch.nn.functional.normalize(flat[1], dim=1).T


def test_the_result_takes_the_colour_and_keeps_the_latents_meaning(make_stage, orange, tmp_path):
    stage = make_stage("transfer.perceptual_weight=1")
    start = {name: tensor.clone() for name, tensor in stage.generator.state_dict().items()}
    trained(stage)

    trains = {"synthesis.const"} | {
        name for name in start if name.startswith(("synthesis.blocks.0", "synthesis.blocks.1"))
    }
    for network in (stage.generator, stage.average):
        for name, tensor in network.state_dict().items():
            moved = not torch.equal(tensor, start[name])
            assert moved == (name in trains and not name.endswith(".noise")), name
    assert all(torch.equal(tensor, start[name]) for name, tensor in stage.original.state_dict().items())

    original, result = drawn(stage)
    target = torch.from_numpy(orange.frames).float().mean(dim=(0, 1, 2)) / 127.5 - 1
    before, after = ((images.mean(dim=(0, 2, 3)) - target).norm().item() for images in (original, result))
    assert after < 0.7 * before, f"mean colour {before:.3f} off before, {after:.3f} after"
    likenesses = likeness(original, result)
    own = likenesses.diagonal().mean().item()
    others = (likenesses.sum() - likenesses.trace()).item() / (32 * 31)
    assert own > others + 0.3, f"likeness to the same latent's picture {own:.3f}, to others {others:.3f}"

    save_checkpoint(tmp_path / "orange.safetensors", stage.result(), stage.config, kind=stage.kind)
    loaded = load_checkpoint(tmp_path / "orange.safetensors", kind="transfer")
    assert loaded.config.transfer == stage.config.transfer
    assert all(
        torch.equal(tensor, stage.average.state_dict()[name]) for name, tensor in loaded.model.state_dict().items()
    )
    preview = stage.preview()
    assert preview.shape == (16, 3, 16, 16) and (preview[0::2] - preview[1::2]).abs().mean() > 0.05


def test_the_perceptual_weight_holds_pictures_to_the_original(make_stage):
    moved = []
    for weight in (0, 300):
        original, result = drawn(trained(make_stage(f"transfer.perceptual_weight={weight}"), 15))
        moved.append((result - original).abs().mean().item())
    assert moved[1] < 0.7 * moved[0], moved


def test_both_generators_draw_the_same_noise(make_stage):
    stage = make_stage()
    draws, rows = stage._draw(2), torch.arange(2)
    original, fake = stage._generate(draws, rows)
    assert torch.equal(original, fake)
    other = dataclasses.replace(draws, noise_seed=draws.noise_seed + 1)
    assert not torch.equal(original, stage._generate(other, rows)[0])


def test_a_face_distance_counts_where_there_is_one(make_stage):
    calls = []

    def identity(found, wanted):
        calls.append((found.requires_grad, wanted.requires_grad))
        return (found - wanted - 1).square().mean()

    stage = make_stage("transfer.identity_weight=1000", identity=identity)
    losses = trained(stage, 4).step(4)
    assert losses["identity"] < 1 and calls[0] == (True, False)
    assert "identity" not in make_stage().step(0)


def test_a_trained_discriminator_is_the_start_and_stays_as_it_was(make_stage, small_config):
    torch.manual_seed(7)
    given = build_image_discriminator(small_config)
    distance = discriminator_distance(given)  # takes its gradients away
    stage = make_stage(discriminator=given)
    picture = torch.rand(4, 3, 16, 16)
    start = {name: weight.clone() for name, weight in given.state_dict().items()}
    assert all(torch.equal(weight, start[name]) for name, weight in stage.discriminator.state_dict().items())
    before = distance(picture, -picture).item()
    trained(stage, 2)
    assert not any(torch.equal(weight, start[name]) for name, weight in stage.discriminator.state_dict().items())
    assert all(torch.equal(weight, start[name]) for name, weight in given.state_dict().items())
    assert distance(picture, -picture).item() == before


def test_parts_of_a_batch_add_up_to_its_gradients(make_stage):
    gradients, means = [], []
    for parts in (1, 2):
        settings = ["discriminator.group_size=2", "compute.precision=fp32", f"compute.accumulation={parts}"]
        stage = make_stage(*settings, identity=torch.nn.functional.mse_loss)
        stage.adversary.probability.p = 0.5
        with torch.no_grad():
            stage.generator.synthesis.const.mul_(1.5)  # or there would be no distance to the original
        torch.manual_seed(1)
        losses = Losses()
        stage._add_gradients(0, losses)
        means.append(losses.means())
        networks = (stage.generator, stage.discriminator)
        gradients.append([x.grad for network in networks for x in network.parameters() if x.grad is not None])
    assert means[0] == pytest.approx(means[1], rel=1e-4) and min(means[0]["perceptual"], means[0]["identity"]) > 1e-3
    for whole, summed in zip(*gradients, strict=True):
        assert (whole - summed).norm() <= 1e-4 * whole.norm()


@pytest.mark.parametrize(("resolution", "blocks"), [(4, 1), (8, 2), (16, 3), (64, 3)])
def test_layers_up_to_a_resolution(make_stage, resolution, blocks):
    stage = make_stage(f"transfer.trainable_resolution={resolution}")
    synthesis = stage.generator.synthesis
    expected = [
        synthesis.const,
        *(weight for block in list(synthesis.blocks)[:blocks] for weight in block.parameters()),
    ]
    found = trainable_parameters(synthesis, resolution)
    assert {id(weight) for weight in found} == {id(weight) for weight in expected}
    assert {id(weight) for weight in stage.generator.parameters() if weight.requires_grad} == {id(x) for x in expected}
    stage._generate(stage._draw(2), torch.arange(2))[1].square().sum().backward()
    assert all(weight.grad is not None for weight in expected)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainable_resolution=48", "trainable_resolution: found 48, expected a power of two, at least 4"),
        ("perceptual_weight=-1", "perceptual_weight: found -1, expected 0 or more"),
        ("r1_interval=0", "r1_interval: found 0, expected at least 1"),
        ("batch=0", "batch: found 0, expected at least 1"),
    ],
)
def test_bad_settings_are_named(override, words):
    with pytest.raises(ConfigError, match=f"transfer.{words}"):
        with_overrides(preset("tiny64"), [f"transfer.{override}"])


def test_a_stage_goes_on_from_its_state_bit_for_bit(make_stage):
    whole, parts = trained(make_stage("augment.target=0.6"), 2), make_stage("augment.target=0.6")
    whole.adversary.probability.p = 0.5
    for name, network in whole.networks.items():
        parts.networks[name].load_state_dict(network.state_dict())
    for name, optimizer in whole.optimizers.items():
        parts.optimizers[name].load_state_dict(copy.deepcopy(optimizer.state_dict()))
    parts.restore_numbers(copy.deepcopy(whole.numbers()))
    for stage in (whole, parts):
        for index in (2, 3):
            torch.manual_seed(index)
            stage.step(index)
    assert whole.adversary.probability.p == parts.adversary.probability.p > 0
    assert torch.equal(whole.preview_z, parts.preview_z)
    for name, network in whole.networks.items():
        state = parts.networks[name].state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items()), name
