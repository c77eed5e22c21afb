"""The CSV files of `styleinv bench`: rows of each run, below those of earlier runs, never instead of them."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import io
import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from styleinv.export.bench import Result, macs_per_frame
from styleinv.export.bench_playing import jitter, percentile
from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.machine import Machine

if TYPE_CHECKING:  # it imports torch
    from styleinv.export.bench_baseline import Baseline

Value = str | int | float | None  # None is what was not measured, or is not known
Column = Callable[[Result, Machine], Value]


def _frame_ms(percent: float) -> Column:
    return lambda result, _: percentile(result.played.milliseconds, percent)


def _part(name: str) -> Column:
    return lambda result, _: result.played.parts().get(name)


def _provenance(name: str) -> Column:
    return lambda result, _: str(result.bundle.manifest["provenance"].get(name, ""))


def _version(distribution: str) -> Column:
    return lambda *_: importlib.metadata.version(distribution)


def _baseline(value: Callable[[Baseline], Value]) -> Column:
    return lambda result, _: None if result.baseline is None else value(result.baseline)


def _fastest(result: Result, name: str) -> Value:
    return None if isinstance(result.convolutions, str) else getattr(result.convolutions, name)


COLUMNS: dict[str, Column] = {
    "date": lambda *_: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "bundle": lambda result, _: result.bundle.path.name,
    "checkpoint": _provenance("checkpoint"),
    "preset": _provenance("preset"),
    "resolution_pixels": lambda result, _: int(result.bundle.generator["resolution"]),
    "engine": lambda result, _: result.played.engine,
    "session": lambda result, _: result.played.session,
    "precision": lambda result, _: result.settings.precision,
    "threads": lambda result, _: result.settings.threads or "default",
    "batch": lambda result, _: result.settings.batch,
    "latent_stride": lambda result, _: result.played.latent_stride,
    "seed": lambda result, _: result.settings.seed,
    "warmup_frames": lambda result, _: result.played.warmup,
    "timed_frames": lambda result, _: result.played.frames,
    "frame_ms_p50": _frame_ms(50),
    "frame_ms_p95": _frame_ms(95),
    "frame_ms_p99": _frame_ms(99),
    "frame_ms_max": _frame_ms(100),
    "frames_per_s": lambda result, _: result.played.frames_per_second,
    "jitter_ms": lambda result, _: jitter(result.played.milliseconds),
    "latent_ms": _part("latent"),
    "synthesis_ms": _part("synthesis"),
    "host_ms": _part("host"),
    "cold_start_s": lambda result, _: result.start.median_seconds,
    "cold_starts": lambda result, _: len(result.start.seconds),
    "hashes_verified": lambda result, _: "yes" if result.settings.verify_hashes else "no",
    "peak_memory_mib": lambda result, _: result.start.peak_memory_mib,
    "peak_memory_frames": lambda result, _: result.start.memory_frames,
    "multiply_accumulates_per_frame": lambda result, _: macs_per_frame(
        result.bundle.manifest, result.played.latent_stride
    ),
    "gmac_per_s": lambda result, _: result.gmac_per_s,
    "fastest_convolutions_gmac_per_s": lambda result, _: _fastest(result, "gmac_per_s"),
    "fastest_convolutions_by": lambda result, _: _fastest(result, "by"),
    "share_of_peak": lambda result, _: result.share_of_peak,
    "alternated_frames": _baseline(lambda baseline: baseline.frames),
    "alternated_frame_ms_p50": _baseline(lambda baseline: percentile(baseline.ours, 50)),
    "eager_frame_ms_p50": _baseline(lambda baseline: percentile(baseline.eager, 50)),
    "eager_cached_frame_ms_p50": _baseline(
        lambda baseline: None if baseline.cached is None else percentile(baseline.cached, 50)
    ),
    "speedup_vs_eager": _baseline(lambda baseline: baseline.speedup_vs_eager),
    "speedup_vs_eager_cached": _baseline(lambda baseline: baseline.speedup_vs_eager_cached),
    "psnr_db": _baseline(lambda baseline: "identical" if math.isinf(baseline.psnr_db) else baseline.psnr_db),
    "eager_threads": _baseline(lambda baseline: baseline.threads),
    "torch": _baseline(lambda baseline: baseline.torch),
    "styleinv": _version("styleinv"),
    "numpy": _version("numpy"),
    "python": lambda *_: platform.python_version(),
    "processor": lambda _, machine: machine.processor,
    "logical_cores": lambda _, machine: machine.logical_cores,
    "instruction_sets": lambda _, machine: machine.instruction_sets,
    "memory_gib": lambda _, machine: machine.memory_gib,
    "system": lambda _, machine: machine.system,
    "load_average_before": lambda _, machine: machine.load_average,
}


def as_row(result: Result, machine: Machine) -> dict[str, Value]:
    """Settings, what was measured, versions and machine, by the names of the columns."""
    return {name: column(result, machine) for name, column in COLUMNS.items()}


def check_header(path: Path, columns: Iterable[str] = COLUMNS) -> None:
    """Raises StyleInVError where there is a file at `path` that has other columns."""
    if not path.exists() or path.stat().st_size == 0:
        return
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            found = next(csv.reader(stream), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise StyleInVError(f"{path}: header: found {error}, expected a CSV file") from error
    if found != list(columns):
        different = sorted(set(found) ^ set(columns))
        raise StyleInVError(
            f"{path}: header: found other columns than expected, those of `styleinv bench` in their order "
            f"(not in both: {', '.join(different) or 'none'}); give a new file"
        )


def append_rows(path: Path, rows: Sequence[Mapping[str, Value]]) -> None:
    """Writes rows, which all have the same columns, below those that are there, in one piece; the header first, where
    there is none.

    Raises StyleInVError as `check_header`; OSError where the file cannot be written.
    """
    check_header(path, rows[0])
    before = path.read_bytes() if path.exists() else b""
    text = io.StringIO()
    if before and not before.endswith(b"\n"):
        text.write("\n")
    lines = csv.writer(text, lineterminator="\n")
    if not before:
        lines.writerow(rows[0])
    for row in rows:
        lines.writerow(f"{value:.5g}" if isinstance(value, float) else value for value in row.values())
    with path.open("ab") as stream:
        stream.write(text.getvalue().encode())
