"""`styleinv stream`, killed, interrupted or out of room: what is written can be played."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from styleinv.runtime import Rollout

av = pytest.importorskip("av")

COMMAND = [sys.executable, "-m", "styleinv.runtime.cli", "stream"]
SUFFIXES = [".mp4", ".mov", ".mkv", ".webm"]


def started(*arguments, **options):
    return subprocess.Popen([*COMMAND, *map(str, arguments)], stderr=subprocess.PIPE, **options)


def decoded(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def assert_from_the_clip(bundle, frames):
    """The frames are noise, whose colours a video halves; their means survive."""
    with Rollout.open(bundle.path, 3, threads=1) as rollout:
        for t, frame in enumerate(frames):
            np.testing.assert_allclose(frame.mean(axis=(0, 1)), rollout[t].mean(axis=(0, 1)), atol=6, err_msg=f"t {t}")


def stopped(process, path, number):
    """Sends a signal to a process once it has written some frames; what it has said until it ended."""
    while not path.exists() or path.stat().st_size < 30_000:
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.01)
    process.send_signal(number)
    return process.communicate()[1].decode()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_killed(tiny, tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    process = started(tiny.path, "--seed", 3, "--frames", 100_000, "--threads", 1, "--out", path)
    stopped(process, path, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    frames = decoded(path)
    assert len(frames) > 20
    assert_from_the_clip(tiny, frames)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("number", "options"),
    [
        (signal.SIGINT, {}),
        (signal.SIGTERM, {}),
        # as a shell's script starts a job in the background
        (signal.SIGTERM, {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}),
    ],
)
def test_interrupted(tiny, tmp_path, suffix, number, options):
    path = tmp_path / f"clip{suffix}"
    process = started(tiny.path, "--seed", 3, "--frames", 100_000, "--threads", 1, "--out", path, **options)
    closing = stopped(process, path, number).splitlines()[-1]
    assert process.returncode == 128 + number
    reported = int(re.match(r"interrupted: (\d+) frames, .* written to ", closing)[1])
    frames = decoded(path)
    assert reported <= len(frames) <= reported + 1  # a frame that was being written when the signal came may be there
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert_from_the_clip(tiny, frames)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_room_for_the_video(tiny, tmp_path, suffix):
    resource = pytest.importorskip("resource")
    path = tmp_path / f"clip{suffix}"
    options = ["--engine", "onnxruntime", "--threads", 1, "--frames", 100_000, "--out", path]
    limit = 30_000, resource.RLIM_INFINITY
    process = started(tiny.path, *options, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    said = process.communicate()[1].decode().splitlines()
    assert process.returncode == 2
    assert said[1:] == [
        f"styleinv: error: {path}: cannot be written: File too large; what was written before can be played"
    ]
    assert len(decoded(path)) > 20


def test_no_room_for_raw_bytes(tiny):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("wb") as full:
        command = [*COMMAND, tiny.path, "--threads", "1", "--out", "-"]
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.splitlines()[1:] == [
        "styleinv: error: standard output: cannot be written: no space left on its disk"
    ]
