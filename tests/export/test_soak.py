"""What takes long: the tiny model's memory over many frames, and the paper's model through the whole export."""

import subprocess
import sys

import pytest

from styleinv.runtime.cli import main

GROWTH = """
import itertools, resource, sys
from styleinv.runtime import Rollout

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

with Rollout.open(sys.argv[1], seed=1) as rollout:
    for t in range(500):
        rollout.latents([t])
    before = resident()
    for t in range(500, int(sys.argv[2])):
        rollout.latents([t])
    print(resident() - before)
"""


def growth_in_bytes(bundle, frames):
    command = [sys.executable, "-c", GROWTH, str(bundle), str(frames)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_memory_does_not_grow_with_frames(small_bundle):
    assert growth_in_bytes(small_bundle, 5_000) < 2**20


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_memory_of_the_tiny_model_over_twenty_thousand_frames(tmp_path):
    main(["init", "--preset", "tiny64", "--out", str(tmp_path / "tiny.safetensors")])
    main(["export", str(tmp_path / "tiny.safetensors"), "--out", str(tmp_path / "tiny.bundle")])
    growth = growth_in_bytes(tmp_path / "tiny.bundle", 20_000)
    print(f"grew by {growth} bytes after the first 500 of 20,000 frames")
    assert growth < 2**20


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_papers_model_exports_and_streams(tmp_path):
    assert main(["init", "--preset", "paper256", "--out", str(tmp_path / "paper.safetensors")]) == 0
    assert main(["export", str(tmp_path / "paper.safetensors"), "--out", str(tmp_path / "paper.bundle")]) == 0
    assert main(["stream", str(tmp_path / "paper.bundle"), "--frames", "4", "--out", str(tmp_path / "x.mp4")]) == 0
