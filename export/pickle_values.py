"""What a pickle is made of once it is read, and what reading it may cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MOST_INSTRUCTIONS = 500_000  # of a whole file; a generator and an encoder of 70 million weights take 110,000
MOST_TEXT = 16 << 20  # bytes of all strings together


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
