"""From a graph's module to an ONNX file; all files of a bundle share one file of weights."""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto

from styleinv.export.graphs import Graph
from styleinv.runtime.bundle import ArraySpec, GraphSpec
from styleinv.runtime.errors import StyleInVError

OPSET = 20
BFLOAT16_OPSET = 22  # the first whose convolutions take bfloat16
WEIGHTS_FILE = "weights.bin"
ALIGNMENT = 4096  # of each array in the weights file, so that it can be memory-mapped
LARGEST_SHARED = 1024  # elements of the arrays of which the exporter keeps one where several are equal
SMALLEST_EXTERNAL = 1024  # bytes; smaller arrays stay inside the graph


def export_onnx(graph: Graph, opset: int = OPSET) -> onnx.ModelProto:
    """Export one graph with a dynamic batch; raises StyleInVError where the batch did not stay dynamic.

    The graph's `internal` values keep their names and, in `value_info`, their types: append one of those to
    `graph.output`, and a session gives the value.
    """
    batch = torch.export.Dim("batch", min=1)
    with quiet():
        program = torch.onnx.export(
            graph.build().eval(),
            tuple(graph.inputs.values()),
            dynamo=True,
            opset_version=opset,
            input_names=list(graph.inputs),
            output_names=[*graph.outputs, *graph.internal],
            dynamic_shapes=tuple({0: batch} for _ in graph.inputs),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    name_batch(model, graph.name)
    internal = [value for value in model.graph.output if value.name in graph.internal]
    model.graph.value_info.extend(internal)
    for value in internal:
        model.graph.output.remove(value)
    _part_small_arrays(model)
    forget_origin(model)
    return model


def opset_of(dtype: torch.dtype) -> int:
    """The operator set of graphs whose convolutions take this dtype."""
    return BFLOAT16_OPSET if dtype is torch.bfloat16 else OPSET


def join(first: onnx.ModelProto, second: onnx.ModelProto, link: str, outputs: list[str]) -> onnx.ModelProto:
    """One graph from two, of which the first's output `link` is the second's input; only `outputs` are kept."""
    return onnx.compose.merge_models(
        onnx.compose.add_prefix(first, "first/", rename_inputs=False, rename_outputs=False),
        onnx.compose.add_prefix(second, "second/", rename_inputs=False, rename_outputs=False),
        io_map=[(link, link)],
        outputs=outputs,
    )


def write_models(models: dict[str, onnx.ModelProto], folder: Path) -> dict[str, Path]:
    """Write NAME.onnx for each model, checked by onnx.checker, and their weights, equal ones once, to weights.bin."""
    offsets: dict[str, int] = {}  # hash of an array's bytes -> where it lies
    with (folder / WEIGHTS_FILE).open("wb") as weights:
        for model in models.values():
            for tensor in _arrays(model):
                data = tensor.raw_data
                if len(data) < SMALLEST_EXTERNAL:
                    continue
                digest = hashlib.sha256(data).hexdigest()
                if digest not in offsets:
                    weights.write(b"\0" * (-weights.tell() % ALIGNMENT))
                    offsets[digest] = weights.tell()
                    weights.write(data)
                _point_outside(tensor, offsets[digest], len(data))
    paths = {}
    for name, model in models.items():
        paths[name] = folder / f"{name}.onnx"
        paths[name].write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(paths[name]), full_check=True)
    return paths


def graph_spec(model: onnx.ModelProto, file: Path, precision: str = "fp32") -> GraphSpec:
    """What a session must know of a model in a file that is in no bundle."""
    inputs, outputs = (
        {name: ArraySpec(spec["dtype"], tuple(spec["shape"])) for name, spec in array_specs(values).items()}
        for values in (model.graph.input, model.graph.output)
    )
    return GraphSpec(file.stem, file, "", precision, inputs, outputs)


def array_specs(values: Iterable[onnx.ValueInfoProto]) -> dict[str, dict[str, Any]]:
    """Names, dtypes and shapes of a graph's inputs or outputs, as the manifest stores them."""
    return {
        value.name: {
            "dtype": onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            "shape": [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        }
        for value in values
    }


def name_batch(model: onnx.ModelProto, name: str) -> None:
    """Every input's and output's first dimension must be symbolic; they all get the name 'batch'."""
    for value in [*model.graph.input, *model.graph.output]:
        first = value.type.tensor_type.shape.dim[0]
        if not first.dim_param:
            raise StyleInVError(
                f"graph {name}: {value.name}: found a fixed batch of {first.dim_value}, expected a dynamic one"
            )
        first.dim_param = "batch"


def _part_small_arrays(model: onnx.ModelProto) -> None:
    """Gives each use of a small vector or number one of its own, named after the node and the input.

    The exporter makes one array of equal ones, so models of the same shape would get different graphs by chance; an
    engine can exchange its weights between graphs that are alike only.
    """
    graph = model.graph
    vectors = [tensor for tensor in graph.initializer if len(tensor.dims) < 2]  # others are equal by intention only
    small = {tensor.name: tensor for tensor in vectors if math.prod(tensor.dims) <= LARGEST_SHARED}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in small:
                node.input[index] = f"{node.name}.{index}"
                own = graph.initializer.add()
                own.CopyFrom(small[name])
                own.name = node.input[index]
    for tensor in small.values():
        graph.initializer.remove(tensor)


def forget_origin(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes of where each node came from: stack traces, with paths of this machine."""
    for item in [model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output]:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    for tensor in model.graph.initializer:
        tensor.ClearField("metadata_props")
        tensor.ClearField("doc_string")


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter's remarks on packages that this project does not use, and on its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _arrays(model: onnx.ModelProto) -> Iterable[TensorProto]:
    """The model's initializers, each with its bytes in `raw_data`."""
    for tensor in model.graph.initializer:
        if not tensor.HasField("raw_data"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
        yield tensor


def _point_outside(tensor: TensorProto, offset: int, length: int) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS_FILE), ("offset", offset), ("length", length)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
