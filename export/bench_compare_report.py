"""What `styleinv bench --compare` tells: a table for people, rows of a CSV file and JSON for machines."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import platform
from typing import Any

import torch

from styleinv.export.bench_compare import Comparison, Timed
from styleinv.export.bench_csv import Value
from styleinv.export.bench_playing import percentile
from styleinv.runtime.machine import Machine, cuda_driver_version, nvidia_gpus

PERCENTILES = (20, 50, 80, 95)
HEADER = ("way", "precision", *(f"p{percent} ms" for percent in PERCENTILES),
          "frames/s", "x eager", "PSNR dB", "first frame s")  # fmt: skip
LEFT = 2  # columns that are words

# The columns of the CSV file. It is a file of its own: `styleinv bench` without --compare measures other things.
COLUMNS = (
    "date", "bundle", "checkpoint", "preset", "resolution_pixels", "way", "precision", "by", "device", "outcome",
    "threads", "batch", "seed", "timed_frames", *(f"frame_ms_p{percent}" for percent in PERCENTILES), "frames_per_s",
    "times_eager", "psnr_db", "first_frame_s", "gpu", "gpu_memory", "compute_capability", "gpu_driver", "cuda_driver",
    "cuda_torch", "torch", "styleinv", "numpy", "python", "processor", "logical_cores", "instruction_sets",
    "memory_gib", "system", "load_average_before",
)  # fmt: skip


def as_table(comparison: Comparison, machine: Machine) -> str:
    """A line for each way; then what each is, which cannot be had and why, and how it was counted."""
    settings, bundle = comparison.settings, comparison.bundle
    lines = [HEADER, *(_cells(comparison, timed) for timed in comparison.timed)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join(
            cell.ljust(width) if number < LEFT else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    failed = [f"  {_title(way)}: failed: {way.failure}" for way in comparison.timed if way.failure is not None]
    known = [f"  {_title(way)}: {way.by}" for way in comparison.timed]
    missing = [f"  {name}, {precision}: {reason}" for (name, precision), reason in comparison.missing.items()]
    sections = {"which failed": failed, "what they are": known, "not compared": missing}
    resolution = bundle.generator["resolution"]
    counted = (
        f"{max((len(way.times) for way in comparison.timed), default=0) * settings.batch} frames of each way, in "
        f"turns, batch {settings.batch}, seed {settings.seed}; bytes in the host's memory; fp32 without TensorFloat-32"
    )
    if settings.batch > 1:
        counted += f"; a frame's time is its batch's divided by {settings.batch}"
    return "\n".join(
        [
            f"{bundle.path}: {resolution}x{resolution}, on {_where(comparison, machine)}",
            *aligned,
            *(line for title, found in sections.items() if found for line in ("", title, *found)),
            "",
            counted,
        ]
    )


def _cells(comparison: Comparison, timed: Timed) -> tuple[str, ...]:
    start = f"{timed.first_frame_s:.2f}"
    if not timed.times:
        return (timed.name, timed.precision, *["failed"] * len(PERCENTILES), "", "", "", start)
    times = [f"{percentile(timed.milliseconds, percent):.2f}" for percent in PERCENTILES]
    faster, psnr = comparison.times_eager(timed), _psnr(timed)
    return (
        timed.name,
        timed.precision,
        *times,
        f"{1000 / timed.milliseconds.mean():.1f}" + ("" if timed.failure is None else ", then failed"),
        "" if faster is None else f"{faster:.2f}",
        psnr if isinstance(psnr, str) else "" if psnr is None else f"{psnr:.1f}",
        start,
    )


def _title(timed: Timed) -> str:
    return f"{timed.name}, {timed.precision}"


def _psnr(timed: Timed) -> float | str | None:
    """Against eager's frames in fp32; None where they were not compared."""
    if not timed.error.compared:
        return None
    psnr = timed.error.psnr()
    return "identical" if math.isinf(psnr) else psnr


def _where(comparison: Comparison, machine: Machine) -> str:
    cpu = f"{machine.processor} with {machine.logical_cores} cores"
    gpu = _gpu(comparison.device)
    if not gpu:
        return cpu
    return f"{gpu['gpu']}, driver {gpu['gpu_driver']}, CUDA {gpu['cuda_torch']}; {cpu}"


def _gpu(device: str) -> dict[str, Value]:
    """What is known of the GPU, by columns; nothing where none is used."""
    if device == "cpu":
        return {}
    gpus, _ = nvidia_gpus()
    name = torch.cuda.get_device_name()
    gpu = next((found for found in gpus if found.name == name), gpus[0] if gpus else None)
    return {
        "gpu": name,
        "gpu_memory": None if gpu is None else gpu.memory,
        "compute_capability": "{}.{}".format(*torch.cuda.get_device_capability()),
        "gpu_driver": None if gpu is None else gpu.driver,
        "cuda_driver": cuda_driver_version()[0],
        "cuda_torch": torch.version.cuda,
    }


def as_rows(comparison: Comparison, machine: Machine) -> list[dict[str, Value]]:
    """A row for each way, those that cannot be had included, whose outcome is the reason."""
    settings, bundle = comparison.settings, comparison.bundle
    provenance = bundle.manifest["provenance"]
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    shared: dict[str, Value] = {
        "date": now,
        "bundle": bundle.path.name,
        "checkpoint": str(provenance.get("checkpoint", "")),
        "preset": str(provenance.get("preset", "")),
        "resolution_pixels": int(bundle.generator["resolution"]),
        "device": comparison.device,
        "threads": settings.threads or "default",
        "batch": settings.batch,
        "seed": settings.seed,
        **_gpu(comparison.device),
        "torch": torch.__version__,
        "styleinv": importlib.metadata.version("styleinv"),
        "numpy": importlib.metadata.version("numpy"),
        "python": platform.python_version(),
        "processor": machine.processor,
        "logical_cores": machine.logical_cores,
        "instruction_sets": machine.instruction_sets,
        "memory_gib": machine.memory_gib,
        "system": machine.system,
        "load_average_before": machine.load_average,
    }
    rows = [_measured(comparison, timed) for timed in comparison.timed]
    rows += [
        {"way": name, "precision": precision, "outcome": f"not compared: {reason}"}
        for (name, precision), reason in comparison.missing.items()
    ]
    return [{column: (shared | row).get(column) for column in COLUMNS} for row in rows]


def _measured(comparison: Comparison, timed: Timed) -> dict[str, Value]:
    """The columns that are a way's own."""
    row: dict[str, Value] = {
        "way": timed.name,
        "precision": timed.precision,
        "by": timed.by,
        "outcome": "played" if timed.failure is None else f"failed: {timed.failure}",
        "timed_frames": len(timed.times) * comparison.settings.batch,
        "first_frame_s": timed.first_frame_s,
        "psnr_db": _psnr(timed),
    }
    if timed.times:
        row |= {f"frame_ms_p{percent}": percentile(timed.milliseconds, percent) for percent in PERCENTILES}
        row |= {
            "frames_per_s": 1000 / float(timed.milliseconds.mean()),
            "times_eager": comparison.times_eager(timed),
        }
    return row


def as_json(rows: list[dict[str, Value]]) -> str:
    """The rows of the CSV file for machines; what is not known is null."""
    document: dict[str, Any] = {"ways": rows}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"
