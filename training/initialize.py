"""An untrained but well-conditioned model: activations of order one everywhere, latents that move.

A randomly initialised IR-SE backbone is not: its outputs reach 1e4 and half precision turns them to NaN. So what
training would settle is set from data here: batch statistics, the scale of pictures and of latent offsets.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from styleinv.training.config import Config
from styleinv.training.encoder import Bottleneck, Encoder
from styleinv.training.generator import Generator
from styleinv.training.layers import ModulatedConv2d
from styleinv.training.model import StyleInV, build_styleinv

IMAGE_DEVIATION = 0.5  # of pixels, which stay mostly inside [-1, 1]
NOISE_STRENGTH = 0.1
RESIDUAL_SCALE = 0.5  # of a bottleneck's last normalisation: two dozen of them add up
OFFSET_SHARE = 0.5  # of a latent's deviation: how far frames move away from w0
SAMPLES = 8  # pictures and times that statistics are taken from


@torch.no_grad()
def initialize(config: Config, seed: int = 0) -> StyleInV:
    """A whole model, deterministic in (config, seed), in evaluation mode."""
    torch.manual_seed(seed)
    model = build_styleinv(config.model).eval()
    _settle_generator(model.generator)
    w0 = model.generator.mapping(*_mapping_inputs(model.generator, SAMPLES))
    x0 = model.generator.synthesis(w0)
    if model.latent_average is not None:
        model.latent_average.copy_(model.generator.mapping.latent_average)

    span = 4 * config.model.motion.anchor_distance
    t = torch.linspace(0, span, SAMPLES, dtype=torch.float64)[:, None]  # one time for each picture
    noise = torch.randn(SAMPLES, model.motion.anchors_needed(span), config.model.motion.noise_dim)
    style = model.style(w0, model.motion(noise, t)[:, 0].to(w0.dtype))
    deviation = w0.std(dim=0).mean()
    if model.encoder is None:
        for layer in model.motion_gates():
            layer.weight.mul_(OFFSET_SHARE * deviation / style.std(dim=0).mean())
    else:
        _settle_encoder(model.encoder, x0, style)
        model.encoder.head.weight.mul_(OFFSET_SHARE * deviation / model.encoder(x0, style).std(dim=0).mean())
    return model.requires_grad_(False)


def _settle_generator(generator: Generator) -> None:
    mapping, synthesis = generator.mapping, generator.synthesis
    for layer in synthesis.modules():
        if isinstance(layer, ModulatedConv2d) and layer.use_noise:
            layer.noise_strength.fill_(NOISE_STRENGTH)
    mapping.latent_average.copy_(mapping(*_mapping_inputs(generator, 4096)).mean(dim=0))
    scale = IMAGE_DEVIATION / synthesis(mapping(*_mapping_inputs(generator, SAMPLES))).std()
    for picture_layer in generator.synthesis.picture_layers():
        picture_layer.weight.mul_(scale)


def _mapping_inputs(generator: Generator, count: int) -> tuple[Tensor, float, Tensor | None]:
    """z [B, Z], no truncation and, where the generator is conditional, labels of all classes in turn [B, label_dim]."""
    label_dim = generator.mapping.label_dim
    labels = torch.eye(label_dim)[torch.arange(count) % label_dim] if label_dim else None
    return torch.randn(count, generator.mapping.z_dim), 1.0, labels


def _settle_encoder(encoder: Encoder, image: Tensor, style: Tensor) -> None:
    """Set every batch normalisation's running statistics to those of one batch."""
    for module in encoder.modules():
        if isinstance(module, Bottleneck):
            last = module.residual[4]
            assert isinstance(last, nn.BatchNorm2d)
            last.weight.fill_(RESIDUAL_SCALE)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # average over the batches seen: this one
    encoder.train()
    encoder(image, style)
    encoder.eval()
