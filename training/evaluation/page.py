"""The results page: one HTML file with everything in it, pictures and clips as data: URIs, charts as inline SVG.

Nothing is fetched when it is read, and its own policy forbids it. What an evaluation does not hold is not on the page;
what it holds and `page_tables.py` does not know is shown under its own name.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from styleinv.runtime.errors import DataError
from styleinv.training.checkpoint_file import replacing
from styleinv.training.evaluation.charts import Points, curve_chart, drift_chart
from styleinv.training.evaluation.page_tables import DISTANCE, FACTS, drift_rows, is_finite, shown, tables
from styleinv.training.evaluation.page_template import STYLE, TEMPLATE

MEDIA_TYPES = {".png": "image/png", ".webp": "image/webp", ".gif": "image/gif", ".jpg": "image/jpeg"}
PICTURES = (  # pattern of the name, title, what the picture shows
    (r"samples\.\w+", "Samples", "Grid of real and drawn frames"),
    (r"contact\.\w+", "Clips over time", "Contact sheet: a clip in each row, a frame index t in each column"),
    (r"clip_.*", "Looping clips", "Drawn clip"),
    (r".*", "More pictures", "Picture"),
)


def write_page(
    path: Path,
    evaluation: dict[str, Any],
    curves: Mapping[str, Mapping[str, Points]],
    pictures: Mapping[str, bytes],
) -> None:
    """Writes the results page; the file appears whole or not at all.

    evaluation: what `evaluation.json` holds; every field may be missing.
    curves: stage -> name -> points (images seen, value).
    pictures: file name -> its bytes: samples.png, contact.png, clip_*.webp (animated) and any other.

    Raises: DataError where a picture is of no type that browsers show, or the file cannot be written.
    """
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    page.filters["shown"] = shown
    drift = drift_rows(evaluation.get("drift") or {})
    html = page.from_string(TEMPLATE).render(
        style=Markup(STYLE),
        name=PurePath(str(evaluation.get("model", "model"))).name,
        facts=[(key.capitalize(), evaluation[key]) for key in FACTS if evaluation.get(key) is not None],
        targets=evaluation.get("targets") or [],
        distance=evaluation.get("features") or DISTANCE,
        drift=drift,
        drift_chart=drift_chart([(t, found) for t, found, _ in drift if is_finite(found)]),
        tables=tables(evaluation),
        stages={stage: [curve_chart(*item) for item in named.items()] for stage, named in curves.items() if named},
        galleries=galleries(pictures),
        versions=evaluation.get("versions") or {},
    )
    try:
        with replacing(path) as temporary:
            temporary.write_text(html, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: the results page cannot be written: {error}") from error


def galleries(pictures: Mapping[str, bytes]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(title, pictures as alternative text and data: URI) of each kind of picture there is; clip_2 before clip_10."""
    found: dict[str, list[tuple[str, str]]] = {title: [] for _, title, _ in PICTURES}
    for name in sorted(pictures, key=lambda name: [part.zfill(9) for part in re.split(r"(\d+)", name)]):
        kind = PurePath(name).suffix.lower()
        if kind not in MEDIA_TYPES:
            raise DataError(
                f"{name}: picture of the results page: found {kind!r}, expected one of {', '.join(MEDIA_TYPES)}"
            )
        title, text = next((title, text) for pattern, title, text in PICTURES if re.fullmatch(pattern, name))
        encoded = base64.b64encode(pictures[name]).decode("ascii")
        found[title].append((f"{text} ({name})", f"data:{MEDIA_TYPES[kind]};base64,{encoded}"))
    return [(title, items) for title, items in found.items() if items]
