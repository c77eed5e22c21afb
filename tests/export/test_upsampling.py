"""The three forms of the upsampling convolution are one and the same, and each layer gets the one that was fastest."""

import json

import pytest
import torch
from torch.nn import functional as F

from styleinv.export.upsampling import FORMS, MODULES, TABLE, TARGETS, measured_form, polyphase_weight
from styleinv.kernels import reference


def plain(x, weight):
    """Zeros between the pixels, the flipped weight, the filter: the definition, pixel by pixel."""
    batch, inputs, height, width = x.shape
    spread = x.new_zeros(batch, inputs, 2 * height - 1, 2 * width - 1)
    spread[:, :, ::2, ::2] = x
    full = F.conv2d(F.pad(spread, (2, 2, 2, 2)), weight.flip(2, 3))
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype)
    kernel = (torch.outer(taps, taps) / 16).expand(weight.shape[0], 1, 4, 4)
    return F.conv2d(F.pad(full, (1, 1, 1, 1)), kernel, groups=weight.shape[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 4), (7, 6)])
@pytest.mark.parametrize("channels", [(1, 1), (3, 5), (8, 4)])
def test_every_form_equals_the_definition(form, size, channels):
    torch.manual_seed(0)
    x = torch.randn(2, channels[0], *size, dtype=torch.float64)
    weight = torch.randn(channels[1], channels[0], 3, 3, dtype=torch.float64)
    found = MODULES[form](weight, torch.float64)(x)
    assert found.shape == (2, channels[1], 2 * size[0], 2 * size[1])
    torch.testing.assert_close(found, plain(x, weight), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        found, reference.modulated_conv2d(x, weight, x.new_ones(2, channels[0]), demodulate=False, upsample=True)
    )


def test_the_polyphase_weight_of_one_tap_is_the_filter():
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1, 1] = 1.0  # doubles the picture's size and filters it
    phases = polyphase_weight(weight)
    assert phases.shape == (4, 1, 3, 3)
    row = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.75, 0.25]], dtype=torch.float64)  # an even and an odd pixel
    for phase in range(4):
        torch.testing.assert_close(phases[phase, 0], torch.outer(row[phase // 2], row[phase % 2]))


@pytest.mark.parametrize("target", TARGETS)
def test_the_choice_is_what_was_timed(target):
    layers = json.loads(TABLE.read_text())[target]
    assert {layer[3] for layer in layers} <= set(FORMS) and len(layers) >= 15
    for inputs, outputs, size, form in layers:
        assert measured_form(target, inputs, outputs, size) == form
    inputs, outputs, size, form = layers[3]
    assert measured_form(target, inputs + 3, outputs - 2, size) == form
