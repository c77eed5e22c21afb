"""Video files cut short, by a kill or a full disk: they play up to there, and nothing short passes for whole."""

import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

av = pytest.importorskip("av")

COLOURS = [(220, 30, 40), (20, 200, 60), (30, 60, 210), (128, 128, 128), (255, 255, 255)]
SUFFIXES = [".mp4", ".mov", ".mkv", ".webm"]


def decoded(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


KILLED = """
import os, signal, sys, numpy
from styleinv.runtime.sinks import open_sink
colours = numpy.array(eval(sys.argv[2]), numpy.uint8)
with open_sink(sys.argv[1], 25.0, (32, 48)) as sink:
    for n in range(60):
        sink.write(numpy.broadcast_to(colours[n % len(colours)], (32, 48, 3)))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_killed_process_loses_few_frames(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    killed = subprocess.run([sys.executable, "-c", KILLED, path, str(COLOURS)], check=False)
    assert killed.returncode == -signal.SIGKILL
    frames = decoded(path)
    assert len(frames) >= 60 - 20, len(frames)
    for n, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - COLOURS[n % len(COLOURS)]).max() <= 6, (n, frame[0, 0])


# Writes the same frames again and again with less and less room, and says of each attempt what came of it.
LIMITED = """
import contextlib, resource, sys, av, numpy
from pathlib import Path
from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.sinks import open_sink
path, COUNT = Path(sys.argv[1]), 20

def attempt(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    generator = numpy.random.default_rng(0)
    try:
        with open_sink(str(path), 25.0, (32, 48)) as sink:
            for _ in range(COUNT):
                sink.write(generator.integers(0, 256, (32, 48, 3), numpy.uint8))
        outcome = "written"
    except StyleInVError as error:
        outcome = str(error)
        assert outcome.startswith(f"{path}: cannot be written: "), outcome
    with av.open(str(path)) as container:
        frames = sum(1 for frame in container.decode(video=0))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert outcome != "written" or frames == COUNT, (limit, frames)
    return outcome, frames

outcome, frames = attempt(resource.RLIM_INFINITY)
whole = path.stat().st_size
limits = numpy.linspace(1.15, 0.6, 45) * whole
attempts = [attempt(int(limit)) for limit in limits]
assert attempts[0][0] == "written" and attempts[-1][0] != "written"
assert all(frames >= 5 for _, frames in attempts), attempts
print(*sorted({outcome.partition(": cannot be written: ")[2] for outcome, _ in attempts}), sep="\\n")
"""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_room_is_never_taken_for_success(tmp_path, suffix):
    """The size of a file is limited, which needs no rights; 45 limits around the size that it would have."""
    if not sys.platform.startswith("linux"):
        pytest.skip("limits are set as Linux does it")
    command = [sys.executable, "-c", LIMITED, tmp_path / f"clip{suffix}"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "File too large; what was written before can be played" in finished.stdout


FULL = """
import sys, numpy
from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.sinks import open_sink
generator = numpy.random.default_rng(0)
try:
    with open_sink(sys.argv[1], 25.0, (32, 48)) as sink:
        for _ in range(200):
            sink.write(generator.integers(0, 256, (32, 48, 3), numpy.uint8))
except StyleInVError as error:
    print(error)
"""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_full_disk(tmp_path, suffix):
    """On a real, small disk: a tmpfs in a namespace of its own, which its copy is read from afterwards."""
    disk, copy = tmp_path / "disk", tmp_path / f"copy{suffix}"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=64k none '{disk}'"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "sh", "-c", mount], check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk: no `unshare -rm`")
    clip = disk / f"clip{suffix}"
    script = f"{mount} && '{sys.executable}' -c \"$1\" '{clip}' && cp '{clip}' '{copy}'"
    command = ["unshare", "-rm", "sh", "-c", script, "sh", FULL]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert printed == (f"{clip}: cannot be written: no space left on its disk; what was written before can be played")
    assert len(decoded(copy)) > 10 and copy.stat().st_size > 50_000
