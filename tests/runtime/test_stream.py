"""`styleinv stream`, from arguments to files."""

import io
import itertools
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from styleinv.runtime import Rollout
from styleinv.runtime.cli import main
from styleinv.runtime.sinks import encode_jpeg, encode_png


def stream(*arguments):
    """`styleinv stream` in this process; its exit status."""
    try:
        return main(["stream", *map(str, arguments)])
    except SystemExit as left:  # argparse
        return left.code


def started(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "styleinv.runtime.cli", "stream", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def decoded(path):
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def assert_means(frames, rollout):
    """The frames are noise, whose colours a video halves; their means survive."""
    for t, frame in enumerate(frames):
        np.testing.assert_allclose(frame.mean(axis=(0, 1)), rollout[t].mean(axis=(0, 1)), atol=6, err_msg=f"t = {t}")


def test_video(tiny, tmp_path, capsys):
    av = pytest.importorskip("av")
    path = tmp_path / "rollout.mp4"
    assert stream(tiny.path, "--seed", 3, "--frames", 25, "--threads", 1, "--out", path) == 0
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 25
    frames = decoded(path)
    assert len(frames) == 25 and frames[0].shape == (16, 16, 3)
    with Rollout.open(tiny.path, 3, threads=1) as rollout:
        assert_means(frames, rollout)
    captured = capsys.readouterr()
    assert captured.out == ""
    closing = captured.err.splitlines()[-1]
    assert re.fullmatch(
        r"25 frames, [\d.]+ frames/s, [\d.]+ / [\d.]+ / [\d.]+ ms per frame \(p50 / p95 / p99\); "
        r"openvino [\d.]+ \(CPU, fp32\); written to .*rollout\.mp4",
        closing,
    ), closing


def test_pictures_with_every_option(tiny, tmp_path):
    folder = tmp_path / "pictures"
    options = "--seed 3 --motion-seed 5 --truncation 0.7 --frames 3 --fps 50 --start 100 --speed 0.5 --threads 1"
    assert stream(tiny.path, *options.split(), "--engine", "onnxruntime", "--out", f"{folder}/") == 0
    assert len(list(folder.iterdir())) == 3
    with Rollout.open(tiny.path, 3, motion_seed=5, truncation=0.7, threads=1) as rollout:
        for n, t in enumerate((100, 100.25, 100.5)):
            assert (folder / f"frame_{n:06d}.png").read_bytes() == encode_png(rollout[t])


def test_raw_bytes(tiny):
    process = started(tiny.path, "--frames", 2, "--grid", "2x3", "--seed", 4, "--threads", 1, "--out", "-")
    written, printed = process.communicate()
    assert process.returncode == 0 and b"2 frames" in printed
    frames = np.frombuffer(written, np.uint8).reshape(2, 32, 48, 3)
    for tile, (row, column) in enumerate(itertools.product(range(2), range(3))):
        with Rollout.open(tiny.path, 4 + tile, threads=1) as rollout:
            for t in range(2):
                found = frames[t, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
                np.testing.assert_array_equal(found, rollout[t])


def test_y4m_into_another_program(tiny, tmp_path):
    av = pytest.importorskip("av")
    player = started(tiny.path, "--frames", 5, "--fps", 12.5, "--threads", 1, "--out", "-", "--format", "y4m")
    if shutil.which("ffmpeg"):
        ffmpeg = ["ffmpeg", "-v", "error", "-i", "-", "-crf", "10", str(tmp_path / "clip.mp4")]
        assert subprocess.run(ffmpeg, stdin=player.stdout, check=False).returncode == 0
        frames = decoded(tmp_path / "clip.mp4")
    else:
        with av.open(io.BytesIO(player.stdout.read())) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert b"5 frames" in player.communicate()[1] and player.returncode == 0
    assert len(frames) == 5
    with Rollout.open(tiny.path, threads=1) as rollout:
        assert_means(frames, rollout[0:10:2])


def test_jpeg_pictures(tiny, tmp_path):
    pytest.importorskip("av")
    assert stream(tiny.path, "--frames", 2, "--format", "jpeg", "--threads", 1, "--out", f"{tmp_path}/clip/") == 0
    with Rollout.open(tiny.path, threads=1) as rollout:
        for t in range(2):
            assert (tmp_path / "clip" / f"frame_{t:06d}.jpg").read_bytes() == encode_jpeg(rollout[t])


def test_quality(tiny, tmp_path):
    pytest.importorskip("av")
    for crf in (1, 50):
        assert stream(tiny.path, "--frames", 3, "--crf", crf, "--threads", 1, "--out", tmp_path / f"{crf}.mkv") == 0
    assert (tmp_path / "1.mkv").stat().st_size > 1.3 * (tmp_path / "50.mkv").stat().st_size


def pictures_in(folder):
    image = pytest.importorskip("PIL.Image")
    return [np.asarray(image.open(path)) for path in sorted(folder.iterdir())]


def test_transfer(styled, tmp_path):
    assert stream(styled.path, "--transfer", "ink", "--seed", 3, "--frames", 2, "--out", f"{tmp_path}/clip/") == 0
    with Rollout.open(styled.path, 3, transfer="ink") as rollout:
        for t, picture in enumerate(pictures_in(tmp_path / "clip")):
            np.testing.assert_array_equal(picture, rollout[t])


def test_side_by_side(styled, tmp_path):
    options = ["--transfer", "oil-2", "--side-by-side", "--grid", "2x1", "--start", 9, "--frames", 2]
    assert stream(styled.path, *options, "--out", f"{tmp_path}/clip/") == 0
    pictures = pictures_in(tmp_path / "clip")
    assert len(pictures) == 2 and pictures[0].shape == (32, 32, 3)
    for seed in range(2):
        with Rollout.open(styled.path, seed) as plain, Rollout.open(styled.path, seed, transfer="oil-2") as other:
            for t, picture in enumerate(pictures, start=9):
                row = picture[16 * seed : 16 * seed + 16]
                np.testing.assert_array_equal(row, np.hstack([plain[t], other[t]]))


@pytest.mark.parametrize(("options", "motion_seed"), [([], 4), (["--motion-seed", "0"], 0)])
def test_decompose(tiny, tmp_path, options, motion_seed):
    options = [*options, "--decompose", "--grid", "2x3", "--seed", "4", "--start", "20", "--frames", "1"]
    assert stream(tiny.path, *options, "--out", f"{tmp_path}/clip/") == 0
    (picture,) = pictures_in(tmp_path / "clip")
    for row, column in itertools.product(range(2), range(3)):
        with Rollout.open(tiny.path, 4 + column, motion_seed=motion_seed + row) as rollout:
            found = picture[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            np.testing.assert_array_equal(found, rollout[20])


def test_label(make_bundle, tmp_path, capsys):
    bundle = make_bundle(tmp_path / "classes.bundle", "image", label_dim=3)
    assert stream(bundle.path, "--label", 2, "--frames", 1, "--out", f"{tmp_path}/clip/") == 0
    with Rollout.open(bundle.path, label=2) as rollout:
        np.testing.assert_array_equal(pictures_in(tmp_path / "clip")[0], rollout[0])
    capsys.readouterr()
    assert stream(bundle.path, "--frames", 1, "--out", f"{tmp_path}/none/") == 2
    assert "label: found None, expected a class from 0 to 2" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_endless_ends_quietly_when_the_reader_leaves(tiny):
    process = started(tiny.path, "--frames", 0, "--threads", 1, "--out", "-")
    process.stdout.read(1_000_000)
    process.stdout.close()
    printed = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 0
    assert len(printed.splitlines()) == 2 and "frames/s" in printed and "Error" not in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frames", "-1"], "argument --frames: found '-1', expected a whole number of at least 0"),
        (["--frames", "0"], "--frames 0 plays without end, which only --out -, --out window and named pipes can take"),
        (["--seed", "x"], "argument --seed: found 'x'"),
        (["--seed", str(2**64)], "argument --seed: found"),
        (["--fps", "0"], "argument --fps: found '0', expected a number above 0"),
        (["--fps", "nan"], "argument --fps: found 'nan'"),
        (["--speed", "inf"], "argument --speed: found 'inf'"),
        (["--start", "-0.5"], "argument --start: found '-0.5', expected a number from 0 to 2^53"),
        (["--truncation", "inf"], "argument --truncation: found 'inf', expected a finite number"),
        (["--grid", "4"], "argument --grid: found '4', expected rows x columns"),
        (["--grid", "0x4"], "argument --grid: found '0x4'"),
        (["--threads", "0"], "argument --threads: found '0'"),
        (["--engine", "abacus"], "argument --engine: invalid choice: 'abacus'"),
        (["--label", "1"], "label: found 1, expected None: the model is unconditional"),
        (["--seed", str(2**64 - 1), "--grid", "1x2"], "seed: found 18446744073709551616, expected a whole number"),
        (["--out", "clip.gif"], "clip.gif: found the suffix .gif"),
        (["--format", "bmp"], "argument --format: invalid choice: 'bmp'"),
        (["--format", "y4m"], "clip.mp4: found the format y4m, expected none: a video has no formats"),
        (["--out", "-", "--format", "jpeg"], "-: found the format jpeg, expected rgb24 or nv12 or y4m"),
        (["--crf", "1.5"], "argument --crf: found '1.5', expected a whole number of at least 0"),
        (["--crf", "52"], "clip.mp4: found the quality crf 52, expected a whole number from 0 to 51"),
        (["--out", "clip/", "--crf", "20"], "clip/: found the quality crf 20, expected none"),
        (["--transfer", "ink"], "transfers: found none, expected ink"),
        (["--side-by-side"], "--side-by-side shows a style beside the original: give --transfer NAME, too"),
        (["--decompose"], "--decompose compares the clips of a grid: give --grid RxC, too"),
        (["--decompose", "--grid", "2x1", "--seed", str(2**64 - 1)], "motion_seed: found 18446744073709551616"),
    ],
)
def test_bad_options(tiny, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert stream(tiny.path, "--out", "clip.mp4", *options) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == "" and "Traceback" not in captured.err
    assert not list(tmp_path.iterdir())


def test_bad_bundle(tmp_path, capsys):
    assert stream(tmp_path / "nowhere", "--out", tmp_path / "clip.mp4") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("styleinv: error: ") and "expected the folder of a bundle" in printed


def test_image_bundle_gives_one_picture(make_bundle, tmp_path, capsys):
    bundle = make_bundle(tmp_path / "pictures.bundle", "image")
    assert stream(bundle.path, "--frames", 1, "--out", f"{tmp_path}/one/") == 0
    assert stream(bundle.path, "--frames", 2, "--out", tmp_path / "two.mp4") == 2
    assert "plays single pictures" in capsys.readouterr().err
    assert len(decoded(tmp_path / "two.mp4")) == 1 and len(list(tmp_path.iterdir())) == 3


def test_help_is_for_newcomers(capsys):
    assert stream("--help") == 0
    printed = capsys.readouterr().out
    words = (
        "--grid RxC",
        "--seed N",
        "examples:",
        "made by `styleinv export`",
        "--decompose --grid",
        "--side-by-side",
        "y4m | ffmpeg",
    )
    for word in words:
        assert word in printed
