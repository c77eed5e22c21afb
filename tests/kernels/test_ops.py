"""The operators on a CPU: they are the reference, compilers know them, and they say what is wrong with an operand."""

import dataclasses
import functools
import subprocess
import sys

import pytest
import torch
from layer_cases import DTYPES, Case, operands

from styleinv.kernels import ops, reference
from styleinv.kernels.operands import Epilogue, ToRgb
from styleinv.kernels.style_layers import block_table, layers_of

LAYERS = [(5, 9), (3, 0), (9, 2)]
NAMES = ("demodulation", "noise", "bias", "next_style")


def epilogue_of(given):
    """Everything of an epilogue, by the names the operators have for it."""
    return {field.name: getattr(given.epilogue, field.name) for field in dataclasses.fields(Epilogue)}


def rgb_of(given):
    return {"previous": given.rgb.previous, "rgb_clamp": given.rgb.clamp}


def styles_operands(dtype, batch=2):
    inputs, outputs = zip(*LAYERS, strict=True)
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, 7), (sum(inputs), 7), (sum(inputs),), (sum(i * o for i, o in LAYERS),)
    operands = [torch.rand(shape, generator=generator).to(dtype) for shape in shapes]
    return (*operands, torch.full((sum(outputs),), 1e-8), block_table(inputs, outputs), list(inputs), list(outputs))


@functools.cache
def calls(present, dtype=torch.float32):
    """Each operator's arguments, and what they give: name -> operator, positional, named, expected."""
    case = Case(height=4, width=6, present=frozenset(present), clamp=0.7, style="unit" if present else "none")
    given, larger = operands(case, dtype), operands(case, dtype, upsample=True)
    epilogue, rgb = epilogue_of(given), rgb_of(given)
    unscaled = dataclasses.replace(given.epilogue, next_style=None)
    beside = (given.rgb.weight, given.rgb.style, given.rgb.bias)
    bare = operands(Case(height=4, width=6, inputs=11), dtype).x
    _, image = reference.modulated_layer_to_rgb(given.x, given.weight, given.rgb, given.style, unscaled)
    phases = reference.polyphase_weight(larger.weight)
    turned = larger.weight.permute(3, 1, 2, 0).contiguous()
    up = {"style": larger.style, **epilogue_of(larger)}
    doubled = [
        reference.modulated_layer(larger.x, weight, larger.style, larger.epilogue, upsample=True)
        for weight in (phases, larger.weight)
    ]
    alone = reference.to_rgb_skip(bare, given.rgb)
    skip = {"previous": given.rgb.previous, "clamp": given.rgb.clamp}
    framed = {name: epilogue[name] for name in epilogue if name != "next_style"}
    gamma_beta = torch.linspace(-1, 1, 36).view(2, 18)
    styles = styles_operands(dtype)
    return {
        "modulated_conv2d": (
            ops.modulated_conv2d, (given.x, given.weight), {"style": given.style, **epilogue},
            reference.modulated_layer(given.x, given.weight, given.style, given.epilogue),
        ),
        "up2 of phases": (ops.modulated_conv2d_up2, (larger.x, phases), up, doubled[0]),
        "up2 in two steps": (ops.modulated_conv2d_up2, (larger.x, turned), up, doubled[1]),
        "modulated_conv2d_rgb": (
            ops.modulated_conv2d_rgb, (given.x, given.weight, *beside), {"style": given.style, **epilogue, **rgb},
            reference.modulated_layer_to_rgb(given.x, given.weight, given.rgb, given.style, given.epilogue),
        ),
        "modulated_conv2d_frame": (
            ops.modulated_conv2d_frame, (given.x, given.weight, *beside), {"style": given.style, **framed, **rgb},
            (image, reference.to_uint8(image)),
        ),
        "to_rgb_skip": (ops.to_rgb_skip, (bare, *beside), skip, alone),
        "to_rgb_skip_frame": (ops.to_rgb_skip_frame, (bare, *beside), skip, (alone, reference.to_uint8(alone))),
        "adain_lrelu": (
            ops.adain_lrelu, (given.x, gamma_beta), {"epsilon": 1e-3, "slope": 0.1},
            reference.adain_lrelu(given.x, gamma_beta, epsilon=1e-3, slope=0.1),
        ),
        "style_demod": (ops.style_demod, styles, {}, reference.style_demod(*styles[:5], LAYERS)),
    }  # fmt: skip


PRESENT = {"all": (*NAMES, "previous"), "none": ()}
OPERATORS = tuple(calls(()))


def tensors(result):
    return [result] if isinstance(result, torch.Tensor) else list(result)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("present", PRESENT)
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_the_reference(name, present, dtype):
    operator, args, kwargs, expected = calls(PRESENT[present], dtype)[name]
    found = operator(*args, **kwargs)
    for result, wanted in zip(tensors(found), tensors(expected), strict=True):
        assert result.dtype == wanted.dtype and torch.equal(result, wanted)
        assert result.is_contiguous()


@pytest.mark.parametrize("present", PRESENT)
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_registered_as_torch_wants(name, present):
    """Schema, fake implementation, and dispatch ahead of time with sizes that vary."""
    operator, args, kwargs, _ = calls(PRESENT[present])[name]
    assert set(torch.library.opcheck(operator, args, kwargs).values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_fake_results_are_like_real_ones(name, dtype):
    from torch._subclasses.fake_tensor import FakeTensorMode

    operator, args, kwargs, expected = calls(PRESENT["all"], dtype)[name]
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        faked = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, (args, kwargs))
        found = operator(*faked[0], **faked[1])
    for result, wanted in zip(tensors(found), tensors(expected), strict=True):
        assert (result.shape, result.dtype, result.stride()) == (wanted.shape, wanted.dtype, wanted.stride())


@pytest.mark.parametrize("name", OPERATORS)
def test_asking_for_a_gradient_raises(name):
    operator, args, kwargs, _ = calls(PRESENT["all"])[name]
    results = operator(args[0].clone().requires_grad_(), *args[1:], **kwargs)
    with pytest.raises(RuntimeError, match="autograd"):
        tensors(results)[0].sum().backward()


class Network(torch.nn.Module):
    """Two layers and their picture, from a latent."""

    def __init__(self):
        super().__init__()
        given = operands(Case(batch=1, height=4, width=4, inputs=5, outputs=9), torch.float32)
        last = operands(Case(batch=1, height=8, width=8, inputs=9, outputs=2), torch.float32)
        self.constants = styles_operands(torch.float32)[1:]
        self.x, self.up, self.last = given.x, given.weight.permute(3, 1, 2, 0).contiguous(), last.weight
        self.rgb = (last.rgb.weight, last.rgb.bias)

    def forward(self, w):
        batch = w.shape[0]
        inputs, outputs = zip(*LAYERS, strict=True)
        styles, demodulation = ops.style_demod(w, *self.constants)
        first, _, second = layers_of(styles, batch, inputs)
        d_first, _, d_second = layers_of(demodulation, batch, outputs)
        x = self.x.expand(batch, -1, -1, -1).contiguous()
        x = ops.modulated_conv2d_up2(x, self.up, style=first, demodulation=d_first)
        rgb_weight, rgb_bias = self.rgb
        return ops.modulated_conv2d_frame(
            x, self.last, rgb_weight, d_second, rgb_bias, style=second, demodulation=d_second
        )


def test_one_graph_is_compiled():
    network, w = Network(), torch.rand(2, 7, generator=torch.Generator().manual_seed(1))
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for found, wanted in zip(compiled(w), network(w), strict=True):
        assert torch.equal(found, wanted)


def test_exported_with_any_batch():
    network, w = Network(), torch.rand(3, 7, generator=torch.Generator().manual_seed(1))
    program = torch.export.export(network, (w,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    called = {str(node.target) for node in program.graph.nodes if "styleinv" in str(node.target)}
    assert called == {
        f"styleinv.{name}.default" for name in ("style_demod", "modulated_conv2d_up2", "modulated_conv2d_frame")
    }
    for batch in (1, 2, 5):
        w = torch.rand(batch, 7, generator=torch.Generator().manual_seed(batch))
        for found, wanted in zip(program.module()(w), network(w), strict=True):
            assert torch.equal(found, wanted)


GIVEN = operands(Case(height=4, width=6), torch.float32)
UP = operands(Case(height=4, width=6), torch.float32, upsample=True)
PICTURE = ToRgb(torch.ones(3, 9), torch.ones(2, 9), torch.ones(3))


def layer(x=GIVEN.x, weight=GIVEN.weight, **operands):
    return ops.modulated_conv2d(x, weight, **operands)


def picture(x=GIVEN.x, weight=PICTURE.weight, style=PICTURE.style, bias=PICTURE.bias, previous=None):
    return ops.to_rgb_skip(x, weight, style, bias, previous)


def fused(weight=GIVEN.rgb.weight, style=GIVEN.rgb.style):
    return ops.modulated_conv2d_rgb(GIVEN.x, GIVEN.weight, weight, style, GIVEN.rgb.bias)


def style_demod(**changed):
    names = ("w", "affine", "bias", "squares", "epsilon", "table", "inputs", "outputs")
    return ops.style_demod(**{**dict(zip(names, styles_operands(torch.float32), strict=True)), **changed})


REFUSED = {
    "x: found shape [2, 9], expected [B, H, W, C]": lambda: layer(torch.ones(2, 9)),
    "x: found torch.int32, expected one of torch.float16": lambda: layer(GIVEN.x.int()),
    "x: found strides (270, 54, 1, 6), expected a contiguous": lambda: layer(torch.ones(2, 5, 9, 6).transpose(2, 3)),
    "weight: found shape [11, 5, 5, 9], expected [O, K, K, 9] with K 1 or 3": lambda: layer(
        weight=torch.ones(11, 5, 5, 9)
    ),
    "weight: found shape [11, 3, 3, 8], expected [O, K, K, 9]": lambda: layer(weight=torch.ones(11, 3, 3, 8)),
    "weight: found shape [11, 9], expected [O, K, K, 9]": lambda: layer(weight=torch.ones(11, 9)),
    "weight: found torch.float16, expected torch.float32, as x has": lambda: layer(weight=GIVEN.weight.half()),
    "weight: found strides (81, 27, 1, 3), expected a contiguous": lambda: layer(
        weight=torch.ones(11, 3, 9, 3).transpose(2, 3)
    ),
    "style: found shape [1, 9], expected [2, 9]": lambda: layer(style=torch.ones(1, 9)),
    "style: found it on meta, expected cpu": lambda: layer(style=torch.ones(2, 9, device="meta")),
    "style: found strides (0, 1), expected a contiguous": lambda: layer(style=torch.ones(9).expand(2, 9)),
    "demodulation: found shape [2, 9], expected [2, 11]": lambda: layer(demodulation=torch.ones(2, 9)),
    "noise: found shape [1, 4, 6], expected [4, 6]": lambda: layer(noise=torch.ones(1, 4, 6)),
    "bias: found shape [1], expected [11]": lambda: layer(bias=torch.ones(1)),
    "next_style: found shape [11], expected [2, 11]": lambda: layer(next_style=torch.ones(11)),
    "weight: found shape [11, 3, 3, 9], expected [4, O, 3, 3, 9] or [9, 3, 3, O]": lambda: ops.modulated_conv2d_up2(
        UP.x, UP.weight
    ),
    "weight: found shape [3, 11, 3, 3, 9], expected [4, O, 3, 3, 9]": lambda: ops.modulated_conv2d_up2(
        UP.x, torch.ones(3, 11, 3, 3, 9)
    ),
    "noise: found shape [4, 6], expected [8, 12]": lambda: ops.modulated_conv2d_up2(
        UP.x, torch.ones(9, 3, 3, 11), noise=torch.ones(4, 6)
    ),
    "demodulation: found shape [2, 9], expected [2, 11]: of phases": lambda: ops.modulated_conv2d_up2(
        UP.x, torch.ones(4, 11, 3, 3, 9), demodulation=torch.ones(2, 9)
    ),
    "rgb weight: found shape [4, 9], expected [3, 9]": lambda: picture(weight=torch.ones(4, 9)),
    "rgb style: found shape [9], expected [2, 9]": lambda: picture(style=torch.ones(9)),
    "rgb bias: found shape [1], expected [3]": lambda: picture(bias=torch.ones(1)),
    "previous: found shape [2, 3, 4, 6], expected [2, 3, 2, 3]": lambda: picture(previous=torch.ones(2, 3, 4, 6)),
    "previous: found torch.float16, expected torch.float32": lambda: picture(previous=torch.ones(2, 3, 2, 3).half()),
    "x: found 5 x 6 pixels, expected even numbers": lambda: picture(
        torch.ones(2, 5, 6, 9), previous=torch.ones(2, 3, 2, 3)
    ),
    "rgb weight: found shape [3, 9], expected [3, 11]": lambda: fused(weight=torch.ones(3, 9)),
    "rgb style: found shape [2, 9], expected [2, 11]": lambda: fused(style=torch.ones(2, 9)),
    "gamma_beta: found shape [2, 9], expected [2, 18]": lambda: ops.adain_lrelu(GIVEN.x, torch.ones(2, 9)),
    "w: found shape [7], expected [B, W]": lambda: style_demod(w=torch.ones(7)),
    "outputs: found 1 layers, expected 3, as inputs has": lambda: style_demod(outputs=[9]),
    "outputs: found 0 layers, expected 0, as inputs has, at least 1": lambda: style_demod(inputs=[], outputs=[]),
    "affine: found shape [17, 6], expected [17, 7]": lambda: style_demod(affine=torch.ones(17, 6)),
    "bias: found shape [7], expected [17]": lambda: style_demod(bias=torch.ones(7)),
    "squares: found shape [9], expected [63]": lambda: style_demod(squares=torch.ones(9)),
    "epsilon: found shape [1], expected [11]": lambda: style_demod(epsilon=torch.ones(1)),
    "table: found torch.float32 [4, 6], expected torch.int64 [blocks, 6]": lambda: style_demod(table=torch.ones(4, 6)),
    "table: found torch.int64 [6], expected": lambda: style_demod(table=torch.ones(6, dtype=torch.int64)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_go_together_is_named(message):
    with pytest.raises(ValueError) as raised:
        REFUSED[message]()
    assert str(raised.value).startswith(message.removesuffix(": of phases"))


def test_triton_is_for_gpus_alone():
    """Without it the operators compute on a CPU, and nobody is warned."""
    program = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import torch
from styleinv.kernels import ops
print(tuple(ops.modulated_conv2d(torch.ones(1, 4, 4, 3), torch.ones(5, 3, 3, 3)).shape))
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (finished.stdout, finished.stderr) == ("(1, 4, 4, 5)\n", "")
