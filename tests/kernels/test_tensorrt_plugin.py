"""The operators as plugins of TensorRT: names, signatures, launches and PTX. `test_plugin_graph.py` has their nodes."""

import re
import subprocess
import sys
from dataclasses import replace

import onnx
import pytest
import torch
import triton
from fake_tensorrt_plugin import DataType, Library

from styleinv.kernels import ptx, tensorrt_plugin
from styleinv.kernels.plugins import NO_CLAMP, OPERATORS, Plugin
from styleinv.kernels.resources import LIMITS

HALF, FLOAT = 10, 1  # ONNX's numbers
NUMBERS = {"noise_strength": 0.5, "slope": 0.25, "gain": 1.5, "clamp": 8.0, "rgb_clamp": NO_CLAMP}
TARGETS = dict(zip(OPERATORS, LIMITS, strict=True))  # each operator for another GPU


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    """So that what is tested is compiled now."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.fixture
def library(monkeypatch):
    monkeypatch.setattr(tensorrt_plugin, "_registered", {})
    return Library().install(monkeypatch)


def shapes_of(operator, batch="batch", inputs=32, outputs=48, height=9, width=7):
    """ONNX's dtype and the shape of every operand of an operator, odd where they can be."""
    up = operator == "modulated_conv2d_up2"
    if operator in ("modulated_conv2d_rgb", "modulated_conv2d_image", "to_rgb_skip"):
        height, width = 10, 6
    if operator == "to_rgb_skip":
        return {
            "x": (HALF, (batch, height, width, inputs)),
            "weight": (FLOAT, (3, inputs)),
            "style": (FLOAT, (batch, inputs)),
            "bias": (FLOAT, (3,)),
            "previous": (FLOAT, (batch, 3, height // 2, width // 2)),
        }
    made = (2 * height, 2 * width) if up else (height, width)
    channels, size = (outputs, made) if operator == "filtered_layer" else (inputs, (height, width))
    if operator == "filtered_layer":
        size = height + 1, width + 1
    shapes = {
        "x": (HALF, (batch, *size, channels)),
        "weight": (HALF, (4,) * up + (outputs, 3, 3, inputs)),
        "style": (FLOAT, (batch, inputs)),
        "demodulation": (FLOAT, (batch, outputs)),
        "noise": (FLOAT, made),
        "bias": (FLOAT, (outputs,)),
        "next_style": (FLOAT, (batch, outputs)),
        "rgb_weight": (FLOAT, (3, outputs)),
        "rgb_style": (FLOAT, (batch, outputs)),
        "rgb_bias": (FLOAT, (3,)),
        "previous": (FLOAT, (batch, 3, height // 2, width // 2)),
    }
    return {name: shapes[name] for name in OPERATORS[operator].operands}


def tensors(operator, **sizes):
    """The same as tensors without data."""
    dtypes = {HALF: torch.float16, FLOAT: torch.float32}
    return {
        name: torch.empty(shape, dtype=dtypes[dtype], device="meta")
        for name, (dtype, shape) in shapes_of(operator, **sizes).items()
    }


def node_of(plugin):
    found_by = {"plugin_namespace": "styleinv", "plugin_version": "1", "aot": 1}
    numbers = {name: NUMBERS[name] for name in reversed(plugin.attributes)}  # a node's order says nothing
    return onnx.helper.make_node(
        plugin.name, plugin.inputs, [f"{name}'" for name in plugin.outputs], domain="styleinv", **found_by, **numbers
    )


def parameters(text):
    """The entry of a PTX text, and its parameters."""
    name, listed = re.search(r"\.visible \.entry (\S+)\((.*?)\n\)", text, re.DOTALL).groups()
    return name, re.findall(r"\.param (\.u64 \.ptr \.global|\S+)[^,\n]* (\S+?),?(?:\n|$)", listed)


@pytest.mark.parametrize("operator", OPERATORS)
def test_names_tell_the_optional_operands(operator):
    known = OPERATORS[operator]
    for present in ([], known.optional[-1:], known.optional[::-1]):
        plugin = Plugin.with_operands(operator, [*present, *(set(known.operands) - set(known.optional))])
        assert Plugin.named(plugin.name) == plugin
        assert len(plugin.inputs) == len(known.operands) - len(known.optional) + len(present)
    assert Plugin.named(operator).name == operator


@pytest.mark.parametrize(
    "name", ["style_demod", "modulated_conv2d__previous", "modulated_conv2d__bias__style", "to_rgb_skip__x", ""]
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=f"plugin: found '{name}', expected one of modulated_conv2d, "):
        Plugin.named(name)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_kernels_parameters_are_inputs_then_outputs(operator):
    operands = tensors(operator, batch=1)
    for given in (operands, {name: operands[name] for name in Plugin.named(operator).inputs}):
        plugin = Plugin.with_operands(operator, list(given))
        launch = plugin.launch(given, {name: NUMBERS[name] for name in plugin.attributes})
        named = zip(launch.kernel.arg_names, launch.operands, strict=False)
        tensor_names = tuple(name for name, operand in named if isinstance(operand, torch.Tensor))
        assert tensor_names == (*plugin.inputs, *plugin.outputs)


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_engine_gets_a_kernel(operator, library):
    """Registered, parsed and built for a dynamic batch: the launch at batch 3 is the operator's own at batch 3."""
    plugin = Plugin.with_operands(operator, OPERATORS[operator].operands)
    tensorrt_plugin.register([plugin.name, plugin.name], TARGETS[operator])
    built = library.build(node_of(plugin), shapes_of(operator), batch=3)

    launch = plugin.launch(tensors(operator, batch=3), {name: NUMBERS[name] for name in plugin.attributes})
    assert built.grid == (*launch.grid, 1)[:3]
    assert built.block == (32 * launch.options["num_warps"], 1, 1)
    given = {name: shape for name, (_, shape) in shapes_of(operator, batch=3).items()}
    assert built.outputs == plugin.output_shapes(given)
    assert built.dtypes == [{"out": DataType.HALF, "image": DataType.FLOAT}[name] for name in plugin.outputs]

    name, listed = parameters(built.text)
    assert name == built.name and name.startswith(launch.name)
    assert [kind for kind, _ in listed] == [".u64 .ptr .global"] * (len(plugin.inputs) + len(plugin.outputs))
    for _, parameter in listed:
        assert f"[{parameter}]" in built.text, f"{parameter} is not read"
    assert f".reqntid {built.block[0]}\n" in built.text and built.shared <= 48 * 1024
    assert str(ptx.__file__).rpartition("/")[0] not in built.text
    check_assembles(built.text, TARGETS[operator])


def check_assembles(text, target):
    tools = triton.knobs.nvidia
    tool = tools.ptxas_blackwell if target >= 100 else tools.ptxas
    arch = re.search(r"\.target (\w+)", text)[1]
    assert arch.startswith(f"sm_{target}")
    command = [tool.path, f"--gpu-name={arch}", "-o", "/dev/null", "/dev/stdin"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_numbers_are_in_the_code():
    """What a node says of the epilogue is compiled in; without a clamp there is none."""
    plugin, operands = Plugin.named("to_rgb_skip"), tensors("to_rgb_skip", batch=1)
    del operands["previous"]
    texts = {clamp: ptx.compiled(plugin.launch(operands, {"clamp": clamp}), 89).text for clamp in (NO_CLAMP, 0.75, 0.5)}
    assert len(set(texts.values())) == 3
    assert "0f3F400000" in texts[0.75] and "0f3F400000" not in texts[0.5] + texts[NO_CLAMP]  # 0.75


def test_stages_are_as_many_as_the_memory_allows(monkeypatch):
    plugin, numbers = (
        Plugin.named("modulated_conv2d"),
        {name: NUMBERS[name] for name in OPERATORS["modulated_conv2d"].attributes},
    )
    operands = {
        name: operand for name, operand in tensors("modulated_conv2d", batch=1).items() if name in ("x", "weight")
    }
    launch = plugin.launch(operands, numbers)
    launch = replace(launch, options={**launch.options, "num_stages": 4})
    wide = ptx.compiled(launch, 89)
    monkeypatch.setattr(ptx, "MOST_SHARED", wide.shared - 1)
    narrow = ptx.compiled(launch, 89)
    assert 0 < narrow.shared < wide.shared and narrow.name != wide.name and narrow.grid == wide.grid
    monkeypatch.setattr(ptx, "MOST_SHARED", 0)
    with pytest.raises(ValueError, match=r"convolution_kernel: found \d+ bytes of shared memory, expected 0 at most"):
        ptx.compiled(launch, 89)


def test_scratch_memory_that_is_used_is_not_taken_out():
    text = ".visible .entry k(\n\t.param .u64 k_param_0,\n\t.param .u64 k_param_1,\n\t.param .u64 k_param_2\n)\n{\n"
    assert parameters(ptx.without_scratch(text + "ld.param.b64 %rd1, [k_param_0];", "k"))[1] == [(".u64", "k_param_0")]
    with pytest.raises(ValueError, match="k: found a use of k_param_2, expected no scratch memory"):
        ptx.without_scratch(text + "ld.param.b64 %rd1, [k_param_2];", "k")
    with pytest.raises(ValueError, match="k: found 0 parameters, expected more than 2"):
        ptx.without_scratch("", "k")


def test_a_plugin_is_for_one_gpu(library):
    tensorrt_plugin.register(["to_rgb_skip"], 89)
    tensorrt_plugin.register(["to_rgb_skip"], 89)
    assert list(library.plugins) == ["styleinv::to_rgb_skip"]
    with pytest.raises(
        ValueError, match=r"plugin to_rgb_skip: found it registered for \(89, 'default'\), expected \(90"
    ):
        tensorrt_plugin.register(["to_rgb_skip"], 90)


def test_tensorrt_must_be_there_and_new_enough(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ValueError, match=r"tensorrt.plugin: found .*, expected TensorRT 10.9 or later"):
        tensorrt_plugin.register(["to_rgb_skip"], 89)
    Library("10.8.0.43").install(monkeypatch)
    with pytest.raises(ValueError, match=r"tensorrt: found version 10.8.0.43, expected 10.9 or later"):
        tensorrt_plugin.register(["to_rgb_skip"], 89)
