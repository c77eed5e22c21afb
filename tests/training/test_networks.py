"""Shapes and properties of the networks that the golden values do not cover."""

import dataclasses

import pytest
import torch

from styleinv.training.config import EncoderConfig, ModelConfig, with_overrides
from styleinv.training.discriminator import minibatch_deviation
from styleinv.training.encoder import Encoder
from styleinv.training.generator import MappingNetwork, SynthesisNetwork
from styleinv.training.initialize import initialize
from styleinv.training.model import (
    build_clip_discriminator,
    build_image_discriminator,
    build_inversion,
    build_styleinv,
)
from styleinv.training.presets import preset


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_tiny64_has_about_three_million_parameters():
    assert 2.5e6 < parameters(build_styleinv(preset("tiny64").model)) < 3.5e6


def test_paper256_has_the_papers_sizes():
    with torch.device("meta"):
        model = build_styleinv(preset("paper256").model)
    assert model.generator.synthesis.num_latents == 14
    assert len(model.encoder.bottlenecks) == 24
    assert list(model.encoder.temporal) == ["2", "6", "20", "23"]
    assert [block.to_rgb.weight.shape[1] for block in model.generator.synthesis.blocks][-2:] == [128, 64]


def test_latents_of_neighbouring_blocks_overlap():
    """A block's picture latent is the next block's first, so a change of latent 2 reaches blocks 4 and 8 only."""
    torch.manual_seed(0)
    network = SynthesisNetwork(16, w_dim=6, channel_base=64).eval()
    ws = torch.randn(1, network.num_latents, 6)
    seen = []
    for index, block in enumerate(network.blocks):
        block.register_forward_hook(lambda _, inputs, __, index=index: seen.append((index, inputs[2].shape[1])))
    network(ws)
    assert network.num_latents == 6
    assert [count for _, count in seen] == [6, 5, 3]


def test_noise_modes_differ_and_none_is_without():
    torch.manual_seed(0)
    network = SynthesisNetwork(8, w_dim=6, channel_base=64)
    for block in network.blocks:
        for conv in block.convs:
            conv.noise_strength.data.fill_(0.5)
    w = torch.randn(1, 6)
    const, none = network(w, "const"), network(w, "none")
    assert torch.equal(const, network(w, "const"))
    assert not torch.allclose(const, none)
    drawn = network(w, network.draw_noise([7]))
    assert torch.equal(drawn, network(w, network.draw_noise([7])))
    assert not torch.allclose(drawn, network(w, network.draw_noise([8])))
    assert not torch.allclose(drawn, const) and not torch.allclose(drawn, none)


def test_noise_follows_from_the_seed_of_each_picture():
    network = SynthesisNetwork(8, w_dim=6, channel_base=64)
    both, second = network.draw_noise([3, 2**61]), network.draw_noise([2**61])
    assert [tuple(layer.shape) for layer in both] == [(2, 1, 4, 4), (2, 1, 8, 8), (2, 1, 8, 8)]
    assert all(torch.equal(layer[1:], alone) for layer, alone in zip(both, second, strict=True))
    assert not torch.equal(both[1], both[2])


def test_without_noise_tensors_all_modes_are_one():
    torch.manual_seed(0)
    network = SynthesisNetwork(8, w_dim=6, channel_base=64, use_noise=False)
    assert not any("noise" in name for name in network.state_dict())
    w = torch.randn(1, 6)
    assert torch.equal(network(w, "const"), network(w, "none"))
    assert network.draw_noise([1]) == "none"


def test_activations_stay_inside_the_clamp():
    torch.manual_seed(0)
    network = SynthesisNetwork(8, w_dim=6, channel_base=64, conv_clamp=0.5)
    extremes = []
    for block in network.blocks:
        for conv in block.convs:
            conv.register_forward_hook(lambda _, __, out: extremes.append(out.abs().max().item()))
    network(torch.randn(2, 6) * 50)
    assert max(extremes) == pytest.approx(0.5)  # after the leaky ReLU's gain


def test_truncation_moves_latents_towards_the_average():
    torch.manual_seed(0)
    mapping = MappingNetwork(4, 6, num_layers=2)
    mapping.latent_average.copy_(torch.arange(6.0))
    z = torch.randn(3, 4)
    full, half = mapping(z), mapping(z, 0.5)
    assert torch.allclose(half, (full + mapping.latent_average) / 2, atol=1e-6)
    mixed = mapping(z, torch.tensor([1.0, 0.0, 0.5]))
    assert torch.allclose(mixed, torch.stack([full[0], mapping.latent_average, half[2]]), atol=1e-6)


def test_a_conditional_mapping_needs_and_uses_its_label():
    torch.manual_seed(0)
    mapping = MappingNetwork(4, 6, label_dim=3, num_layers=2)
    z, labels = torch.randn(1, 4), torch.eye(3)
    assert not torch.allclose(mapping(z, label=labels[:1]), mapping(z, label=labels[1:2]))
    with pytest.raises(ValueError, match="label"):
        mapping(z)


def test_frame_zero_does_not_depend_on_the_motion(small_model):
    z = torch.randn(1, 8)
    t = torch.tensor([[0.0, 3.0]], dtype=torch.float64)
    first = small_model(z, torch.randn(1, 2, 8), t)
    second = small_model(z, torch.randn(1, 2, 8), t)
    assert torch.equal(first[:, 0], second[:, 0])
    assert not torch.allclose(first[:, 1], second[:, 1])


def test_motion_codes_look_into_the_past_only(small_model):
    torch.manual_seed(0)
    noise = torch.randn(1, 30, 8)
    changed = noise.clone()
    changed[:, 20] += 1
    difference = (small_model.motion.codes(noise) - small_model.motion.codes(changed)).abs().amax(dim=2)[0]
    assert (difference[:20] == 0).all()
    assert (difference[20:] > 0).all()  # two convolutions reach ten anchors back


def test_the_time_code_at_an_anchor_is_its_aligner(small_model):
    torch.manual_seed(1)
    noise = torch.randn(1, 5, 8)
    motion = small_model.motion
    t = torch.tensor([[16.0]], dtype=torch.float64)
    aligner = motion.codes(noise)[0, 2] @ motion.aligner.weight.double().t() * motion.aligner.gain
    assert torch.allclose(motion(noise, t)[0, 0], aligner, atol=1e-12)


@pytest.mark.parametrize("temporal", ["stage", "bottleneck"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pca", [0, 3])
def test_content_and_offset_are_the_encoder_cut_in_two(temporal, normalize, pca):
    torch.manual_seed(0)
    encoder = Encoder(
        6, (16, 16), (2, 1), temporal_blocks=temporal, normalize_residual=normalize, pca_components=pca
    ).eval()
    image, style = torch.randn(2, 3, 16, 16), torch.randn(2, 6)
    x = encoder.stem(image)
    for index, bottleneck in enumerate(encoder.bottlenecks):
        x = bottleneck(x)
        if str(index) in encoder.temporal:
            x = encoder.temporal[str(index)](x, style)
    delta = encoder.head(x.mean(dim=(2, 3)))
    wanted = encoder.pca(delta) if pca else delta
    assert list(encoder.temporal) == (["1", "2"] if temporal == "stage" else ["0", "1", "2"])
    assert torch.allclose(encoder(image, style), wanted, atol=1e-5)


def test_the_inversion_encoder_initialises_the_modulated_one(small_config):
    inversion, model = build_inversion(small_config.model), build_styleinv(small_config.model)
    result = model.encoder.load_state_dict(inversion.encoder.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert all(name.startswith("temporal.") for name in result.missing_keys)


def test_offsets_count_from_the_average_where_input_residual_is_off(small_config):
    config = with_overrides(small_config, ["model.input_residual=false"])
    model = initialize(config)
    assert torch.equal(model.latent_average, model.generator.mapping.latent_average)
    assert "latent_average" in dict(model.named_buffers())


def test_a_style_without_content_sees_the_time_code_alone(small_config):
    config = with_overrides(small_config, ["model.motion.style_sees_content=false"])
    model = initialize(config)
    v = torch.randn(1, 12)
    assert torch.equal(model.style(torch.randn(1, 12), v), model.style(torch.randn(1, 12), v))


@pytest.mark.parametrize("resolution", [16, 32, 64])
def test_discriminators_give_one_logit(small_config, resolution):
    config = with_overrides(small_config, [f"model.generator.resolution={resolution}"])
    images, clips = torch.randn(4, 3, resolution, resolution), torch.randn(2, 4, 3, resolution, resolution)
    times = torch.tensor([[0.0, 1.0, 2.5, 7.0], [0.0, 3.0, 4.0, 5.0]])
    assert build_image_discriminator(config)(images).shape == (4,)
    discriminator = build_clip_discriminator(config)
    logits = discriminator(clips, times)
    assert logits.shape == (2,)
    assert not torch.allclose(logits, discriminator(clips, times * 0.5))


def test_minibatch_deviation_is_zero_for_equal_pictures_only():
    x = torch.randn(1, 5, 4, 4).repeat(4, 1, 1, 1)
    assert minibatch_deviation(x, 4).max() < 1e-3
    assert minibatch_deviation(torch.randn(4, 5, 4, 4), 4).min() > 0.1


def test_initialised_models_are_well_conditioned(small_config):
    model = initialize(small_config, seed=1)
    torch.manual_seed(2)
    z, t = torch.randn(4, 8), torch.linspace(0, 30, 7, dtype=torch.float64).expand(4, -1)
    extremes = {}
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, __, out, name=name: extremes.update({name: out.abs().max().item()}))
    frames = model(z, torch.randn(4, 6, 8), t)
    assert frames.isfinite().all()
    assert max(extremes.values()) < 30, max(extremes.items(), key=lambda item: item[1])
    assert 0.2 < frames.std() < 1
    assert (frames[:, 1:] - frames[:, :-1]).abs().mean() > 0.01, "latents do not move"
    again = initialize(small_config, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_config_defaults_are_the_papers_encoder():
    assert dataclasses.asdict(ModelConfig().encoder) == dataclasses.asdict(EncoderConfig())
    assert sum(EncoderConfig().depths) == 24
