"""What in a graph an engine's compiler does not take, or a session cannot play: found before anything is built, each
with what to do about it.

Every rule is held against TensorRT for RTX in `tests/export/test_lint.py`: what it calls an error is refused by the
parser, by the builder, or by what plays the engine. Looked at and left out, as the library takes them: any version of
ONNX's file format, operator sets from 7 on, bool and int64 inputs, large int64 constants; equal weights, which are
stored once; products of constants, which are folded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import onnx
import onnx.inliner
from onnx import NodeProto, TensorProto

from styleinv.export.operators import supported_operators
from styleinv.export.value_types import ValueType, declared_type, dtype_name, nodes_in, value_types
from styleinv.runtime.engine_library import ENGINE_LIBRARIES

Severity = Literal["error", "warning"]

OWN_DOMAINS = ("", "ai.onnx")
CONTROL_FLOW = {
    "If": "compute both branches and choose with Where",
    "Loop": "unroll it: export with a fixed number of steps",
    "Scan": "unroll it: export with a fixed number of steps",
}
OLDEST_OPSET = 7  # of its broadcasting

DTYPES = frozenset({
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT4E2M1, TensorProto.INT4, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64,
    TensorProto.BOOL,
})  # fmt: skip
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
OF_ONE_DTYPE = frozenset({
    "Add", "Concat", "Conv", "ConvTranspose", "Div", "Einsum", "Equal", "Gemm", "Greater", "GreaterOrEqual",
    "InstanceNormalization", "LayerNormalization", "Less", "LessOrEqual", "MatMul", "Max", "Mean", "Min", "Mod", "Mul",
    "PRelu", "Sub", "Sum", "Where",
})  # fmt: skip
NEWER_DTYPES = {TensorProto.FLOAT8E4M3FN: "8.9", TensorProto.BFLOAT16: "8.0"}  # the first compute capability with it
CONVOLUTIONS = ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class Finding:
    """What is wrong at a node, or at an input or output, of the graph `where`, and how to mend it."""

    where: str
    node: str
    rule: str
    found: str
    fix: str
    severity: Severity


class Complaint(NamedTuple):
    """What a rule finds: a node's or a value's name, what is there, what to do, and whether it is an error."""

    node: str
    found: str
    fix: str
    severity: Severity = "error"


@dataclass(frozen=True)
class Facts:
    """What rules look at: a model whose functions are inlined, the types of its values as they follow from its inputs,
    the names of values that do not depend on these, and what it is to be compiled for."""

    model: onnx.ModelProto
    nodes: Sequence[NodeProto]
    types: dict[str, ValueType]
    constants: frozenset[str]
    engine: str
    targets: Sequence[str]

    def dtype(self, value: str) -> int:
        """0 where it is not known."""
        return self.types[value].dtype if value in self.types else TensorProto.UNDEFINED


Rule = Callable[[Facts], Iterator[Complaint]]


def lint(model: onnx.ModelProto, where: str, engine: str, targets: Sequence[str] = ()) -> list[Finding]:
    """What stands in the way of compiling the model for `engine`, rtx or tensorrt, and GPUs of the compute capabilities
    `targets`; errors first. The same fault at several nodes is one finding. Arrays may be external."""
    model = onnx.inliner.inline_local_functions(model)
    nodes = list(nodes_in(model.graph))
    facts = Facts(model, nodes, value_types(_without_declared_shapes(model)), _constants(model), engine, targets)
    found = [(rule, complaint) for rule, complain in RULES.items() for complaint in complain(facts)]
    merged: dict[tuple[str, str, str], list[Complaint]] = {}
    for rule, complaint in found:
        merged.setdefault((rule, complaint.found, complaint.fix), []).append(complaint)
    findings = [
        Finding(where, _names(complaints), rule, what, fix, complaints[0].severity)
        for (rule, what, fix), complaints in merged.items()
    ]
    return sorted(findings, key=lambda finding: finding.severity)


def _operators(facts: Facts) -> Iterator[Complaint]:
    supported = supported_operators(facts.engine).operators
    title = ENGINE_LIBRARIES[facts.engine].title
    for node in facts.nodes:
        if node.domain not in OWN_DOMAINS:  # the parser looks at the name alone, and compiles any namesake
            yield Complaint(
                _name(node),
                f"{node.domain}.{node.op_type}, an operator of its own",
                f"engines are built without plugins, and {title} may have none: export the graph that it stands for",
            )
        elif node.op_type not in supported:
            yield Complaint(_name(node), f"{node.op_type}", f"write it with operators that {title} has")


def _control_flow(facts: Facts) -> Iterator[Complaint]:
    for node in facts.nodes:
        if node.op_type in CONTROL_FLOW:
            found = f"{node.op_type}, which may keep the engine from being captured as a CUDA graph"
            yield Complaint(_name(node), found, CONTROL_FLOW[node.op_type], "warning")


def _opset(facts: Facts) -> Iterator[Complaint]:
    for used in facts.model.opset_import:
        if used.domain in OWN_DOMAINS and used.version < OLDEST_OPSET:
            yield Complaint(
                "",
                f"operator set {used.version}",
                f"export with {OLDEST_OPSET} or newer: older ones broadcast otherwise",
            )


def _dtypes(facts: Facts) -> Iterator[Complaint]:
    for value, kind in facts.types.items():
        if kind.dtype not in DTYPES:
            yield Complaint(value, dtype_name(kind.dtype), "keep it out of the graph: engines have no such dtype")
        if kind.dtype == TensorProto.DOUBLE:
            yield Complaint(value, "float64", "engines compute it in float32: say so with a Cast", "warning")
    outputs = {value.name for value in facts.model.graph.output}
    for node in facts.nodes:
        for value in node.output:
            within = value not in outputs and value not in facts.constants and node.op_type != "QuantizeLinear"
            if facts.dtype(value) == TensorProto.UINT8 and within:
                fix = (
                    "engines have uint8 in inputs and outputs only: Cast straight after the one, straight to the other"
                )
                yield Complaint(_name(node), "uint8 within the graph", fix)
            if facts.dtype(value) == TensorProto.FLOAT8E4M3FN and node.op_type == "Cast":
                yield Complaint(_name(node), "a Cast to float8e4m3fn", "use QuantizeLinear, which has a scale")
        bfloat16 = TensorProto.BFLOAT16 in map(facts.dtype, node.input)
        if (node.op_type, facts.engine) == ("ConvTranspose", "rtx") and bfloat16:
            yield Complaint(
                _name(node), "ConvTranspose in bfloat16", "export this upsampling in the form 'split', or in float32"
            )


def _mixed_dtypes(facts: Facts) -> Iterator[Complaint]:
    for node in facts.nodes:
        dtypes = sorted({facts.dtype(value) for value in node.input} & FLOATS)
        if node.op_type in OF_ONE_DTYPE and len(dtypes) > 1:
            names = " and ".join(map(dtype_name, dtypes))
            yield Complaint(_name(node), f"{node.op_type} of {names}", "Cast one: engines do not convert by themselves")


def _dynamic_axes(facts: Facts) -> Iterator[Complaint]:
    """Sessions give all inputs and expect of all outputs one batch, which comes first; all else they must know."""
    graph, batches = facts.model.graph, set()
    frozen_by = [_name(node) for node in _with_own_weights(facts) if _groups(node) > 1]
    cause = f", which the grouped convolution {frozen_by[0]} with weights for each sample freezes" if frozen_by else ""
    arrays = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in arrays}  # in old files arrays are, too
    for value in [*inputs.values(), *graph.output]:
        declared = declared_type(value).shape or ()
        follows = () if value.name in inputs or value.name not in facts.types else facts.types[value.name].shape or ()
        frozen = [size for size in (*declared[:1], *follows[:1]) if isinstance(size, int)]
        if not declared:
            yield Complaint(value.name, "no batch", "make its first axis the batch, and name it")
        elif frozen:
            yield Complaint(value.name, f"a batch of {frozen[0]}, fixed", f"export with a dynamic first axis{cause}")
        else:
            batches.add(str(declared[0]))
        dynamic = [str(axis) for axis, size in enumerate(declared) if axis > 0 and not isinstance(size, int)]
        if dynamic:
            yield Complaint(value.name, f"axis {' and '.join(dynamic)} dynamic", "fix it: only the batch may change")
    if len(batches) > 1:
        yield Complaint("", f"batches called {', '.join(sorted(batches))}", "give them one name: they are one number")


def _weights(facts: Facts) -> Iterator[Complaint]:
    fix = (
        "keep weights constant, which is the same picture: multiply the input by s [B, I], the output by "
        "d [B, O] = (sum of (w s)^2 over I, taps)^-1/2"
    )
    for node in _with_own_weights(facts):
        shape = facts.types[node.input[1]].shape if node.input[1] in facts.types else None
        varies = shape is not None and not all(isinstance(size, int) for size in shape)
        found = f"{node.op_type} with weights that depend on inputs{', of a shape that does, too' * varies}"
        yield Complaint(_name(node), found, fix, "error" if varies else "warning")


def _capabilities(facts: Facts) -> Iterator[Complaint]:
    for dtype, least in NEWER_DTYPES.items():
        values = [value for value, kind in facts.types.items() if kind.dtype == dtype]
        lacking = [target for target in facts.targets if _numbers(target) < _numbers(least)]
        if values and lacking:
            yield Complaint(
                values[0],
                f"{dtype_name(dtype)} for {' and '.join(lacking)}",
                f"it takes compute capability {least} or newer: build another precision for older ones",
            )


RULES: dict[str, Rule] = {
    "operators": _operators,
    "control flow": _control_flow,
    "opset": _opset,
    "dtypes": _dtypes,
    "mixed dtypes": _mixed_dtypes,
    "dynamic axes": _dynamic_axes,
    "weights": _weights,
    "capability": _capabilities,
}


def _with_own_weights(facts: Facts) -> list[NodeProto]:
    """Convolutions whose weights are computed from inputs."""
    return [n for n in facts.nodes if n.op_type in CONVOLUTIONS and not facts.constants.issuperset(n.input[1:2])]


def _groups(node: NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))


def _name(node: NodeProto) -> str:
    return node.name or f"{node.op_type} of {', '.join(node.output)}"


def _names(complaints: Sequence[Complaint]) -> str:
    others = len(complaints) - 1
    return complaints[0].node + (f" and {others} more" if others else "")


def _without_declared_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without what its file says of values in it and of outputs, so that inference tells what follows."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    return bare


def _constants(model: onnx.ModelProto) -> frozenset[str]:
    """Names of values that follow from the model's own arrays."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:  # each after those that it reads from
        if node.op_type not in CONTROL_FLOW and all(name in constants for name in node.input if name):
            constants.update(node.output)
    return frozenset(constants)
