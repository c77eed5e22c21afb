"""The table compiled.csv: what each kernel of a synthesis network takes of each GPU, compiled without one.

A row is a kernel of a call, tuned for a device and compiled for a target, the compute capability of a GPU. `aot.py`
makes the table anew; this file reads it, without Triton.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from styleinv.kernels.plan import Call
from styleinv.kernels.tiles import TABLES

TABLE = Path(__file__).with_name("compiled.csv")
SOURCES = ("convolution.py", "to_rgb.py", "adain.py", "style.py")  # where kernels are
COMMAND = "python -m styleinv.kernels.aot --write"


@dataclass(frozen=True)
class Row:
    """One kernel.

    Args:
        inputs, outputs, height, width: the layer, see `plan.Call`; of style_demod the sizes of w and of all styles.
        variant: which optional operands it has: 'styled', 'next_styled'.
        device: whose tuning tables its tile is from.
        constants: what it is compiled with, its tile among them.
        registers, spilled: of a thread; spilled in bytes.
        shared: bytes of a block.
        occupancy: resident warps of the most that a multiprocessor holds.
        bytes, flops: at batch 1.
        intensity: flops / bytes.
        source: `source_hash`.
    """

    kernel: str
    operator: str
    dtype: str
    inputs: int
    outputs: int
    height: int
    width: int
    variant: str
    target: int
    device: str
    constants: str
    warps: int
    stages: int
    registers: int
    spilled: int
    shared: int
    occupancy: float
    instruction: str
    bytes: int
    flops: int
    intensity: float
    triton: str
    source: str


def read(table: Path = TABLE) -> list[Row]:
    """The rows of a table. Raises ValueError where it has other columns, OSError where it cannot be read."""
    names = [field.name for field in fields(Row)]
    kinds = [{"str": str, "int": int, "float": float}[str(field.type)] for field in fields(Row)]
    header, *lines = list(csv.reader(io.StringIO(table.read_text(encoding="utf-8")))) or [[]]
    if header != names:
        raise ValueError(
            f"{table}: found columns {', '.join(header)}, expected {', '.join(names)}; make it anew with `{COMMAND}`"
        )
    return [Row(*(kind(text) for kind, text in zip(kinds, line, strict=True))) for line in lines]


def as_csv(rows: Iterable[Row]) -> str:
    """The text of a table."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Row))
    writer.writerows(astuple(row) for row in rows)
    return text.getvalue()


def variant(call: Call) -> str:
    """Which of its optional operands a call has, as a table says it."""
    return " ".join(name for name in ("styled", "next_styled") if getattr(call, name))


def is_stale(rows: Iterable[Row]) -> bool:
    """Whether rows were made of other kernels or tuning tables than these."""
    return any(source != source_hash(triton) for triton, source in {(row.triton, row.source) for row in rows})


def source_hash(triton: str, folder: Path = TABLES.parent) -> str:
    """Of the kernels' sources, the tuning tables and a version of Triton: 16 hexadecimal digits of their SHA-256."""
    digest = hashlib.sha256(triton.encode())
    for file in [*(folder / name for name in SOURCES), *sorted((folder / TABLES.name).glob("*.json"))]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()[:16]
