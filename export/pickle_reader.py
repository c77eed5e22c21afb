"""Reads a pickle without running anything in it.

Python's own unpickler imports what a file names and calls it; a checkpoint from a stranger can then do anything. Here a
machine of ours (`pickle_machine.py`) builds plain data, of what a table allows, and everything else is an error. The
file is memory-mapped, and arrays are views into it: nothing is copied.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from styleinv.export.pickle_machine import Machine
from styleinv.export.pickle_values import Budget, Builder, Global, MalformedError
from styleinv.runtime.errors import CheckpointError


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
