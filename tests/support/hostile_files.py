"""Hostile and broken files for the import: each must be refused, quickly, without effect and in little memory."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import torch

# Each would leave a file if it ran: canaries are looked for in the working directory.
COMMAND = "touch canary"
CALLS = [
    ("os", "system", (COMMAND,)),
    ("posix", "system", (COMMAND,)),
    ("nt", "system", (COMMAND,)),
    ("subprocess", "Popen", (["touch", "canary"],)),
    ("subprocess", "check_output", (["touch", "canary"],)),
    ("builtins", "exec", ("open('canary', 'w')",)),
    ("builtins", "eval", ("open('canary', 'w')",)),
    ("__builtin__", "eval", ("open('canary', 'w')",)),
    ("builtins", "open", ("canary", "w")),
    ("builtins", "getattr", ("a", "b")),
    ("builtins", "__import__", ("os",)),
    ("builtins", "compile", ("1", "x", "eval")),
    ("io", "open", ("canary", "w")),
    ("_io", "open", ("canary", "w")),
    ("pathlib", "Path.touch", ("canary",)),
    ("importlib", "import_module", ("os",)),
    ("runpy", "run_path", ("canary.py",)),
    ("pickle", "loads", (b"cos\nsystem\n(S'touch canary'\ntR.",)),
    ("_pickle", "loads", (b"cos\nsystem\n(S'touch canary'\ntR.",)),
    ("torch", "load", ("canary.pt",)),
    ("torch.serialization", "load", ("canary.pt",)),
    ("torch.hub", "load", ("a/b", "c")),
    ("numpy", "load", ("canary.npy",)),
    ("numpy.core.multiarray", "_reconstruct", (0, (0,), b"b")),
    ("functools", "partial", (print,)),
    ("operator", "methodcaller", ("system", COMMAND)),
    ("pty", "spawn", (["touch", "canary"],)),
    ("shutil", "rmtree", ("canary",)),
    ("ctypes", "CDLL", ("libc.so.6",)),
    ("codecs", "decode", (b"x", "zip")),
    ("torch_utils.persistence", "exec", ("open('canary', 'w')",)),
    ("collections", "OrderedDict.__class__", ()),
    ("torch", "FloatStorage", (10**10,)),
]


def call(module: str, name: str, arguments: object, protocol: int = 4) -> bytes:
    """A pickle that calls module.name(*arguments) when an ordinary unpickler reads it."""
    if any(callable(item) for item in arguments):  # type: ignore[attr-defined]
        arguments = ("x",)
    body = pickle.dumps(arguments, protocol)[2:-1]  # without the protocol and the end
    if protocol >= 4:
        body = body[9:]  # and without the frame
        return b"\x80\x04" + text(module) + text(name) + b"\x93" + body + b"R."
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + body + b"R."


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def legacy_storage(numbers: torch.Tensor) -> bytes:
    """The bytes in which the authors' pickles keep a tensor's numbers."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # typed storages are deprecated, and what the authors' files hold
        torch.save(numbers.storage(), stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def with_storage(
    stream: bytes, size: bytes = b"K\x04\x85", stride: bytes = b"K\x01\x85", offset: bytes = b"K\x00"
) -> bytes:
    """A pickle of {'G': tensor}, whose storage is `stream`; sizes are given as instructions."""
    storage = text("torch.storage") + text("_load_from_bytes") + b"\x93B" + struct.pack("<I", len(stream)) + stream
    tensor = text("torch._utils") + text("_rebuild_tensor_v2") + b"\x93(" + storage + b"\x85R" + offset + size + stride
    empty = text("collections") + text("OrderedDict") + b"\x93)R"
    return b"\x80\x04}" + text("G") + tensor + b"\x89" + empty + b"tRs."


def hostile_files(folder: Path, sound: bytes, damaged_models: dict[str, bytes]) -> dict[str, Path]:
    """Writes them all; `sound` is a file that can be imported, which some are cut from."""
    contents: dict[str, bytes] = {}
    for module, name, arguments in CALLS:
        contents[f"stack_global {module}.{name}"] = call(module, name, arguments)
        contents[f"global {module}.{name}"] = call(module, name, arguments, protocol=2)
    evil = b"cos\nsystem\n"
    argument = text(COMMAND)
    contents |= {
        "inst": b"\x80\x02(" + argument + b"ios\nsystem\n.",
        "obj": b"\x80\x02(" + evil + argument + b"o.",
        "newobj": b"\x80\x02" + evil + argument + b"\x85\x81.",
        "newobj_ex": b"\x80\x04" + evil + argument + b"\x85}\x92.",
        "ext1": b"\x80\x02\x82\x01.",
        "persid": b"\x80\x02Pos.system\n.",
        "binpersid": b"\x80\x02" + argument + b"Q.",
        "next_buffer": b"\x80\x05\x97.",
        "bytearray8": b"\x80\x05\x96" + struct.pack("<Q", 10 << 30) + b"x.",
        "build on a dictionary": b"\x80\x04}}" + text("__class__") + argument + b"sb.",
        "build with __setstate__": b"\x80\x04" + text("dnnlib.util") + text("EasyDict") + b"\x93)\x81}"
        + text("__setstate__") + b"cos\nsystem\nsb.",
        "build twice": b"\x80\x04" + text("torch.nn.modules.activation") + text("ReLU") + b"\x93)\x81}b}b.",
        "call of a text": b"\x80\x04" + argument + argument + b"\x85R.",
        "call of a type": b"\x80\x04" + text("builtins") + text("int") + b"\x93" + text("9" * 200) + b"\x85R.",
        "global named by numbers": b"\x80\x04K\x01K\x02\x93.",
        "nested pickle in a storage": with_storage(call("os", "system", (COMMAND,))),
        "nested pickle behind a magic number": with_storage(
            pickle.dumps(0x1950A86A20F9469CFC6C, 2) + call("os", "system", (COMMAND,), 2)
        ),
        "storage in a storage": with_storage(with_storage(legacy_storage(torch.zeros(4)))),
        "storage of a wrong magic number": with_storage(pickle.dumps(1, 2) * 5),
        "storage with an evil type": with_storage(
            legacy_storage(torch.zeros(4)).replace(b"ctorch\nFloatStorage\n", b"cposix\nsystem\n")
        ),
        "storage of an unknown type": with_storage(
            legacy_storage(torch.zeros(4)).replace(b"ctorch\nFloatStorage\n", b"ctorch\nByteStorage\n")
        ),
        "storage cut short": with_storage(legacy_storage(torch.zeros(400))[:-100]),
        "storage with more behind it": with_storage(legacy_storage(torch.zeros(4)) + bytes(100)),
        "storage that is a zip archive": with_storage(b"PK\x03\x04" + bytes(300)),
        "storage that claims 10 GB": with_storage(
            legacy_storage(torch.zeros(4)).replace(b"K\x04N", b"J\xff\xff\xff\x7fN")
        ),
        "tensor that claims 10 GB": with_storage(
            legacy_storage(torch.zeros(4)), size=b"M\xff\xffM\xff\xff\x86", stride=b"K\x00K\x00\x86"
        ),
        "tensor beyond its storage": with_storage(legacy_storage(torch.zeros(4)), offset=b"K\x01"),
        "tensor with a negative stride": with_storage(legacy_storage(torch.zeros(4)), stride=b"J\xff\xff\xff\xff\x85"),
        "tensor with a negative offset": with_storage(legacy_storage(torch.zeros(4)), offset=b"J\xff\xff\xff\xff"),
        "tensor of a thousand dimensions": with_storage(
            legacy_storage(torch.zeros(4)), size=b"(" + b"K\x01" * 1000 + b"t", stride=b"(" + b"K\x01" * 1000 + b"t"
        ),
        "tensor of a text": with_storage(legacy_storage(torch.zeros(4)), size=argument),
        "bytes of 10 GB": b"\x80\x04\x8e" + struct.pack("<Q", 10 << 30) + b"x.",
        "text of 10 GB": b"\x80\x04\x8d" + struct.pack("<Q", 10 << 30) + b"x.",
        "text of 2^63 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 63) + b"x.",
        "integer of 2 GB": b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
        "integer of negative size": b"\x80\x04\x8b" + struct.pack("<i", -1) + b"x.",
        "decimal of a million digits": b"\x80\x04L" + b"9" * 1_000_000 + b"L\n.",
        "memo of index 2^32 - 1": b"\x80\x04}r\xff\xff\xff\xff0.",
        "memo that was never stored": b"\x80\x04h\x07.",
        "memo bomb: a tuple doubled 200 times": b"\x80\x04}" + text("G") + b")" + b"2\x86" * 200 + b"s.",
        "a list in itself": b"\x80\x04]\x94h\x00a.",
        "settings doubled 60 times": _network(b"]" + b"2\x86" * 60),
        "settings that hold themselves": _network(b"}\x94" + text("a") + b"h\x00s"),
        "settings nested 100,000 deep": _network(b"]" + b"\x85" * 100_000),
        "a key nested 100,000 deep": b"\x80\x04})" + b"\x85" * 100_000 + b"Ns.",
        "fifty thousand keys that collide": b"\x80\x04}(" + _colliding_keys(50_000) + b"u.",
        "a network in itself": b"\x80\x04}" + text("G") + _network_value(b"N", modules=b"}\x94" + text("m") + b"h\x00s")
        + b"s.",
        "five million instructions": b"\x80\x04" + b"N0" * 2_500_000 + b".",
        "a million dictionaries": b"\x80\x04" + b"}" * 1_000_000 + b".",
        "a million sets": b"\x80\x04" + b"\x8f" * 1_000_000 + b".",
        "a million nested tuples": b"\x80\x04)" + b"\x85" * 1_000_000 + b".",
        "the same data decoded again and again": b"\x80\x04X" + struct.pack("<I", 2_000_000) + b"a" * 2_000_000
        + b"\x940" + (text("_codecs") + text("encode") + b"\x93h\x00" + text("latin1") + b"\x86R") * 5000 + b".",
        "a long text that is no data": b"\x80\x04" + text("_codecs") + text("encode") + b"\x93X"
        + struct.pack("<I", 60_000_004) + b"a" * 60_000_000 + "\U0001f600".encode() + text("latin1") + b"\x86R.",
        "the same set made again and again": b"\x80\x04(" + b"".join(struct.pack("<BI", 0x4A, i) for i in range(50_000))
        + b"l\x940" + (text("builtins") + text("set") + b"\x93h\x00\x85R") * 5000 + b".",
        "a frame of 2^60 bytes and nothing": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60),
        "a mark left over": b"\x80\x04((.",
        "an empty stack": b"\x80\x04.",
        "items of nothing": b"\x80\x04(NNu.",
        "an odd number of items": b"\x80\x04}(Nu.",
        "an unknown instruction": b"\x80\x04\xff.",
        "two pickles": sound + sound,
        "empty": b"",
        "text": b"hello, this is no checkpoint",
        "web page": b"<!DOCTYPE html><html></html>",
        "protocol 0": b"cos\nsystem\n(S'touch canary'\ntR.",
        "zip bomb": _zip_bomb(),
        "gzip bomb": gzip.compress(bytes(50_000_000)),
        "torch.save": _torch_save(),
        "safetensors": struct.pack("<Q", 2) + b"{}",
        "a list": pickle.dumps([1, 2, 3], 4),
        "no networks": pickle.dumps({"G": None, "D": 3}, 4),
        "a network that is a tensor": with_storage(legacy_storage(torch.zeros(4))),
        "a network that is a text": pickle.dumps({"G_ema": "text"}, 4),
        **{f"truncated at {tenth} tenths": sound[: len(sound) * tenth // 10] for tenth in range(1, 10)},
        "truncated by one byte": sound[:-1],
        **damaged_models,
    }  # fmt: skip
    paths = {}
    for index, (name, content) in enumerate(contents.items()):
        paths[name] = folder / f"{index:03d}.pkl"
        paths[name].write_bytes(content)
    paths["a folder"] = folder
    paths["nothing"] = folder / "nothing.pkl"
    return paths


def _colliding_keys(count: int) -> bytes:
    """Keys of one hash, and values: a dictionary of them takes quadratic time."""
    return b"".join(b"\x8a\x0b" + (index * (2**61 - 1)).to_bytes(11, "little") + b"N" for index in range(count))


def _network_value(keywords: bytes, modules: bytes = b"}") -> bytes:
    state = b"}(" + text("_modules") + modules + text("_init_args") + b")" + text("_init_kwargs") + keywords + b"u"
    entry = b"}(" + text("class_name") + text("Generator") + text("state") + state + b"u"
    return text("torch_utils.persistence") + text("_reconstruct_persistent_obj") + b"\x93" + entry + b"\x85R"


def _network(keywords: bytes) -> bytes:
    """A file whose network has these settings."""
    return b"\x80\x04}" + text("G") + _network_value(b"}" + text("z_dim") + keywords + b"s") + b"s."


def _zip_bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(50_000_000))
    return stream.getvalue()


def _torch_save() -> bytes:
    stream = io.BytesIO()
    torch.save({"G": torch.zeros(3)}, stream)
    return stream.getvalue()
