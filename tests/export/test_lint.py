"""Every rule on the smallest graph that breaks it, and the same graph given to TensorRT for RTX: what the lint calls an
error is refused, and what is taken is no error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto

from styleinv.export.engine_build import Job, build_engine
from styleinv.export.lint import DTYPES, OF_ONE_DTYPE, Finding, lint
from styleinv.export.lint_report import as_summary, as_table, report_lint
from styleinv.export.operators import TABLE, supported_operators
from styleinv.export.value_types import value_types
from styleinv.runtime import Bundle
from styleinv.runtime.bundle import file_sha256, write_manifest
from styleinv.runtime.cli import main
from styleinv.runtime.errors import EngineError

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
TARGETS = ("8.6", "8.9", "12.0")
OTHER_DTYPES = sorted(set(TensorProto.DataType.values()) - DTYPES - {TensorProto.UNDEFINED})


def graph(text: str, opset: int = 22, ir: int = 10, **arrays: tuple[int, tuple[int, ...]]) -> onnx.ModelProto:
    """A model from ONNX's own short form, and arrays of ones: NAME=(dtype, shape)."""
    imports = f'<ir_version: {ir}, opset_import: ["" : {opset}, "example" : 1, "com.microsoft" : 1]>'
    model = onnx.parser.parse_model(f"{imports} g {text}")
    for name, (dtype, shape) in arrays.items():
        model.graph.initializer.append(onnx.helper.make_tensor(name, dtype, shape, np.ones(int(np.prod(shape)))))
    return model


def refusal(model: onnx.ModelProto, targets: tuple[str, ...] = ("8.9",)) -> str:
    """What TensorRT for RTX says against a model: its parser or its builder; nothing where it builds an engine."""
    said: list[str] = []

    class Logger(trt.ILogger):
        def log(self, severity, message):
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                said.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        return " ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(trt.ComputeCapability.__members__["SM" + target.replace(".", "")], index)
    profile = builder.create_optimization_profile()
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    for array in inputs:
        if -1 in array.shape:
            profile.set_shape(array.name, *([n if size == -1 else size for size in array.shape] for n in (1, 2, 4)))
    if any(-1 in array.shape for array in inputs):
        config.add_optimization_profile(profile)
    return "" if builder.build_serialized_network(network, config) else " ".join(said) or "no engine"


def errors(model: onnx.ModelProto, targets: tuple[str, ...] = ("8.9",), engine: str = "rtx") -> list[Finding]:
    return [finding for finding in lint(model, "g", engine, targets) if finding.severity == "error"]


def convolution(kind: str, x: int, weight: int, opset: int = 22) -> onnx.ModelProto:
    name = TensorProto.DataType.Name(x).lower()
    text = f"({name}[batch, 8, 4, 4] x) => ({name}[batch, 8, 4, 4] y) {{ y = {kind}(x, w) }}"
    return graph(text, opset, w=(weight, (8, 8, 1, 1)))


def quantised(dtype: int, opset: int = 21) -> onnx.ModelProto:
    """A convolution whose input and weights pass through another dtype."""
    text = """(float16[batch, 16, 4, 4] x) => (float16[batch, 16, 4, 4] y) {
        a = QuantizeLinear(x, s, z)  b = DequantizeLinear(a, s, z)
        c = QuantizeLinear(w, s, z)  d = DequantizeLinear(c, s, z)
        y = Conv(b, d)
    }"""
    model = graph(text, opset, s=(TensorProto.FLOAT16, ()), w=(TensorProto.FLOAT16, (16, 16, 1, 1)))
    model.graph.initializer.append(onnx.helper.make_tensor("z", dtype, (), [0]))
    return model


def own_weights(batch: int | str, samples: int, shape: str) -> onnx.ModelProto:
    """A convolution with weights of its own for each sample, as one of `samples` groups."""
    return graph(
        f"""(float[{batch}, 8, 4, 4] x, float[{batch}, 8] s) => (float[{batch}, 8, 4, 4] y)
        <int64[5] each = {{-1, 1, 8, 1, 1}}, int64[4] flat = {shape}, int64[4] one = {{1, -1, 4, 4}},
         int64[4] back = {{-1, 8, 4, 4}}> {{
            t = Reshape(s, each)  m = Mul(k, t)  w = Reshape(m, flat)
            a = Reshape(x, one)  b = Conv<group = {samples}>(a, w)  y = Reshape(b, back)
        }}""",
        k=(TensorProto.FLOAT, (1, 8, 8, 1, 1)),
    )


REFUSED = {  # name: rule, what is found, what to do, the model
    "custom operator": (
        "operators",
        "example.FusedBias, an operator of its own",
        "without plugins",
        graph("(float[batch, 8] x) => (float[batch, 8] y) { y = example.FusedBias(x) }"),
    ),
    "unsupported operator": (
        "operators",
        "Det",
        "write it with operators that TensorRT for RTX has",
        graph("(float[batch, 8, 8] x) => (float[batch] y) { y = Det(x) }"),
    ),
    "unsupported operator in a loop": (
        "operators",
        "Det",
        "write it with operators",
        graph(
            """(float[batch, 8] x) => (float[batch, 8] y) <int64 n = {3}, bool t = {1}> {
            y = Loop(n, t, x) <body = b (int64 i, bool c, float[batch, 8] p) => (bool d, float[batch, 8] q)
                { d = Identity(c)  q = Det(p) }>
        }"""
        ),
    ),
    "operator set": (
        "opset",
        "operator set 6",
        "7 or newer",
        graph("(float[batch, 8] x) => (float[batch, 8] y) { y = Add(x, x) }", opset=6),
    ),
    "string": (
        "dtypes",
        "string",
        "keep it out of the graph",
        graph("(string[batch, 8] x) => (string[batch, 8] y) { y = Identity(x) }"),
    ),
    "uint8 computed on": (
        "dtypes",
        "uint8 within the graph",
        "Cast straight after the one, straight to the other",
        graph("(uint8[b, 8, 4] x) => (float[b, 4, 8] y) { a = Transpose<perm = [0, 2, 1]>(x)  y = Cast<to = 1>(a) }"),
    ),
    "uint8 not last": (
        "dtypes",
        "uint8 within the graph",
        "Cast straight after the one, straight to the other",
        graph("(float[b, 8, 4] x) => (uint8[b, 4, 8] y) { a = Cast<to = 2>(x)  y = Transpose<perm = [0, 2, 1]>(a) }"),
    ),
    "Cast to float8": (
        "dtypes",
        "a Cast to float8e4m3fn",
        "QuantizeLinear",
        graph("(float[batch, 8] x) => (float[batch, 8] y) { a = Cast<to = 17>(x)  y = Cast<to = 1>(a) }"),
    ),
    "bfloat16 ConvTranspose": (
        "dtypes",
        "ConvTranspose in bfloat16",
        "in the form 'split'",
        convolution("ConvTranspose", TensorProto.BFLOAT16, TensorProto.BFLOAT16),
    ),
    "weights of a dynamic shape": (
        "weights",
        "Conv with weights that depend on inputs, of a shape that does, too",
        "keep weights constant",
        own_weights("batch", 2, "{-1, 8, 1, 1}"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_an_error(name):
    rule, found, fix, model = REFUSED[name]
    (finding,) = errors(model)
    assert (finding.where, finding.rule, finding.found) == ("g", rule, found)
    assert fix in finding.fix
    assert refusal(model)


def test_the_node_is_named():
    model = REFUSED["custom operator"][-1]
    assert errors(model)[0].node == "FusedBias of y"  # one without a name
    model.graph.node[0].name = "bias_1"
    model.graph.node.extend([model.graph.node[0]] * 2)
    assert errors(model)[0].node == "bias_1 and 2 more"


@pytest.mark.parametrize("dtype", OTHER_DTYPES, ids=TensorProto.DataType.Name)
def test_dtypes_that_engines_have_not(dtype):
    model = graph("(float[batch, 8] x) => (float[batch, 8] y) { y = Relu(x) }")
    model.graph.input.append(onnx.helper.make_tensor_value_info("z", dtype, ["batch", 8]))
    (finding,) = errors(model)
    assert (finding.rule, finding.node) == ("dtypes", "z")
    assert "Failed to convert ONNX date type" in refusal(model)


@pytest.mark.parametrize("dtype", sorted(DTYPES), ids=TensorProto.DataType.Name)
def test_dtypes_that_engines_have(dtype):
    model = graph("(float[batch, 8] x) => (float[batch, 8] y) { y = Relu(x) }")
    model.graph.input.append(onnx.helper.make_tensor_value_info("z", dtype, ["batch", 8]))
    assert not errors(model) and not refusal(model)


CALLS = {  # of operators that take more than two matrices
    "Concat": "Concat<axis = 1>(a, b)",
    "Einsum": 'Einsum<equation = "ij,jk->ik">(a, b)',
    "Mod": "Mod<fmod = 1>(a, b)",
    "Where": "Where(c, a, b)",
    "InstanceNormalization": "InstanceNormalization(p, s, s)",
    "LayerNormalization": "LayerNormalization(a, s)",
    "Conv": "Conv(p, w)",
    "ConvTranspose": "ConvTranspose(p, w)",
}
COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")


@pytest.mark.parametrize("operator", sorted(OF_ONE_DTYPE))
@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ("float16", "float", "float32 and float16"),
        ("bfloat16", "float", "float32 and bfloat16"),
        ("bfloat16", "float16", "float16 and bfloat16"),
    ],
)
def test_mixed_dtypes(operator, one, other, found):
    """Networks are strongly typed: nothing is converted unless a node says so."""
    call = CALLS.get(operator, f"{operator}(a, b)")

    def model(other: str) -> onnx.ModelProto:
        dtypes = {"a": f"{one}[8, 8]", "p": f"{one}[8, 8, 4, 4]", "c": "bool[8, 8]"}
        dtypes |= {"b": f"{other}[8, 8]", "s": f"{other}[8]", "w": f"{other}[8, 8, 1, 1]"}
        read = dict.fromkeys(call.rpartition("(")[2].rstrip(")").split(", "))
        inputs = ", ".join(f"{dtypes[name]} {name}" for name in read)
        return graph(f"({inputs}) => ({'bool' if operator in COMPARISONS else one} y) {{ y = {call} }}")

    mixed, alike = ([f for f in errors(model(each)) if f.rule == "mixed dtypes"] for each in (other, one))
    assert [finding.found for finding in mixed] == [f"{operator} of {found}"] and not alike
    assert refusal(model(other))


def test_mixed_dtypes_of_an_array_within():
    """Found by inference, behind values whose dtype no file tells."""
    model = graph(
        "(float16[batch, 8] x) => (float16[batch, 8] y) { a = Relu(x)  b = Neg(a)  y = Mul(b, k) }",
        k=(TensorProto.FLOAT, (1,)),
    )
    (finding,) = errors(model)
    assert (finding.node, finding.found) == ("Mul of y", "Mul of float32 and float16")
    assert "PROD must have same input types" in refusal(model)


@pytest.mark.parametrize("target", ["7.5", "8.0", "8.6", "8.9", "12.0"])
@pytest.mark.parametrize("dtype", [TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.INT8])
def test_dtypes_and_compute_capabilities(dtype, target):
    bfloat16 = dtype == TensorProto.BFLOAT16
    model = convolution("Conv", dtype, dtype) if bfloat16 else quantised(dtype)
    for targets in ((target,), (target, "8.9")):
        found = errors(model, targets)
        assert bool(found) == bool(refusal(model, targets))
        assert not found or (found[0].rule == "capability" and target in found[0].found)
    assert bool(errors(model, (target,))) == (target in {16: ["7.5"], 17: ["7.5", "8.0", "8.6"], 3: []}[dtype])


def build(model: onnx.ModelProto, folder: Path) -> None:
    onnx.save(model, folder / "graph.onnx")
    build_engine(
        Job("rtx", str(folder / "graph.onnx"), ("8.9",), (1, 2, 4), False, str(folder / "e"), str(folder / "l"))
    )


@pytest.mark.parametrize(
    ("text", "node", "found"),
    [
        ("(float[2, 8] x) => (float[2, 8] y) { y = Relu(x) }", "x and 1 more", "a batch of 2, fixed"),
        ("(float[batch, n] x) => (float[batch, n] y) { y = Relu(x) }", "x and 1 more", "axis 1 dynamic"),
    ],
)
def test_axes_of_inputs(tmp_path, text, node, found):
    """Refused by this project's builder, whose profile is about the batch."""
    (finding,) = errors(graph(text))
    assert (finding.rule, finding.node, finding.found) == ("dynamic axes", node, found)
    with pytest.raises(EngineError, match=r"expected -1, dynamic, first and only there"):
        build(graph(text), tmp_path)


@pytest.mark.parametrize("declared", ["2", "batch"])
def test_an_output_that_does_not_follow_the_batch(declared):
    """Builds, and is of no use: two pictures come out, whatever goes in. So it is found here, even where the file says
    that its batch is dynamic."""
    text = f"(float[batch, 8] x) => (float[{declared}, 8] y) <int64[2] k = {{2, 8}}> {{ y = Reshape(x, k) }}"
    (finding,) = errors(graph(text))
    assert (finding.rule, finding.node, finding.found) == ("dynamic axes", "y", "a batch of 2, fixed")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(graph(text).SerializeToString())
    assert tuple(network.get_output(0).shape) == (2, 8)


def test_an_output_that_depends_on_nothing():
    """Builds, with one picture for any batch."""
    model = graph("(float[batch, 8] x) => (float[1, 8] y) { y = Relu(k) }", k=(TensorProto.FLOAT, (1, 8)))
    (finding,) = errors(model)
    assert (finding.node, finding.found) == ("y", "a batch of 1, fixed")


def test_batches_of_two_names():
    """Builds; but sessions give every input the same batch."""
    model = graph("(float[a, 8] x, float[b, 8] z) => (float[a, 8] y) { y = Add(x, z) }")
    (finding,) = errors(model)
    assert (finding.rule, finding.found) == ("dynamic axes", "batches called a, b")
    assert not refusal(model)


def test_no_batch(tmp_path):
    model = graph("(float x) => (float y) { y = Relu(x) }")
    (finding,) = errors(model)
    assert (finding.node, finding.found) == ("x and 1 more", "no batch")
    with pytest.raises(EngineError):
        build(model, tmp_path)


def test_a_batch_that_grouped_weights_freeze():
    """What a modulated convolution exports to when it is written as one convolution of as many groups as samples."""
    model = own_weights(2, 2, "{16, 8, 1, 1}")
    found = {finding.rule: finding for finding in lint(model, "g", "rtx")}
    assert found["dynamic axes"].severity == "error" and found["dynamic axes"].found == "a batch of 2, fixed"
    assert "the grouped convolution Conv of b with weights for each sample freezes" in found["dynamic axes"].fix
    assert found["weights"].severity == "warning" and "d [B, O]" in found["weights"].fix
    assert not refusal(model)  # it builds, for two samples


TAKEN = {
    "bool": graph("(bool[batch, 8] x) => (bool[batch, 8] y) { y = Not(x) }"),
    "large int64": graph("(int64[batch, 1] x) => (int64[batch, 1] y) <int64[1] k = {5000000000}> { y = Add(x, k) }"),
    "uint8 in": graph("(uint8[batch, 8] x) => (float[batch, 8] y) { y = Cast<to = 1>(x) }"),
    "uint8 out": graph("(float[batch, 8] x) => (uint8[batch, 8] y) { y = Cast<to = 2>(x) }"),
    "uint8 out, read": graph(
        "(float[batch, 8] x) => (uint8[batch, 8] u, float[batch, 8] y) { u = Cast<to = 2>(x)  y = Cast<to = 1>(u) }"
    ),
    "uint8 constant": graph(
        "(float[batch, 8] x) => (float[batch, 8] y) <uint8[1] k = {1}> { z = Cast<to = 1>(k)  y = Add(x, z) }"
    ),
    "quantised, uint8": quantised(TensorProto.UINT8),
    "bfloat16 Conv": convolution("Conv", TensorProto.BFLOAT16, TensorProto.BFLOAT16),
    "float16 ConvTranspose": convolution("ConvTranspose", TensorProto.FLOAT16, TensorProto.FLOAT16),
    "Pow of two dtypes": graph("(float16[batch, 8] x, float[batch, 8] p) => (float16[batch, 8] y) { y = Pow(x, p) }"),
    "float64 beside float32": graph("(float[batch, 8] x, double[batch, 8] z) => (float[batch, 8] y) { y = Add(x, z) }"),
    "operator set 7": graph("(float[batch, 8] x) => (float[batch, 8] y) { y = Add(x, x) }", opset=7),
    "versions to come": graph("(float[batch, 8] x) => (float[batch, 8] y) { y = Add(x, x) }", opset=30, ir=20),
    "weights of two arrays": graph(
        "(float[batch, 8, 4, 4] x) => (float[batch, 8, 4, 4] y) { w = Mul(k, k)  y = Conv(x, w) }",
        k=(TensorProto.FLOAT, (8, 8, 1, 1)),
    ),
    "arrays that are inputs, too": graph(
        "(float[batch, 8] x, float[8] k) => (float[batch, 8] y) { y = Add(x, k) }", ir=3, k=(TensorProto.FLOAT, (8,))
    ),
    "a function of the file's own": onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20, "own" : 1]>
        g (float[batch, 8] x) => (float[batch, 8] y) { y = own.f(x) }
        <domain: "own", opset_import: ["" : 20]> f (a) => (b) { c = Relu(a)  b = Neg(c) }"""
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_is_no_error(name):
    assert not errors(TAKEN[name])
    assert not refusal(TAKEN[name])


BRANCHES = """<then_branch = t () => (float[batch, 8] p) { p = Relu(x) },
               else_branch = e () => (float[batch, 8] q) { q = Neg(x) }>"""
SCAN = """Scan <num_scan_inputs = 1, body = b (float[batch, 8] p, float[batch, 8] r) => (float[batch, 8] q,
          float[batch, 8] o) { q = Add(p, r)  o = Identity(q) }> (x, s)"""
WARNED = {
    "If": graph(f"(float[batch, 8] x) => (float[batch, 8] y) <bool c = {{1}}> {{ y = If(c) {BRANCHES} }}"),
    "Loop": graph(
        """(float[batch, 8] x) => (float[batch, 8] y) <int64 n = {3}, bool t = {1}> {
            y = Loop(n, t, x) <body = b (int64 i, bool c, float[batch, 8] p) => (bool d, float[batch, 8] q)
                { d = Identity(c)  q = Add(p, p) }>
        }"""
    ),
    "Scan": graph(
        f"(float[batch, 8] x) => (float[batch, 8] y) {{ s = Unsqueeze(x, k)  y, z = {SCAN} }}",
        k=(TensorProto.INT64, (1,)),
    ),
}
WARNED["Scan"].graph.initializer[0].int64_data[0] = 0


@pytest.mark.parametrize("name", WARNED)
def test_control_flow_is_a_warning(name):
    """It builds, but may not be captured as a CUDA graph."""
    (finding,) = lint(WARNED[name], "g", "rtx")
    assert (finding.rule, finding.severity) == ("control flow", "warning") and name in finding.found
    assert not refusal(WARNED[name])


def test_float64_is_a_warning():
    model = graph("(double[batch, 8] x) => (double[batch, 8] y) { y = Add(x, x) }")
    (finding,) = lint(model, "g", "rtx")
    assert (finding.node, finding.found, finding.severity) == ("x and 1 more", "float64", "warning")
    assert not refusal(model)


@pytest.mark.parametrize("domain", ["example", "com.microsoft"])
def test_a_namesake_of_another_domain(domain):
    """The parser takes it for ONNX's own operator and builds something else than what the graph says."""
    model = graph(f"(float[batch, 8] x) => (float[batch, 8] y) {{ y = {domain}.Gelu(x) }}")
    (finding,) = errors(model)
    assert finding.found == f"{domain}.Gelu, an operator of its own"
    assert not refusal(model)


def test_a_domain_that_is_not_imported():
    model = REFUSED["custom operator"][-1]
    imported = onnx.ModelProto()
    imported.CopyFrom(model)
    del imported.opset_import[1:]
    assert errors(imported) == errors(model)


def test_what_only_rtx_does_not_have():
    model = REFUSED["bfloat16 ConvTranspose"][-1]
    assert errors(model, engine="rtx") and not errors(model, engine="tensorrt")


def test_the_table_of_operators_is_what_the_library_says():
    table = json.loads(TABLE.read_text())
    if table["version"] != trt.__version__ or table["onnx"] != onnx.__version__:
        pytest.skip(f"the table is of {table['library']} {table['version']} and onnx {table['onnx']}")
    supported_operators.cache_clear()
    assert list(supported_operators("rtx").operators) == table["operators"]


def test_the_table_is_used_where_the_library_is_not_there(monkeypatch):
    def refuse(engine: str) -> None:
        raise EngineError("not installed")

    monkeypatch.setattr("styleinv.export.operators.import_engine_library", refuse)
    supported_operators.cache_clear()
    known = supported_operators("tensorrt")
    assert (known.library, len(known.operators)) == ("tensorrt_rtx", 157)
    supported_operators.cache_clear()


@pytest.mark.parametrize("engine", ["rtx", "tensorrt"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_bundles_graphs_are_clean(every_precision, engine, precision):
    for name in Bundle.open(every_precision).manifest["graphs"]:
        file = Bundle.open(every_precision).graph(name, precision=precision).file
        model = onnx.load(file, load_external_data=False)
        assert lint(model, name, engine, TARGETS) == []
        known = value_types(model)
        assert all(value in known for node in model.graph.node for value in node.output)  # so nothing went unseen


def test_a_dry_run(every_precision, capsys):
    command = ["export", str(every_precision), "--engine", "rtx", "tensorrt", "--precision", "fp16", "--dry-run"]
    before = sorted(path for path in every_precision.rglob("*"))
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "TensorRT for RTX for compute capability 8.6 8.9 12.0" in said and "nothing stands in the way" in said
    assert "synthesis fp16" in said and "float16 float32 int64 uint8" in said and "ConvTranspose" in said
    assert sorted(path for path in every_precision.rglob("*")) == before


def test_a_dry_run_that_finds_something(every_precision, capsys):
    command = ["export", str(every_precision), "--engine", "rtx", "--precision", "bf16", "--dry-run"]
    assert main([*command, "--compute-capability", "7.5", "8.9"]) == 1
    assert "errors 4, warnings 0" in capsys.readouterr().out


def test_a_bundle_with_a_frozen_output(every_precision, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folder = Path(shutil.copytree(every_precision, tmp_path / "frozen.bundle"))
    model = onnx.load(folder / "mapping.onnx", load_external_data=False)
    last = next(node for node in model.graph.node if "w0" in node.output)
    last.output[0] = "of_any_batch"
    model.graph.initializer.append(onnx.helper.make_tensor("frozen", TensorProto.INT64, (2,), [1, 12]))
    model.graph.node.append(onnx.helper.make_node("Reshape", ["of_any_batch", "frozen"], ["w0"]))
    (folder / "mapping.onnx").write_bytes(model.SerializeToString())
    manifest = json.loads((folder / "manifest.json").read_text())
    for graphs in (manifest["graphs"], *(each["graphs"] for each in manifest["precisions"].values())):
        graphs["mapping"]["sha256"] = file_sha256(folder / "mapping.onnx")
    write_manifest(folder, manifest)
    assert report_lint(Bundle.open(folder), ["rtx"], ["fp32"], TARGETS) == 1
    assert "mapping fp32  dynamic axes  w0    a batch of 1, fixed" in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_table_fits(width):
    findings = [finding for _, _, _, model in REFUSED.values() for finding in lint(model, "synthesis fp16", "rtx")]
    findings += lint(WARNED["If"], "latent", "rtx")
    lines = as_table(findings, width).splitlines()
    assert lines[0] == "errors 10, warnings 2"  # one of them in the loop that holds an unsupported operator
    assert max(map(len, lines)) <= width
    assert lines[-1].startswith(" ") and lines[1].split() == ["graph", "rule", "node", "found", "fix"]
    columns = [lines[1].index(name) for name in ("graph", "rule", "node", "found", "fix")]
    for line in lines[2:]:
        assert all(line[column - 2 : column].strip() == "" for column in columns)  # aligned
    fixes = "".join(line[columns[-1] :].replace(" ", "") for line in lines)
    assert all(finding.fix.replace(" ", "") in fixes for finding in findings)  # nothing is cut


def test_the_summary_names_what_a_graph_is_made_of():
    model = graph("(float16[batch, 8] x) => (float[batch, 8] y) { a = Relu(x)  y = Cast<to = 1>(a) }")
    header, row = as_summary({"latent": model}, 100).splitlines()
    assert header.split("  ")[0] == "graph"
    assert row.split() == ["latent", "2", "float16", "float32", "batch", "Cast", "Relu"]
