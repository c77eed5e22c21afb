"""The small reader of ONNX files finds what onnx itself finds, and survives every other file."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from styleinv.runtime import onnx_file
from styleinv.runtime.onnx_file import ExternalData, OnnxArray, OnnxFileError, read_onnx

onnx = pytest.importorskip("onnx", reason="the files to read are made with onnx")
DecodeError = pytest.importorskip("google.protobuf.message").DecodeError  # onnx is built on it

TEXT = """<ir_version: 8, opset_import: ["" : 18]>
tiny (float[batch,3,16,16] image, float16[] half, int64[batch,?,5] count) => (uint8[batch,16,16,3] frame, float[?] all)
{ frame = Cast<to = 2>(image) }"""
SOME = onnx.parser.parse_model(TEXT)
DTYPES = {1: "float32", 2: "uint8", 7: "int64", 10: "float16"}


def outside(name: str, location: str = "weights.bin", **entries: object) -> "onnx.TensorProto":
    tensor = onnx.TensorProto(name=name, data_type=1, dims=[1], data_location=1)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def inside(name: str) -> "onnx.TensorProto":
    return onnx.helper.make_tensor(name, 1, [64], b"\x6a\x07" * 128, raw=True)


def branch(name: str, *nodes: "onnx.NodeProto") -> "onnx.GraphProto":
    """A graph with weights outside, both ways in which a graph can have them."""
    sparse = onnx.SparseTensorProto(
        values=outside("v", f"{name}/values"), indices=outside("i", f"{name}/indices", offset=4), dims=[9]
    )
    return onnx.GraphProto(
        name=name,
        node=nodes,
        initializer=[inside("inside"), outside("outside", f"{name}/weights", length=8)],
        sparse_initializer=[sparse],
    )


def constant(name: str) -> "onnx.NodeProto":
    """A node with weights outside in all attributes that can have some."""
    node = onnx.NodeProto(op_type="Constant", output=["c"])
    tensors = [outside("a", f"{name}/list/0"), inside("b"), outside("c", f"{name}/list/2")]
    sparse = [onnx.SparseTensorProto(values=outside(part, f"{name}/{part}"), dims=[9]) for part in ("one", "many")]
    node.attribute.add(name="value", type=4, t=outside("t", f"{name}/tensor"))
    node.attribute.add(name="values", type=9, tensors=tensors)
    node.attribute.add(name="sparse", type=11, sparse_tensor=sparse[0])
    node.attribute.add(name="many", type=12, sparse_tensors=sparse[1:])
    node.attribute.add(name="text", type=3, s=b"\xff\xfe")
    node.attribute.add(name="numbers", type=6, floats=[1.0, 2.0], ints=[-1, 2], f=1.0, i=-(2**63))
    return node


def everywhere() -> "onnx.ModelProto":
    """A model with weights outside in all places that ONNX has."""
    chosen = onnx.NodeProto(op_type="If", input=["b"], output=["x"])
    chosen.attribute.add(name="then_branch", type=5, g=branch("then", constant("then/constant")))
    chosen.attribute.add(name="else_branch", type=5, g=branch("else"))
    chosen.attribute.add(name="more", type=10, graphs=[branch("first"), branch("second", constant("second/constant"))])
    function = onnx.FunctionProto(name="f", domain="own", input=["a"], output=["b"], node=[constant("function")])
    function.attribute_proto.add(name="default", type=4, t=outside("d", "function/default", offset=2**62, length=0))
    model = onnx.ModelProto()
    model.CopyFrom(SOME)
    model.graph.MergeFrom(branch("main", chosen))
    model.functions.append(function)
    model.training_info.add(initialization=branch("initialization"), algorithm=branch("algorithm"))
    model.graph.value_info.add(name="not an input")
    return model


def tensors_below(message: object) -> "list[onnx.TensorProto]":
    """By protobuf's own reflection, every tensor in a message."""
    if isinstance(message, onnx.TensorProto):
        return [message]
    found = []
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if hasattr(value, "extend") else [value]:
                found += tensors_below(one)
    return found


def expected_data(model: "onnx.ModelProto") -> set[ExternalData]:
    entries = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in tensors_below(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    return {ExternalData(entry["location"], entry.get("offset", "0"), entry.get("length")) for entry in entries}


def expected_arrays(values: "list[onnx.ValueInfoProto]") -> dict[str, OnnxArray]:
    arrays = {}
    for value in values:
        tensor = value.type.tensor_type
        sizes = [size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in tensor.shape.dim]
        shape = tuple(sizes) if tensor.HasField("shape") else None
        arrays[value.name] = OnnxArray(DTYPES[tensor.elem_type], shape)
    return arrays


def agrees(model: "onnx.ModelProto", content: bytes) -> None:
    found = read_onnx(content)
    assert found.inputs == expected_arrays(model.graph.input) and list(found.inputs) == [
        value.name for value in model.graph.input
    ]
    assert found.outputs == expected_arrays(model.graph.output)
    assert set(found.external_data) == expected_data(model) and len(set(found.external_data)) == len(
        found.external_data
    )


def test_arrays():
    found = read_onnx(SOME.SerializeToString())
    assert found.inputs == {
        "image": OnnxArray("float32", ("batch", 3, 16, 16)),
        "half": OnnxArray("float16", None),
        "count": OnnxArray("int64", ("batch", None, 5)),
    }
    assert found.outputs == {"frame": OnnxArray("uint8", ("batch", 16, 16, 3)), "all": OnnxArray("float32", (None,))}
    assert found.external_data == ()


def test_all_places_of_external_data():
    model = everywhere()
    places = expected_data(model)
    assert len(places) == 7 * 3 + 3 * 5 + 1 and ExternalData("function/default", str(2**62), "0") in places
    agrees(model, model.SerializeToString())


def test_graphs_of_a_bundle(styled):
    files = sorted(styled.path.rglob("*.onnx"))
    assert len(files) == 8
    for file in files:
        agrees(onnx.load(file, load_external_data=False), file.read_bytes())
    assert len(read_onnx((styled.path / "frame.onnx").read_bytes()).external_data) == 1


def test_external_data_as_onnx_writes_it(tmp_path: Path):
    model = onnx.parser.parse_model(TEXT.replace("{", "{ c = Constant<value_floats = [1.0]>()"))
    model.graph.initializer.extend([inside("a"), inside("b")])
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    found = read_onnx((tmp_path / "m.onnx").read_bytes()).external_data
    assert [(data.location, data.length) for data in found] == [("w.bin", "256")] * 2
    agrees(onnx.load(tmp_path / "m.onnx", load_external_data=False), (tmp_path / "m.onnx").read_bytes())


def test_external_data_counts_where_either_says_so():
    model = onnx.ModelProto()
    model.CopyFrom(SOME)
    tensor = model.graph.initializer.add(name="a")
    tensor.external_data.add(key="location", value="w.bin")  # engines may or may not mind that data_location is not set
    assert read_onnx(model.SerializeToString()).external_data == (ExternalData("w.bin", "0", None),)


def two_places() -> "onnx.TensorProto":
    tensor = outside("a")
    tensor.external_data.add(key="location", value="b.bin")
    return tensor


def changed(change) -> bytes:
    model = onnx.ModelProto()
    model.CopyFrom(SOME)
    change(model)
    return model.SerializeToString()


def length_delimited(number: int, content: bytes) -> bytes:
    length, size = b"", len(content)
    while size >= 128:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no graph"),
        (b"\x08\x08", "no graph"),
        (changed(lambda model: model.ClearField("graph")), "no graph"),
        (changed(lambda model: model.graph.ClearField("output")), "no graph"),
        (changed(lambda model: model.graph.input.append(model.graph.input[0])), "two inputs of name image"),
        (changed(lambda model: model.graph.output.append(model.graph.output[0])), "two outputs of name frame"),
        (changed(lambda model: model.graph.input[0].ClearField("type")), "missing"),
        (changed(lambda model: model.graph.input[0].ClearField("name")), "missing"),
        (changed(lambda model: model.graph.input[0].type.sequence_type.elem_type.tensor_type.Clear()), "no tensor"),
        (changed(lambda model: model.graph.input.add(name="a\nb", type=model.graph.input[0].type)), r"'a\\nb'"),
        (changed(lambda model: model.graph.initializer.add(data_location=1)), "without a location"),
        (changed(lambda model: model.graph.initializer.add().external_data.add(key="offset", value="1")), "without a"),
        (changed(lambda model: model.graph.initializer.append(outside("a", "\x1b[2J"))), "the name"),
        (changed(lambda model: model.graph.initializer.add().external_data.add(value="1")), "missing"),
        (
            changed(lambda model: model.graph.initializer.append(two_places())),
            "external data of two locations",
        ),
        (b"\x3a\x05\x00", "5 bytes where 1 are left"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", r"\d+ bytes where 0 are left"),
        (b"\x38\x01", "another wire type"),
        (b"\x39" + bytes(8), "another wire type"),
        (b"\x3b", "wire type 3"),
        (b"\x3f", "wire type 7"),
        (b"\x00\x00", "number 0"),
        (b"\xba\x80\x80\x80\x80\x01\x00", "a field of number"),  # graph's tag, if cut to 32 bits
        (b"\x80", "a number that does not end"),
        (b"\xff" * 20, "a number that does not end"),
        (length_delimited(7, length_delimited(12, length_delimited(1, b"\xff"))), "missing"),
        (SOME.SerializeToString().replace(b"image", b"im\xffge"), "no text"),
    ],
)
def test_no_model(content, message):
    with pytest.raises(OnnxFileError, match=message):
        read_onnx(content)


def test_other_dtypes_and_odd_shapes_are_told():
    def change(model: "onnx.ModelProto") -> None:
        model.graph.input[0].type.tensor_type.elem_type = 16
        model.graph.input[1].type.tensor_type.shape.Clear()
        model.graph.input[2].type.tensor_type.shape.dim[0].dim_value = -1

    found = read_onnx(changed(change)).inputs
    assert found["image"].dtype == "element type 16"
    assert found["half"].shape == () and found["count"].shape == (-1, None, 5)


def test_a_size_is_a_number_or_a_name():
    both = length_delimited(1, b"\x08\x05" + length_delimited(2, b"n"))
    value = length_delimited(1, b"x") + length_delimited(
        2, length_delimited(1, b"\x08\x01" + length_delimited(2, both))
    )
    with pytest.raises(OnnxFileError, match="a size that is no number"):
        read_onnx(length_delimited(7, length_delimited(12, value)))


def test_deep_graphs():
    """Deeper than Python recurses; the tensor at the bottom is found."""
    content = length_delimited(5, outside("deep").SerializeToString())
    for _ in range(3000):
        content = length_delimited(1, length_delimited(5, length_delimited(6, content)))
    content = SOME.SerializeToString() + length_delimited(7, content)  # protobuf merges a field that comes twice
    assert read_onnx(content).external_data == (ExternalData("weights.bin", "0", None),)


def test_many_fields(monkeypatch):
    monkeypatch.setattr(onnx_file, "MOST_FIELDS", 1000)
    read_onnx(SOME.SerializeToString() + b"\x08\x00" * 900)
    with pytest.raises(OnnxFileError, match="more than 1000 fields"):
        read_onnx(SOME.SerializeToString() + b"\x08\x00" * 1000)


def survives(content: bytes) -> None:
    """A model or OnnxFileError, and nothing else."""
    try:
        found = read_onnx(content)
    except OnnxFileError as error:
        assert str(error).isprintable()
    else:
        assert found.outputs


def test_truncated_at_every_length():
    model = everywhere()
    content, graph = model.SerializeToString(), model.graph.SerializeToString()
    for length in range(len(content)):
        survives(content[:length])
    for length in range(len(graph)):
        survives(length_delimited(7, graph[:length]))


def test_flipped_bits():
    content, draw = everywhere().SerializeToString(), random.Random(0)
    for position in draw.choices(range(len(content)), k=1500):
        survives(content[:position] + bytes([content[position] ^ 1 << draw.randrange(8)]) + content[position + 1 :])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes(content):
    survives(content)
    survives(length_delimited(7, content) + SOME.SerializeToString())


TREES = st.recursive(
    st.binary(max_size=6),
    lambda inner: st.lists(st.tuples(st.integers(1, 15), inner), max_size=4).map(
        lambda fields: b"".join(length_delimited(number, content) for number, content in fields)
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(TREES)
def test_random_messages(content):
    """Well-formed messages of any fields. What protobuf refuses we may read, but never more than it sees."""
    content = SOME.SerializeToString() + length_delimited(7, content)
    survives(content)
    try:
        model = onnx.ModelProto.FromString(content)
        places = expected_data(model)
    except (DecodeError, KeyError):  # no message, or a place without a location
        return
    try:
        found = read_onnx(content)
    except OnnxFileError:
        return
    assert places <= set(found.external_data)
