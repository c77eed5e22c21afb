"""Reads a pickle without running anything in it: a small machine for the format's instructions that only builds data.

Python's own unpickler imports what a file names and calls it; a checkpoint from a stranger can then do anything. Here
a name (a 'global') is never imported: a table says which names may occur and what plain value each stands for, and
everything else is an error. The file is memory-mapped, and arrays are views into it: nothing is copied.

The same machine reads the streams inside, in which torch keeps each storage. Work and memory are bounded by the size of
the file and by the limits below, whatever the file claims.
"""

from __future__ import annotations

import mmap
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from styleinv.runtime.errors import CheckpointError

MOST_INSTRUCTIONS = 600_000  # of a whole file; a trained model of 70 million weights takes about 110,000
LONGEST_TEXT = 1 << 20  # bytes of one string; the source text in a checkpoint is about 50,000
MOST_TEXT = 16 << 20  # bytes of all strings together
LONGEST_INTEGER = 16  # bytes
LONGEST_LINE = 1 << 12  # bytes, of the instructions that are text
LARGE = 1 << 8  # bytes from which data stays a view into the file

KEYS = (str, int, float, bool, type(None))  # of dictionaries; hashing anything deeper can exhaust the stack


class MalformedError(Exception):
    """What is wrong with a file, in words; `read_pickle` adds which file."""


@dataclass(frozen=True)
class Global:
    """A name in a file, such as collections.OrderedDict. It is only a name: nothing was imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Instance:
    """An object of a class that a file names: the class, what it was made from and its attributes."""

    kind: Global
    arguments: tuple[Any, ...] = ()
    state: Any = None


@dataclass(frozen=True)
class LongText:
    """A string too long for text: data that an old protocol writes as text. UTF-8."""

    data: memoryview


Builder = Callable[..., Any]  # what a global stands for: takes the arguments in the file, gives a value


@dataclass
class Budget:
    """What a file may still spend; the streams inside share their file's."""

    instructions: int = MOST_INSTRUCTIONS
    text: int = MOST_TEXT  # bytes
    data: int = 0  # bytes that may be copied out of the file

    def spend(self, *, instructions: int = 0, text: int = 0, data: int = 0) -> None:
        self.instructions -= instructions
        self.text -= text
        self.data -= data
        if self.instructions < 0:
            raise MalformedError(f"found more than {MOST_INSTRUCTIONS} instructions, expected a checkpoint's few")
        if self.text < 0:
            raise MalformedError(f"found more than {MOST_TEXT} bytes of text, expected a checkpoint's few")
        if self.data < 0:
            raise MalformedError("found more data than the file has bytes: the same data is decoded again and again")


def read_pickle(path: str | Path, builders: Callable[[Budget], Mapping[Global, Builder]]) -> Any:
    """The value in a pickle file, of plain data and of what `builders` make.

    Args:
        builders: for the file's budget, what may occur by name, and the function that gives the value of a call of it.
    Raises: CheckpointError where the file is not a pickle, is damaged, or names anything else.
    """
    path = Path(path)
    data = _map(path)
    budget = Budget(data=len(data))
    try:
        _check_magic(data)
        machine = Machine(data, builders(budget), budget)
        value = machine.run()
        if machine.position != len(data):
            raise MalformedError(f"found {len(data) - machine.position} bytes behind the end, expected none")
    except MalformedError as error:
        raise CheckpointError(f"{path}: {error}; nothing in the file was executed") from None
    except RecursionError:
        raise CheckpointError(f"{path}: found values nested too deeply; nothing in the file was executed") from None
    return value


def _map(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file, expected a checkpoint") from None
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise CheckpointError(f"{path}: found {error}, expected a readable checkpoint") from None


def _check_magic(data: memoryview) -> None:
    if bytes(data[:1]) == b"\x80":
        return
    known = {b"PK": "a zip archive, such as torch.save writes", b"\x1f\x8b": "gzip-compressed data: unpack it first"}
    found = known.get(bytes(data[:2]), f"the first bytes {bytes(data[:4])!r}")
    raise MalformedError(f"found {found}, expected a pickle of protocol 2 or newer")


class Machine:
    """Runs the instructions of one pickle in `data` from `position` on; leaves `position` behind its end."""

    def __init__(
        self,
        data: memoryview,
        builders: Mapping[Global, Builder],
        budget: Budget,
        position: int = 0,
        persistent: Builder | None = None,
    ) -> None:
        self.data = data
        self.position = position
        self._builders = builders
        self._budget = budget
        self._persistent = persistent  # what a persistent identifier stands for, in streams that have them
        self._stack: list[Any] = []
        self._marks: list[int] = []  # heights of the stack
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        try:
            while self._budget.instructions > 0:  # counted here and not by `spend`: this is the inner loop
                self._budget.instructions -= 1
                step = STEPS[self.data[self.position]]
                if step is None:
                    raise MalformedError(f"byte {self.position}: found no instruction that checkpoints use")
                self.position += 1
                read_argument, action = step
                argument = read_argument(self) if read_argument is not None else None
                if action is None:
                    return self._pop()
                action(self, argument)
        except (ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError) as error:
            raise MalformedError(
                f"byte {self.position}: found damaged data ({type(error).__name__}: {error})"
            ) from None
        self._budget.spend(instructions=1)
        raise AssertionError("the budget was spent")

    # ---- the bytes ----

    def _read(self, size: int) -> memoryview:
        end = self.position + size
        if size < 0 or end > len(self.data):
            raise MalformedError(
                f"byte {self.position}: found the end of the data, expected {size} bytes more: truncated"
            )
        view = self.data[self.position : end]
        self.position = end
        return view

    def _sized(self, bytes_of_size: int) -> memoryview:
        """The data behind a size; the size is checked before anything is kept."""
        return self._read(int.from_bytes(self._read(bytes_of_size), "little"))

    def _text(self, bytes_of_size: int) -> str | LongText:
        data = self._sized(bytes_of_size)
        if len(data) > LONGEST_TEXT:
            return LongText(data)
        self._budget.spend(text=len(data))
        return str(data, "utf-8", "surrogatepass")

    def _data(self, bytes_of_size: int) -> bytes | memoryview:
        data = self._sized(bytes_of_size)
        return data if len(data) >= LARGE else bytes(data)

    def _integer(self, bytes_of_size: int) -> int:
        data = self._sized(bytes_of_size)
        if len(data) > LONGEST_INTEGER:
            raise MalformedError(f"byte {self.position}: found an integer of {len(data)} bytes, expected fewer")
        return int.from_bytes(data, "little", signed=True)

    def _byte(self) -> int:
        byte = self.data[self.position]
        self.position += 1
        return byte

    def read(self, size: int) -> bytes:
        """As of a file, for the readers of the standard library, which take a few bytes at a time."""
        return bytes(self._read(size))

    def readline(self) -> bytes:
        """As of a file; lines of a pickle are short."""
        line = bytes(self.data[self.position : self.position + LONGEST_LINE])
        line = line[: line.find(b"\n") + 1]
        self.position += len(line)
        return line

    # ---- the stack ----

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if self._marks and self._marks[-1] == len(self._stack):
            raise MalformedError(f"byte {self.position}: found a mark, expected a value")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        height = self._marks.pop()
        values = self._stack[height:]
        del self._stack[height:]
        return values

    def _take(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self._pop() for _ in range(count)]))

    def _store(self, key: int | None) -> None:
        self._memo[len(self._memo) if key is None else key] = self._stack[-1]

    # ---- the objects ----

    def _global(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise MalformedError(f"byte {self.position}: found a global that is not named by texts")
        found = Global(module, name)
        if found not in self._builders:
            raise MalformedError(
                f"byte {self.position}: found the global {module[:200]}.{name[:200]}, "
                "expected only those of tensors, containers, settings and networks"
            )
        self._push(found)

    def _call(self, function: Any, arguments: Any) -> None:
        if not (isinstance(function, Global) and isinstance(arguments, tuple)):
            raise MalformedError(f"byte {self.position}: found a call of {_shown(function)}, expected one of a global")
        self._push(self._builders[function](*arguments))

    def _build(self) -> None:
        state = self._pop()
        target = self._stack[-1]
        if not isinstance(target, Instance) or target.state is not None or not isinstance(state, (dict, tuple)):
            raise MalformedError(
                f"byte {self.position}: found a state of {_shown(target)}, expected one of an object without state"
            )
        target.state = state

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise MalformedError(
                f"byte {self.position}: found items of {_shown(target)}, expected pairs for a dictionary"
            )
        target.update(zip(map(checked_key, items[::2]), items[1::2], strict=True))

    def _dictionary(self, items: list[Any]) -> None:
        self._push({})
        self._set_items(items)

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise MalformedError(f"byte {self.position}: found items of {_shown(target)}, expected them for a list")
        target.extend(items)

    def _add_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, set):
            raise MalformedError(f"byte {self.position}: found items of {_shown(target)}, expected them for a set")
        target.update(map(checked_key, items))

    def _identify(self) -> None:
        if self._persistent is None:
            raise MalformedError(f"byte {self.position}: found a persistent identifier, expected none here")
        self._push(self._persistent(self._pop()))


def checked_key(key: Any) -> Any:
    """The key of a dictionary, or member of a set, where it is a plain value; else MalformedError."""
    if not isinstance(key, KEYS):
        raise MalformedError(f"found {_shown(key)} as a key, expected a text or a number")
    return key


def _shown(value: Any) -> str:
    """What a value is, in few words; never its content, which can be huge."""
    if isinstance(value, Global):
        return f"the global {value.module[:200]}.{value.name[:200]}"
    return f"a value of type {type(value).__name__}"


def _pushing(value: Callable[[], Any]) -> Action:
    return lambda machine, _: machine._stack.append(value())


def _tuple(count: int) -> Action:
    return lambda machine, _: machine._push(machine._take(count))


def _global_line(machine: Machine, argument: Any) -> None:
    module, _, name = argument.partition(" ")
    machine._global(module, name)


# Instructions followed by a size and that much data: the function that reads it, and the bytes of the size.
SIZED: dict[str, tuple[Callable[[Machine, int], Any], int]] = {
    "SHORT_BINBYTES": (Machine._data, 1),
    "BINBYTES": (Machine._data, 4),
    "BINBYTES8": (Machine._data, 8),
    "SHORT_BINUNICODE": (Machine._text, 1),
    "BINUNICODE": (Machine._text, 4),
    "BINUNICODE8": (Machine._text, 8),
    "LONG1": (Machine._integer, 1),
    "LONG4": (Machine._integer, 4),
}

# What each instruction does, with its argument. Those that are not here are refused: INST, OBJ, EXT1, PERSID ...
Action = Callable[[Machine, Any], object]
ACTIONS: dict[str, Action] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(
        (*SIZED, "INT", "BININT", "BININT1", "BININT2", "LONG", "FLOAT", "BINFLOAT", "UNICODE"),
        Machine._push,
    ),
    "NONE": _pushing(lambda: None),
    "NEWTRUE": _pushing(lambda: True),
    "NEWFALSE": _pushing(lambda: False),
    "EMPTY_TUPLE": _pushing(tuple),
    "EMPTY_LIST": _pushing(list),
    "EMPTY_DICT": _pushing(dict),
    "EMPTY_SET": _pushing(set),
    "MARK": lambda machine, _: machine._marks.append(len(machine._stack)),
    "POP": lambda machine, _: machine._pop(),
    "POP_MARK": lambda machine, _: machine._pop_to_mark(),
    "DUP": lambda machine, _: machine._push(machine._stack[-1]),
    "TUPLE": lambda machine, _: machine._push(tuple(machine._pop_to_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "LIST": lambda machine, _: machine._push(machine._pop_to_mark()),
    "DICT": lambda machine, _: machine._dictionary(machine._pop_to_mark()),
    "APPEND": lambda machine, _: machine._extend([machine._pop()]),
    "APPENDS": lambda machine, _: machine._extend(machine._pop_to_mark()),
    "SETITEM": lambda machine, _: machine._set_items(list(machine._take(2))),
    "SETITEMS": lambda machine, _: machine._set_items(machine._pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine._add_items(machine._pop_to_mark()),
    "MEMOIZE": lambda machine, _: machine._store(None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), Machine._store),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, key: machine._push(machine._memo[key])),
    "GLOBAL": _global_line,
    "STACK_GLOBAL": lambda machine, _: machine._global(*machine._take(2)),
    "REDUCE": lambda machine, _: machine._call(*machine._take(2)),
    "NEWOBJ": lambda machine, _: machine._call(*machine._take(2)),
    "BUILD": lambda machine, _: machine._build(),
    "BINPERSID": lambda machine, _: machine._identify(),
}


Step = tuple[Callable[[Machine], Any] | None, Action | None]  # how to read the argument, what to do; None: stop


def _step(instruction: pickletools.OpcodeInfo) -> Step | None:
    name = instruction.name
    if name == "STOP":
        return None, None
    if name not in ACTIONS:
        return None
    if name in SIZED:
        read, size = SIZED[name]
        return lambda machine: read(machine, size), ACTIONS[name]
    if instruction.arg is None:
        return None, ACTIONS[name]
    if instruction.arg.n == 1:
        return Machine._byte, ACTIONS[name]
    reader: Any = instruction.arg.reader
    return reader, ACTIONS[name]


STEPS: list[Step | None] = [None] * 256
for _instruction in pickletools.opcodes:
    STEPS[ord(_instruction.code)] = _step(_instruction)
