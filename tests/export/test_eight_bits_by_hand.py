"""Synthesis in 8 bits: where Q/DQ stand, which layers are chosen, and what happens without ONNX Model Optimizer."""

import json
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from styleinv.export.eight_bits import Scales, as_table, choose_layers, import_quantizer, read_scales, with_eight_bits
from styleinv.export.onnx_graph import array_specs
from styleinv.export.writer import export_bundle
from styleinv.runtime.bundle import Bundle
from styleinv.runtime.errors import BundleError, EngineError
from styleinv.training.checkpoint import load_checkpoint

CHANNELS = 3


def two_convolutions(dtype):
    """w [B, 3, 5, 5] -> image [B, 3, 5, 5] through 3x3 convolutions with the weights 'first' and 'second'."""
    draws = np.random.default_rng(3)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = {
        name: (draws.standard_normal((CHANNELS, CHANNELS, 3, 3)) / 9).astype(dtype) for name in ("first", "second")
    }
    arrays = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", CHANNELS, 5, 5]) for name in ("w", "image")
    ]
    nodes = [
        helper.make_node("Cast", ["w"], ["x"], to=element),
        helper.make_node("Conv", ["x", "first"], ["y"], "conv_first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["y", "second"], ["z"], "conv_second", pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["z"], ["image"], to=TensorProto.FLOAT),
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "synthesis", arrays[:1], arrays[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def graphs():
    return two_convolutions(np.float16), two_convolutions(np.float32)


@pytest.fixture
def latents():
    return np.random.default_rng(4).uniform(-1, 1, (2, CHANNELS, 5, 5)).astype(np.float32)


def fine(name, graphs):
    """Scales of int8 that fit the weight; inputs here stay below 2."""
    weight = next(numpy_helper.to_array(item) for item in graphs[1].graph.initializer if item.name == name)
    return Scales(2 / 127, (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32))


def coarse(name, graphs):
    return Scales(1.0, fine(name, graphs).weight)  # inputs become -1, 0 and 1


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_only_the_chosen_convolution_is_quantised_and_the_graph_takes_and_gives_the_same(graphs, precision):
    scales = fine("second", graphs)
    model = with_eight_bits(graphs[0], precision, {"second": scales})
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == 1
    assert array_specs(model.graph.input) == array_specs(graphs[0].graph.input)
    assert array_specs(model.graph.output) == array_specs(graphs[0].graph.output)
    assert not any(node.op_type == "QuantizeLinear" for node in graphs[0].graph.node)  # a copy
    found = read_scales(model)
    assert len(found) == 1
    (read,) = found.values()
    assert read.input == pytest.approx(scales.input)
    np.testing.assert_array_equal(read.weight, scales.weight)


def test_scales_that_fp16_cannot_hold_are_kept(graphs):
    tiny = Scales(2 / 127, np.full(CHANNELS, 4.5e-6, np.float32))
    (read,) = read_scales(with_eight_bits(graphs[0], "int8", {"first": tiny})).values()
    np.testing.assert_array_equal(read.weight, tiny.weight)


def test_the_sensitive_layer_stays_in_fp16(graphs, latents):
    scales = {"first": fine("first", graphs), "second": coarse("second", graphs)}
    result = choose_layers(*graphs, "int8", scales, latents, 35.0)
    assert result.psnr_db >= 35.0
    assert [(layer.name, layer.quantised) for layer in result.layers] == [("second", False), ("first", True)]
    assert result.layers[0].alone_psnr_db < 35.0 < result.layers[1].alone_psnr_db
    assert sum(node.op_type == "QuantizeLinear" for node in result.model.graph.node) == 1
    table = as_table(json.loads(json.dumps(result.entry())))
    assert table.index("second") < table.index("first")
    assert "bound 35 dB" in table


def test_a_bound_that_fp16_misses_says_by_how_much(graphs, latents):
    with pytest.raises(BundleError, match=r"int8: found pictures at .* dB with every layer in fp16, .* short"):
        choose_layers(*graphs, "int8", {"first": fine("first", graphs)}, latents, 200.0)


def test_without_model_optimizer_the_error_says_what_to_install(monkeypatch, small_checkpoint, tmp_path):
    monkeypatch.setitem(sys.modules, "modelopt.onnx.quantization", None)
    monkeypatch.setitem(sys.modules, "modelopt", None)
    with pytest.raises(EngineError, match=r"pip install 'styleinv\[export,quantize\]'"):
        export_bundle(load_checkpoint(small_checkpoint), tmp_path / "b", precisions=["int8"], progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_bundle_in_8_bits_is_verified_and_says_which_layers_are(precision, small_checkpoint, tmp_path):
    pytest.importorskip("modelopt.onnx.quantization", reason="takes ONNX Model Optimizer: styleinv[quantize]")
    import_quantizer()
    export_bundle(load_checkpoint(small_checkpoint), tmp_path / "b", precisions=[precision], progress=False)
    bundle = Bundle.open(tmp_path / "b")
    assert set(bundle.precisions) == {"fp32", "fp16", precision}
    assert bundle.graph("latent", precision=precision).file == bundle.graph("latent", precision="fp16").file
    assert bundle.graph("synthesis", precision=precision).file.parent.name == precision
    measured = bundle.manifest["precisions"][precision]["quantization"]
    assert measured["psnr_db"] >= measured["bound_psnr_db"]
    assert f"Layers of synthesis in {precision}" in (bundle.path / "report.md").read_text(encoding="utf-8")
