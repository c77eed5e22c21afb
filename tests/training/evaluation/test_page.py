"""The results page: read back with an HTML and an XML parser."""

from __future__ import annotations

import base64
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from styleinv.runtime.errors import DataError
from styleinv.training.evaluation.charts import smoothed, thinned
from styleinv.training.evaluation.page import write_page
from styleinv.training.evaluation.page_tables import shown

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "img"}
EVALUATION: dict[str, Any] = {
    "model": "runs/sky/motion.safetensors",
    "kind": "styleinv",
    "parameters": 23456789,
    "data": "sky",
    "features": "FD-MobileNetV2",
    "frames": 2000,
    "pictures": {"fd": 83.24567, "kernel_distance": 0.0123456, "precision": 0.61, "recall": None},
    "drift": {"10000": 100.0, "0": 80.0, "1000": 90.0},
    "drift_ratio_1000": 1.125,
    "first_frame_psnr": 26.81,
    "motion": {
        "other": 3.0,
        "generated_flow": 0.4,
        "generated_step": 1.7,
        "ratio": 0.81,
        "real_step": 2.1,
        "real_flow": 0.6,
    },
    "diversity": {"generated": 41.0, "real": 53.0, "ratio": 0.77},
    "motion_seeds": {"distance": 6.8, "step": 1.7, "steps": 4.0},
    "clips": {"distance": "FVD", "16": 400.0, "128": None, "128_skipped": "clips are too short"},
    "sound": {"loudness_db": -3.5},
    "seconds": 12.5,
    "targets": [
        {"name": "distance, at most", "found": 83.2, "bound": 90, "met": True},
        {"name": "diversity, at least", "found": 0.61, "bound": 0.7, "met": False},
    ],
    "versions": {"torch": "2.13.0"},
}
CURVES = {"image": {"generator": [(64.0, 1.0), (128.0, 2.0), (192.0, 1.5)]}}
PICTURES = {"samples.png": b"grid", "contact.png": b"sheet", "clip_10.webp": b"ten", "clip_2.webp": b"two"}


class Page(HTMLParser):
    """Rows of cells, headings, images and charts of a page; fails where tags do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.headings: list[str] = []
        self.images: dict[str, str] = {}  # alternative text -> address
        self.loaded: list[str] = []  # addresses of all tags but images
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        assert not self.open
        self.charts = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", self.html, re.S)]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "img":
            self.images[found["alt"] or ""] = found["src"] or ""
        else:
            self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "h1" in self.open or "h2" in self.open or "h3" in self.open:
            self.headings.append(data)
        if "th" in self.open or "td" in self.open:
            self.rows[-1][-1] += data


def written(folder: Path, evaluation: dict[str, Any], curves: Any = {}, pictures: Any = {}) -> Page:  # noqa: B006
    write_page(folder / "results.html", evaluation, curves, pictures)
    assert [path.name for path in folder.iterdir()] == ["results.html"]  # no temporary file stays
    return Page(folder / "results.html")


def test_a_full_page_shows_everything_and_loads_nothing(tmp_path: Path) -> None:
    page = written(tmp_path, EVALUATION, CURVES, PICTURES)
    assert page.headings == [
        "motion.safetensors", "Targets", "Samples", "Clips over time", "Looping clips", "Drift over time", "Pictures",
        "Motion", "Diversity of seeds", "Motion seeds", "Clips", "First frame", "Sound", "Also measured", "Training",
        "image", "Made with",
    ]  # fmt: skip
    for row in (
        ["distance, at most", "83.2", "90", "✓ met"],
        ["diversity, at least", "0.61", "0.7", "✗ missed"],
        ["FD-MobileNetV2", "83.25", ""],
        ["Kernel distance", "12.35", "× 10⁻³"],
        ["Recall", "–", ""],
        ["PSNR", "26.81", "dB"],
        ["Optical flow, drawn clips", "0.4", "pixels per frame"],
        ["128 frames: not measured", "clips are too short"],
        ["Loudness db", "-3.5"],
        ["Seconds", "12.5"],
    ):
        assert row in page.rows
    motion = [row[0] for row in page.rows[page.rows.index(["Step, real clips", "2.1", "levels of 255"]) :]]
    assert (
        motion[:2] == ["Step, real clips", "Step, drawn clips"] and motion[5] == "Other"
    )  # in our order, unknown last
    assert "1 of 2 met" in page.html
    assert "23,456,789" in page.html
    first = page.rows.index(["t", "FD-MobileNetV2", "Ratio to t = 0"])
    assert page.rows[first + 1 : first + 4] == [["0", "80", "1"], ["1,000", "90", "1.125"], ["10,000", "100", "1.25"]]
    assert page.loaded == []
    contents = [base64.b64decode(address.partition(";base64,")[2]) for address in page.images.values()]
    assert contents == [b"grid", b"sheet", b"two", b"ten"]
    assert page.images["Drawn clip (clip_2.webp)"].startswith("data:image/webp;")


@pytest.mark.parametrize(
    ("evaluation", "headings"),
    [
        ({}, ["model"]),
        ({"motion": None, "drift": {}, "first_frame_psnr": None, "targets": [], "versions": {}}, ["model"]),
        ({"kind": "image", "pictures": {"fd": 1.0}, "diversity": {"ratio": None}}, ["model", "Pictures"]),
    ],
)
def test_sections_that_have_nothing_do_not_appear(
    tmp_path: Path, evaluation: dict[str, Any], headings: list[str]
) -> None:
    page = written(tmp_path, evaluation, {"motion": {}})
    assert page.headings == headings
    assert not page.charts


def test_text_is_escaped(tmp_path: Path) -> None:
    name = "<script>\"'&</script>"
    evaluation = {"model": "a<b>&.safetensors", "data": name, "extra": {name: name}, name: 1, "versions": {name: name}}
    targets = [{"name": name, "found": name, "bound": name, "met": False}]
    curves = {name: {name: [(0.0, 1.0), (1.0, 2.0)]}}
    page = written(tmp_path, evaluation | {"features": name, "targets": targets}, curves, {f"{name}.png": b""})
    assert "<script" not in page.html
    assert [name, name, name, "✗ missed"] in page.rows
    assert page.charts[0].attrib["aria-label"].startswith(f"{name} over images seen")


def line_of(chart: ElementTree.Element, kind: str) -> list[tuple[float, float]]:
    (path,) = [path.attrib["d"] for path in chart.iter(f"{SVG}path") if path.attrib["class"] == kind]
    return [(float(x), float(y)) for x, y in (point.split(",") for point in path.removeprefix("M").split(" "))]


def test_curves_lie_on_their_axes(tmp_path: Path) -> None:
    points = {
        "plain": [(100.0, 1.0), (200.0, 3.0), (500.0, 2.0)],
        "wide": [(0.0, 0.001), (50.0, 0.1), (100.0, 10.0)],
        "broken": [(0.0, 1.0), (1.0, math.nan), (2.0, math.inf), (3.0, 1.0)],
        "single": [(7.0, 0.25)],
        "lost": [(0.0, math.nan)],
    }
    page = written(tmp_path, {}, {"image": points})
    plain, wide, broken, single = page.charts
    x, y = zip(*line_of(plain, "raw"), strict=True)
    assert (y[0] - y[2]) / (y[0] - y[1]) == pytest.approx(0.5, abs=0.01)  # pictures grow downwards
    assert (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx(0.25, abs=0.01)
    assert [text.text for text in plain.iter(f"{SVG}text")] == ["1", "3", "100", "500", "images seen"]
    heights = [height for _, height in line_of(wide, "raw")]
    assert (heights[0] - heights[1]) / (heights[0] - heights[2]) == pytest.approx(0.5, abs=0.01)  # decades
    assert page.html.count("log scale") == 1
    assert len(line_of(broken, "raw")) == 2
    assert "2 of 4 points not finite" in page.html
    assert "1 of 1 points not finite" in page.html
    assert len(list(single.iter(f"{SVG}circle"))) == 1
    assert "nan" not in page.html


def test_long_curves_are_thinned_and_keep_their_peaks(tmp_path: Path) -> None:
    curve = [(float(i), float(i % 7)) for i in range(50_000)]
    curve[31_234] = (31_234.0, 99.0)
    kept = thinned(curve)
    assert len(kept) < 1000
    assert kept == sorted(set(kept))
    assert curve[31_234] in kept and kept[0] == curve[0] and kept[-1] == curve[-1]
    assert len(written(tmp_path, {}, {"image": {"loss": curve}}).html) < 50_000


def test_the_smoothed_line_is_the_mean_of_its_window() -> None:
    assert smoothed([0.0, 3.0, 6.0, 0.0], 1) == pytest.approx([1.5, 3.0, 3.0, 3.0])
    assert smoothed([1.0, 5.0], 0) == [1.0, 5.0]


def test_drift_rises_from_zero_on_a_logarithmic_axis(tmp_path: Path) -> None:
    drift = {"0": 50.0, "1024": 100.0, "1000": 100.0, "128": None, "10000": 75.0}
    page = written(tmp_path, {"drift": drift})
    (chart,) = page.charts
    (x0, y0), (x1, y1), _, (x2, _) = line_of(chart, "line")
    assert (x1 - x0) / (x2 - x0) == pytest.approx(math.log1p(1000) / math.log1p(10000), abs=0.01)
    assert (132 - y0) / (132 - y1) == pytest.approx(0.5, abs=0.01)
    labels = [text.text for text in chart.iter(f"{SVG}text")]
    assert "1,000" in labels and "1,024" not in labels  # no room for both
    assert ["128", "–", "–"] in page.rows


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (True, "yes"), (1184, "1,184"), (0.123456, "0.1235"), (12345.6, "12,346"), (math.inf, "∞")],
)
def test_values_as_they_are_read(value: Any, text: str) -> None:
    assert shown(value) == text


def test_failures_leave_the_old_page(tmp_path: Path) -> None:
    path = tmp_path / "results.html"
    path.write_text("old")
    with pytest.raises(DataError, match=r"clip_0\.avi: .*found '\.avi', expected one of \.png"):
        write_page(path, {}, {}, {"clip_0.avi": b""})
    assert path.read_text() == "old"
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        write_page(tmp_path / "file" / "results.html", {}, {}, {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "results.html"]
