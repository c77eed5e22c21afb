"""Training that ends before its time, killed or after its hours, goes on as if nothing had been."""

import random
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from forked import finish, start
from killed_training import STEPS, train_images

from styleinv.training import loop
from styleinv.training.checkpoint import load_checkpoint
from styleinv.training.initialize import initialize
from styleinv.training.loop import train
from styleinv.training.stages.inversion import InversionStage


def leaves(tree, prefix=""):
    """Every leaf of a nested training state, by its path."""
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {name: leaf for key, value in items for name, leaf in leaves(value, f"{prefix}/{key}").items()}
    return {prefix: tree}


def written(out):
    """All numbers in the files of a training, but for how long it took."""
    state = torch.load(out / "image.state.pt", weights_only=True)
    del state["seconds"]
    return leaves({"state": state, "checkpoint": dict(load_checkpoint(out / "image.safetensors").model.state_dict())})


def test_killed_at_any_moment_it_resumes_bit_for_bit(small_config, small_clips, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(int))  # what the first process costs is no part of a training
    began = time.monotonic()
    finish(start(train_images, small_config, small_clips, whole))
    seconds = time.monotonic() - began

    done = []  # steps in the state file after each death
    for rename in (1, 2, 3, 4):  # before a checkpoint, between it and its state, before the second of each
        process = start(train_images, small_config, small_clips, killed, rename)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert (killed / "image.safetensors").exists() == (rename > 1)
        state = killed / "image.state.pt"
        done.append(torch.load(state, weights_only=True)["images"] // 4 if state.exists() else 0)
    assert done == [0, 0, 1, 2]
    for _ in range(2):
        process = start(train_images, small_config, small_clips, killed)
        time.sleep(random.uniform(0, seconds))
        process.kill()
        process.join()
    finish(start(train_images, small_config, small_clips, killed))

    found, wanted = written(killed), written(whole)
    assert found.keys() == wanted.keys() and wanted["/state/images"] == 4 * STEPS
    for name, value in wanted.items():
        same = torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
        assert same, f"{name} differs"


@pytest.fixture
def clock(monkeypatch):
    """What the loop takes for the time, in seconds."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_hours_end_training_and_count_on_when_it_is_resumed(small_config, small_clips, tmp_path, clock):
    stage = InversionStage(small_config, small_clips, 3, initialize(small_config, seed=5).generator, None)
    steps, measured = [], []

    def step(index):
        steps.append(index)
        clock.seconds += 600
        return {"l2": 1.0}

    def measure(model):
        measured.append(model is stage.result())
        return {"distance": 2.0}

    def run(hours, images, resume):
        clock.seconds += 12345  # between two runs
        train(stage, tmp_path, images=images, seed=3, resume=resume, hours=hours, measure=measure, progress=False)
        state = torch.load(tmp_path / "inversion.state.pt", weights_only=True)
        return state["images"] // 4, state["seconds"]

    stage.step = step
    assert run(0.5, 400, resume=False) == (3, 1800)
    assert measured == [True] * 3  # a snapshot each
    assert run(0.9, 400, resume=True) == (6, 3600)  # the step that it is in ends
    assert run(1.0, 400, resume=True) == (6, 3600)
    assert run(9.0, 32, resume=True) == (8, 4800)
    assert steps == list(range(8))
