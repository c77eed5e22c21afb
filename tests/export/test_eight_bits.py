"""Synthesis in int8 and fp8: what stands in the graph, how near its pictures come, and which layers are chosen."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from styleinv.export.arithmetic import arithmetic_in
from styleinv.export.comparison import peak_signal_to_noise
from styleinv.export.eight_bits import (
    EIGHT_BITS,
    LARGEST,
    Scales,
    as_table,
    calibrate,
    choose_layers,
    convolutions,
    import_quantizer,
    quantise,
    read_scales,
    sample_latents,
    with_eight_bits,
)
from styleinv.export.graphs import graphs_of
from styleinv.export.onnx_graph import array_specs, export_onnx
from styleinv.runtime import Bundle
from styleinv.runtime.cli import main
from styleinv.runtime.errors import BundleError, EngineError
from styleinv.training.checkpoint import load_checkpoint

with_modelopt = pytest.mark.skipif(
    importlib.util.find_spec("modelopt") is None, reason="ONNX Model Optimizer is not installed (`make test-quantize`)"
)


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint):
    return load_checkpoint(small_checkpoint)


@pytest.fixture(scope="module")
def models(checkpoint):
    """The synthesis graph in fp16, and in the same form in fp32."""

    def exported(arithmetic) -> onnx.ModelProto:
        graphs = graphs_of(checkpoint.model, checkpoint.config, "const", arithmetic=arithmetic)
        return export_onnx(next(graph for graph in graphs if graph.name == "synthesis"))

    fp16 = arithmetic_in("fp16")
    return exported(fp16), exported(dataclasses.replace(fp16, dtype=torch.float32))


@pytest.fixture(scope="module")
def latents(checkpoint):
    return sample_latents(checkpoint, "const", 6, 3)


def run(model: onnx.ModelProto, latents: np.ndarray, output: str = "image") -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([output], {"w": latents})[0]


def plain_scales(fp32: onnx.ModelProto, latents: np.ndarray, precision: str) -> dict[str, Scales]:
    """Scales by the plainest calibration: the largest magnitude of each array is the largest number there is."""
    looking = onnx.ModelProto()
    looking.CopyFrom(fp32)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in fp32.graph.initializer}
    scales = {}
    for node in (node for node in fp32.graph.node if node.op_type == "Conv" and node.input[1] in convolutions(fp32)):
        looking.graph.output.append(onnx.helper.make_empty_tensor_value_info(node.input[0]))
        largest = float(np.abs(run(looking, latents, node.input[0])).max())
        weight = np.abs(constants[node.input[1]]).max(axis=(1, 2, 3))
        scales[node.input[1]] = Scales(largest / LARGEST[precision], (weight / LARGEST[precision]).astype(np.float32))
    return scales


@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_every_convolution_in_eight_bits(models, latents, precision):
    fp16, fp32 = models
    scales = plain_scales(fp32, latents, precision)
    assert scales.keys() == convolutions(fp16) and len(scales) == 3
    assert {name.split(".")[1] for name in scales} == {"convs"}  # no filters, and nothing that makes colours
    before = fp16.SerializeToString()
    model = with_eight_bits(fp16, precision, scales)
    assert fp16.SerializeToString() == before  # a copy
    onnx.checker.check_model(model, full_check=True)
    for arrays in ("input", "output"):  # the batch still is dynamic
        assert array_specs(getattr(model.graph, arrays)) == array_specs(getattr(fp16.graph, arrays))
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert all(stored[f"{name}.{precision}"] == EIGHT_BITS[precision] and name not in stored for name in scales)
    read = read_scales(onnx.ModelProto.FromString(model.SerializeToString()))
    assert {name.removesuffix(f".{precision}"): s.input for name, s in read.items()} == pytest.approx(
        {name: s.input for name, s in scales.items()}
    )
    psnr = peak_signal_to_noise(run(model, latents), run(fp32, latents), np.float32)
    print(f"{precision}: {psnr:.1f} dB")
    assert 30 < psnr < 60  # in 8 bits, and not more exact than 8 bits are


def test_no_layer_is_the_fp16_graph(models, latents):
    fp16, _ = models
    np.testing.assert_array_equal(run(with_eight_bits(fp16, "int8", {}), latents), run(fp16, latents))


def test_small_weights_keep_their_scale(models, latents):
    """Weights that cannot overflow in fp16 may be so small that fp16 has no number for what a step of them is worth."""
    fp16, fp32 = models
    scales = plain_scales(fp32, latents, "int8")
    smallest = min(scales, key=lambda name: float(scales[name].weight.max()))
    assert scales[smallest].weight.max() < 1e-3
    tiny = {smallest: Scales(scales[smallest].input, scales[smallest].weight)}
    model = with_eight_bits(fp16, "int8", tiny)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert stored[f"{smallest}.scale"].dtype == np.float32
    levels = np.abs(stored[f"{smallest}.int8"].astype(int)).max(axis=(1, 2, 3))
    assert (levels == 127).all()  # every output uses all of the range


def test_the_worst_layers_stay_in_fp16(models, latents):
    fp16, fp32 = models
    scales = plain_scales(fp32, latents, "int8")
    spoilt, *others = scales
    scales[spoilt] = Scales(scales[spoilt].input * 40, scales[spoilt].weight)  # a layer that 8 bits are too few for
    everything = choose_layers(fp16, fp32, "int8", scales, latents, -math.inf)
    assert all(layer.quantised for layer in everything.layers) and everything.layers[0].name == spoilt
    bound = everything.layers[0].alone_psnr_db + 5
    chosen = choose_layers(fp16, fp32, "int8", scales, latents, bound)
    assert chosen.psnr_db >= bound > everything.psnr_db
    assert not chosen.layers[0].quantised and any(layer.quantised for layer in chosen.layers)
    order = [layer.alone_psnr_db for layer in chosen.layers]
    assert order == sorted(order) and {layer.name for layer in chosen.layers} == {spoilt, *others}
    flags = [layer.quantised for layer in chosen.layers]
    assert flags == sorted(flags)  # those in fp16 are the worst
    found = min(
        peak_signal_to_noise(a, b, np.float32)
        for a, b in zip(run(chosen.model, latents), run(fp32, latents), strict=True)
    )
    assert found == pytest.approx(chosen.psnr_db, abs=0.01)
    lines = as_table(chosen.entry()).splitlines()
    assert lines[1].startswith(spoilt) and lines[1].endswith("fp16") and "8 bits" in lines[-2]
    assert lines[-1] == f"together {chosen.psnr_db:.1f} dB, bound {bound:g} dB"


def test_a_bound_out_of_reach(models, latents):
    fp16, fp32 = models
    with pytest.raises(BundleError, match=r"found pictures at \d+\.\d dB with every layer in fp16, expected 200 dB"):
        choose_layers(fp16, fp32, "int8", plain_scales(fp32, latents, "int8"), latents, 200.0)


@pytest.mark.parametrize(("precision", "capability"), [("int8", "8.6"), ("int8", "8.9"), ("fp8", "8.9")])
def test_engines_in_eight_bits(models, latents, tmp_path, precision, capability):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    from styleinv.export.engine_build import Job, build_engine

    fp16, fp32 = models
    onnx.save(with_eight_bits(fp16, precision, plain_scales(fp32, latents, precision)), tmp_path / "synthesis.onnx")
    files = str(tmp_path / "synthesis.onnx"), (capability,), (1, 1, 4), False
    build_engine(Job("rtx", *files, str(tmp_path / "engine"), str(tmp_path / "log")))
    assert (tmp_path / "engine").stat().st_size > 10_000


@pytest.mark.skipif(importlib.util.find_spec("modelopt") is not None, reason="ONNX Model Optimizer is installed")
def test_without_the_optimizer_nothing_is_begun(small_checkpoint, tmp_path, capsys):
    command = ["export", str(small_checkpoint), "--precision", "int8", "--out", str(tmp_path / "x.bundle")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "fp8 and int8 take ONNX Model Optimizer" in said and "'styleinv[export,quantize]'" in said
    assert "export fp32" not in said and list(tmp_path.iterdir()) == []
    with pytest.raises(EngineError):
        import_quantizer()


def test_latents_are_the_models_own(checkpoint, latents):
    assert latents.shape == (6, checkpoint.config.model.generator.w_dim) and latents.dtype == np.float32
    assert len(np.unique(latents, axis=0)) == 6
    np.testing.assert_array_equal(latents, sample_latents(checkpoint, "const", 6, 3))
    assert not np.array_equal(latents, sample_latents(checkpoint, "const", 6, 4))


@with_modelopt
@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_the_optimizers_scales(models, latents, precision):
    fp16, fp32 = models
    scales = calibrate(fp32, precision, latents)
    plain = plain_scales(fp32, latents, precision)
    assert scales.keys() <= plain.keys()
    for name, found in scales.items():
        assert found.input == pytest.approx(plain[name].input, rel=0.02)
        np.testing.assert_allclose(found.weight, plain[name].weight, rtol=0.02)
    assert quantise(fp16, fp32, precision, latents, latents).psnr_db > 35


@with_modelopt
def test_an_export_in_eight_bits(tmp_path):
    """From a checkpoint to a bundle whose int8 graphs are verified and play."""
    run_in = {"cwd": tmp_path, "check": True}
    command = [sys.executable, "-m", "styleinv.runtime.cli"]
    subprocess.run([*command, "init", "--preset", "tiny64", "--out", "model.safetensors"], **run_in)
    precisions = ["--precision", "int8", "fp8"]
    subprocess.run([*command, "export", "model.safetensors", *precisions, "--out", "sky.bundle"], **run_in)
    bundle = Bundle.open(tmp_path / "sky.bundle")
    assert bundle.precisions == ("fp32", "fp16", "fp8", "int8")
    for precision in EIGHT_BITS:
        entry = bundle.manifest["precisions"][precision]
        assert entry["quantization"]["psnr_db"] >= entry["quantization"]["bound_psnr_db"] == 35.0
        assert any(layer["quantised"] for layer in entry["quantization"]["layers"].values())
        assert entry["graphs"]["latent"]["file"] == "fp16/latent.onnx"
        for graph in ("frame", "synthesis"):
            kinds = {t.data_type for t in onnx.load(bundle.graph(graph, precision=precision).file).graph.initializer}
            assert EIGHT_BITS[precision] in kinds and TensorProto.FLOAT16 in kinds
    assert "stays in" in (tmp_path / "sky.bundle" / "report.md").read_text()
