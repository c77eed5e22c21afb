"""Writes what was measured into the tuning tables of a device (see `tiles.py` for their form)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from styleinv.kernels import tiles
from styleinv.kernels.tiles import Layer

BOUNDS = ("inputs", "outputs", "height", "width")
NOTE = "Measured by `styleinv kernels tune`, an entry for each layer; milliseconds at batch 1."


def bounds_of(layer: Layer) -> dict[str, list[int]]:
    """The bounds of an entry that holds for this layer alone."""
    return {name: [size, size] for name, size in zip(BOUNDS, layer, strict=True)}


def write_entry(folder: Path, operator: str, dtype: str, device: str, layer: Layer, entry: dict[str, Any]) -> Path:
    """Puts an entry for a layer into its table, in place of an earlier one for the same layer, and returns the table.

    Entries for other layers stay; those for one layer stand before those for many, which would hide them. The file is
    replaced in one piece. Raises ValueError where the table cannot be read, OSError where it cannot be written.
    """
    file = folder / f"{operator}.{dtype}.{device}.json"
    note, entries = _read(file) if file.exists() else (NOTE, [])
    bounds = bounds_of(layer)
    others = [other for other in entries if _bounds(other) != bounds]
    entries = sorted([*others, bounds | entry], key=_order)
    lines = ",\n".join(f"    {json.dumps(one)}" for one in entries)
    text = f'{{\n  "note": {json.dumps(note)},\n  "entries": [\n{lines}\n  ]\n}}\n'
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=f".{file.name}.", delete=False) as stream:
        try:
            stream.write(text)
            stream.close()
            Path(stream.name).chmod(0o644)
            Path(stream.name).replace(file)
        except BaseException:
            Path(stream.name).unlink(missing_ok=True)
            raise
    tiles.table.cache_clear()
    return file


def _read(file: Path) -> tuple[str, list[dict[str, Any]]]:
    try:
        table = json.loads(file.read_text())
        return str(table["note"]), [dict(entry) for entry in table["entries"]]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: found {error!r}, expected a tuning table; move it away") from error


def _bounds(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in (*BOUNDS, "pixels") if name in entry}


def _order(entry: dict[str, Any]) -> tuple[Any, ...]:
    """Entries for one layer by its numbers; behind them the others, as they were."""
    bounds = _bounds(entry)
    exact = list(bounds) == list(BOUNDS) and all(least == most for least, most in bounds.values())
    return (0, *bounds.values()) if exact else (1,)
