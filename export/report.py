"""What verification leaves in a bundle: parity.csv (every comparison), parity.png (the worst frames) and report.md."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from styleinv.export.comparison import Comparison
from styleinv.export.eight_bits import as_table
from styleinv.export.tolerances import TOLERANCES
from styleinv.export.verify import DRIFT_SPAN, Verification
from styleinv.runtime.bundle import Bundle
from styleinv.runtime.errors import BundleError
from styleinv.runtime.sinks import encode_png

Frame = npt.NDArray[np.uint8]  # [R, R, 3]

MAGNIFICATION = 20  # of the differences shown
COLUMNS = (
    "way", "precision", "what", "unit", "max_error", "mean_error", "relative_error", "cosine", "psnr_db", "ssim",
    "passed",
)  # fmt: skip


def write_reports(bundle: Bundle, result: Verification, folder: Path) -> None:
    """Writes the three files into a folder, each of them whole or not at all.

    Raises: BundleError where the folder cannot be written.
    """
    files = {"parity.csv": parity_csv(result).encode(), "report.md": report(bundle, result).encode()}
    if result.worst:
        files["parity.png"] = encode_png(np.vstack([_row(wanted, ours) for _, wanted, ours in result.worst.values()]))
    for name, content in files.items():
        temporary = folder / f".{name}.{os.getpid()}.tmp"
        try:
            temporary.write_bytes(content)
            temporary.replace(folder / name)
        except OSError as error:
            raise BundleError(f"{folder / name}: found {error}, expected a folder to write into (--out)") from error
        finally:
            temporary.unlink(missing_ok=True)


def parity_csv(result: Verification) -> str:
    """A row for each comparison. Errors of bytes are in levels; PSNR and SSIM stand for pictures only."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for item in result.comparisons:
        numbers = (item.max_error, item.mean_error, item.relative, item.cosine, item.psnr, item.ssim)
        unit = "levels" if item.is_bytes else "output"
        shown = ("" if number is None else f"{number:.9g}" for number in numbers)
        rows.writerow([item.way, item.precision, item.what, unit, *shown, "no" if item.failures else "yes"])
    for drift in result.drifts:
        what = f"latents of {drift.frames} frames"
        passed = "no" if drift.failures else "yes"
        rows.writerow([drift.way, drift.precision, what, "length", f"{drift.largest:.9g}", *[""] * 5, passed])
    return text.getvalue()


def report(bundle: Bundle, result: Verification) -> str:
    """The report as Markdown."""
    manifest = bundle.manifest
    provenance = manifest["provenance"]
    generator = bundle.generator
    added = "".join(
        f"\nWith it: {what}, from {item['checkpoint']}, {item.get('parameters', 0) / 1e6:.2f} M parameters.\n"
        for what, item in provenance.get("additions", {}).items()
    )
    preview = "\n![frames over time](preview.png)\n" if (bundle.path / "preview.png").exists() else ""
    failures = result.failures
    verdict = f"**{len(failures)} out of tolerance.**" if failures else "Everything is within tolerance."
    return f"""# {provenance.get("checkpoint", bundle.path.name)}, exported

A model of kind `{bundle.kind}` (preset `{provenance.get("preset", "unknown")}`), \
{generator["resolution"]}x{generator["resolution"]}, {sum(manifest.get("parameters", {}).values()) / 1e6:.2f} M \
parameters, noise `{manifest["noise"]}`, graphs in {", ".join(bundle.precisions)}.
{added}{preview}
## Verified against {result.reference}

{len(result.comparisons)} comparisons, all of them in [parity.csv](parity.csv). {verdict}
{"".join(f"{chr(10)}- {failure}" for failure in failures)}
Graphs, the worst of all batch sizes: errors of bytes are in levels, others in the output's own unit; the relative error
is the largest over the largest value.

{_graph_table(result.comparisons)}
{_frame_section(result)}{_drift_section(result)}{_quantization_section(manifest)}{_absent_section(result.absent)}"""


def _graph_table(comparisons: Iterable[Comparison]) -> str:
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for item in comparisons:
        if not item.what.startswith("frame at"):
            groups.setdefault((item.way, item.what.partition(",")[0]), []).append(item)
    rows = [f"| {way} | {what} | {_numbers(items)} |" for (way, what), items in groups.items()]
    head = "| way | output | max error | mean error | relative | cosine | PSNR, dB | SSIM | |"
    return "\n".join([head, "|---|---|---|---|---|---|---|---|---|", *rows])


def _numbers(items: list[Comparison]) -> str:
    """The worst of several comparisons, in cells."""
    psnr = [item.psnr for item in items if item.psnr is not None]
    ssim = [item.ssim for item in items if item.ssim is not None]
    cells = [
        f"{max(item.max_error for item in items):.3g}",
        f"{max(item.mean_error for item in items):.3g}",
        f"{max(item.relative for item in items):.3g}",
        f"{min(item.cosine for item in items):.7f}",
        _decibels(min(psnr)) if psnr else "",
        f"{min(ssim):.5f}" if ssim else "",
        "**out of tolerance**" if any(item.failures for item in items) else "passed",
    ]
    return " | ".join(cells)


def _frame_section(result: Verification) -> str:
    ways: dict[str, list[Comparison]] = {}
    for item in result.comparisons:
        if item.what.startswith("frame at"):
            ways.setdefault(item.way, []).append(item)
    if not ways:
        return ""
    rows = []
    for way, items in ways.items():
        psnr = [item.psnr for item in items if item.psnr is not None]
        allowed = TOLERANCES[items[0].precision]
        bound = f"{allowed.psnr:g} dB" + ("" if allowed.levels is None else f", {allowed.levels} level")
        rows.append(
            f"| {way} | {len(items)} | {max(item.max_error for item in items):g} | {_decibels(min(psnr))} | "
            f"{_decibels(float(np.median(psnr)))} | {min(item.ssim or 0.0 for item in items):.5f} | {bound} | "
            f"{result.worst[way][0]:g} |"
        )
    head = "| way | frames | largest error, levels | least PSNR | median PSNR | least SSIM | allowed | worst at t |"
    table = "\n".join([head, "|---|---|---|---|---|---|---|---|", *rows])
    return f"""
Whole frames, end to end:

{table}

The worst frame of each way; from left to right the reference, ours, and their difference times {MAGNIFICATION}, grey
where there is none:

![reference, ours, difference](parity.png)
"""


def _drift_section(result: Verification) -> str:
    if not result.drifts:
        return ""
    rows = [
        f"| {item.way} | {item.frames} | {item.largest:.2e} | {item.first:.2e} | {item.last:.2e} | "
        f"{'**out of tolerance**' if item.failures else 'passed'} |"
        for item in result.drifts
    ]
    head = f"| way | frames | largest | mean of the first {DRIFT_SPAN} | of the last {DRIFT_SPAN} | |"
    table = "\n".join([head, "|---|---|---|---|---|---|", *rows])
    return f"""
Latents of consecutive frames against fp32, error over length. Frames do not build on each other, so it must not grow:

{table}
"""


def _quantization_section(manifest: Mapping[str, Any]) -> str:
    """What each layer in 8 bits costs, of the bundle's own synthesis and of each transfer's."""
    text = ""
    for precision, entry in (manifest.get("precisions") or {}).items():
        for name, part in {"synthesis": entry, **entry["transfers"]}.items():
            if "quantization" in part:
                text += f"\nLayers of {name} in {precision}:\n\n```\n{as_table(part['quantization'])}\n```\n"
    return text


def _absent_section(absent: Mapping[str, str]) -> str:
    if not absent:
        return ""
    rows = "\n".join(f"- {way}: {reason}" for way, reason in absent.items())
    return f"\nNot to be had here, and so not verified:\n\n{rows}\n"


def _decibels(psnr: float) -> str:
    return "equal" if math.isinf(psnr) else f"{psnr:.1f}"


def _row(wanted: Frame, ours: Frame) -> Frame:
    """Reference, ours, and the difference around grey: [R, 3R, 3]."""
    difference = (ours.astype(np.int64) - wanted) * MAGNIFICATION + 128
    row: npt.NDArray[Any] = np.hstack([wanted, ours, np.clip(difference, 0, 255).astype(np.uint8)])
    return row
