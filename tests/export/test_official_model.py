"""Imported models compute what the authors' classes compute: against a plain float64 form in their names and layout.

The golden values of tests/golden hold one configuration; these are the others. Nothing here knows our names.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from official_files import SMALL_GENERATOR, SMALL_MOTION, official_file, write_pickle
from torch.nn import functional as F

from styleinv.export.official import official_tensors, read_model, write_checkpoint
from styleinv.training.checkpoint import BUILDERS, load_checkpoint
from styleinv.training.config import (
    Config,
    DiscriminatorConfig,
    EncoderConfig,
    ModelConfig,
    MotionStageConfig,
)

MODELS = {
    "adain": ModelConfig(
        SMALL_GENERATOR,
        EncoderConfig(normalize_residual=False, lr_multiplier=0.5),
        dataclasses.replace(SMALL_MOTION, style_dim=20, kernel_size=4),
        input_residual=False,
    ),
    "convolutions": ModelConfig(
        dataclasses.replace(SMALL_GENERATOR, w_dim=40),
        EncoderConfig(temporal_blocks="bottleneck", modulation="convolution", pca_components=9, pca_scale=0.3),
        dataclasses.replace(
            SMALL_MOTION, first_frame_aware=False, kernel_size=3, style_sees_content=False, min_period=256
        ),
        stores_latent_average=True,
    ),
}
TIMES = [0.0, 5.25, 16.0, 37.5]
UNITS = [(64, 64, 3), (64, 128, 4), (128, 256, 14), (256, 512, 3)]


class Authors:
    """A StyleInV by the authors' names: tensors of the part 'SI' in float64, and its settings."""

    def __init__(self, tensors, config):
        self.tensors, self.config = tensors, config

    def __getitem__(self, name):
        return self.tensors[name]

    def linear(self, name, x, multiplier, activate=False):
        weight = self[f"{name}.weight"]
        x = x @ (weight * multiplier / math.sqrt(weight.shape[1])).T
        if f"{name}.bias" in self.tensors:
            x = x + self[f"{name}.bias"] * multiplier
        return torch.where(x < 0, 0.2 * x, x) * math.sqrt(2) if activate else x

    def code(self, noise, anchor):
        """u of one anchor; noise [K, Z]."""
        motion, place = self.config.motion, "mapping.motion_encoder.conv"
        kernel, aware = motion.kernel_size, motion.first_frame_aware

        def layer(index, row_of, position):
            weight, bias = self[f"{place}.{index}.weight"], self[f"{place}.{index}.bias"]
            total = bias * 0.01
            for tap in range(kernel):
                if aware and tap >= (kernel + 1) // 2:
                    continue  # masked
                row = row_of(position - kernel // 2 + tap if aware else position + tap)
                if row is not None:
                    total = total + weight[:, :, tap] @ row * (0.01 / math.sqrt(weight.shape[1] * kernel))
            return torch.where(total < 0, 0.2 * total, total)

        def given(position):
            if position < 0:
                return None
            first = aware and position == 0
            return self["mapping.motion_encoder.frame_0_const"] if first else noise[position]

        return layer(1, lambda position: None if position < 0 else layer(0, given, position), anchor)

    def time_code(self, noise, t):
        place, motion = "mapping.motion_encoder.time_encoder", self.config.motion
        distance, frequency = motion.anchor_distance, self[f"{place}.freqs"][0]
        left = int(t // distance)
        u_left, u_right = self.code(noise, left), self.code(noise, left + 1)
        period = torch.tanh(self.linear(f"{place}.periods_predictor", u_left, 1.0)) + 1
        phase = self.linear(f"{place}.phase_predictor", u_left, 1.0) * self[f"{place}.phase_scales"][0]

        def wave(time):
            angle = frequency * period * time + phase
            return torch.cat([angle.sin(), angle.cos()])

        alpha = (t - left * distance) / distance
        ends = (1 - alpha) * wave(left * distance) + alpha * wave((left + 1) * distance)
        aligner = f"{place}.aligners_predictor"
        aligned = (1 - alpha) * self.linear(aligner, u_left, 1.0) + alpha * self.linear(aligner, u_right, 1.0)
        return wave(t) - ends + aligned

    def style(self, w0, v):
        x = torch.cat([w0, v]) if self.config.motion.style_sees_content else v
        for index in range(self.config.motion.style_layers):
            x = self.linear(f"mapping.fcf{index}", x, self.config.motion.style_lr_multiplier, activate=True)
        return x

    def normalized(self, name, x):
        mean, variance = self[f"{name}.running_mean"], self[f"{name}.running_var"]
        shape = (1, -1, 1, 1)
        x = (x - mean.view(shape)) / torch.sqrt(variance.view(shape) + 1e-5)
        return x * self[f"{name}.weight"].view(shape) + self[f"{name}.bias"].view(shape)

    def bottleneck(self, name, x, stride, widens):
        shortcut = x[:, :, ::stride, ::stride]
        if widens:
            shortcut = self.normalized(
                f"{name}.shortcut_layer.1", F.conv2d(shortcut, self[f"{name}.shortcut_layer.0.weight"])
            )
        inside = f"{name}.res_layer"
        y = F.conv2d(self.normalized(f"{inside}.0", x), self[f"{inside}.1.weight"], padding=1)
        y = torch.where(y < 0, y * self[f"{inside}.2.weight"].view(1, -1, 1, 1), y)
        y = self.normalized(f"{inside}.4", F.conv2d(y, self[f"{inside}.3.weight"], stride=stride, padding=1))
        gate = torch.relu(F.conv2d(y.mean((2, 3), keepdim=True), self[f"{inside}.5.fc1.weight"]))
        return y * torch.sigmoid(F.conv2d(gate, self[f"{inside}.5.fc2.weight"])) + shortcut

    def adain(self, name, x, style):
        gamma, beta = self.linear(f"{name}.fc", style, self.config.encoder.lr_multiplier).chunk(2)
        mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, correction=0)
        normal = (x - mean) / torch.sqrt(variance + 1e-5)
        return (1 + gamma.view(1, -1, 1, 1)) * normal + beta.view(1, -1, 1, 1)

    def temporal(self, name, x, style):
        if self.config.encoder.modulation == "convolution":
            y = F.conv2d(x, self[f"{name}.skip.weight"]) / math.sqrt(x.shape[1]) * math.sqrt(0.5)
            for layer, gain in (("conv0", math.sqrt(2)), ("conv1", math.sqrt(2) * math.sqrt(0.5))):
                scale = self.linear(f"{name}.{layer}.affine", style, 1.0)
                weight = self[f"{name}.{layer}.weight"] * scale.view(1, -1, 1, 1)
                weight = weight / torch.sqrt((weight**2).sum((1, 2, 3), keepdim=True) + 1e-8)
                x = F.conv2d(x, weight, padding=1) + self[f"{name}.{layer}.bias"].view(1, -1, 1, 1)
                x = torch.where(x < 0, 0.2 * x, x) * gain
            return y + x
        y = x
        for number in (1, 2):
            y = self.adain(f"{name}.norm{number}", y, style)
            y = torch.where(y < 0, 0.2 * y, y)
            y = F.conv2d(y, self[f"{name}.conv{number}.weight"], self[f"{name}.conv{number}.bias"], padding=1)
        return (x + y) / (math.sqrt(2) if self.config.encoder.normalize_residual else 1.0)

    def latent(self, x0, w0, style):
        encoder = self.config.encoder
        x = F.conv2d(x0, self["encoder.input_layer.0.weight"], padding=1)
        x = self.normalized("encoder.input_layer.1", x)
        x = torch.where(x < 0, x * self["encoder.input_layer.2.weight"].view(1, -1, 1, 1), x)
        body = blocks = 0
        for before, after, depth in UNITS:
            for unit in range(depth):
                first = unit == 0
                x = self.bottleneck(f"encoder.body.{body}", x, 2 if first else 1, first and before != after)
                body += 1
                if encoder.temporal_blocks == "bottleneck" or unit == depth - 1:
                    x = self.temporal(f"encoder.adains.{blocks}", x, style)
                    blocks += 1
        delta = self.linear("encoder.linear", x.mean((2, 3))[0], encoder.lr_multiplier)
        if encoder.pca_components:
            delta = encoder.pca_scale * ((delta @ self["pca_w"] + self["pca_b"]) @ self["pca_mul"])
        return (w0 if self.config.input_residual else self["latent_avg"]) + delta


def tame_arrays(config):
    """Random tensors by our names at which activations stay of order one."""
    draws = np.random.default_rng(11)
    with torch.device("meta"):
        state = BUILDERS["styleinv"](config).state_dict()
    arrays = {}
    for name, tensor in state.items():
        shape = tuple(tensor.shape)
        values = draws.standard_normal(shape, np.float32)
        if tensor.dtype == torch.int64:
            values = np.array(1)
        elif name.endswith("running_var"):
            values = np.square(values) + np.float32(0.5)
        elif name.endswith(("residual.4.weight", "pca.directions")):
            values *= np.float32(0.3)
        elif len(shape) == 4 and "affine" not in name and "generator" not in name:
            values *= np.float32(math.sqrt(1 / math.prod(shape[1:])))
        elif name.startswith(("motion.conv", "style.layers", "generator.mapping.layers")):
            values *= np.float32(100)
        arrays[name] = values
    motion = config.model.motion
    periods = 2 ** np.linspace(np.log2(motion.min_period), np.log2(motion.max_period), motion.frequencies)
    arrays["motion.frequencies"] = (2 * np.pi / periods)[::-1].astype(np.float32)
    return arrays


@pytest.mark.parametrize("name", MODELS)
def test_latents_are_those_of_the_authors_model(name, tmp_path):
    stage = MotionStageConfig(clip_length=96, max_span=32)
    config = Config("imported", 30.0, MODELS[name], DiscriminatorConfig(join_resolution=16), motion=stage)
    arrays = tame_arrays(config)
    path = write_pickle(tmp_path / "m.pkl", lambda foreign: official_file("styleinv", config, arrays, foreign))
    write_checkpoint(tmp_path / "m.safetensors", read_model(path))
    model = load_checkpoint(tmp_path / "m.safetensors").model

    theirs = {
        place: torch.from_numpy(np.array(array)).double()
        for (part, place), array in official_tensors("styleinv", config, arrays).items()
        if part == "SI"
    }
    authors = Authors(theirs, config.model)
    draws = torch.Generator().manual_seed(5)
    noise = torch.randn(1, model.motion.anchors_needed(max(TIMES)) + 1, SMALL_MOTION.noise_dim, generator=draws)
    w0 = torch.randn(1, config.model.generator.w_dim, generator=draws)
    x0 = torch.rand(1, 3, 32, 32, generator=draws) * 2 - 1
    with torch.no_grad():
        v = model.motion(noise, torch.tensor([TIMES], dtype=torch.float64))
        latents = model.latents(w0, x0, v)[0]
    expected_v = torch.stack([authors.time_code(noise[0].double(), t) for t in TIMES])
    assert (v[0] - expected_v).abs().max() <= 1e-6 * expected_v.abs().max()
    picture, first = x0.double(), w0[0].double()
    expected = torch.stack([authors.latent(picture, first, authors.style(first, code)) for code in expected_v])
    offset = expected - (w0[0] if config.model.input_residual else theirs["latent_avg"])
    assert offset.std(dim=0).mean() > 1e-2  # the style moves the latents
    assert (latents - expected).abs().max() <= 1e-4 * offset.abs().max()
