"""The reference operators against the plainest float64 forms of their definitions."""

import pytest
import torch
from torch.nn import functional as F

from styleinv.kernels import reference

TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
FIR = torch.outer(TAPS, TAPS) / 64


def filtered(x, gain, before, after):
    """The FIR filter on one channel after another, with explicit padding."""
    x = F.pad(x, (before, after, before, after))
    channels = [F.conv2d(x[:, c : c + 1], (FIR * gain)[None, None]) for c in range(x.shape[1])]
    return torch.cat(channels, dim=1)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def worst(found, wanted):
    assert found.shape == wanted.shape
    return (found - wanted).abs().max().item()


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize(("inputs", "outputs", "height", "width"), [(5, 7, 9, 6), (1, 3, 4, 4), (8, 2, 1, 5)])
def test_modulated_conv_equals_one_weight_per_sample(inputs, outputs, height, width, demodulate, kernel):
    x, weight, style = random(3, inputs, height, width), random(outputs, inputs, kernel, kernel), random(3, inputs)
    rows = []
    for sample in range(3):
        w = weight * style[sample][None, :, None, None]
        if demodulate:
            w = w * (w.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).rsqrt()
        rows.append(F.conv2d(x[sample : sample + 1], w, padding=kernel // 2))
    assert worst(reference.modulated_conv2d(x, weight, style, demodulate=demodulate), torch.cat(rows)) < 1e-12


def test_upsampling_conv_equals_transposed_conv_then_filter():
    x, weight, style = random(2, 4, 5, 5), random(6, 4, 3, 3), random(2, 4)
    rows = []
    for sample in range(2):
        w = weight * style[sample][None, :, None, None]
        w = w * (w.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).rsqrt()
        spread = F.conv_transpose2d(x[sample : sample + 1], w.transpose(0, 1), stride=2)
        rows.append(filtered(spread, 4, 1, 1))
    assert worst(reference.modulated_conv2d(x, weight, style, upsample=True), torch.cat(rows)) < 1e-12


def test_upsampling_equals_zeros_between_then_filter():
    image = random(2, 3, 5, 4)
    spread = torch.zeros(2, 3, 10, 8, dtype=torch.float64)
    spread[:, :, ::2, ::2] = image
    assert worst(reference.upsample2d(image), filtered(spread, 4, 2, 1)) < 1e-12


@pytest.mark.parametrize("kernel", [1, 3])
def test_downsampling_conv_halves_after_the_filter(kernel):
    x, weight, bias = random(2, 4, 8, 8), random(3, 4, kernel, kernel), random(3)
    padding = 1 + kernel // 2
    wanted = F.conv2d(filtered(x, 1, padding, padding), weight, bias, stride=2)
    found = reference.downsample_conv2d(x, weight, bias)
    assert found.shape == (2, 3, 4, 4)
    assert worst(found, wanted) < 1e-12


def test_gain_of_a_modulated_conv_scales_its_result():
    x, weight, style = random(1, 3, 4, 4), random(2, 3, 3, 3), random(1, 3)
    plain = reference.modulated_conv2d(x, weight, style)
    assert worst(reference.modulated_conv2d(x, weight, style, gain=1.5), plain * 1.5) < 1e-12


def test_instance_normalisation_has_zero_mean_and_unit_variance():
    found = reference.instance_normalize(random(2, 3, 7, 5) * 4 + 9)
    assert found.mean(dim=(2, 3)).abs().max() < 1e-12
    assert (found.var(dim=(2, 3), correction=0) - 1).abs().max() < 1e-4  # epsilon takes a little


@pytest.mark.parametrize(
    ("value", "level"),
    [(-2.0, 0), (-1.0, 0), (0.0, 128), (0.0078, 128), (0.0079, 129), (0.996, 254), (0.9961, 255), (3.0, 255)],
)
def test_bytes_are_the_floor_of_the_scaled_value(value, level):
    assert reference.to_uint8(torch.full((1, 3, 1, 1), value)).flatten().tolist() == [level] * 3


def test_leaky_relu_clamps_after_its_gain():
    found = reference.leaky_relu(torch.tensor([-10.0, -1.0, 1.0, 10.0]), gain=2.0, clamp=3.0)
    assert torch.allclose(found, torch.tensor([-3.0, -0.4, 2.0, 3.0]))
