"""The form that is exported computes what the form that learns does, with everything folded, and in half precision
without overflow."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from polygraphy.backend.onnx import fold_constants
from torch import nn

from styleinv.export.arithmetic import EXACT, Arithmetic, arithmetic_in
from styleinv.export.comparison import compare
from styleinv.export.folding import LARGEST_STORED, FoldedConv2d, FoldedLinear, after_norm, row_scale
from styleinv.export.graphs import Graph, graphs_of
from styleinv.export.inference_encoder import FoldedBottleneck, InferenceEncoder
from styleinv.export.inference_synthesis import InferenceSynthesis
from styleinv.export.multiplications import multiply_accumulates
from styleinv.export.onnx_graph import export_onnx, graph_spec, opset_of, write_models
from styleinv.export.upsampling import FORMS
from styleinv.kernels.reference import modulated_conv2d
from styleinv.runtime.sessions import SessionOptions, open_graph
from styleinv.training.config import with_overrides
from styleinv.training.encoder import Bottleneck, Encoder
from styleinv.training.generator import SynthesisNetwork
from styleinv.training.initialize import initialize
from styleinv.training.layers import EqualizedLinear

HALF = [torch.float16, torch.bfloat16]
CLAMP = 256.0


def relative(found, expected):
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def synthesis_network(seed=0, resolution=16, channels=512, clamp=CLAMP, **options):
    """A synthesis network whose biases and noise are not zero, as they are after training."""
    torch.manual_seed(seed)
    network = SynthesisNetwork(resolution, 12, channel_base=channels, channel_max=24, conv_clamp=clamp, **options)
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "noise_strength")):
            parameter.data += torch.randn_like(parameter) * 0.3
    return network.requires_grad_(False)


def arithmetic(dtype=torch.float32, upsampling="transposed", convolution="direct"):
    """The same forms for every layer; Winograd's where the number of rows is even."""
    return Arithmetic(
        dtype, lambda *layer: upsampling, lambda inputs, outputs, size: "direct" if size % 2 else convolution
    )


def form(network, dtype=torch.float32, noise="const", upsampling="transposed", convolution="direct"):
    return InferenceSynthesis(network, noise, arithmetic(dtype, upsampling, convolution))


@pytest.mark.parametrize("noise", ["const", "none"])
@pytest.mark.parametrize("clamp", [None, 0.7, CLAMP])
@pytest.mark.parametrize(
    ("upsampling", "convolution"), [(form, "direct") for form in FORMS] + [("transposed", "winograd")]
)
def test_synthesis_agrees(noise, clamp, upsampling, convolution):
    network = synthesis_network(clamp=clamp)
    w = torch.randn(3, 12)
    found = form(network, noise=noise, upsampling=upsampling, convolution=convolution)(w)
    assert relative(found, network(w, noise)) < 3e-6


def test_synthesis_without_noise_agrees():
    network = synthesis_network(use_noise=False)
    assert relative(form(network)(torch.ones(1, 12)), network(torch.ones(1, 12))) < 2e-6


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e4, 1e9])
def test_synthesis_agrees_for_styles_of_any_size(scale):
    """Small ones meet the demodulation's epsilon, so it must be kept exactly."""
    network = synthesis_network(clamp=None).double()
    for layer in network.modules():
        if isinstance(layer, EqualizedLinear):
            layer.bias.zero_()
    w = torch.randn(2, 12, dtype=torch.float64) * scale
    found = form(network.float())(w.float())
    assert relative(found, network.double()(w)) < 2e-5


def test_styles_that_are_zero_do_not_divide():
    network = synthesis_network()
    for layer in network.modules():
        if isinstance(layer, EqualizedLinear):
            layer.bias.zero_()
    found = form(network)(torch.zeros(1, 12))
    assert found.isfinite().all() and relative(found, network(torch.zeros(1, 12))) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_rows_of_zeros_give_their_bias(dtype):
    network = synthesis_network()
    for block in network.blocks:
        for conv in block.convs:
            conv.weight[0] = 0.0
        block.to_rgb.weight[1] = 0.0
    w = torch.randn(2, 12)
    synthesis = form(network, dtype)
    assert all(parameter.isfinite().all() for parameter in synthesis.parameters())
    assert relative(synthesis(w), network(w)) < 16 * torch.finfo(dtype).eps


def bottleneck(inputs, outputs, stride, seed=0):
    torch.manual_seed(seed)
    unit = Bottleneck(inputs, outputs, stride).eval().requires_grad_(False)
    for module in unit.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.copy_(torch.rand(len(module.weight)) + 0.5)
            module.bias.copy_(torch.randn(len(module.bias)))
            module.running_mean.copy_(torch.randn(len(module.bias)))
            module.running_var.copy_(torch.rand(len(module.bias)) + 0.1)
        if isinstance(module, nn.PReLU):
            module.weight.copy_(torch.rand(len(module.weight)))
    return unit


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(16, 16, 1), (16, 16, 2), (16, 32, 2), (32, 16, 1)])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_bottleneck_agrees_at_borders_too(inputs, outputs, stride, size):
    """At 1 and 2 pixels every pixel is a border, where the padding of what is normalised shows."""
    unit = bottleneck(inputs, outputs, stride)
    x = torch.randn(2, inputs, size, size)
    found = FoldedBottleneck(unit, EXACT, False, False)(x)
    expected = unit.double()(x.double())
    assert found.shape == expected.shape and relative(found, expected) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("scale", [0.0, 1e-12, -1e-7, 1e-3])
def test_a_norm_of_almost_no_scale_folds(dtype, scale):
    """A channel whose scale died in training still adds its shift."""
    norm, conv = nn.BatchNorm2d(2, eps=0.0), nn.Conv2d(2, 3, 3, padding=1, bias=False)
    with torch.no_grad():
        norm.weight[0], norm.bias[0] = scale, 0.7
        weight, shift = after_norm(norm.eval(), conv, dtype)
        assert weight.isfinite().all() and shift.abs().max() <= 2 / torch.finfo(dtype).eps
        x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
        expected = conv.double()(norm.double()(x))
        found = nn.functional.conv2d(x + shift[:, None, None], weight, padding=1)
    assert relative(found, expected) < 3 * torch.finfo(dtype).eps


# At which sizes, of the encoder's 16, 8, 4 and 2 pixels, rows are paired: nowhere, everywhere, or at some.
PAIRED_SIZES = [(), (2, 4, 8, 16), (8,), (4, 2), (8, 2)]


@pytest.mark.parametrize("modulation", ["adain", "convolution"])
@pytest.mark.parametrize(("pca", "where"), [(0, "stage"), (5, "stage"), (0, "bottleneck")])
@pytest.mark.parametrize("sizes", PAIRED_SIZES)
def test_encoder_agrees(modulation, pca, where, sizes):
    torch.manual_seed(1)
    encoder = Encoder(
        12, (16, 32, 16), (2, 1, 2), temporal_blocks=where, modulation=modulation, pca_components=pca
    ).eval()
    encoder.requires_grad_(False)
    image, style = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 12)
    base = torch.randn(12)
    forms = Arithmetic(
        torch.float32,
        lambda *layer: "transposed",
        lambda inputs, outputs, size: "winograd" if size in sizes else "direct",
    )
    found = InferenceEncoder(encoder, 16, forms, base)
    content = found.content(image)
    for ours, theirs in zip(content, encoder.content(image), strict=True):
        assert relative(ours, theirs) < 1e-5
    assert relative(found.offset(*content, style), base + encoder(image, style)) < 1e-5


def test_linear_layers_fold_gain_multiplier_and_activation():
    torch.manual_seed(0)
    layer = EqualizedLinear(7, 5, bias=0.3, lr_multiplier=0.01, activate=True).requires_grad_(False)
    x = torch.randn(4, 7)
    assert relative(FoldedLinear(layer)(x), layer(x)) < 1e-6


@pytest.fixture(scope="module")
def exported(small_config):
    """The graphs of a small model with clamps, in each precision: (inference form's Graph, ONNX model) by name."""
    config = with_overrides(small_config, ["model.generator.conv_clamp=256"])
    model = initialize(config, seed=3)
    graphs = {}
    for precision in ("fp32", "fp16", "bf16"):
        of_precision = arithmetic_in(precision)
        for graph in graphs_of(model, config, "const", arithmetic=of_precision):
            graphs[precision, graph.name] = graph, export_onnx(graph, opset_of(of_precision.dtype))
    return graphs


NAMES = ["mapping", "synthesis", "content", "latent"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_to_fold(exported, name):
    _, model = exported["fp32", name]
    operators = [node.op_type for node in model.graph.node]
    assert not {"BatchNormalization", "MaxPool", "Identity"} & set(operators)
    folded = fold_constants(onnx.ModelProto.FromString(model.SerializeToString()))
    assert len(folded.graph.node) == len(model.graph.node)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_convolution_weights_are_constants(exported, precision, name):
    _, model = exported[precision, name]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    kinds = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
    filters = [node.input[1] for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert bool(filters) == (name != "mapping")
    large = [constants[filter].data_type for filter in filters if math.prod(constants[filter].dims) > 3 * 16]
    assert all(kind == kinds[precision] for kind in large)


def test_all_styles_come_from_one_product(exported):
    _, model = exported["fp32", "synthesis"]
    from_w = [node.op_type for node in model.graph.node if "w" in node.input]
    assert [kind for kind in from_w if kind != "Shape"] == ["Gemm"]


def test_the_frames_bytes_are_the_last_thing_computed(exported):
    """TensorRT has bytes as outputs of a graph only."""
    _, model = exported["fp32", "synthesis"]
    (last,) = (node for node in model.graph.node if "frame" in node.output)
    assert last.op_type == "Cast"


@pytest.mark.parametrize("name", NAMES)
def test_in_and_out_stay_float32(exported, name):
    for precision in ("fp16", "bf16"):
        _, model = exported[precision, name]
        for value in [*model.graph.input, *model.graph.output]:
            expected = onnx.TensorProto.UINT8 if value.name == "frame" else onnx.TensorProto.FLOAT
            assert value.type.tensor_type.elem_type == expected


@pytest.mark.parametrize("name", NAMES)
def test_multiplications_are_counted(exported, name):
    """Counted again by looking at what torch runs."""
    graph, model = exported["fp32", name]
    module = graph.build()
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        module(*(tensor[:1] for tensor in graph.inputs.values()))
    assert multiply_accumulates(model) == counter.get_total_flops() // 2


def all_values(model):
    """The model with every value computed inside it as an output, and the names of those in float16."""
    inferred = onnx.shape_inference.infer_shapes(model)
    outputs = {value.name for value in model.graph.output}
    halves = [
        value.name
        for value in inferred.graph.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 and value.name not in outputs
    ]
    inferred.graph.output.extend(value for value in inferred.graph.value_info if value.name in halves)
    return inferred, halves


def extreme_synthesis():
    """Styles of up to 1e4, unequal ones, and activations that reach the clamp."""
    network = synthesis_network(channels=1024)
    for layer in network.modules():
        if isinstance(layer, EqualizedLinear):
            layer.bias.mul_(torch.where(torch.arange(len(layer.bias)) % 3 == 0, 1e4, 1.0))
        if hasattr(layer, "noise_strength"):
            layer.noise_strength.fill_(200.0)
    return network


def test_fp16_never_overflows_where_the_plain_form_does():
    network = extreme_synthesis()
    w = torch.randn(2, 12) * 100
    conv = network.blocks[1].convs[1]
    style = conv.affine(w)
    assert style.abs().max() > 1e4
    x = torch.full((2, conv.weight.shape[1], 8, 8), CLAMP)
    plain = modulated_conv2d(x.half(), conv.weight.half(), style.half())
    assert not plain.isfinite().all(), "this test must be one that half precision can fail"

    synthesis = form(network, torch.float16)
    inputs = {"w": w}
    model = export_onnx(Graph("synthesis", network, lambda: synthesis, inputs, ("image",)))
    tapped, halves = all_values(model)
    found = onnxruntime.InferenceSession(tapped.SerializeToString()).run(None, {"w": w.numpy()})
    assert len(halves) > 20
    largest = 0.0
    for name, array in zip([value.name for value in tapped.graph.output], found, strict=True):
        assert np.isfinite(array).all(), name
        largest = max(largest, float(np.abs(array).max())) if name in halves else largest
    assert largest >= CLAMP  # the clamp was hit
    comparison = compare("fp16", "image", "fp16", found[0], network(w, "const").numpy())
    assert comparison.failures == []


@pytest.mark.parametrize("name", ["content", "latent"])
def test_fp16_encoder_saturates(exported, name):
    """Activations far beyond what float16 holds come out finite; ordinary ones are not touched."""
    graph, model = exported["fp16", name]
    tapped, halves = all_values(model)
    session = onnxruntime.InferenceSession(tapped.SerializeToString())
    for scale in (1.0, 1e4, 1e7):
        inputs = {key: tensor.numpy() * np.float32(scale) for key, tensor in graph.inputs.items()}
        for key, array in zip([value.name for value in tapped.graph.output], session.run(None, inputs), strict=True):
            assert np.isfinite(array).all(), f"{key} at scale {scale:g}"
            if key in halves:
                assert np.abs(array).max() <= 65504
    assert LARGEST_STORED < 65504


def test_a_convolution_in_fp16_gives_no_more_than_its_largest_input():
    torch.manual_seed(0)
    weight = torch.randn(8, 64, 3, 3, dtype=torch.float64) * 50
    rows = row_scale(weight)
    assert torch.equal(rows, torch.exp2(torch.log2(rows).round()))
    assert ((weight / rows[:, None, None, None]).abs().sum(dim=(1, 2, 3)) <= 1).all()
    x = torch.full((1, 64, 5, 5), LARGEST_STORED, dtype=torch.float16)
    conv = FoldedConv2d(weight, torch.ones(8, dtype=torch.float64), dtype=torch.float16)
    expected = nn.functional.conv2d(x.double(), weight, padding=1) + 1
    assert conv(x).dtype == torch.float32
    assert relative(conv(x), expected) < 2e-3


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_close(small_config, dtype):
    model = initialize(small_config, seed=3)
    for graph in graphs_of(model, small_config, "const", arithmetic=arithmetic(dtype, "split")):
        inputs = tuple(graph.inputs.values())
        found, expected = graph.build()(*inputs), graph.reference(*inputs)
        pairs = [(found, expected)] if isinstance(expected, torch.Tensor) else zip(found, expected, strict=True)
        for ours, theirs in pairs:
            assert ours.dtype == theirs.dtype
            assert relative(ours, theirs) < 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_winograds_form_in_a_session(small_config, tmp_path, engine):
    """Every layer with an even number of rows in it; small models, whose layers are too small for it, have none."""
    model = initialize(small_config, seed=4)
    forms = arithmetic(convolution="winograd")
    examples = {graph.name: graph for graph in graphs_of(model, small_config, "const", batch=3, seed=1)}
    for graph in graphs_of(model, small_config, "const", arithmetic=forms):
        if graph.name == "mapping":
            continue
        exported_model = export_onnx(graph)
        rows_are_paired = any(node.op_type == "Pad" for node in exported_model.graph.node)
        assert rows_are_paired == (graph.name != "content")  # whose one layer of stride 1 comes before pairing
        file = write_models({graph.name: exported_model}, tmp_path)[graph.name]
        example = examples[graph.name]
        with open_graph(engine, graph_spec(exported_model, file), SessionOptions()) as session:
            found = session.run({name: tensor.numpy() for name, tensor in example.inputs.items()})
        for name, expected in zip(example.outputs, example.reference(*example.inputs.values()), strict=False):
            difference = np.abs(found[name].astype(np.float64) - expected.numpy())
            assert difference.max() <= (1 if name == "frame" else 1e-5 * float(expected.abs().max())), name
