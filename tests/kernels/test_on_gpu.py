"""The operators on a GPU: layers of real sizes against the reference, compiled, and the same bytes each time."""

import dataclasses

import pytest
import torch
from layer_cases import DTYPES, TOLERANCES, Case, assert_close, in_double, operands

from styleinv.kernels import ops, reference
from styleinv.kernels.operands import Epilogue
from styleinv.kernels.style_layers import block_table, layers_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use: torch.cuda.is_available()"),
]

NAMES = frozenset({"demodulation", "noise", "bias", "next_style", "previous"})
LAYERS = {
    "512 channels at 4x4": Case(batch=2, height=4, width=4, inputs=512, outputs=512, present=NAMES, clamp=256.0),
    "512 channels at 16x16": Case(batch=1, height=16, width=16, inputs=512, outputs=512, present=NAMES, clamp=256.0),
    "64 channels at 256x256": Case(batch=1, height=256, width=256, inputs=64, outputs=64, present=NAMES, clamp=256.0),
    "odd sizes": Case(batch=3, height=17, width=13, inputs=37, outputs=72, present=NAMES - {"previous"}),
    "a style of 1e-4 to 1e4": Case(batch=2, height=32, width=32, inputs=96, outputs=40, present=NAMES, style="mixed"),
}


def on_gpu(value):
    """A tensor, or what has tensors in its fields, on the GPU."""
    if isinstance(value, torch.Tensor):
        return value.cuda()
    if dataclasses.is_dataclass(value):
        changed = {field.name: on_gpu(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    return value


def epilogue_of(epilogue):
    return {field.name: getattr(epilogue, field.name) for field in dataclasses.fields(Epilogue)}


def calls(name, dtype):
    """Each operator on a layer, and what it gives in float64: (operator, positional, named, expected)."""
    given, larger = (on_gpu(operands(LAYERS[name], dtype, upsample)) for upsample in (False, True))
    phases, turned = reference.polyphase_weight(larger.weight), larger.weight.permute(3, 1, 2, 0).contiguous()
    wide, wide_up = in_double(given), in_double(larger)
    named, up = ({"style": each.style, **epilogue_of(each.epilogue)} for each in (given, larger))
    rgb = (given.rgb.weight, given.rgb.style, given.rgb.bias, given.rgb.previous)
    layer = (wide.x, wide.weight)
    bare = operands(dataclasses.replace(LAYERS[name], inputs=LAYERS[name].outputs), dtype).x.cuda()
    expected = reference.modulated_layer_to_rgb(*layer, wide.rgb, wide.style, wide.epilogue)
    gamma_beta = torch.linspace(-1, 1, 2 * given.x.shape[0] * given.x.shape[3], device="cuda").view(
        given.x.shape[0], -1
    )
    doubled = [
        reference.modulated_layer(wide_up.x, weight.double(), wide_up.style, wide_up.epilogue, upsample=True)
        for weight in (phases, larger.weight)
    ]
    result = [
        (ops.modulated_conv2d, (given.x, given.weight), named, expected[:1]),
        (ops.modulated_conv2d_up2, (larger.x, phases), up, doubled[:1]),
        (ops.modulated_conv2d_up2, (larger.x, turned), up, doubled[1:]),
        (ops.to_rgb_skip, (bare, *rgb, 256.0), {}, [reference.to_rgb_skip(bare.double(), wide.rgb)]),
        (ops.adain_lrelu, (given.x, gamma_beta), {}, [reference.adain_lrelu(wide.x, gamma_beta.double())]),
    ]
    if LAYERS[name].outputs <= 128:  # a program has them all
        result.append(
            (ops.modulated_conv2d_rgb, (given.x, given.weight, *rgb), {**named, "rgb_clamp": 256.0}, expected)
        )
    return result


def tensors(result):
    return [result] if isinstance(result, torch.Tensor) else list(result)


@pytest.fixture(autouse=True)
def whole_float32():
    """The first of two steps is cuDNN's, which rounds float32 to TF32 where it may."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_the_reference_and_the_same_each_time(name, dtype):
    for operator, args, kwargs, expected in calls(name, dtype):
        found = tensors(operator(*args, **kwargs))
        for result, wanted in zip(found, expected, strict=True):
            assert_close(result.cpu(), wanted.cpu(), TOLERANCES[dtype])
        for result, again in zip(found, tensors(operator(*args, **kwargs)), strict=True):
            assert torch.equal(result, again)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_frame_is_of_its_image(dtype):
    given = on_gpu(operands(LAYERS["64 channels at 256x256"], dtype))
    rgb = (given.rgb.weight, given.rgb.style, given.rgb.bias, given.rgb.previous)
    frames = [ops.modulated_conv2d_frame(given.x, given.weight, *rgb), ops.to_rgb_skip_frame(given.x, *rgb)]
    for image, frame in frames:
        difference = frame.int() - reference.to_uint8(image).int()
        assert difference.abs().max() <= 1  # x * 127.5 + 128 is rounded once in the kernel, twice in torch


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_styles_are_the_reference(dtype):
    layers = [(512, 512), (512, 0), (512, 256), (256, 64), (64, 0), (37, 5)]
    inputs, outputs = zip(*layers, strict=True)
    generator = torch.Generator().manual_seed(0)
    shapes = (3, 512), (sum(inputs), 512), (sum(inputs),), (sum(i * o for i, o in layers),)
    given = [torch.rand(shape, generator=generator).to(dtype).cuda() for shape in shapes]
    given.append(torch.full((sum(outputs),), 1e-8, device="cuda"))
    found = ops.style_demod(*given, block_table(inputs, outputs).cuda(), list(inputs), list(outputs))
    wanted = reference.style_demod(*(operand.double() for operand in given), layers)
    for flat, flat_wanted, sizes in ((found[0], wanted[0], inputs), (found[1], wanted[1], outputs)):
        for part, expected in zip(layers_of(flat, 3, sizes), layers_of(flat_wanted, 3, sizes), strict=True):
            if part.numel():
                assert_close(part.cpu(), expected.cpu(), TOLERANCES[torch.float32])


def test_operators_are_compiled_in_one_graph():
    (operator, args, kwargs, _), *_ = calls("512 channels at 16x16", torch.float16)

    def twice(x, weight):
        return operator(operator(x, weight, **kwargs) + 1, weight, **kwargs)

    assert_close(torch.compile(twice, fullgraph=True)(*args).cpu(), twice(*args).cpu(), TOLERANCES[torch.float16])
