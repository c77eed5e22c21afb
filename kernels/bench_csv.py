"""The CSV file of the kernels' benchmark: rows of each run, below those of earlier runs, never instead of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

Value = str | int | float | None  # None is what was not measured


def check_header(path: Path, columns: Sequence[str]) -> None:
    """Raises ValueError where there is a file at `path` that has other columns."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open(newline="", encoding="utf-8") as stream:
        found = next(csv.reader(stream), [])
    if found != list(columns):
        different = sorted(set(found) ^ set(columns))
        raise ValueError(
            f"{path}: header: found other columns than expected, those of this benchmark in their order "
            f"(not in both: {', '.join(different) or 'none'}); give a new file"
        )


def append_rows(path: Path, rows: Sequence[Mapping[str, Value]]) -> None:
    """Writes rows, which all have the same columns, below those that are there, in one piece; the header first, where
    there is none.

    Raises ValueError as `check_header`; OSError where the file cannot be written.
    """
    check_header(path, list(rows[0]))
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    if not path.exists() or path.stat().st_size == 0:
        lines.writerow(rows[0])
    for row in rows:
        lines.writerow(f"{value:.5g}" if isinstance(value, float) else value for value in row.values())
    with path.open("ab") as stream:
        stream.write(text.getvalue().encode())
