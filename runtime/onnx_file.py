"""What a bundle must know of an ONNX file before any engine opens it, read without the onnx package.

An ONNX file is one protobuf message, `ModelProto`. A message is a row of fields: a tag, 8 * number + wire type, then a
whole number (wire type 0), 8 or 4 bytes (1, 5), or a length and as many bytes (2): a text, or again a message. The
numbers below are those of onnx.proto. The bytes may be hostile: every length is checked, messages are walked without
recursion, and weights inside the file are stepped over, not copied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MOST_FIELDS = 1_000_000  # read in about a second, then a file is refused; the largest graphs have some 20,000

# For each kind of message in which tensors can lie, the fields that hold messages, and of which kind these are.
GRAPH = {1: "node", 5: "tensor", 15: "sparse tensor"}
MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "main graph", 20: "training", 25: "function"},
    "main graph": {**GRAPH, 11: "input", 12: "output"},
    "graph": GRAPH,
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
DTYPES = {1: "float32", 2: "uint8", 7: "int64", 10: "float16"}  # of TensorProto.DataType, those that bundles use
NOT_TENSORS = (4, 5, 7, 8, 9)  # of TypeProto: sequences, maps, ...; its field 1 is a tensor


class OnnxFileError(ValueError):
    """The bytes are no ONNX model, or say what no exporter writes; the message is what was found."""


@dataclass(frozen=True)
class OnnxArray:
    """An input or output: numpy's name of its dtype; its sizes: numbers, names, None where unknown; None for all."""

    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class ExternalData:
    """Where a tensor's bytes lie outside: texts, as they stand in the file; offset "0", length None where none does."""

    location: str
    offset: str
    length: str | None


@dataclass(frozen=True)
class OnnxModel:
    """The arrays of a model's main graph by name, and each place outside where any tensor anywhere in it lies."""

    inputs: Mapping[str, OnnxArray]
    outputs: Mapping[str, OnnxArray]
    external_data: tuple[ExternalData, ...]


def read_onnx(content: bytes) -> OnnxModel:
    """Reads the bytes of an ONNX file, in time linear in their number. Raises OnnxFileError, and nothing else."""
    reader = _Reader()
    arrays: dict[str, dict[str, OnnxArray]] = {"input": {}, "output": {}}
    external_data: dict[ExternalData, None] = {}  # each place once, in the order of the file
    messages = deque([("model", memoryview(content))])
    while messages:
        kind, message = messages.popleft()
        if kind == "tensor":
            if (outside := reader.external_data(message)) is not None:
                external_data[outside] = None
        elif kind in arrays:
            name, array = reader.array(message)
            if name in arrays[kind]:
                raise OnnxFileError(f"two {kind}s of name {name}")
            arrays[kind][name] = array
        else:
            below = MESSAGES[kind]
            messages.extend((below[n], _bytes(value)) for n, value in reader.fields(message) if n in below)
    if not arrays["output"]:
        raise OnnxFileError("no graph that gives anything")
    return OnnxModel(arrays["input"], arrays["output"], tuple(external_data))


class _Reader:
    """Reads messages, counting the fields of all of them."""

    def __init__(self) -> None:
        self.fields_left = MOST_FIELDS

    def fields(self, message: memoryview) -> Iterator[tuple[int, int | memoryview | None]]:
        """Each field's number and value: a whole number, the bytes after a length, or None, which ONNX does not use."""
        position, end = 0, len(message)
        while position < end:
            self.fields_left -= 1
            if self.fields_left < 0:
                raise OnnxFileError(f"more than {MOST_FIELDS} fields")
            tag, position = _number(message, position)
            number, wire_type = tag >> 3, tag & 7
            if wire_type not in (0, 1, 2, 5) or not 0 < number < 2**29:
                raise OnnxFileError(f"a field of number {number} and wire type {wire_type}")
            if wire_type == 0:
                value, position = _number(message, position)
                yield number, value
                continue
            length, position = _number(message, position) if wire_type == 2 else ({1: 8, 5: 4}[wire_type], position)
            if length > end - position:
                raise OnnxFileError(f"a field of {length} bytes where {end - position} are left")
            yield number, message[position : position + length] if wire_type == 2 else None
            position += length

    def single(self, message: memoryview | None, *numbers: int) -> list[Any]:
        """The values of these fields, which may come once; None for those that do not come."""
        found: dict[int, Any] = {}
        for number, value in self.fields(message or memoryview(b"")):
            if number in numbers:
                if number in found or value is None:
                    raise OnnxFileError(f"field {number} twice, or of another wire type")
                found[number] = value
        return [found.get(number) for number in numbers]

    def array(self, message: memoryview) -> tuple[str, OnnxArray]:
        """A ValueInfoProto: name and type."""
        name, kind = self.single(message, 1, 2)
        tensor, *others = self.single(_bytes(kind), 1, *NOT_TENSORS)
        if others != [None] * len(NOT_TENSORS):
            raise OnnxFileError("an input or output that is no tensor")
        element, shape = self.single(_bytes(tensor), 1, 2)
        sizes = None
        if shape is not None:
            sizes = tuple(self.size(_bytes(size)) for number, size in self.fields(_bytes(shape)) if number == 1)
        return _text(name), OnnxArray(DTYPES.get(element, f"element type {element}"), sizes)

    def size(self, message: memoryview) -> int | str | None:
        """A TensorShapeProto.Dimension: a number or a name."""
        number, name = self.single(message, 1, 2)
        if name is not None and number is None:
            return _text(name) or None
        if name is not None or isinstance(number, memoryview):
            raise OnnxFileError("a size that is no number")
        return number - 2**64 if number is not None and number >= 2**63 else number

    def external_data(self, tensor: memoryview) -> ExternalData | None:
        """Of a TensorProto the pairs of key and value in field 13, and field 14, which says whether there are any."""
        entries: dict[str, str] = {}
        is_outside = False
        for number, value in self.fields(tensor):
            if number == 13:
                key, text = map(_text, self.single(_bytes(value), 1, 2))
                if key in entries:
                    raise OnnxFileError(f"external data of two {key}s")
                entries[key] = text
            elif number == 14:
                is_outside |= value != 0
        if not entries and not is_outside:
            return None
        if "location" not in entries:
            raise OnnxFileError("external data without a location")
        return ExternalData(entries["location"], entries.get("offset", "0"), entries.get("length"))


def _number(message: memoryview, position: int) -> tuple[int, int]:
    """The whole number at `position`, in groups of 7 bits, lowest first, and where it ends. 64 bits are kept."""
    if position < len(message) and (byte := message[position]) < 0x80:  # most are that small
        return byte, position + 1
    number = 0
    for index, byte in enumerate(message[position : position + 10]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number & (2**64 - 1), position + index + 1
    raise OnnxFileError("a number that does not end")


def _bytes(value: int | memoryview | None) -> memoryview:
    if not isinstance(value, memoryview):
        raise OnnxFileError("a field that is missing, or of another wire type")
    return value


def _text(value: int | memoryview | None) -> str:
    """A text. What is none, or would spoil a message, is refused."""
    try:
        text = str(_bytes(value), "utf-8")
    except UnicodeDecodeError as error:
        raise OnnxFileError(f"a name that is no text ({error.reason})") from None
    if not text.isprintable():
        raise OnnxFileError(f"the name {text[:80]!r}")
    return text
