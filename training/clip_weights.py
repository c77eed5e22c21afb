"""Weights of clips: a text file that says which are to be seen more often than others, and which not at all.

A line is `name,weight`, as CSV has it (a name with a comma stands in double quotes), in UTF-8; the first line may be
that heading, and empty lines do not count. Names are those of `ClipSet.names`: the file of a video, the folder of
pictures, relative to the data. Weights are relative to each other and to the 1 of clips that are not listed; 0 leaves
a clip out. Weights are about drawing alone: a changed file decodes nothing anew.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from styleinv.runtime.errors import DataError

WEIGHTS_FILE = "weights.csv"  # in the folder of the data
_COLUMNS = ["name", "weight"]


def weights_of(path: Path, names: Sequence[str], file: Path | None = None) -> NDArray[np.float64]:
    """The weight of each clip at a path, float64 [clips]: from `file`, or else from the `weights.csv` of the folder;
    all 1 where the path has none (a zip and a single video never do).

    DataError as `read_weights`.
    """
    beside = path / WEIGHTS_FILE
    if file is None and not beside.is_file():
        return np.ones(len(names))
    return read_weights(beside if file is None else file, names)


def read_weights(file: Path, names: Sequence[str]) -> NDArray[np.float64]:
    """The weight of each of these clips, float64 [clips], 0 or more and at least one above.

    DataError, naming the line, for one that is no name and weight, a clip that is not among the names or listed twice,
    a weight that is negative or not finite; and for a file that cannot be read or leaves every clip out.
    """
    places = {name: place for place, name in enumerate(names)}
    weights = np.ones(len(names))
    lines: dict[str, int] = {}  # where a clip is listed
    for line, row in _rows(file):
        if len(row) != 2:
            raise DataError(f"{file}: line {line}: found {len(row)} values, expected 2, name,weight")
        name, written = row
        if name not in places:
            similar = [*difflib.get_close_matches(name, names, n=1), names[0]][0]
            raise DataError(
                f"{file}: line {line}: found the clip {name!r}, expected one of the data, such as {similar!r}"
            )
        if name in lines:
            raise DataError(f"{file}: line {line}: found {name!r} again, expected it once, as on line {lines[name]}")
        lines[name] = line
        weights[places[name]] = _weight(written, file, line)
    if not weights.any():
        raise DataError(f"{file}: found a weight of 0 for all of {len(names)} clips, expected at least one above 0")
    return weights


def _rows(file: Path) -> list[tuple[int, list[str]]]:
    """The lines of the file that count, with their numbers."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:  # spreadsheets put a mark at the start
            reader = csv.reader(stream, strict=True)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({error}), expected lines of name,weight") from error
    return rows[1:] if rows and rows[0][1] == _COLUMNS else rows


def _weight(written: str, file: Path, line: int) -> float:
    try:
        weight = float(written)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise DataError(f"{file}: line {line}: found the weight {written!r}, expected a number, 0 or more")
    return weight
