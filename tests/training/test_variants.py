"""Every variant of the networks that a configuration can ask for, against the plainest float64 form of its formula."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from styleinv.runtime import motion as runtime_motion
from styleinv.runtime.noise import MOTION_DOMAIN, standard_normal
from styleinv.training.checkpoint import load_checkpoint, save_checkpoint
from styleinv.training.config import with_overrides
from styleinv.training.encoder import ModulatedBlock, PcaHead, TemporalBlock
from styleinv.training.initialize import initialize
from styleinv.training.model import build_generator, build_inversion, build_styleinv
from styleinv.training.motion import MotionNetwork
from styleinv.training.stages.motion import MotionStage

VARIANTS = {
    "mapping_dim": ["model.generator.mapping_dim=20"],
    "labels": ["model.generator.label_dim=3", "model.generator.label_embedding_dim=5"],
    "encoder_lr": ["model.encoder.lr_multiplier=0.1"],
    "convolution": ["model.encoder.modulation=convolution", "model.encoder.temporal_blocks=bottleneck"],
    "pca": ["model.encoder.pca_components=4"],
    "style_dim": ["model.motion.style_dim=7", "model.motion.style_layers=3"],
    "convolution_style_dim": ["model.encoder.modulation=convolution", "model.motion.style_dim=7"],
    "no_residual": ["model.input_residual=false"],
    "stored_average": ["model.stores_latent_average=true"],
    "skip_encoder": ["model.skip_encoder=true"],
    "skip_encoder_average": ["model.skip_encoder=true", "model.input_residual=false"],
    "unaware": ["model.motion.first_frame_aware=false", "model.motion.kernel_size=3"],
    "even_kernel": ["model.motion.kernel_size=4"],
    "turned_periods": ["model.motion.min_period=64", "model.motion.max_period=16"],
    "recovery": ["model.recovered_motion_dim=5", "model.motion.style_dim=7"],
}


@pytest.fixture(params=VARIANTS)
def variant_config(request, small_config):
    return with_overrides(small_config, VARIANTS[request.param])


def config_of(small_config, *names):
    return with_overrides(small_config, [override for name in names for override in VARIANTS[name]])


def filled(network):
    """The network in float64, with every parameter drawn anew, so that no zero or one hides a mistake."""
    torch.manual_seed(3)
    network.double().eval().requires_grad_(False)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_floating_point() and not name.endswith(("running_var", "frequencies")):
            tensor.copy_(torch.randn_like(tensor) * (1.0 if tensor.ndim > 1 else 0.3))
    return network


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def lrelu(x, gain=2**0.5):
    return torch.where(x < 0, 0.2 * x, x) * gain


def linear(x, layer, multiplier):
    """One equalized linear layer, output by output."""
    fan_in = layer.weight.shape[1]
    columns = [
        (x * row).sum(dim=1) * multiplier / math.sqrt(fan_in) + bias * multiplier
        for row, bias in zip(layer.weight, layer.bias, strict=True)
    ]
    return torch.stack(columns, dim=1)


def worst(found, wanted):
    assert found.shape == wanted.shape
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def test_mapping_with_other_widths(small_config):
    config = config_of(small_config, "mapping_dim", "labels")
    mapping = filled(build_generator(config.model.generator)).mapping
    multiplier = config.model.generator.mapping_lr_multiplier
    widths = [(layer.weight.shape[1], layer.weight.shape[0]) for layer in mapping.layers]
    assert widths[0] == (8 + 5, 20) and widths[-1] == (20, 12) and set(widths[1:-1]) <= {(20, 20)}
    assert mapping.embed.weight.shape == (5, 3)
    z, label = random(4, 8), random(4, 3)
    embedded = linear(label, mapping.embed, 1.0)
    parts = [part / (part.square().mean(dim=1, keepdim=True) + 1e-8).sqrt() for part in (z, embedded)]
    w = torch.cat(parts, dim=1)
    for layer in mapping.layers:
        w = lrelu(linear(w, layer, multiplier))
    average = mapping.latent_average
    assert worst(mapping(z, 0.7, label), average + 0.7 * (w - average)) < 1e-12


def test_an_adain_block_with_a_learning_rate_multiplier():
    block = filled(TemporalBlock(6, 5, normalize_residual=True, lr_multiplier=0.1))
    x, style = random(2, 6, 5, 7), random(2, 5)

    def adain(x, affine):
        gamma_beta = linear(style, affine, 0.1)[:, :, None, None]
        mean, variance = x.mean(dim=(2, 3), keepdim=True), x.var(dim=(2, 3), keepdim=True, correction=0)
        return (1 + gamma_beta[:, :6]) * (x - mean) / (variance + 1e-5).sqrt() + gamma_beta[:, 6:]

    y = F.conv2d(lrelu(adain(x, block.affine1), 1), block.conv1.weight, block.conv1.bias, padding=1)
    y = F.conv2d(lrelu(adain(y, block.affine2), 1), block.conv2.weight, block.conv2.bias, padding=1)
    assert worst(block(x, style), (x + y) / math.sqrt(2)) < 1e-12


def test_a_modulated_block_convolves_with_one_weight_per_sample():
    block = filled(ModulatedBlock(6, 5))
    x, style = random(3, 6, 5, 7), random(3, 5)

    def convolution(x, layer, gain):
        """conv(x; W s d) + bias, one picture after another, then leaky ReLU times its gain."""
        modulation = linear(style, layer.affine, 1.0)
        pictures = []
        for picture, s in zip(x, modulation, strict=True):
            weight = torch.empty_like(layer.weight)
            for o in range(6):
                weight[o] = layer.weight[o] * s[:, None, None]
                weight[o] /= (weight[o].square().sum() + 1e-8).sqrt()
            pictures.append(F.conv2d(picture[None], weight, layer.bias, padding=1)[0])
        return lrelu(torch.stack(pictures), gain)

    skip = torch.einsum("oi,bihw->bohw", block.skip.weight[:, :, 0, 0], x) / math.sqrt(6) * math.sqrt(0.5)
    y = convolution(convolution(x, block.conv1, math.sqrt(2)), block.conv2, 1.0)
    assert worst(block(x, style), skip + y) < 1e-12
    assert worst(block.prepare(x), skip) < 1e-12
    assert {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()} == {
        "skip.weight": (6, 6, 1, 1),
        **{f"conv{n}.weight": (6, 6, 3, 3) for n in (1, 2)},
        **{f"conv{n}.bias": (6,) for n in (1, 2)},
        **{f"conv{n}.affine.weight": (6, 5) for n in (1, 2)},
        **{f"conv{n}.affine.bias": (6,) for n in (1, 2)},
    }


def test_a_modulated_block_starts_out_unmodulated():
    block = ModulatedBlock(4, 5)
    assert all(torch.equal(affine.bias, torch.ones(4)) for affine in block.affines())


@pytest.mark.parametrize("temporal_blocks", ["stage", "bottleneck"])
def test_a_convolutional_encoder_cut_in_two(small_config, temporal_blocks):
    config = with_overrides(
        config_of(small_config, "convolution_style_dim", "pca", "encoder_lr"),
        [f"model.encoder.temporal_blocks={temporal_blocks}", "model.encoder.depths=[2,1]"],
    )
    encoder = filled(build_styleinv(config.model)).encoder
    image, style = random(2, 3, 16, 16), random(2, 7)
    x = encoder.stem(image)
    for index, bottleneck in enumerate(encoder.bottlenecks):
        x = bottleneck(x)
        if str(index) in encoder.temporal:
            assert isinstance(encoder.temporal[str(index)], ModulatedBlock)
            x = encoder.temporal[str(index)](x, style)
    h = linear(x.mean(dim=(2, 3)), encoder.head, 0.1)
    pca = encoder.pca
    assert (encoder.head.weight.shape, pca.weight.shape, pca.directions.shape) == ((16, 16), (16, 4), (4, 12))
    wanted = 0.2 * ((h @ pca.weight + pca.bias) @ pca.directions)
    assert worst(encoder(image, style), wanted) < 1e-10
    assert len(encoder.temporal_blocks()) == len(encoder.temporal) == (2 if temporal_blocks == "stage" else 3)


def test_pca_component_by_component():
    head = filled(PcaHead(6, 4, 3, scale=0.2))
    x = random(2, 6)
    wanted = torch.zeros(2, 4, dtype=torch.float64)
    for n in range(3):
        component = (x * head.weight[:, n]).sum(dim=1) + head.bias[n]
        wanted += 0.2 * component[:, None] * head.directions[n]
    assert worst(head(x), wanted) < 1e-12


def anchor_layer(rows, weight, bias, multiplier, aware):
    """One convolution over anchors, tap by tap: rows [K, I] -> those of them that can be had, [., O]."""
    size = weight.shape[2]
    outputs = []
    for k in range(len(rows)):
        total = bias * multiplier
        for j in range(size):
            position = k - size // 2 + j if aware else k + j
            if aware and (j >= (size + 1) // 2 or position < 0):
                continue
            if position >= len(rows):
                return torch.stack(outputs)
            total = total + weight[:, :, j] @ rows[position] * multiplier / math.sqrt(weight.shape[1] * size)
        outputs.append(lrelu(total, 1.0))
    return torch.stack(outputs)


@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5])
def test_motion_codes_tap_by_tap_and_in_numpy(kernel_size, aware):
    config = {
        "noise_dim": 5, "code_dim": 7, "anchor_distance": 4, "kernel_size": kernel_size, "lr_multiplier": 0.1,
        "frequencies": 3, "min_period": 8.0, "max_period": 32.0, "first_frame_aware": aware,
    }  # fmt: skip
    network = MotionNetwork(**config)
    network.load_state_dict(filled(MotionNetwork(**config)).state_dict())  # rounded to float32, as it is stored
    assert ("first_code_noise" in network.state_dict()) == aware
    t = torch.tensor([[0.0, 3.5, 4.0, 37.25]], dtype=torch.float64)
    anchors = network.anchors_needed(37.25)
    noise = torch.from_numpy(np.stack([standard_normal(9, MOTION_DOMAIN, k, 5) for k in range(anchors)]))

    rows = torch.cat([network.first_code_noise.double()[None], noise[1:]]) if aware else noise
    for layer in network.conv:
        rows = anchor_layer(rows, layer.weight.double(), layer.bias.double(), 0.1, aware)
    codes = network.codes(noise[None])[0]
    assert len(codes) == math.floor(37.25 / 4) + 2
    assert worst(codes, rows) < 1e-12

    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    clip = runtime_motion.MotionCodes(runtime_motion.MotionNetwork(tensors, config), seed=9)
    for k in range(len(codes)):
        assert worst(torch.from_numpy(clip.code(k).copy()), codes[k]) < 1e-12
    v = torch.from_numpy(np.stack([clip.time_code(number) for number in t[0].tolist()]))
    assert worst(v, network(noise[None], t)[0]) < 1e-11


@pytest.mark.parametrize(("shortest", "longest"), [(8.0, 32.0), (64.0, 16.0)])
def test_periods_may_run_either_way(shortest, longest):
    network = MotionNetwork(4, 4, 8, 3, 0.01, 6, shortest, longest)
    powers = torch.linspace(math.log2(shortest), math.log2(longest), 6, dtype=torch.float64)
    wanted = (2 * math.pi / 2**powers).flip(0)
    assert worst(network.frequencies.double(), wanted) < 1e-6
    assert network.frequencies[0].item() == pytest.approx(2 * math.pi / longest)


def test_a_style_of_another_size(small_config):
    config = config_of(small_config, "style_dim")
    model = filled(build_styleinv(config.model))
    assert [tuple(layer.weight.shape) for layer in model.style.layers] == [(7, 12 + 12), (7, 7), (7, 7)]
    assert all(affine.weight.shape[1] == 7 for affine in model.motion_gates())
    w0, v = random(3, 12), random(3, 12)
    s = torch.cat([w0, v], dim=1)
    for layer in model.style.layers:
        s = lrelu(linear(s, layer, config.model.motion.style_lr_multiplier))
    assert worst(model.style(w0, v), s) < 1e-12


@pytest.mark.parametrize("stored", ["true", "false"])
@pytest.mark.parametrize("residual", ["true", "false"])
def test_where_offsets_count_from(small_config, residual, stored):
    config = with_overrides(small_config, [f"model.input_residual={residual}", f"model.stores_latent_average={stored}"])
    model = filled(build_styleinv(config.model))
    assert ("latent_average" in model.state_dict()) == (stored == "true" or residual == "false")
    w0, x0, style = random(2, 12), random(2, 3, 16, 16), random(2, 12)
    base = w0 if residual == "true" else model.latent_average
    assert worst(model.latent(model.content(x0), w0, style), base + model.encoder(x0, style)) < 1e-12


@pytest.mark.parametrize("name", ["skip_encoder", "skip_encoder_average"])
def test_without_an_encoder_the_style_is_the_offset(small_config, name):
    model = filled(build_styleinv(config_of(small_config, name).model))
    assert not any(key.startswith("encoder") for key in model.state_dict())
    w0, x0, v = random(2, 12), random(2, 3, 16, 16), random(2, 3, 12)
    wanted = torch.stack([w0 + model.style(w0, v[:, frame]) for frame in range(3)], dim=1)
    assert worst(model.latents(w0, x0, v), wanted) < 1e-12


def test_the_head_that_recovers_motion_is_stored_and_changes_nothing(small_config):
    config = config_of(small_config, "recovery")
    model, without = initialize(config), initialize(with_overrides(config, ["model.recovered_motion_dim=0"]))
    state = model.state_dict()
    recovery = {name: tuple(tensor.shape) for name, tensor in state.items() if name.startswith("recovery")}
    assert recovery == {
        "recovery.0.weight": (7, 7), "recovery.0.bias": (7,), "recovery.2.weight": (5, 7), "recovery.2.bias": (5,),
    }  # fmt: skip
    assert state.keys() - recovery.keys() == without.state_dict().keys()
    without.load_state_dict({name: tensor for name, tensor in state.items() if name not in recovery})
    z, noise, t = torch.randn(1, 8), torch.randn(1, 3, 8), torch.tensor([[3.5]], dtype=torch.float64)
    assert torch.equal(model(z, noise, t), without(z, noise, t))


def test_variants_are_stored_and_well_conditioned(variant_config, tmp_path):
    model = initialize(variant_config, seed=1)
    save_checkpoint(tmp_path / "x.safetensors", model, variant_config)
    loaded = load_checkpoint(tmp_path / "x.safetensors", kind="styleinv")
    assert loaded.config == variant_config
    assert loaded.model.state_dict().keys() == model.state_dict().keys()

    torch.manual_seed(2)
    z, t = torch.randn(4, 8), torch.linspace(0, 30, 7, dtype=torch.float64).expand(4, -1)
    noise = torch.randn(4, model.motion.anchors_needed(30), 8)
    label = torch.eye(3)[[0, 1, 2, 0]] if variant_config.model.generator.label_dim else None
    extremes = {}
    for name, module in loaded.model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, __, out, name=name: extremes.update({name: out.abs().max().item()}))
    frames = loaded.model(z, noise, t, label=label)
    assert torch.equal(frames, model(z, noise, t, label=label))
    assert max(extremes.values()) < 30, max(extremes.items(), key=lambda item: item[1])
    assert 0.2 < frames.std() < 1
    assert (frames[:, 1:] - frames[:, :-1]).abs().mean() > 0.01, "latents do not move"


@pytest.mark.parametrize(
    "name", ["convolution", "pca", "style_dim", "no_residual", "skip_encoder", "unaware", "recovery", "encoder_lr"]
)
def test_the_motion_stage_trains_variants(small_config, small_clips, name):
    config = with_overrides(config_of(small_config, name), ["motion.initial_motion=2"])
    torch.manual_seed(4)
    inversion = build_inversion(config.model)
    torch.manual_seed(5)
    stage = MotionStage(config, small_clips, 3, build_generator(config.model.generator), inversion)
    torch.manual_seed(3)  # what the stage drew its networks from
    gates = build_styleinv(config.model).motion_gates()
    for doubled, gate in zip(stage.model.motion_gates(), gates, strict=True):
        assert torch.allclose(doubled.weight, 2 * gate.weight)
    if stage.model.encoder is not None:
        encoder = stage.model.encoder.state_dict()
        for key, taken in inversion.encoder.state_dict().items():
            assert torch.equal(encoder[key], taken) if name != "pca" or not key.startswith("head.") else True
    before = {key: value.clone() for key, value in stage.model.state_dict().items()}
    losses = stage.step(1)
    assert all(math.isfinite(value) for value in losses.values())
    changed = {key for key, value in stage.model.state_dict().items() if not torch.equal(value, before[key])}
    assert any(key.startswith("motion.conv.0") for key in changed)
    assert not any(key.startswith(("generator.", "recovery.")) for key in changed)
