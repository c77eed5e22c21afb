"""The tables of the results page: what each measure is called, its unit, and how a value is read.

A measure that this file does not know is shown under its own name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

DISTANCE = "Fréchet distance"  # where its name, which says what the features are, is not known
FACTS = ("kind", "parameters", "data", "features", "frames")  # of the headline, after the model
LEVELS = "levels of 255"
THOUSANDTHS = "× 10⁻³"  # values of this unit are shown times 1000
TABLES: dict[str, tuple[str, str, dict[str, tuple[str, str]]]] = {  # key -> title, note, {key: (label, unit)}
    "pictures": (
        "Pictures",
        "Drawn frames against real ones. Distances: lower is better; precision and recall, from 0 to 1: higher.",
        {
            "fd": ("{distance}", ""),
            "kernel_distance": ("Kernel distance", THOUSANDTHS),
            "precision": ("Precision", ""),
            "recall": ("Recall", ""),
        },
    ),
    "motion": (
        "Motion",
        "A step is the mean absolute difference of neighbouring frames. Ratio: of the steps from t = 0, drawn to real.",
        {
            "real_step": ("Step, real clips", LEVELS),
            "generated_step": ("Step, drawn clips", LEVELS),
            "generated_step_1000": ("Step, drawn clips from t = 1,000", LEVELS),
            "ratio": ("Ratio", ""),
            "real_flow": ("Optical flow, real clips", "pixels per frame"),
            "generated_flow": ("Optical flow, drawn clips", "pixels per frame"),
        },
    ),
    "diversity": (
        "Diversity of seeds",
        "Mean absolute difference of frames of two seeds, and of two real scenes. Ratio: of the smallest to the real.",
        {
            "generated": ("Between seeds", LEVELS),
            "generated_1000": ("Between seeds at t = 1,000", LEVELS),
            "real": ("Between real scenes", LEVELS),
            "ratio": ("Ratio", ""),
        },
    ),
    "motion_seeds": (
        "Motion seeds",
        "Frames at t = 60 of one seed and two motion seeds: how far apart, counted in steps of neighbouring frames.",
        {
            "distance": ("Between motion seeds", LEVELS),
            "step": ("Between neighbouring frames", LEVELS),
            "steps": ("Distance", "steps"),
        },
    ),
    "clips": (
        "Clips",
        "Drawn clips from t = 0 on against real ones, over a network that takes clips; lower is better.",
        {
            "distance": ("Distance", ""),
            "16": ("16 frames", ""),
            "16_real_clips": ("16 frames: compared with", "real clips"),
            "16_skipped": ("16 frames: not measured", ""),
            "16_of_every_8th": ("16 frames, every 8th", ""),
            "16_of_every_8th_real_clips": ("16 frames, every 8th: compared with", "real clips"),
            "16_of_every_8th_skipped": ("16 frames, every 8th: not measured", ""),
            "128": ("128 frames", ""),
            "128_real_clips": ("128 frames: compared with", "real clips"),
            "128_skipped": ("128 frames: not measured", ""),
        },
    ),
    "first_frame": (
        "First frame",
        "The frame at t = 0 against the picture x0 that the clip starts from.",
        {"first_frame_psnr": ("PSNR", "dB")},
    ),
}


def shown(value: Any, digits: int = 4) -> str:
    """A value as it is read: rounded to significant digits, thousands apart; a missing one is a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and 1000 <= abs(value) < 1e12):
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:.{digits}g}".replace("inf", "∞")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def drift_rows(drift: Mapping[str, Any]) -> list[tuple[float, Any, float | None]]:
    """(frame index t, distance, its ratio to that at t = 0), in the order of t."""
    start = drift.get("0")
    ratio = {
        t: found / start if is_finite(found) and is_finite(start) and start else None for t, found in drift.items()
    }
    return sorted(((float(t), drift[t], ratio[t]) for t in drift), key=lambda row: row[0])


def tables(evaluation: Mapping[str, Any]) -> list[tuple[str, str, list[tuple[str, Any, str]]]]:
    """(title, note, rows of label, value and unit) of each table that has a row, unknown measures in the last ones."""
    known = {"model", *FACTS, "targets", "drift", "drift_ratio_1000", "versions"}
    sections = {key: value for key, value in evaluation.items() if key not in known and isinstance(value, Mapping)}
    sections["first_frame"] = {key: evaluation[key] for key in ("first_frame_psnr",) if key in evaluation}
    sections["also_measured"] = {
        key: value for key, value in evaluation.items() if key not in {*known, *sections, "first_frame_psnr"}
    }
    order = [*TABLES, *(key for key in sections if key not in TABLES)]
    found = []
    for key in order:
        title, note, labels = TABLES.get(key, (words(key), "", {}))
        rows = []
        section = sections.get(key, {})
        for field in sorted(section, key=lambda field: [*labels, field].index(field)):
            label, unit = labels.get(field, (words(field), ""))
            value = section[field] * 1000 if unit == THOUSANDTHS and is_finite(section[field]) else section[field]
            rows.append((label.format(distance=evaluation.get("features") or DISTANCE), value, unit))
        if any(value is not None for _, value, _ in rows):
            found.append((title, note, rows))
    return found


def words(key: str) -> str:
    text = key.replace("_", " ").strip()
    return text[:1].upper() + text[1:]
