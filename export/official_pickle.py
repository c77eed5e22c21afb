"""What may occur in the pickles of StyleGAN2-ADA and StyleInV, and the plain value that each of it becomes.

Networks and settings become `Instance`s, tensors read-only numpy arrays that are views into the file, scalars numbers.
Nothing here imports torch or what a file names.

A tensor's data lies in a stream within the pickle, as torch.save wrote it before it used zip archives: four pickles
(magic number, protocol, system, the storage by a persistent identifier), a list of keys, then the count and the data.
"""

from __future__ import annotations

import codecs
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from styleinv.export.pickle_machine import Machine, checked_key
from styleinv.export.pickle_reader import read_pickle
from styleinv.export.pickle_values import Budget, Builder, Global, Instance, LongText, MalformedError

Array = npt.NDArray[Any]

STORAGE_MAGIC = 0x1950A86A20F9469CFC6C
STORAGE_PROTOCOL = 1001
STORAGE_TYPES: dict[str, np.dtype[Any]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
SCALAR_TYPES = ("f4", "f8", "i4", "i8", "u1", "b1")
MOST_DIMENSIONS = 8
PIECE = 1 << 20  # bytes of a long text that are decoded at a time
NETWORK = Global("torch_utils.persistence", "_reconstruct_persistent_obj")

MARKERS = ("typing.Any", "builtins.dict", "builtins.list", "builtins.int")  # types as values; nothing calls them
TORCH_MODULES = (
    "container.Sequential", "container.ModuleList", "conv.Conv2d", "batchnorm.BatchNorm2d", "linear.Linear",
    "instancenorm.InstanceNorm2d", "activation.PReLU", "activation.ReLU", "activation.Sigmoid", "activation.LeakyReLU",
    "pooling.AdaptiveAvgPool2d", "pooling.MaxPool2d", "sparse.Embedding",  # the last one in discriminators of clips
)  # fmt: skip
SETTINGS = (
    "dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata", "nodes.AnyNode",
)  # fmt: skip
OLD_SPELLINGS = {  # what Python 2 and older numpy call the same things
    "builtins": ("__builtin__",),
    "numpy._core.multiarray": ("numpy.core.multiarray",),
}


def read_official(path: str | Path) -> Any:
    """The value in a checkpoint of the authors'. Raises CheckpointError as `read_pickle`."""
    return read_pickle(path, official_builders)


def official_builders(budget: Budget) -> dict[Global, Builder]:
    """Every global that may occur, and what a call of it gives."""
    table: dict[str, Builder] = {
        "collections.OrderedDict": _empty,
        "collections.defaultdict": lambda _factory=None: {},
        "dnnlib.util.EasyDict": _empty,
        "builtins.set": lambda items=(): _key_set(items, budget),
        "_codecs.encode": lambda text, encoding: _encode(text, encoding, budget),
        "numpy.dtype": lambda *arguments: Instance(Global("numpy", "dtype"), arguments),
        "numpy._core.multiarray.scalar": _scalar,
        "torch.storage._load_from_bytes": lambda data: _storage(data, budget),
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": lambda data, _requires_grad, _hooks: data,
    }
    builders = {_global(name): builder for name, builder in table.items()}
    instances = [
        str(NETWORK),
        *(f"torch.nn.modules.{name}" for name in TORCH_MODULES),
        *(f"omegaconf.{name}" for name in SETTINGS),
    ]
    builders |= {_global(name): _instance(_global(name)) for name in instances}
    builders |= {_global(name): _refuse_call for name in (*MARKERS, "builtins.long")}  # Python 2's name of int
    for kind, builder in list(builders.items()):
        for module in OLD_SPELLINGS.get(kind.module, ()):
            builders[Global(module, kind.name)] = builder
    return builders


def _global(name: str) -> Global:
    module, _, attribute = name.rpartition(".")
    return Global(module, attribute)


def _instance(kind: Global) -> Builder:
    return lambda *arguments: Instance(kind, arguments)


def _refuse_call(*_: Any) -> None:
    raise MalformedError("found a call of a type, expected types as values only")


def _empty() -> dict[Any, Any]:
    """Items follow by instructions of their own; a copy of other items here could be asked for again and again."""
    return {}


def _key_set(items: Any, budget: Budget) -> set[Any]:
    budget.spend(instructions=len(items))
    return {checked_key(item) for item in items}


def _encode(text: Any, encoding: Any, budget: Budget) -> bytes:
    """Bytes as protocol 2 stores them: each as the character of that number."""
    if encoding != "latin1" or not isinstance(text, (str, LongText)):
        raise MalformedError("found _codecs.encode in an unknown form, expected a text and 'latin1'")
    if isinstance(text, str):
        budget.spend(data=len(text))
        return text.encode("latin1")
    budget.spend(data=len(text.data))
    decoder = codecs.getincrementaldecoder("utf-8")()
    pieces = (text.data[start : start + PIECE] for start in range(0, len(text.data), PIECE))
    # Piece by piece: one character outside latin1 would make four bytes of each of a whole long text's.
    return b"".join(decoder.decode(piece).encode("latin1") for piece in pieces)


def _scalar(kind: Any, data: Any) -> float | int | bool:
    if not (isinstance(kind, Instance) and kind.kind.name == "dtype" and kind.arguments[:1]):
        raise MalformedError("found a numpy scalar without a type")
    name = kind.arguments[0]
    if name not in SCALAR_TYPES:
        raise MalformedError(f"found a numpy scalar of an unknown type, expected one of {', '.join(SCALAR_TYPES)}")
    order = kind.state[1] if isinstance(kind.state, tuple) and len(kind.state) > 1 else "<"
    dtype = np.dtype(name).newbyteorder(order if order in ("<", ">", "|") else "<")
    if len(data) != dtype.itemsize:
        raise MalformedError(f"found a numpy scalar of {len(data)} bytes, expected {dtype.itemsize}")
    number: float | int | bool = np.frombuffer(data, dtype)[0].item()
    return number


STORAGE_BUILDERS = {Global("torch", name): _refuse_call for name in STORAGE_TYPES}


@dataclass(frozen=True)
class Storage:
    """The numbers behind one or more tensors, one-dimensional."""

    numbers: Array


def _storage(data: Any, budget: Budget) -> Storage:
    if not isinstance(data, (bytes, memoryview)):
        raise MalformedError(f"found a storage in a value of type {type(data).__name__}, expected bytes")
    view = memoryview(data)
    machine = Machine(view, STORAGE_BUILDERS, budget, persistent=_identified)
    values = []
    for _ in range(5):
        values.append(machine.run())
        machine = Machine(view, STORAGE_BUILDERS, budget, machine.position, _identified)
    magic, protocol, system, storage, keys = values
    if magic != STORAGE_MAGIC or protocol != STORAGE_PROTOCOL:
        raise MalformedError("found a storage that does not begin as torch.save's do: wrong magic number or protocol")
    if not (isinstance(system, dict) and system.get("little_endian") is True):
        raise MalformedError("found a storage of a big-endian machine, expected little-endian numbers")
    if not isinstance(storage, _Identifier) or keys != [storage.key]:
        raise MalformedError("found a storage stream that does not hold exactly one storage")
    rest = view[machine.position :]
    count = int.from_bytes(rest[:8], "little", signed=True)
    if count != storage.count or len(rest) != 8 + count * storage.dtype.itemsize:
        raise MalformedError(
            f"found a storage that claims {storage.count} numbers and holds {max(0, len(rest) - 8)} bytes: truncated"
        )
    return Storage(np.frombuffer(rest[8:], storage.dtype))


@dataclass(frozen=True)
class _Identifier:
    """What a stream says of its storage. Where it lay, such as cuda:0, does not matter."""

    dtype: np.dtype[Any]
    key: str
    count: int


def _identified(identifier: Any) -> _Identifier:
    kind, storage_type, key, _location, count, *view = identifier
    if kind != "storage" or not isinstance(storage_type, Global) or any(part is not None for part in view):
        raise MalformedError("found a persistent identifier that is not a whole storage")
    if not isinstance(key, str) or not isinstance(count, int) or count < 0:
        raise MalformedError("found a storage without a key or a size")
    return _Identifier(STORAGE_TYPES[storage_type.name], key, count)


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, _requires_grad: Any = None, _hooks: Any = None, _more: Any = None
) -> Array:
    """A view of a storage; one that reaches beyond it, or repeats its numbers, is refused."""
    if not isinstance(storage, Storage):
        raise MalformedError(f"found a tensor over a value of type {type(storage).__name__}, expected a storage")
    whole = all(
        isinstance(values, tuple) and all(type(value) is int and value >= 0 for value in values)
        for values in (size, stride, (offset,))
    )
    if not whole or len(size) != len(stride) or len(size) > MOST_DIMENSIONS:
        raise MalformedError("found a tensor whose size, stride or offset are not whole numbers")
    count = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if count else offset
    if count > len(storage.numbers) or (count and last >= len(storage.numbers)):
        raise MalformedError(
            f"found a tensor of size {list(size)}, expected it within its {len(storage.numbers)} numbers"
        )
    numbers = storage.numbers[offset:]
    itemsize = numbers.dtype.itemsize
    return np.lib.stride_tricks.as_strided(numbers, size, [step * itemsize for step in stride], writeable=False)
