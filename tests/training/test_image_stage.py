"""The adversarial step against textbook training, mixed precision, and what the image stage draws."""

import copy
import math

import pytest
import torch

from styleinv.training.config import ComputeConfig, with_overrides
from styleinv.training.losses import discriminator_loss, generator_loss, r1_penalty
from styleinv.training.model import build_image_discriminator
from styleinv.training.stages.adversary import adversarial_gradients
from styleinv.training.stages.common import (
    Losses,
    mixed_precision,
    take_step,
    uses_bfloat16,
)
from styleinv.training.stages.image import ImageStage

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.fixture
def discriminator(small_config):
    torch.manual_seed(0)
    return build_image_discriminator(small_config)


@pytest.fixture
def make_stage(small_config, small_clips):
    def build(*overrides):
        return ImageStage(with_overrides(small_config, list(overrides)), small_clips, 3)

    return build


def near(found, wanted, tolerance=1e-5):
    return (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("r1_weight", [0.0, 7.0])
def test_one_look_gives_the_gradients_of_textbook_training(discriminator, r1_weight):
    real, fake = torch.randn(2, 4, 3, 16, 16)
    textbook = copy.deepcopy(discriminator)
    shown = fake.clone().requires_grad_()
    generator = generator_loss(textbook(shown))
    (wanted,) = torch.autograd.grad(generator, shown)
    loss = discriminator_loss(textbook(real), textbook(fake))
    expected = {"generator": generator.item(), "discriminator": loss.item()}
    if r1_weight:
        seen = real.clone().requires_grad_()
        penalty = r1_penalty(seen, textbook(seen))
        expected["r1"] = penalty.item()
        loss = loss + r1_weight * penalty
    loss.backward()

    losses = Losses()
    graph = fake.clone().requires_grad_() * 1.0
    for share in (0.25, 0.75):  # gradients of parts add up, and are those parts' shares
        found = adversarial_gradients(
            discriminator, discriminator, discriminator, real, graph, losses, share=share, r1_weight=r1_weight
        )
        assert near(found, wanted * share) and not found.requires_grad
    for (name, parameter), other in zip(discriminator.named_parameters(), textbook.parameters(), strict=True):
        assert near(parameter.grad, other.grad), name
    means = losses.means()
    assert {name: means[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    logits = textbook(real)
    assert means["real"] == pytest.approx(logits.mean().item(), rel=1e-5)
    assert means["sign"] == pytest.approx(logits.sign().mean().item())
    assert ("r1" in means) == (r1_weight > 0)


def test_a_step_forgets_its_gradients(discriminator):
    optimizer = torch.optim.SGD(discriminator.parameters(), lr=1.0)
    before = [parameter.clone() for parameter in discriminator.parameters()]
    for parameter in discriminator.parameters():
        parameter.grad = torch.ones_like(parameter)
    take_step(discriminator, optimizer)
    for parameter, old in zip(discriminator.parameters(), before, strict=True):
        assert torch.equal(parameter, old - 1) and parameter.grad is None


def test_losses_are_means_by_share():
    losses = Losses()
    assert losses.means() == {}
    losses.add(0.25, a=torch.tensor(4.0), b=torch.tensor(1.0, dtype=torch.bfloat16))
    losses.add(0.75, a=torch.tensor(8.0))
    assert losses.means() == {"a": 7.0, "b": 0.25}


def test_mixed_precision_keeps_pictures_float32(make_stage):
    stage = make_stage("compute.precision=bf16")
    synthesis, w = stage.generator.synthesis, torch.randn(2, 12)
    with torch.no_grad():
        exact = synthesis(w)
        with mixed_precision(stage.config.compute, CPU):
            picture = synthesis(w)
    assert picture.dtype == torch.float32
    assert 0 < (picture - exact).abs().max() < 0.05 * exact.abs().max()
    assert not torch.equal(picture, picture.bfloat16().float())  # nor rounded in between

    torch.manual_seed(0)
    losses = stage.step(0)
    assert all(math.isfinite(loss) for loss in losses.values()) and {"r1", "path_length"} <= losses.keys()
    tensors = [tensor for network in stage.networks.values() for tensor in network.state_dict().values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


@pytest.mark.parametrize("supported", [False, True])
def test_automatic_precision_follows_the_device(monkeypatch, supported):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert uses_bfloat16("auto", CUDA) == supported
    for instructions in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        monkeypatch.setattr(torch.cpu, instructions, lambda: supported)
        assert uses_bfloat16("auto", CPU) == supported
    for device in (CPU, CUDA):
        assert uses_bfloat16("bf16", device) and not uses_bfloat16("fp32", device)
    with mixed_precision(ComputeConfig(precision="fp32"), CPU):
        assert not torch.is_autocast_enabled("cpu")


def test_styles_are_mixed_from_the_crossover_on(make_stage):
    stage = make_stage("image.style_mixing=0.5")
    torch.manual_seed(0)
    draws, mapping = stage._draw(64), stage.generator.mapping
    count = stage.generator.synthesis.num_latents
    assert set(draws.crossover.tolist()) == set(range(1, count + 1))
    assert 0.3 < (draws.crossover < count).float().mean() < 0.7
    rows = torch.tensor([5, 40, 2])
    with torch.no_grad():
        ws, own, other = stage._latents(draws, rows), mapping(draws.z), mapping(draws.other_z)
    for found, row in zip(ws, rows.tolist(), strict=True):
        for layer, w in enumerate(found):
            assert torch.allclose(w, (own if layer < draws.crossover[row] else other)[row], atol=1e-6)
    assert make_stage("image.style_mixing=0")._draw(64).crossover.unique().tolist() == [count]


def test_pictures_are_trained_with_the_noise_that_they_play_with(make_stage, monkeypatch):
    given = []
    for noise in ("const", "fresh"):
        stage = make_stage(f"image.noise={noise}", "model.generator.use_noise=true")
        draw = stage.synthesis.forward
        monkeypatch.setattr(
            stage.synthesis, "forward", lambda ws, noise, draw=draw: given.append(noise) or draw(ws, noise)
        )
        stage.step(1)
    const, fresh = given
    assert const == "const"
    assert not torch.equal(fresh[0][0], fresh[0][1])  # one for each picture


def test_a_discriminator_that_sees_textures_hears_every_block(small_config):
    def build(*overrides):
        torch.manual_seed(0)
        return build_image_discriminator(with_overrides(small_config, list(overrides)))

    plain, seeing = build(), build("discriminator.sees_texture=true")
    picture = torch.randn(4, 3, 16, 16)
    assert plain.state_dict().keys() < seeing.state_dict().keys()
    plain.load_state_dict(seeing.state_dict(), strict=False)
    with torch.no_grad():
        says = [
            (x.mean(dim=(2, 3)) @ head.weight[:, :, 0, 0].t() / math.sqrt(x.shape[1]) + head.bias)[:, 0]
            for head, x in zip(seeing.textures, seeing.features(picture), strict=True)
        ]
        assert len(says) == 2  # 16 pixels a side, then 8, then 4
        torch.testing.assert_close(seeing(picture), plain(picture) + sum(says), rtol=1e-4, atol=1e-5)
