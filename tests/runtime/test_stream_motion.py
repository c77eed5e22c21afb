"""`styleinv stream` backwards, looped and with strided latents."""

import numpy as np
import pytest

from styleinv.runtime import Rollout
from styleinv.runtime.cli import main
from styleinv.runtime.sinks import encode_png

D = 16  # anchor_distance of the tiny bundle, which plays at 25 frames per second


def stream(*arguments):
    """`styleinv stream` in this process; its exit status."""
    try:
        return main(["stream", *map(str, arguments)])
    except SystemExit as left:  # argparse
        return left.code


def pictures(folder):
    return [file.read_bytes() for file in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def rollout(tiny):
    with Rollout.open(tiny.path, 3) as rollout:
        yield rollout


@pytest.mark.parametrize("speed", [["--speed", "-1"], ["--speed=-2.5"]])
def test_backwards(tiny, tmp_path, rollout, speed):
    assert stream(tiny.path, "--seed", 3, *speed, "--start", 10, "--out", f"{tmp_path}/back/") == 0
    times = np.arange(10, -1e-9, float(speed[-1].removeprefix("--speed=")))
    assert pictures(tmp_path / "back") == [encode_png(rollout[t]) for t in times]


def test_one_round_of_a_loop(tiny, tmp_path, rollout):
    assert stream(tiny.path, "--seed", 3, "--loop", 2, "--out", f"{tmp_path}/loop/") == 0
    looped = rollout.loop(2)
    assert pictures(tmp_path / "loop") == [encode_png(looped[t]) for t in range(2 * D)]
    options = ["--loop", 1, "--fps", 50, "--speed", "2", "--start", 5]
    assert stream(tiny.path, "--seed", 3, *options, "--out", f"{tmp_path}/fast/") == 0
    assert pictures(tmp_path / "fast") == [encode_png(rollout.loop(1)[5 + n]) for n in range(D)]
    assert stream(tiny.path, "--loop", 1, "--frames", 3, "--out", f"{tmp_path}/three/") == 0
    assert len(pictures(tmp_path / "three")) == 3


def test_every_clip_of_a_grid_is_looped(tiny, tmp_path, rollout):
    assert stream(tiny.path, "--seed", 3, "--grid", "1x2", "--loop", 1, "--out", f"{tmp_path}/grid/") == 0
    clips = [Rollout(rollout.sessions, seed).loop(1) for seed in (3, 4)]
    expected = [encode_png(np.hstack([clip[t] for clip in clips])) for t in range(D)]
    assert pictures(tmp_path / "grid") == expected


def test_strided_latents(tiny, tmp_path, rollout, capsys):
    assert stream(tiny.path, "--seed", 3, "--latent-stride", 4, "--frames", 9, "--out", f"{tmp_path}/strided/") == 0
    strided = Rollout(rollout.sessions, 3, latent_stride=4)
    assert pictures(tmp_path / "strided") == [encode_png(strided[t]) for t in range(9)]
    assert ", the encoder every 4 frames" in capsys.readouterr().err
    assert stream(tiny.path, "--latent-stride", "auto", "--out", f"{tmp_path}/auto/") == 2
    assert "latent_strides: found nothing, expected" in capsys.readouterr().err
    assert not (tmp_path / "auto").exists()


def test_batches_write_the_same_pictures(tiny, tmp_path, rollout):
    assert stream(tiny.path, "--seed", 3, "--batch", 3, "--frames", 7, "--out", f"{tmp_path}/batches/") == 0
    assert pictures(tmp_path / "batches") == [encode_png(rollout[t]) for t in range(7)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--speed", "-1"], "--speed below 0 plays backwards to the beginning: give --start, too"),
        (["--speed", "0"], "argument --speed: found '0', expected a number other than 0"),
        (["--loop", "0"], "argument --loop: found '0', expected a whole number of at least 1"),
        (["--latent-stride", "0"], "argument --latent-stride: found '0', expected a whole number of at least 1"),
        (["--latent-stride", "all"], "argument --latent-stride: found 'all', expected a whole number of at least 1"),
    ],
)
def test_bad_options(tiny, tmp_path, capsys, options, message):
    assert stream(tiny.path, *options, "--out", f"{tmp_path}/x.mp4") == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_pictures_do_not_loop(make_bundle, tmp_path, capsys):
    bundle = make_bundle(tmp_path / "pictures.bundle", "image")
    assert stream(bundle.path, "--loop", 2, "--out", f"{tmp_path}/x.mp4") == 2
    assert "kind: found image, expected styleinv: single pictures do not move" in capsys.readouterr().err
