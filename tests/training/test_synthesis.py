"""Synthesis against the plainest float64 form of its definition: sample by sample, with explicit weights."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from styleinv.training.generator import SynthesisNetwork

FIR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


def reference_picture(state, ws, resolution, clamp, noise):
    """One picture [3, R, R] from the network's tensors (float64) and its latents [L, W]."""
    x, image, latent = state["const"][None], None, 0
    for block in range(int(math.log2(resolution)) - 1):
        for conv in range(1 if block == 0 else 2):
            layer = f"blocks.{block}.convs.{conv}"
            weight = modulated(state, layer, ws[latent], demodulate=True)
            if block and conv == 0:
                x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
                x = filtered(x, 4, padding=1)
            else:
                x = F.conv2d(x, weight, padding=1)
            if noise == "const" and f"{layer}.noise" in state:
                x = x + state[f"{layer}.noise"] * state[f"{layer}.noise_strength"]
            x = x + state[f"{layer}.bias"][:, None, None]
            x = torch.where(x < 0, 0.2 * x, x) * math.sqrt(2)
            x = bounded(x, clamp)
            latent += 1
        layer = f"blocks.{block}.to_rgb"
        channels = state[f"{layer}.weight"].shape[1]
        weight = modulated(state, layer, ws[latent], demodulate=False) / math.sqrt(channels)
        rgb = bounded(F.conv2d(x, weight) + state[f"{layer}.bias"][:, None, None], clamp)
        if image is not None:
            zeros = torch.zeros(1, 3, 2 * image.shape[2], 2 * image.shape[3], dtype=torch.float64)
            zeros[:, :, ::2, ::2] = image
            image = filtered(F.pad(zeros, (2, 1, 2, 1)), 4, padding=0)
        image = rgb if image is None else image + rgb
    return image[0]


def modulated(state, layer, latent, demodulate):
    affine, bias = state[f"{layer}.affine.weight"], state[f"{layer}.affine.bias"]
    style = affine @ latent / math.sqrt(len(latent)) + bias
    weight = state[f"{layer}.weight"] * style[None, :, None, None]
    if demodulate:
        weight = weight / torch.sqrt((weight**2).sum(dim=(1, 2, 3), keepdim=True) + 1e-8)
    return weight


def filtered(x, gain, padding):
    kernel = torch.from_numpy(FIR * gain).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, kernel, padding=padding, groups=x.shape[1])


def bounded(x, clamp):
    return x if clamp is None else x.clamp(-clamp, clamp)


@pytest.mark.parametrize("use_noise", [True, False])
@pytest.mark.parametrize("noise", ["const", "none"])
@pytest.mark.parametrize("clamp", [None, 0.7])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pictures_are_those_of_the_definition(use_noise, noise, clamp, layout):
    torch.manual_seed(3)
    network = SynthesisNetwork(32, w_dim=9, channel_base=128, channel_max=11, use_noise=use_noise, conv_clamp=clamp)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("noise_strength", "bias")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    network.to(memory_format=layout)
    state = {name: tensor.double() for name, tensor in network.state_dict().items()}
    ws = torch.randn(2, network.num_latents, 9)  # another latent for each layer
    with torch.no_grad():
        found = network(ws, noise)
    for picture, latents in zip(found, ws.double(), strict=True):
        expected = reference_picture(state, latents, 32, clamp, noise)
        assert (picture - expected).abs().max() <= 2e-5 * expected.abs().max()
        one_for_all = reference_picture(state, latents[:1].expand_as(latents), 32, clamp, noise)
        assert (picture - one_for_all).abs().max() > 1e-2 * expected.abs().max()
    if clamp is not None:
        unbounded = reference_picture(state, ws[0].double(), 32, None, noise)
        assert (found[0] - unbounded).abs().max() > 1e-2  # the clamp is reached


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_drawn_noise_stands_in_the_place_of_the_constant_one(layout):
    torch.manual_seed(5)
    network = SynthesisNetwork(16, w_dim=5, channel_base=64).to(memory_format=layout)
    layers = [name for name, _ in network.named_buffers()]
    with torch.no_grad():
        for name in layers:
            network.get_parameter(f"{name}_strength").fill_(0.5)
            network.get_parameter(name.removesuffix("noise") + "bias").normal_(std=0.3)
        ws, drawn = torch.randn(2, network.num_latents, 5), network.draw_noise([7, 8])
        found = network(ws, drawn)
    for index, picture in enumerate(found):
        state = {name: tensor.double() for name, tensor in network.state_dict().items()}
        state |= {name: noise[index, 0].double() for name, noise in zip(layers, drawn, strict=True)}
        expected = reference_picture(state, ws[index].double(), 16, None, "const")
        assert (picture - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_one_latent_stands_for_all_layers():
    torch.manual_seed(4)
    network = SynthesisNetwork(16, w_dim=5, channel_base=64)
    w = torch.randn(3, 5)
    torch.testing.assert_close(network(w), network(w[:, None].repeat(1, network.num_latents, 1)))
