"""Synthesis in 8 bits: plain convolutions of the fp16 graph with explicit quantisation (Q/DQ), calibrated on the model.

ONNX Model Optimizer calibrates: it runs the fp32 form of the same graph on latents of the model's own and finds, for
each convolution, the scale of its input, one number, and of its weights, one for each output. Those scales then stand
in the fp16 graph, around each convolution that is worth it:

    x fp16 -> Cast fp32 -> QuantizeLinear -> DequantizeLinear -> Conv <- DequantizeLinear <- weights in 8 bits
                                                                  |-> Cast fp16

which TensorRT computes in 8 bits. The scales are fp32, as weights that are small enough not to overflow in fp16 have
scales that fp16 cannot hold. Convolutions that upsample stay fp16: they are transposed ones, a fifth of the products;
so do filters, and what makes a picture's colours: few products, which cost 2 dB.

A layer in 8 bits costs quality, some much more than others. So each is measured alone, on ONNX Runtime, against fp32,
and the worst stay fp16 until the whole picture keeps to a bound.

Shapes: N latents, W size of a latent, R resolution, O I K a convolution's outputs, inputs and taps on a side.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from styleinv.export.comparison import peak_signal_to_noise
from styleinv.export.graphs import graphs_of
from styleinv.runtime.errors import BundleError, EngineError
from styleinv.runtime.sessions.onnxruntime import import_onnxruntime
from styleinv.training.checkpoint import Checkpoint

Latents = npt.NDArray[np.float32]  # [N, W]

EIGHT_BITS = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
LARGEST = {"int8": 127.0, "fp8": 448.0}  # what a number in 8 bits can be
CALIBRATION_LATENTS, CALIBRATION_SEED = 16, 1
HELD_OUT_LATENTS, HELD_OUT_SEED = 4, 1001  # others, that quality is measured on
BLOCK = 4  # latents that are drawn at a time: at 1024 pixels more would take gigabytes
BOUND_PSNR_DB = 35.0  # of pictures against fp32: root mean square errors of 4.5 levels of 255, hardly seen in motion


@dataclass(frozen=True)
class Scales:
    """What one step of 8 bits is worth: in a convolution's input, and in the weights of each of its outputs."""

    input: float
    weight: npt.NDArray[np.float32]  # [O]


@dataclass(frozen=True)
class Layer:
    """A convolution, by the name of its weights: the PSNR of pictures with it alone in 8 bits, and what it stays in."""

    name: str
    alone_psnr_db: float
    quantised: bool


@dataclass(frozen=True)
class Quantised:
    """A synthesis graph in 8 bits: how near its worst picture comes to fp32's, and its layers, the worst first."""

    model: onnx.ModelProto
    psnr_db: float
    bound_psnr_db: float
    layers: tuple[Layer, ...]

    def entry(self) -> dict[str, Any]:
        """The same for the manifest, without the model."""
        return {
            "psnr_db": round(self.psnr_db, 2),
            "bound_psnr_db": self.bound_psnr_db,
            "layers": {
                layer.name: {"alone_psnr_db": round(layer.alone_psnr_db, 2), "quantised": layer.quantised}
                for layer in self.layers
            },
        }


def quantise(
    fp16: onnx.ModelProto,
    fp32: onnx.ModelProto,
    precision: str,
    calibration: Latents,
    held_out: Latents,
    bound_psnr_db: float = BOUND_PSNR_DB,
) -> Quantised:
    """The fp16 synthesis graph with as many convolutions in int8 or fp8 as keep its pictures to the bound.

    Args:
        fp32: the same graph in fp32, convolutions in the same form; what pictures are compared with.
        calibration: latents that scales are found on; `held_out`: others, that quality is measured on.
    Raises: EngineError where ONNX Model Optimizer cannot be had; BundleError where the bound is missed with every layer
        in fp16.
    """
    return choose_layers(fp16, fp32, precision, calibrate(fp32, precision, calibration), held_out, bound_psnr_db)


def choose_layers(
    fp16: onnx.ModelProto,
    fp32: onnx.ModelProto,
    precision: str,
    scales: Mapping[str, Scales],
    held_out: Latents,
    bound_psnr_db: float,
) -> Quantised:
    """The second half of `quantise`: measures each layer that there are scales for, and chooses."""
    expected = _pictures(fp32, held_out)

    def measure(names: Collection[str]) -> float:
        found = _pictures(with_eight_bits(fp16, precision, {name: scales[name] for name in names}), held_out)
        return min(peak_signal_to_noise(a, b, np.float32) for a, b in zip(found, expected, strict=True))

    alone = sorted((measure([name]), name) for name in scales)
    chosen = [name for _, name in alone]
    while (reached := measure(chosen)) < bound_psnr_db and chosen:
        del chosen[0]  # the worst of them
    if reached < bound_psnr_db:
        raise BundleError(
            f"precision {precision}: found pictures at {reached:.1f} dB with every layer in fp16, expected "
            f"{bound_psnr_db:g} dB: {bound_psnr_db - reached:.1f} dB short"
        )
    layers = tuple(Layer(name, psnr_db, name in chosen) for psnr_db, name in alone)
    model = with_eight_bits(fp16, precision, {name: scales[name] for name in chosen})
    return Quantised(model, reached, bound_psnr_db, layers)


@torch.no_grad()
def sample_latents(checkpoint: Checkpoint, noise: str, count: int, seed: int) -> Latents:
    """Latents of random clips at random times, as the model itself draws them."""
    rows = []
    for block in range(math.ceil(count / BLOCK)):
        graphs = graphs_of(checkpoint.model, checkpoint.config, noise, BLOCK, seed + block)
        parts = {graph.name: graph for graph in graphs}
        if "latent" in parts:
            rows.append(parts["latent"].reference(*parts["latent"].inputs.values())[0].numpy())
        else:  # single pictures
            rows.append(parts["synthesis"].inputs["w"].numpy())
    return np.concatenate(rows)[:count]


def calibrate(fp32: onnx.ModelProto, precision: str, latents: Latents) -> dict[str, Scales]:
    """The scales that ONNX Model Optimizer finds, by the names of the convolutions' weights. It leaves out those of few
    channels, which 8 bits would not speed up; `convolutions` leaves out filters and what makes a picture's colours."""
    quantize = import_quantizer()
    wanted = convolutions(fp32)
    with tempfile.TemporaryDirectory(prefix="styleinv-quantise-") as folder:
        source, result = Path(folder) / "fp32.onnx", Path(folder) / "quantised.onnx"
        onnx.save(fp32, source)
        quantize(
            str(source),
            quantize_mode=precision,
            calibration_data={"w": latents},
            calibration_method="max",  # the others cut off large inputs: 15 dB worse
            calibration_eps=["cpu"],
            op_types_to_quantize=["Conv"],
            high_precision_dtype="fp32",
            output_path=str(result),
            log_level="ERROR",
        )
        return {name: scales for name, scales in read_scales(onnx.load(result)).items() if name in wanted}


def convolutions(model: onnx.ModelProto) -> set[str]:
    """The names of the weights of plain 3x3 convolutions."""
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    groups = {
        node.input[1]: next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        for node in model.graph.node
        if node.op_type == "Conv"
    }
    return {name for name, count in groups.items() if count == 1 and shapes.get(name, [])[2:] == [3, 3]}


def read_scales(model: onnx.ModelProto) -> dict[str, Scales]:
    """The scales that stand in a graph with Q/DQ around convolutions, by the names of their weights."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    scales: dict[str, Scales] = {}
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        sources = [made_by[name] for name in node.input[:2] if name in made_by]
        if [source.op_type for source in sources] == ["DequantizeLinear"] * 2:
            activation, weight = sources
            quantised = made_by.get(weight.input[0], weight)  # or they are stored in 8 bits already
            scales[quantised.input[0]] = Scales(
                float(numpy_helper.to_array(constants[activation.input[1]])),
                numpy_helper.to_array(constants[weight.input[1]]).astype(np.float32).reshape(-1),
            )
    return scales


def with_eight_bits(fp16: onnx.ModelProto, precision: str, scales: Mapping[str, Scales]) -> onnx.ModelProto:
    """A copy of an fp16 graph in which the convolutions with these weights are computed in 8 bits."""
    model = copy.deepcopy(fp16)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        name = node.input[1] if node.op_type == "Conv" else ""
        if name not in scales:
            nodes.append(node)
            continue
        nodes += _in_eight_bits(node, precision)
        weight = numpy_helper.to_array(constants[name]).astype(np.float32)
        model.graph.initializer.extend(_constants(name, weight, scales[name], precision))
        model.graph.initializer.remove(constants[name])
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def import_quantizer() -> Any:
    """ONNX Model Optimizer's function `quantize`. Raises EngineError where it cannot be had."""
    try:
        from modelopt.onnx.quantization import quantize
    except ImportError as error:
        raise EngineError(
            f"fp8 and int8 take ONNX Model Optimizer, which cannot be had ({error}): install it with `pip install "
            "'styleinv[export,quantize]'`, into an environment of its own: it brings an onnxruntime that is the same "
            "module as that of styleinv[runtime-cpu]"
        ) from error
    return quantize


def as_table(quantised: Mapping[str, Any]) -> str:
    """The layers of a manifest's entry, the worst first: what each costs alone, and what it stays in."""
    layers = sorted(quantised["layers"].items(), key=lambda item: item[1]["alone_psnr_db"])
    width = max((len(name) for name, _ in layers), default=0)
    lines = [f"{'layer':{width}}  dB alone  stays in"]
    for name, layer in layers:
        lines.append(f"{name:{width}}  {layer['alone_psnr_db']:8.1f}  {'8 bits' if layer['quantised'] else 'fp16'}")
    return "\n".join([*lines, f"together {quantised['psnr_db']:.1f} dB, bound {quantised['bound_psnr_db']:g} dB"])


def _in_eight_bits(conv: onnx.NodeProto, precision: str) -> list[onnx.NodeProto]:
    x, weight, y, name = conv.input[0], conv.input[1], conv.output[0], conv.name
    inner = copy.deepcopy(conv)
    inner.input[0], inner.input[1], inner.output[0] = f"{y}.x", f"{weight}.dequantised", f"{y}.fp32"
    input_scale = [f"{weight}.input_scale", f"{weight}.input_zero"]
    weight_scale = [f"{weight}.scale", f"{weight}.zero"]
    eight_bits, dequantised = f"{weight}.{precision}", f"{weight}.dequantised"
    return [
        helper.make_node("Cast", [x], [f"{y}.x_fp32"], f"{name}/widen", to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", [f"{y}.x_fp32", *input_scale], [f"{y}.x_8"], f"{name}/quantise"),
        helper.make_node("DequantizeLinear", [f"{y}.x_8", *input_scale], [f"{y}.x"], f"{name}/dequantise"),
        helper.make_node("DequantizeLinear", [eight_bits, *weight_scale], [dequantised], f"{name}/weights", axis=0),
        inner,
        helper.make_node("Cast", [f"{y}.fp32"], [y], f"{name}/narrow", to=TensorProto.FLOAT16),
    ]


def _constants(name: str, weight: npt.NDArray[np.float32], scales: Scales, precision: str) -> list[TensorProto]:
    """The constants of `_in_eight_bits`; weight [O, I, K, K]."""
    dtype = helper.tensor_dtype_to_np_dtype(EIGHT_BITS[precision])
    numbers = np.clip(weight / scales.weight[:, None, None, None], -LARGEST[precision], LARGEST[precision])
    arrays = {
        precision: (np.rint(numbers) if precision == "int8" else numbers).astype(dtype),
        "scale": scales.weight,
        "zero": np.zeros(len(weight), dtype),
        "input_scale": np.array(scales.input, np.float32),
        "input_zero": np.zeros((), dtype),
    }
    return [numpy_helper.from_array(array, f"{name}.{suffix}") for suffix, array in arrays.items()]


def _pictures(model: onnx.ModelProto, latents: Latents) -> npt.NDArray[np.float32]:
    """[N, W] -> [N, 3, R, R], one at a time, on the CPU."""
    onnxruntime = import_onnxruntime()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["image"], {"w": latent[None]})[0] for latent in latents])
