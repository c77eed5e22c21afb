"""What is known of every value in an ONNX model without running it: its dtype and shape, by ONNX's own inference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

UNKNOWN = "?"  # the name of a size of which nothing is known
NUMPY_NAMES: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64"}  # where ONNX has its own


@dataclass(frozen=True)
class ValueType:
    """A dtype of `onnx.TensorProto`, and sizes: numbers, names, or `UNKNOWN`; None where not even the rank is known."""

    dtype: int
    shape: tuple[int | str, ...] | None

    def __str__(self) -> str:
        shape = UNKNOWN if self.shape is None else ", ".join(map(str, self.shape))
        return f"{dtype_name(self.dtype)} [{shape}]"


def dtype_name(dtype: int) -> str:
    """As numpy calls it, where numpy has it: float32, bfloat16, float8e4m3fn."""
    return NUMPY_NAMES.get(dtype) or TensorProto.DataType.Name(dtype).lower()


def value_types(model: onnx.ModelProto) -> dict[str, ValueType]:
    """Types of the values of a model, those in graphs within graphs included; a value that nothing is known of is not
    there. Arrays may be external, as only their shapes count."""
    with suppress(onnx.shape_inference.InferenceError):  # an operator set is not imported: then by what it declares
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    types = {}
    for graph in graphs_in(model.graph):
        for tensor in graph.initializer:
            types[tensor.name] = ValueType(tensor.data_type, tuple(tensor.dims))
        for value in [*graph.input, *graph.value_info, *graph.output]:
            if value.type.tensor_type.elem_type:
                types[value.name] = declared_type(value)
    return types


def declared_type(value: onnx.ValueInfoProto) -> ValueType:
    """The type that stands in the file."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return ValueType(tensor.elem_type, None)
    sizes = (dim.dim_value if dim.HasField("dim_value") else dim.dim_param or UNKNOWN for dim in tensor.shape.dim)
    return ValueType(tensor.elem_type, tuple(sizes))


def graphs_in(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and those within it: branches of If, bodies of Loop and Scan."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from graphs_in(attribute.g)


def nodes_in(graph: GraphProto) -> Iterator[NodeProto]:
    """All nodes of a graph and of those within it."""
    for each in graphs_in(graph):
        yield from each.node
