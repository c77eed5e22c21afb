"""A machine for the instructions of a pickle that only builds data.

A name in a pickle (a 'global') is never imported: it is looked up in a table of builders, small functions of ours, and
is an error where it is not there. Sizes are checked before anything is read or kept, so work and memory are bounded by
the size of the file and by the limits here and in `Budget`, whatever the file claims.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from styleinv.export.pickle_values import Budget, Builder, Global, Instance, LongText, MalformedError

LONGEST_TEXT = 1 << 20  # bytes of one string; the source text in a checkpoint is about 50,000
LONGEST_INTEGER = 16  # bytes
LONGEST_LINE = 1 << 12  # bytes, of the instructions that are text
LARGE = 1 << 8  # bytes from which data stays a view into the file
LARGEST_KEY = 1 << 60  # of whole numbers in dictionaries and sets; larger ones can be made to collide


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
            if self.position >= len(self.data):
                raise MalformedError(f"byte {self.position}: found the end of the data: truncated") from None
            raise MalformedError(f"byte {self.position}: found damaged data: {type(error).__name__}: {error}") from None
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
        return self._take(1)[0]

    def _take(self, count: int) -> tuple[Any, ...]:
        """The topmost values, lowest first."""
        height = len(self._stack) - count
        if height < (self._marks[-1] if self._marks else 0):
            raise MalformedError(f"byte {self.position}: found too few values, expected {count} above the last mark")
        values = tuple(self._stack[height:])
        del self._stack[height:]
        return values

    def _pop_to_mark(self) -> list[Any]:
        height = self._marks.pop()
        values = self._stack[height:]
        del self._stack[height:]
        return values

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
    """The key of a dictionary, or member of a set, where it is a text or a number; else MalformedError.

    Anything deeper could exhaust the stack when it is hashed.
    """
    if isinstance(key, str) or key is None or (isinstance(key, int) and -LARGEST_KEY < key < LARGEST_KEY):
        return key
    raise MalformedError(f"found {_shown(key)} as a key, expected a text or a whole number")


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
