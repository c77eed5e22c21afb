"""How a graph that an engine's parser refuses is told of: the file, the node, its inputs, and what the parser said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from styleinv.export.value_types import UNKNOWN, ValueType, nodes_in, value_types

MOST_TOLD = 8  # of a graph's faults
LONGEST_NAME = 48  # characters of a name, of which the last ones differ
UNREADABLE = "MODEL_DESERIALIZE_FAILED"

# What of the parser's words is for people: the text of a condition that did not hold, of an error in a layer.
TELLING = (
    re.compile(r'&& "(?P<text>[^"]+)"'),
    re.compile(r"Error \((?:[^ ]+: )?(?P<text>.+?)(?: In \S+ at \S+)?\)(?:$|\n)", re.DOTALL),
    re.compile(r"Assertion failed: .*?[^:]: (?P<text>.+)", re.DOTALL),
)


@dataclass(frozen=True)
class ParserFault:
    """One error of TensorRT's ONNX parser (`trt.ParserError`): the index of the node in its graph, -1 where it is about
    no node, and the node's name, which may be empty."""

    node: int
    name: str
    operator: str
    description: str
    code: str


def describe_errors(model_file: Path, errors: Sequence[ParserFault]) -> str:
    """A line for each error, with the inputs of its node, their dtypes and shapes."""
    if any(UNREADABLE in fault.code for fault in errors) or not model_file.exists():
        model = onnx.ModelProto()
    else:
        model = onnx.load(model_file, load_external_data=False)
    types = value_types(model)
    if not errors:
        return f"{model_file}: graph: found a parser that refuses it and says nothing, expected one that takes it"
    lines = [f"{model_file}: {_told(model, types, fault)}" for fault in errors[:MOST_TOLD]]
    if len(errors) > MOST_TOLD:
        lines.append(f"{model_file}: and {len(errors) - MOST_TOLD} more")
    return "\n".join(lines)


def short_name(name: str) -> str:
    """A name cut to `LONGEST_NAME` characters, from its front."""
    return name if len(name) <= LONGEST_NAME else "..." + name[3 - LONGEST_NAME :]


def _told(model: onnx.ModelProto, types: dict[str, ValueType], fault: ParserFault) -> str:
    if fault.operator:
        node = _node_of(model, fault)
        subject = f"node {short_name(fault.name) or fault.node} ({fault.operator})"
        names = list(node.input) if node else []
        expected = "a node that the engine's parser takes"
    else:
        subject, names = "graph", [value.name for value in model.graph.input]
        expected = "an ONNX model" if UNREADABLE in fault.code else "a graph that the engine's parser takes"
    inputs = ", ".join(f"{short_name(name)} {types.get(name, UNKNOWN)}" for name in names if name)
    return f"{subject}{', inputs ' * bool(inputs)}{inputs}: found {_in_words(fault)}, expected {expected}"


def _node_of(model: onnx.ModelProto, fault: ParserFault) -> onnx.NodeProto | None:
    """The node that the fault is about; None where it could be several. The index counts in the model's graph, even
    where the node lies in one within it."""
    fitting = [node for node in nodes_in(model.graph) if (node.op_type, node.name) == (fault.operator, fault.name)]
    at_index = [node for node in model.graph.node[max(fault.node, 0) :][:1] if node in fitting]
    found = at_index or fitting
    return found[0] if len(found) == 1 else None


def _in_words(fault: ParserFault) -> str:
    """The parser's description in a line, without the names of its own functions and files."""
    if fault.description == "false" or "Plugin not found" in fault.description:
        return "an operator that it does not have"
    for pattern in TELLING:
        match = pattern.search(fault.description)
        if match:
            return " ".join(match["text"].split()).rstrip(".!?")
    return " ".join(fault.description.split())
