"""What TensorRT for RTX says against a graph, told with the node, its inputs and the file."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest

from styleinv.export.graph_errors import LONGEST_NAME, MOST_TOLD, ParserFault, describe_errors

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")


def graph(text: str, opset: int = 20) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}, "example" : 1]> g {text}')


def faults_of(file: Path) -> list[ParserFault]:
    """The real parser's errors."""
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)  # kept: what it makes does not keep it
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert not parser.parse_from_file(str(file))
    return [
        ParserFault(error.node(), error.node_name(), error.node_operator(), error.desc(), str(error.code()))
        for error in map(parser.get_error, range(parser.num_errors))
    ]


def told(model: onnx.ModelProto, folder: Path) -> str:
    file = folder / "graph.onnx"
    file.write_bytes(model.SerializeToString())
    return describe_errors(file, faults_of(file)).replace(str(folder), "FOLDER")


TAKES = "expected a node that the engine's parser takes"
CASES = {
    "custom operator": (
        "(float[batch, 8] x) => (float[batch, 8] y) { r = Relu(x)  y = example.FusedBias(r,, x) }",
        "node 1 (FusedBias), inputs r float32 [batch, 8], x float32 [batch, 8]: "
        f"found an operator that it does not have, {TAKES}",
    ),
    "mixed dtypes": (
        "(float16[batch, 64, 4, 4] a, float[64, 1, 1] b) => (float16[batch, 64, 4, 4] y) { y = Add(a, b) }",
        "node 0 (Add), inputs a float16 [batch, 64, 4, 4], b float32 [64, 1, 1]: found ElementWiseOperation SUM must "
        f"have same input types. But they are of types Half and Float, {TAKES}",
    ),
    "a string operator": (
        "(string[batch, 8] x) => (string[batch, 8] y) { y = StringConcat(x, x) }",
        "node 0 (StringConcat), inputs x string [batch, 8], x string [batch, 8]: "
        f"found an operator that it does not have, {TAKES}",
    ),
    "within a loop": (
        """(float[batch, 8] x) => (float[batch, 8] y) <int64 n = {3}, bool t = {1}> {
            y = Loop(n, t, x) <body = b (int64 i, bool c, float[batch, 8] p) => (bool d, float[batch, 8] q)
                { d = Identity(c)  u = Relu(p)  q = Det(u) }>
        }""",
        f"node 0 (Det), inputs u float32 [batch, 8]: found an operator that it does not have, {TAKES}",
    ),
    "a shape that does not fit": (
        "(float[batch, 8] x) => (float[batch, 8] y) <int64[2] k = {1, 1}> { y = Reshape(x, k) }",
        "node 0 (Reshape), inputs x float32 [batch, 8], k int64 [2]: found reshape changes volume to multiple of "
        f"original non-zero volume. Reshaping [batch,8] to [1,1], {TAKES}",
    ),
    "uint8 within": (
        "(float[batch, 8] x) => (float[batch, 8] y) { u = Cast<to = 2>(x)  y = Cast<to = 1>(u) }",
        "node 0 (Cast), inputs x float32 [batch, 8]: found TensorRT does not support UINT8 types for intermediate",
    ),
    "an attribute": (
        "(float[batch, 8] x) => (float[batch, 8] y) { u = Cast<to = 5>(x)  y = Cast<to = 1>(u) }",
        "node 0 (Cast), inputs x float32 [batch, 8]: found Unsupported data type for the Cast operator, expected",
    ),
    "an input": (
        "(string[batch, 8] x) => (string[batch, 8] y) { y = Identity(x) }",
        "graph, inputs x string [batch, 8]: found Failed to convert ONNX date type to TensorRT data type, expected a "
        "graph that the engine's parser takes",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_real_error(tmp_path, name):
    text, expected = CASES[name]
    lines = told(graph(text), tmp_path).splitlines()
    assert any(line.startswith(f"FOLDER/graph.onnx: {expected}") for line in lines), lines


def test_names_are_cut_and_shapes_are_inferred(tmp_path):
    model = graph("(float16[batch, 64] x, float[1] k) => (float16[batch, 64] y) { a = Relu(x)  y = Mul(a, k) }")
    long = "synthesis/blocks/3/" * 4 + "modulation"
    for node in model.graph.node:
        node.name = f"{long}/{node.op_type}"
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = long
    said = told(model, tmp_path)
    label = said.partition("node ")[2].partition(" (Mul)")[0]
    assert label.startswith("...") and label.endswith("modulation/Mul") and len(label) == LONGEST_NAME
    assert "modulation float16 [batch, 64], k float32 [1]: found" in said
    assert "\n" not in said and "/_src/" not in said and "Cuda" not in said


def test_a_node_that_could_be_either(tmp_path):
    """Two nameless nodes of one kind, in a loop: the fault's index does not say whose inputs to tell of."""
    text = """(float[batch, 8] x) => (float[batch, 8] y) <int64 n = {3}, bool t = {1}> {
        y = Loop(n, t, x) <body = b (int64 i, bool c, float[batch, 8] p) => (bool d, float[batch, 8] q)
            { d = Identity(c)  u = Det(p)  q = Det(u) }>
    }"""
    assert "graph.onnx: node 0 (Det): found an operator that it does not have" in told(graph(text), tmp_path)


def test_a_file_that_is_no_model(tmp_path):
    file = tmp_path / "graph.onnx"
    file.write_bytes(b"garbage")
    said = describe_errors(file, faults_of(file))
    assert said == f"{file}: graph: found Failed to parse the ONNX model, expected an ONNX model"


def test_a_file_that_is_gone(tmp_path):
    fault = ParserFault(3, "mul_1", "Mul", "false", "ErrorCode.UNSUPPORTED_NODE")
    said = describe_errors(tmp_path / "gone.onnx", [fault])
    assert said == f"{tmp_path / 'gone.onnx'}: node mul_1 (Mul): found an operator that it does not have, {TAKES}"


def test_many_errors(tmp_path):
    nodes = "  ".join(f"y{index} = Det(x)" for index in range(MOST_TOLD + 3))
    lines = told(graph(f"(float[batch, 8, 8] x) => (float[batch] y0) {{ {nodes} }}"), tmp_path).splitlines()
    assert len(lines) == MOST_TOLD + 1
    assert lines[1].startswith("FOLDER/graph.onnx: node 1 (Det), inputs x float32 [batch, 8, 8]")
    assert lines[-1] == "FOLDER/graph.onnx: and 3 more"


def test_no_word_of_why(tmp_path):
    assert "found a parser that refuses it and says nothing" in describe_errors(tmp_path / "graph.onnx", [])
