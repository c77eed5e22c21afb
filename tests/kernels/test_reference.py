"""The reference operators against the plainest float64 forms of their definitions."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from styleinv.kernels import reference
from styleinv.kernels.operands import Epilogue, ToRgb
from styleinv.kernels.style_layers import block_table, layers_of

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


# Whole layers, channels last, a number at a time.

EPILOGUE = Epilogue(
    random(2, 4), random(3, 5), random(4), random(2, 4) + 0.1, noise_strength=0.3, slope=0.1, gain=1.5, clamp=0.8
)


def epilogue_of(product, epilogue, picture, row, column, channel):
    """A number behind a product, before the next layer's style."""
    y = product * epilogue.demodulation[picture, channel] + epilogue.noise[row, column] * epilogue.noise_strength
    y = float(y + epilogue.bias[channel])
    y = (y if y >= 0 else y * epilogue.slope) * epilogue.gain
    return min(max(y, -epilogue.clamp), epilogue.clamp)


def layer_of(x, weight, style, epilogue):
    """[B, H, W, I] -> [B, H, W, O] before the next layer's style."""
    batch, height, width, _ = x.shape
    outputs, kernel = weight.shape[:2]
    y = torch.zeros(batch, height, width, outputs, dtype=torch.float64)
    for picture, row, column, channel in itertools.product(*map(range, y.shape)):
        product = 0.0
        for down, across in itertools.product(range(kernel), repeat=2):
            i, j = row + down - kernel // 2, column + across - kernel // 2
            if 0 <= i < height and 0 <= j < width:
                product += (x[picture, i, j] * style[picture] * weight[channel, down, across]).sum()
        y[picture, row, column, channel] = epilogue_of(product, epilogue, picture, row, column, channel)
    return y


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_layer_is_its_formula(kernel):
    x, weight, style = random(2, 3, 5, 6), random(4, kernel, kernel, 6), random(2, 6)
    wanted = layer_of(x, weight, style, EPILOGUE)
    found = reference.modulated_layer(x, weight, style, EPILOGUE)
    assert worst(found, wanted * EPILOGUE.next_style[:, None, None]) < 1e-12
    assert (wanted.abs() == EPILOGUE.clamp).any()


def test_a_layer_with_nothing_around_it_is_a_convolution():
    x, weight = random(2, 3, 5, 6), random(4, 3, 3, 6)
    wanted = F.conv2d(x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), padding=1).permute(0, 2, 3, 1)
    assert worst(reference.modulated_layer(x, weight, epilogue=Epilogue(slope=1.0)), wanted) < 1e-12


@pytest.mark.parametrize(("height", "width"), [(5, 4), (1, 1), (1, 3)])
def test_the_weights_of_four_phases_are_a_transposed_convolution_and_the_filter(height, width):
    x, weight, style = random(2, height, width, 3), random(4, 3, 3, 3), random(2, 3)
    pictures = (x * style[:, None, None]).permute(0, 3, 1, 2)
    spread = F.conv_transpose2d(pictures, weight.permute(3, 0, 1, 2), stride=2)
    epilogue = Epilogue(random(2, 4), random(2 * height, 2 * width), random(4), clamp=1.0)
    wanted = torch.zeros(2, 2 * height, 2 * width, 4, dtype=torch.float64)
    product = filtered(spread, 4, 1, 1).permute(0, 2, 3, 1)
    for place in itertools.product(*map(range, wanted.shape)):
        wanted[place] = epilogue_of(product[place], epilogue, *place)
    phases = reference.polyphase_weight(weight)
    assert phases.shape == (4, 4, 3, 3, 3)
    assert worst(reference.modulated_layer(x, weight, style, epilogue, upsample=True), wanted) < 1e-12
    assert worst(reference.modulated_layer(x, phases, style, epilogue, upsample=True), wanted) < 1e-12
    two_steps = reference.filtered_layer(spread.permute(0, 2, 3, 1).contiguous(), epilogue)
    assert worst(two_steps, wanted) < 1e-12


@pytest.mark.parametrize("clamp", [None, 0.5])
def test_a_picture_is_its_formula(clamp):
    x, weight, style, bias, previous = random(2, 4, 6, 5), random(3, 5), random(2, 5), random(3), random(2, 3, 2, 3)
    wanted = torch.zeros(2, 3, 4, 6, dtype=torch.float64)
    for picture, colour, row, column in itertools.product(*map(range, wanted.shape)):
        value = (x[picture, row, column] * style[picture] * weight[colour]).sum() + bias[colour]
        wanted[picture, colour, row, column] = value if clamp is None else value.clamp(-clamp, clamp)
    assert worst(reference.to_rgb_skip(x, ToRgb(weight, style, bias, None, clamp)), wanted) < 1e-12
    spread = torch.zeros(2, 3, 4, 6, dtype=torch.float64)
    spread[:, :, ::2, ::2] = previous
    wanted = wanted + filtered(spread, 4, 2, 1)
    assert worst(reference.to_rgb_skip(x, ToRgb(weight, style, bias, previous, clamp)), wanted) < 1e-12


def test_a_picture_is_made_of_what_the_next_style_has_not_touched():
    x, weight, style = random(2, 3, 5, 6), random(4, 3, 3, 6), random(2, 6)
    rgb = ToRgb(random(3, 4), random(2, 4), random(3))
    y, image = reference.modulated_layer_to_rgb(x, weight, rgb, style, EPILOGUE)
    wanted = layer_of(x, weight, style, EPILOGUE)
    assert worst(y, wanted * EPILOGUE.next_style[:, None, None]) < 1e-12
    assert worst(image, reference.to_rgb_skip(wanted, rgb)) < 1e-12


def test_adain_is_its_formula():
    x, gamma_beta = random(2, 3, 5, 4), random(2, 8)
    wanted = torch.zeros_like(x)
    for picture, channel in itertools.product(range(2), range(4)):
        values = x[picture, :, :, channel]
        mean = values.sum() / 15
        variance = (values - mean).square().sum() / 15
        gamma, beta = gamma_beta[picture, channel], gamma_beta[picture, 4 + channel]
        y = (1 + gamma) * (values - mean) / math.sqrt(variance + 1e-3) + beta
        wanted[picture, :, :, channel] = torch.where(y < 0, y * 0.1, y)
    assert worst(reference.adain_lrelu(x, gamma_beta, epsilon=1e-3, slope=0.1), wanted) < 1e-12


def test_styles_and_coefficients_are_those_of_a_modulated_convolution():
    """With what `style_demod` gives, a layer is `modulated_conv2d` with the style it began with."""
    layers = [(5, 9), (3, 0), (9, 2)]
    weights = [random(outputs, inputs, 3, 3) for inputs, outputs in layers]
    w, affine, bias = random(2, 7), random(17, 7), random(17)
    squares = torch.cat([weight.square().sum(dim=(2, 3)).flatten() for weight in weights])
    epsilon = torch.full((11,), 1e-8, dtype=torch.float64)
    styles, demodulation = reference.style_demod(w, affine, bias, squares, epsilon, layers)
    raw = (w @ affine.t() + bias).split([5, 3, 9], dim=1)
    styles, demodulation = layers_of(styles, 2, [5, 3, 9]), layers_of(demodulation, 2, [9, 0, 2])
    assert worst(styles[1], raw[1]) < 1e-12
    for index in (0, 2):
        inputs, _ = layers[index]
        assert worst(styles[index].abs().amax(dim=1), torch.ones(2, dtype=torch.float64)) < 1e-12
        x = random(2, 4, 3, inputs)
        wanted = reference.modulated_conv2d(x.permute(0, 3, 1, 2), weights[index], raw[index]).permute(0, 2, 3, 1)
        weight, epilogue = weights[index].permute(0, 2, 3, 1), Epilogue(demodulation[index], slope=1.0)
        assert worst(reference.modulated_layer(x, weight, styles[index], epilogue), wanted) < 1e-12


def test_a_table_has_a_row_for_each_block_of_coefficients():
    assert block_table([5, 3, 9], [9, 0, 2]).tolist() == [
        [0, 5, 0, 0, 9, 0],
        [0, 5, 0, 0, 9, 8],
        [5, 3, 45, 9, 0, 0],
        [8, 9, 45, 9, 2, 0],
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_layers_of_a_dtype_are_computed_in_float32(dtype):
    """Only operands and the result are rounded: 4096 + 1 in steps of 4 would be lost in bfloat16 and float16."""
    x, weight = torch.tensor([4096.0, 1.0, -4096.0]).to(dtype), torch.ones(1, 1, 1, 3, dtype=dtype)
    found = reference.modulated_layer(x.view(1, 1, 1, 3), weight)
    assert found.dtype == dtype and found.item() == 1.0


def test_float16_saturates():
    x, weight = torch.full((1, 1, 1, 1), 60000.0).half(), torch.tensor([2.0, -2.0]).half().view(2, 1, 1, 1)
    assert reference.modulated_layer(x, weight, epilogue=Epilogue(slope=1.0)).tolist() == [[[[65504.0, -65504.0]]]]
    assert reference.adain_lrelu(x, torch.tensor([[0.0, 1e6]])).item() == 65504.0
