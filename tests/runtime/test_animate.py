"""`styleinv animate`, from a picture to files."""

import numpy as np
import pytest

from styleinv.runtime import Bundle, Rollout, Sessions
from styleinv.runtime.cli import main
from styleinv.runtime.inversion import invert
from styleinv.runtime.pictures import as_image, fit_picture, read_picture
from styleinv.runtime.sinks import encode_jpeg, encode_png

pytest.importorskip("av")


def animate(*arguments):
    """`styleinv animate` in this process; its exit status."""
    try:
        return main(["animate", *map(str, arguments)])
    except SystemExit as left:  # argparse
        return left.code


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    y, x = np.mgrid[0:40, 0:64]
    path.write_bytes(encode_png(np.stack([4 * x, 6 * y, 255 - 4 * x], axis=-1).astype(np.uint8)))
    return path


def frames_in(folder):
    return [read_picture(path) for path in sorted(folder.iterdir())]


def expected_parts(bundle, photo, seed, times, transfer=None):
    """The fitted picture, the picture of its latent, and the frames of the clip that begins there."""
    picture = fit_picture(read_picture(photo), 16)
    with Sessions(Bundle.open(bundle), threads=1) as sessions:
        w0 = invert(sessions, as_image(picture))
        inverted = sessions.session("synthesis").run({"w": w0[None]})["frame"][0]
        return picture, inverted, list(Rollout(sessions, seed, w0=w0, transfer=transfer).frames(times))


def test_picture_inversion_and_animation(styled, photo, tmp_path, capsys):
    options = "--seed 5 --frames 3 --fps 50 --start 4 --speed 3 --threads 1 --engine onnxruntime"
    assert animate(styled.path, photo, *options.split(), "--out", f"{tmp_path}/clip/") == 0
    picture, inverted, moving = expected_parts(styled.path, photo, 5, [4, 5.5, 7])
    found = frames_in(tmp_path / "clip")
    assert len(found) == 3
    for frame, expected in zip(found, moving, strict=True):
        np.testing.assert_array_equal(frame, np.hstack([picture, inverted, expected]))
    assert not np.array_equal(moving[0], moving[2])
    printed = capsys.readouterr().err
    assert "playing on onnxruntime" in printed and "3 frames, " in printed.splitlines()[-1]


def test_a_transfer_is_a_fourth_column(styled, photo, tmp_path):
    assert animate(styled.path, photo, "--transfer", "ink", "--frames", 2, "--out", f"{tmp_path}/clip/") == 0
    parts = expected_parts(styled.path, photo, 0, [0, 1])
    styled_frames = expected_parts(styled.path, photo, 0, [0, 1], "ink")[2]
    for frame, plain, other in zip(frames_in(tmp_path / "clip"), parts[2], styled_frames, strict=True):
        np.testing.assert_array_equal(frame, np.hstack([*parts[:2], plain, other]))


@pytest.mark.parametrize("transfer", [None, "oil-2"])
def test_the_animation_alone(styled, photo, tmp_path, transfer):
    options = ["--animation-only", "--motion-seed", 2, "--frames", 2, *(["--transfer", transfer] if transfer else [])]
    assert animate(styled.path, photo, *options, "--out", f"{tmp_path}/clip/") == 0
    expected = expected_parts(styled.path, photo, 2, [0, 1], transfer)[2]
    for frame, wanted in zip(frames_in(tmp_path / "clip"), expected, strict=True):
        np.testing.assert_array_equal(frame, wanted)


def test_formats_and_quality(styled, photo, tmp_path):
    options = ["--animation-only", "--frames", 2, "--threads", 1]
    assert animate(styled.path, photo, *options, "--format", "jpeg", "--out", f"{tmp_path}/clip/") == 0
    expected = expected_parts(styled.path, photo, 0, [0, 1])[2]
    written = [path.read_bytes() for path in sorted((tmp_path / "clip").iterdir())]
    assert written == [encode_jpeg(frame) for frame in expected]
    for crf in (1, 50):
        assert animate(styled.path, photo, *options, "--crf", crf, "--out", tmp_path / f"{crf}.mkv") == 0
    assert (tmp_path / "1.mkv").stat().st_size > 1.3 * (tmp_path / "50.mkv").stat().st_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frames", "0"], "--frames 0 plays without end, which only --out -, --out window and named pipes can take"),
        (["--seed", "-1"], "argument --seed/--motion-seed: found '-1'"),
        (["--transfer", "anime"], "transfers: found ink, oil-2, expected anime"),
        (["--out", "clip.gif"], "clip.gif: found the suffix .gif"),
        (["--format", "nv12"], "clip.mp4: found the format nv12, expected none: a video has no formats"),
    ],
)
def test_bad_options(styled, photo, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert animate(styled.path, photo, "--out", "clip.mp4", *options) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == "" and "Traceback" not in captured.err
    assert not list(tmp_path.iterdir())


def test_bad_input(styled, tiny, make_bundle, photo, tmp_path, capsys):
    out = tmp_path / "clip.mp4"
    assert animate(tiny.path, photo, "--out", out) == 2
    assert "expected inversion" in capsys.readouterr().err
    assert animate(styled.path, tmp_path / "nowhere.png", "--out", out) == 2
    assert "nowhere.png: found No such file or directory" in capsys.readouterr().err
    pictures = make_bundle(tmp_path / "pictures.bundle", "image", inversion=True)
    assert animate(pictures.path, photo, "--out", out) == 2
    assert "kind: found image, expected styleinv: only a model of clips has motion" in capsys.readouterr().err
    assert not out.exists() and [path.name for path in tmp_path.iterdir()] == ["pictures.bundle"]


def test_help_is_for_newcomers(capsys):
    assert animate("--help") == 0
    printed = capsys.readouterr().out
    for word in ("BUNDLE PICTURE", "--animation-only", "examples:", "--transfer NAME", "`styleinv export"):
        assert word in printed
