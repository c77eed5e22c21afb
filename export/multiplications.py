"""How many multiplications a graph makes: the measure that its speed is held against."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx


def multiply_accumulates(model: onnx.ModelProto) -> int:
    """Multiply-accumulates (MACs) of one run at batch 1: of convolutions and matrix products; all else is cheap.

    Weights may be external, as only their shapes count.
    """
    batch_of_one = onnx.ModelProto()
    batch_of_one.CopyFrom(model)
    del batch_of_one.graph.value_info[:]  # of any batch
    for value in [*batch_of_one.graph.input, *batch_of_one.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(batch_of_one, data_prop=True).graph
    values = [*inferred.input, *inferred.output, *inferred.value_info]
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    shapes |= {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
    return sum(_node_cost(node, shapes) for node in inferred.node)


def _node_cost(node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> int:
    if node.op_type == "Conv":  # each output pixel sees one filter
        _, *filter_shape = shapes[node.input[1]]
        return math.prod(shapes[node.output[0]]) * math.prod(filter_shape)
    if node.op_type == "ConvTranspose":  # each input pixel makes one filter's worth of outputs
        _, *filter_shape = shapes[node.input[1]]
        return math.prod(shapes[node.input[0]]) * math.prod(filter_shape)
    if node.op_type == "MatMul":
        return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    if node.op_type == "Gemm":
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]
    return 0
