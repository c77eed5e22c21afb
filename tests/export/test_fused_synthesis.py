"""Synthesis made of the fused operators computes what the form that learns does, in the calls of the kernels' plan."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from styleinv.export import fused_synthesis
from styleinv.export.fused_synthesis import FusedSynthesis
from styleinv.kernels import tiles
from styleinv.kernels.plan import Network, fused_calls
from styleinv.kernels.reference import to_uint8
from styleinv.training.generator import SynthesisNetwork
from styleinv.training.layers import EqualizedLinear

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def network_of(resolution=16, channel_base=384, channel_max=24, clamp=256.0, **options):
    """A synthesis network whose biases and noise are not zero, as they are after training."""
    torch.manual_seed(resolution)
    network = SynthesisNetwork(resolution, 12, channel_base, channel_max, conv_clamp=clamp, **options)
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "noise_strength")):
            parameter.data += torch.randn_like(parameter) * 0.3
    return network.requires_grad_(False)


def relative(found, expected):
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


@pytest.fixture(params=["polyphase", "two_steps"])
def upsampling(request, monkeypatch):
    monkeypatch.setattr(tiles, "upsampling_form", lambda *layer: request.param)


@pytest.fixture(params=["fused", "apart", "alternating"])
def pictures(request, monkeypatch):
    fuses = {
        "fused": lambda dtype, layer, device: True,
        "apart": lambda dtype, layer, device: False,
        "alternating": lambda dtype, layer, device: layer[2] in (4, 16),
    }
    monkeypatch.setattr(fused_synthesis, "fuses_rgb", fuses[request.param])


@pytest.mark.parametrize("dtype", DTYPES)
def test_pictures_agree_in_every_form(dtype, upsampling, pictures):
    network = network_of()
    w = torch.randn(3, 12)
    image, frame = FusedSynthesis(network, "const", dtype)(w)
    assert image.dtype == torch.float32 and torch.equal(frame, to_uint8(image))
    assert relative(image, network(w)) < (2e-5 if dtype is torch.float32 else 16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("noise", ["const", "none"])
@pytest.mark.parametrize("clamp", [None, 0.7])
def test_pictures_agree_without_noise_and_where_clamped(noise, clamp):
    network = network_of(clamp=clamp)
    w = torch.randn(2, 12)
    assert relative(FusedSynthesis(network, noise, torch.float32)(w)[0], network(w, noise)) < 3e-6


def test_a_network_without_noise_agrees():
    network = network_of(use_noise=False)
    assert (
        relative(FusedSynthesis(network, "const", torch.float32)(torch.ones(1, 12))[0], network(torch.ones(1, 12)))
        < 3e-6
    )


@pytest.mark.parametrize("scale", [1e-6, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pictures_agree_for_styles_of_any_size(scale, dtype):
    """Small ones meet the demodulation's epsilon, large ones the largest number of float16."""
    network = network_of(clamp=None).double()
    for layer in network.modules():
        if isinstance(layer, EqualizedLinear):
            layer.bias.zero_()
    w = torch.randn(2, 12, dtype=torch.float64) * scale
    found = FusedSynthesis(network.float(), "const", dtype)(w.float())[0]
    assert relative(found, network.double()(w)) < (2e-5 if dtype is torch.float32 else 2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("resolution", "base", "most"), [(16, 128, 16), (128, 4096, 48), (256, 4096, 40)])
def test_calls_are_those_of_the_plan(dtype, resolution, base, most):
    """With every combination of one kernel and two steps, of pictures drawn by the convolution's kernel and apart."""
    made = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
            if operator.namespace == "styleinv":
                made.append(described(operator.name().removeprefix("styleinv::"), arguments, keywords or {}))
            return operator(*arguments, **(keywords or {}))

    network = network_of(resolution, base, most)
    synthesis = FusedSynthesis(network, "const", dtype)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True), Recorder():
        synthesis(torch.empty(1, 12))
    planned = fused_calls(Network(resolution, base, most, 12, dtype=dtype))
    assert made == [found for call in planned if (found := as_made(call)) is not None]


def described(operator, arguments, keywords):
    """Operator, size of what it reads, and whether it multiplies by a style what it reads and what it writes."""
    if operator == "style_demod":
        return operator, (arguments[0].shape[1], arguments[1].shape[0])
    names = [argument.name for argument in getattr(torch.ops.styleinv, operator).default._schema.arguments]
    given = dict(zip(names, arguments, strict=False)) | keywords
    x, styled = given["x"], given.get("style") is not None
    if operator in ("to_rgb_skip", "to_rgb_skip_frame"):
        return operator, tuple(x.shape[1:]), given.get("previous") is not None
    return operator, tuple(x.shape[1:]), given["bias"].shape[0], styled, given.get("next_style") is not None


def as_made(call):
    """A planned call as it is seen: two steps are one call, whose style is a product of its own."""
    inputs, outputs, height, width = call.layer
    size = height, width, inputs
    if call.operator == "style_demod":
        return call.operator, (inputs, outputs)
    if call.operator in ("to_rgb_skip", "to_rgb_skip_frame"):
        return call.operator, size, height > 4
    if call.operator in ("times style", "filter"):
        return None
    if call.operator == "transposed":
        return "modulated_conv2d_up2", size, outputs, False, True
    return call.operator, size, outputs, call.styled, call.next_styled


def test_an_exported_program_keeps_the_operators_and_its_batch():
    program = torch.export.export(
        FusedSynthesis(network_of(), "const", torch.float32),
        (torch.randn(2, 12),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    operators = {str(node.target) for node in program.graph.nodes if "styleinv" in str(node.target)}
    names = "style_demod", "modulated_conv2d_up2", "modulated_conv2d_rgb", "modulated_conv2d_frame"
    assert operators == {f"styleinv.{name}.default" for name in names}
    for batch in (1, 5):
        image, frame = program.module()(torch.randn(batch, 12))
        assert image.shape == (batch, 3, 16, 16) and frame.shape == (batch, 16, 16, 3)
