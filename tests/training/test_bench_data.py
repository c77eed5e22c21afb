"""The benchmark of the data path: its rows, its status, what it refuses."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from styleinv.training.bench_data import COLUMNS, main


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    for clip in ("a", "b"):
        (tmp_path / "clips" / clip).mkdir(parents=True)
        for t in range(6):
            Image.fromarray(np.full((8, 8, 3), 10 * t, np.uint8)).save(tmp_path / "clips" / clip / f"{t}.png")
    cache = ["--cache", str(tmp_path / "cache")]
    return ["--data", str(tmp_path / "clips"), "--resolution", "8", "--batch", "4", "--seconds", "0.01", *cache]


def test_rows_are_added_and_rates_told(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "data.csv"
    assert main([*options, "--csv", str(file)]) == 0
    (tmp_path / "clips" / "weights.csv").write_text("a,2")
    assert main([*options, "--csv", str(file), "--trainer-rate", "0.5"]) == 0
    rows = list(csv.DictReader(file.open()))
    assert len(rows) == 16 and tuple(rows[0]) == COLUMNS
    kinds = [(row["sampler"], row["mirror"], row["start"]) for row in rows]
    assert len(set(kinds)) == 8 and kinds[:8] == kinds[8:]
    assert [row["weighted"] for row in rows] == ["no"] * 8 + ["yes"] * 8
    assert all(
        float(row["times_trainer"]) == pytest.approx(2 * float(row["samples_per_s"]), rel=1e-3) for row in rows[8:]
    )
    assert rows[0]["times_trainer"] == "" and rows[0]["clips"] == "2" and rows[0]["samples"] == "12"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 16 and "frames/s" in lines[0] and "clips/s" in lines[-1] and "times the trainer's" in lines[-1]


def test_a_rate_that_is_too_low_for_the_trainer(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options, "--trainer-rate", "1e9"]) == 1
    assert "found 4 warm rates of less than 20 times the trainer's" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "nowhere"], "nowhere: found nothing there"),
        (["--batch", "0"], "--batch: found 0, expected a number, at least 1"),
        (["--trainer-rate", "nan"], "--trainer-rate: found nan, expected a number"),
        (["--max-span", "2"], "--max-span: found 2, expected a number, at least 3"),
        (["--weights", "nowhere.csv"], "nowhere.csv: cannot be read"),
        (["--csv", "other.csv"], "other.csv: header: found other columns than expected"),
    ],
)
def test_bad_input_ends_with_status_2(
    more: list[str],
    message: str,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.csv").write_text("a,b\n1,2\n")
    assert main([*options, *more]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert Path("other.csv").read_text() == "a,b\n1,2\n"
