"""A fused synthesis network as an ONNX graph of plugins: its nodes, and that they draw what the network does."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from fake_tensorrt_plugin import Library
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from styleinv.export import fused_synthesis
from styleinv.export.fused_synthesis import FusedSynthesis
from styleinv.export.graphs import Graph
from styleinv.export.plugin_graph import export_plugin_graph, plugins_of, register_plugins
from styleinv.kernels import plan, tensorrt_plugin, tiles
from styleinv.kernels.plan import Network, fused_calls
from styleinv.kernels.plugins import NAMESPACE, NO_CLAMP, Plugin
from styleinv.kernels.reference import to_uint8
from styleinv.runtime.errors import EngineError
from styleinv.training.generator import SynthesisNetwork

W = 12
IN_PLAN = {  # plugins by the plan's operators; None: ordinary operators
    "style_demod": None,
    "transposed": None,
    "times style": None,
    "filter": "filtered_layer",
    "modulated_conv2d_frame": "modulated_conv2d_image",
    "to_rgb_skip_frame": "to_rgb_skip",
}


def network_of(clamp):
    torch.manual_seed(7)
    network = SynthesisNetwork(16, W, 384, 24, conv_clamp=clamp)
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "noise_strength")):
            parameter.data += torch.randn_like(parameter) * 0.3
    return network.requires_grad_(False)


def graph_of(network):
    return Graph("synthesis", network, lambda: network, {"w": torch.randn(2, W)}, ("image", "frame"))


CASES = {  # dtype, form of upsampling layers, resolutions whose pictures are fused, noise, clamp
    "float32": (torch.float32, "two_steps", (4, 16), "const", 0.7),
    "float16": (torch.float16, "polyphase", (), "none", None),
    "bfloat16": (torch.bfloat16, "two_steps", (8,), "const", 256.0),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def forms(case):
    """The tuning tables' choices."""
    _, form, fused, _, _ = case
    patch = pytest.MonkeyPatch()
    for module in (tiles, plan):
        patch.setattr(module, "upsampling_form", lambda *layer: form)
    for module in (fused_synthesis, plan):
        patch.setattr(module, "fuses_rgb", lambda dtype, layer, device: layer[2] in fused)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def network(case, forms):
    dtype, _, _, noise, clamp = case
    return FusedSynthesis(network_of(clamp), noise, dtype)


@pytest.fixture(scope="module")
def model(case, network):
    return export_plugin_graph(network, graph_of(network), 22 if case[0] is torch.bfloat16 else 20)


def test_nodes_are_the_calls_of_the_plan(case, model, forms):
    dtype, _, _, noise, clamp = case
    calls = fused_calls(Network(16, 384, 24, W, noise == "const", clamp is not None, dtype))
    expected = [IN_PLAN.get(call.operator, call.operator) for call in calls]
    assert [Plugin.named(name).operator for name in plugins_of(model)] == [name for name in expected if name]
    styled = [call.styled for call in calls if call.operator == "modulated_conv2d"]
    found = [Plugin.named(name) for name in plugins_of(model)]
    assert ["style" in plugin.inputs for plugin in found if plugin.operator == "modulated_conv2d"] == styled


def test_the_rest_is_what_tensorrt_takes(case, model):
    """No sequences, no loops, no sizes that are computed but that of the batch."""
    rest = Counter(node.op_type for node in model.graph.node if node.domain != NAMESPACE)
    assert rest["ConvTranspose"] == (2 if case[1] == "two_steps" else 0)
    assert rest["Gemm"] == 1 and rest["Shape"] <= 1 and not any("Sequence" in name for name in rest)
    assert rest.keys() <= {
        *("Abs", "Add", "Cast", "Clip", "Concat", "ConvTranspose", "Div", "Expand", "Gemm", "Identity", "MatMul"),
        *(
            "Mul",
            "Pow",
            "Reciprocal",
            "ReduceMax",
            "Reshape",
            "Shape",
            "Split",
            "Sqrt",
            "Tile",
            "Transpose",
            "Unsqueeze",
        ),
    }


def test_the_file_is_a_valid_one(case, model):
    onnx.checker.check_model(model, full_check=True)
    assert {each.domain: each.version for each in model.opset_import}[NAMESPACE] == 1
    described = {value.name: value.type.tensor_type for value in [*model.graph.input, *model.graph.output]}
    shapes = {name: [size.dim_param or size.dim_value for size in each.shape.dim] for name, each in described.items()}
    assert shapes == {"w": ["batch", W], "image": ["batch", 3, 16, 16], "frame": ["batch", 16, 16, 3]}
    assert described["image"].elem_type == onnx.TensorProto.FLOAT
    assert described["frame"].elem_type == onnx.TensorProto.UINT8


def test_attributes_say_how_a_plugin_is_found_and_what_it_computes(case, model):
    clamp = NO_CLAMP if case[4] is None else np.float32(case[4])
    for node in model.graph.node:
        if node.domain == NAMESPACE:
            found = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            assert (found.pop("plugin_namespace"), found.pop("plugin_version"), found.pop("aot")) == (
                b"styleinv",
                b"1",
                1,
            )
            plugin = Plugin.named(node.op_type)
            assert found.keys() == set(plugin.attributes) and len(node.input) == len(plugin.inputs)
            assert {found[name] for name in ("clamp", "rgb_clamp") if name in found} == {clamp}
            if "slope" in found:
                assert found["slope"] == np.float32(0.2) and found["noise_strength"] == 1.0
                assert found["gain"] == pytest.approx(2**0.5)


def test_the_graph_draws_what_the_network_does(case, network, model):
    w = torch.randn(3, W)  # not the batch of the example
    image, frame = ReferenceEvaluator(model, new_ops=operators(model)).run(None, {"w": w.numpy()})
    expected, _ = network(w)
    size = float(expected.abs().max())
    tolerance = 2e-5 if case[0] is torch.float32 else 16 * torch.finfo(case[0]).eps
    assert np.abs(image - expected.numpy()).max() < tolerance * size
    assert frame.dtype == np.uint8 and np.array_equal(frame, to_uint8(torch.from_numpy(image)).numpy())


def operators(model):
    """The graph's plugins for ONNX's evaluator, computed by the operators of which they are."""
    return [
        type(name, (OpRun,), {"op_domain": NAMESPACE, "op_schema": None, "_run": run_of(Plugin.named(name))})
        for name in dict.fromkeys(plugins_of(model))
    ]


def run_of(plugin):
    def run(self, *inputs, **attributes):
        del attributes["plugin_namespace"], attributes["plugin_version"], attributes["aot"]
        numbers = {name: None if value == NO_CLAMP else value for name, value in attributes.items()}
        operands = dict(zip(plugin.inputs, map(tensor_of, inputs), strict=True))
        made = getattr(torch.ops.styleinv, plugin.operator)(**operands, **numbers)
        return tuple(map(array_of, made if isinstance(made, tuple) else (made,)))

    return run


def tensor_of(array):
    """NumPy has its bfloat16 from another package, which PyTorch does not know."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def array_of(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16))
    return tensor.numpy()


@pytest.mark.parametrize("case", ["bfloat16"], indirect=True, scope="module")
def test_tensorrt_builds_every_node(case, model, monkeypatch, tmp_path):
    """By what is known of it (`fake_tensorrt_plugin.py`): shapes and dtypes are those that the graph says."""
    monkeypatch.setattr(tensorrt_plugin, "_registered", {})
    library = Library().install(monkeypatch)
    onnx.save(model, tmp_path / "synthesis.onnx")
    register_plugins(tmp_path / "synthesis.onnx", "8.9")
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = {each.name: (each.data_type, tuple(each.dims)) for each in graph.initializer}
    for each in (*graph.input, *graph.value_info, *graph.output):
        kind = each.type.tensor_type
        values[each.name] = kind.elem_type, tuple(size.dim_param or size.dim_value for size in kind.shape.dim)
    for node in (node for node in graph.node if node.domain == NAMESPACE):
        built = library.build(node, values, batch=5)
        expected = [tuple(5 if isinstance(size, str) else size for size in values[name][1]) for name in node.output]
        assert built.outputs == expected
        assert 5 in built.grid and built.text.count(".entry ") == 1


@pytest.mark.parametrize("case", ["bfloat16"], indirect=True, scope="module")
def test_an_old_tensorrt_is_refused(case, model, monkeypatch, tmp_path):
    Library("10.8.0.43").install(monkeypatch)
    onnx.save(model, tmp_path / "synthesis.onnx")
    with pytest.raises(EngineError, match=r"synthesis.onnx: tensorrt: found version 10.8.0.43, expected 10.9 or later"):
        register_plugins(tmp_path / "synthesis.onnx", "8.9")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_engine_draws_what_the_operators_do(dtype, tmp_path):
    """TensorRT with the kernels in it, against the same kernels launched by Triton, at several batches."""
    trt = pytest.importorskip("tensorrt")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no GPU")
    network = FusedSynthesis(network_of(256.0).cuda(), "const", dtype)
    model = export_plugin_graph(network, graph_of(network), 22 if dtype is torch.bfloat16 else 20)
    onnx.save(model, tmp_path / "synthesis.onnx")
    register_plugins(tmp_path / "synthesis.onnx", "{}.{}".format(*torch.cuda.get_device_capability()))
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    definition = builder.create_network(0)
    parser = trt.OnnxParser(definition, logger)
    assert parser.parse(model.SerializeToString()), [
        parser.get_error(index).desc() for index in range(parser.num_errors)
    ]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("w", (1, W), (2, W), (4, W))
    config.add_optimization_profile(profile)
    engine = trt.Runtime(logger).deserialize_cuda_engine(builder.build_serialized_network(definition, config))
    context = engine.create_execution_context()
    for batch in (1, 3, 4):
        w = torch.randn(batch, W, device="cuda")
        image = torch.full((batch, 3, 16, 16), float("nan"), device="cuda")
        frame = torch.empty(batch, 16, 16, 3, dtype=torch.uint8, device="cuda")
        assert context.set_input_shape("w", (batch, W))
        for name, tensor in {"w": w, "image": image, "frame": frame}.items():
            context.set_tensor_address(name, tensor.data_ptr())
        assert context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
        expected, _ = network(w)
        assert (image - expected).abs().max() < 32 * torch.finfo(dtype).eps * expected.abs().max()
        assert (frame.int() - to_uint8(expected).int()).abs().max() <= 1
