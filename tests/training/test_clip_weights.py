"""The file of weights: what it may say, and what is refused by its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from styleinv.runtime.errors import DataError
from styleinv.training.clip_weights import read_weights, weights_of

NAMES = ("a.mp4", "b/c.mp4", "d, e")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [1, 1, 1]),
        ("b/c.mp4,3\n", [1, 3, 1]),
        ("name,weight\nb/c.mp4,3\n\na.mp4, 0.5\r\n", [0.5, 3, 1]),
        ('\ufeffname,weight\n"d, e",1e-3', [1, 1, 1e-3]),
        ("a.mp4,0\nb/c.mp4,0", [0, 0, 1]),
    ],
)
def test_weights_are_read(text: str, expected: list[float], tmp_path: Path) -> None:
    (tmp_path / "weights.csv").write_text(text, encoding="utf-8", newline="")
    assert weights_of(tmp_path, NAMES).tolist() == expected


def test_clips_weigh_the_same_without_a_file(tmp_path: Path) -> None:
    assert weights_of(tmp_path, NAMES).tolist() == [1, 1, 1]
    (tmp_path / "weights.csv").write_text("a.mp4,2")
    (tmp_path / "clips.zip").write_bytes(b"")
    assert weights_of(tmp_path / "clips.zip", NAMES).tolist() == [1, 1, 1]
    (tmp_path / "other.csv").write_text("a.mp4,3")
    assert weights_of(tmp_path, NAMES, tmp_path / "other.csv").tolist() == [3, 1, 1]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"a.mp4,1\nb/C.mp4,2\n", r"line 2: found the clip 'b/C\.mp4', expected one of the data, such as 'b/c\.mp4'"),
        (b"name,weight\nzzz,2\n", r"line 2: found the clip 'zzz', expected one of the data, such as 'a\.mp4'"),
        (b"a.mp4,-1", r"line 1: found the weight '-1', expected a number, 0 or more"),
        (b"a.mp4,nan", r"line 1: found the weight 'nan', expected a number"),
        (b"\na.mp4,inf", r"line 2: found the weight 'inf', expected a number"),
        (b"a.mp4,twice", r"line 1: found the weight 'twice', expected a number"),
        (b"a.mp4,", r"line 1: found the weight '', expected a number"),
        (b"a.mp4", r"line 1: found 1 values, expected 2, name,weight"),
        (b"b/c.mp4,1\nd, e,1", r"line 2: found 3 values, expected 2, name,weight"),
        (b"a.mp4,1\nb/c.mp4,1\na.mp4,2", r"line 3: found 'a\.mp4' again, expected it once, as on line 1"),
        (b'a.mp4,0\nb/c.mp4,0\n"d, e",0.0', r"found a weight of 0 for all of 3 clips, expected at least one above 0"),
        (b"a.mp4,\xff", r"cannot be read \(.*utf-8.*\), expected lines of name,weight"),
        (b'"a.mp4,1', r"cannot be read \(.*\), expected lines of name,weight"),
        (None, r"cannot be read \(.*No such file.*\), expected lines of name,weight"),
    ],
)
def test_wrong_weights_are_refused(contents: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.csv"
    if contents is not None:
        file.write_bytes(contents)
    with pytest.raises(DataError, match=rf"weights\.csv: {message}"):
        read_weights(file, NAMES)
