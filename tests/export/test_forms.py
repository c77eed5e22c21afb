"""The forms of a convolution compute one and the same, and each layer gets the one that was fastest."""

import csv
import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from styleinv.export.arithmetic import arithmetic_in
from styleinv.export.folding import FoldedConv2d
from styleinv.export.forms import TABLE, TARGETS, convolution_form, upsampling_form
from styleinv.export.upsampling import FORMS, MODULES, polyphase_weight
from styleinv.export.winograd import WinogradConv2d, paired, unpaired
from styleinv.kernels import reference

KINDS = [("upsampling", upsampling_form, FORMS), ("convolution", convolution_form, ("direct", "winograd"))]


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


@pytest.mark.parametrize("size", [(2, 1), (2, 5), (4, 4), (8, 3)])
@pytest.mark.parametrize("channels", [(1, 1), (3, 5), (8, 4)])
@pytest.mark.parametrize("biased", [False, True])
def test_winograds_form_equals_the_convolution(size, channels, biased):
    torch.manual_seed(0)
    x = torch.randn(2, channels[0], *size, dtype=torch.float64)
    weight = torch.randn(channels[1], channels[0], 3, 3, dtype=torch.float64)
    bias = torch.randn(channels[1], dtype=torch.float64) if biased else None
    found = WinogradConv2d(weight, bias).double()(x)
    torch.testing.assert_close(found, F.conv2d(x, weight, bias, padding=1), rtol=0, atol=1e-5)  # weights are float32
    exact = WinogradConv2d(weight, bias)
    for part, parameter in zip(winograd_parts(weight), exact.weights, strict=True):
        parameter.data = part
    if bias is not None:
        exact.bias.data = bias
    torch.testing.assert_close(exact(x), F.conv2d(x, weight, bias, padding=1), rtol=0, atol=1e-12)


def winograd_parts(weight):
    first, middle, last = weight.split(1, dim=2)
    return first, (first + middle + last) / 2, (first - middle + last) / 2, last


def test_winograds_form_multiplies_a_third_less():
    x, weight = torch.randn(1, 8, 16, 16), torch.randn(8, 8, 3, 3)
    counts = []
    for module in (WinogradConv2d(weight), FoldedConv2d(weight)):
        with FlopCounterMode(display=False) as counter:
            module(x)
        counts.append(counter.get_total_flops())
    assert 3 * counts[0] == 2 * counts[1]


def test_paired_rows_are_the_same_numbers():
    x = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    even, odd = paired(x).chunk(2, dim=3)
    assert torch.equal(even, x[:, :, 0::2]) and torch.equal(odd, x[:, :, 1::2])
    assert torch.equal(unpaired(paired(x)), x)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("kind", "choose", "forms"), KINDS)
def test_the_choice_is_what_was_timed(target, kind, choose, forms):
    layers = json.loads(TABLE.read_text())[target][kind]
    assert {layer[3] for layer in layers} <= set(forms) and len(layers) >= 15
    for inputs, outputs, size, form in layers:
        assert choose(target, inputs, outputs, size) == form
    inputs, outputs, size, form = layers[3]
    assert choose(target, inputs + 3, outputs - 2, size) == form


def test_the_timings_are_those_of_the_table():
    """What benchmarks/results/forms.csv calls the fastest is what forms.json has, and was the fastest."""
    with (Path(__file__).parents[2] / "benchmarks" / "results" / "forms.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    table = json.loads(TABLE.read_text())
    timed = {}
    for row in rows:
        layer = tuple(int(row[name]) for name in ("input_channels", "output_channels", "resolution"))
        timed.setdefault((row["engine"], row["kind"], layer), {})[row["form"]] = float(row["milliseconds"])
    assert len(timed) == sum(len(layers) for kinds in table.values() for layers in kinds.values())
    for (engine, kind, layer), times in timed.items():
        assert [*layer, min(times, key=times.get)] in table[engine][kind]


def test_an_odd_number_of_rows_has_no_pairs():
    assert convolution_form("openvino", 512, 512, 32) == "winograd"
    assert convolution_form("openvino", 512, 512, 33) == "direct"


@pytest.mark.parametrize(("precision", "form"), [("fp16", "transposed"), ("bf16", "split")])
def test_forms_of_graphs_for_gpus(precision, form):
    """TensorRT for RTX has no transposed convolution in bfloat16; what is not timed is not rewritten."""
    arithmetic = arithmetic_in(precision)
    assert arithmetic.upsampling(512, 512, 32) == form and arithmetic.convolution(512, 512, 32) == "direct"
