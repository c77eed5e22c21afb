"""What takes long: the tiny model's memory over many frames, and the paper's model through the whole export."""

import json
import subprocess
import sys

import pytest

from styleinv.runtime.cli import main

LONG = """
import itertools, json, resource, sys
from styleinv.runtime import Rollout

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

count = int(sys.argv[2])
kept = range(0, count, count // 20)
with Rollout.open(sys.argv[1], seed=1) as rollout:
    latents = {}
    for t in range(count):
        latent = rollout.latents([t])
        if t in kept:
            latents[t] = latent.tobytes()
        if t == count // 10:  # by then everything is loaded, and the allocator has what it needs
            before = resident()
    grown = resident() - before
with Rollout.open(sys.argv[1], seed=1) as fresh:
    drifted = [t for t in reversed(kept) if fresh.latents([t]).tobytes() != latents[t]]
print(json.dumps({"grown": grown, "drifted": drifted}))
"""


def play_long(bundle, frames):
    """Latents of so many frames in a process of its own: bytes that it grew, and the frames that came out differently
    than afresh."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    command = [sys.executable, "-c", LONG, str(bundle), str(frames)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_nothing_grows_or_drifts_over_many_frames(small_bundle):
    found = play_long(small_bundle, 10_000)
    assert found["grown"] < 2**20 and found["drifted"] == []


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_nothing_grows_or_drifts_over_a_million_frames_of_the_tiny_model(tmp_path):
    main(["init", "--preset", "tiny64", "--out", str(tmp_path / "tiny.safetensors")])
    main(["export", str(tmp_path / "tiny.safetensors"), "--out", str(tmp_path / "tiny.bundle")])
    found = play_long(tmp_path / "tiny.bundle", 1_000_000)
    print(f"grew by {found['grown']} bytes after the first 100,000 of 1,000,000 frames; drifted: {found['drifted']}")
    assert found["grown"] < 2**20 and found["drifted"] == []


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_papers_model_exports_and_streams(tmp_path):
    assert main(["init", "--preset", "paper256", "--out", str(tmp_path / "paper.safetensors")]) == 0
    assert main(["export", str(tmp_path / "paper.safetensors"), "--out", str(tmp_path / "paper.bundle")]) == 0
    assert main(["stream", str(tmp_path / "paper.bundle"), "--frames", "4", "--out", str(tmp_path / "x.mp4")]) == 0
