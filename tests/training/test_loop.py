"""The loop: exact resuming of every stage, whole files, Ctrl-C, and losses that are not numbers."""

import math
import os
import signal

import pytest
import torch

from styleinv.runtime.errors import CheckpointError, TrainingError
from styleinv.training import loop
from styleinv.training.checkpoint import load_checkpoint
from styleinv.training.initialize import initialize
from styleinv.training.loop import picture_grid, train
from styleinv.training.model import build_image_discriminator, build_inversion
from styleinv.training.perceptual import discriminator_distance
from styleinv.training.stages.image import ImageStage
from styleinv.training.stages.inversion import InversionStage, perceptual_distance
from styleinv.training.stages.motion import MotionStage


@pytest.fixture
def make_stage(small_config, small_clips):
    """Stages by name, built anew each time, as a fresh process would."""

    def build(name):
        generator = initialize(small_config, seed=5).generator
        if name == "image":
            return ImageStage(small_config, small_clips, 3)
        if name == "inversion":
            torch.manual_seed(11)
            distance = discriminator_distance(build_image_discriminator(small_config))
            return InversionStage(small_config, small_clips, 3, generator, distance)
        torch.manual_seed(12)
        return MotionStage(small_config, small_clips, 3, generator, build_inversion(small_config.model).eval())

    return build


def run(stage, out, steps, resume=False):
    return train(stage, out, images=steps * stage.images_per_step, seed=3, resume=resume, progress=False)


def flat(tree, prefix=""):
    """Every leaf of a nested training state, by its path."""
    if isinstance(tree, dict):
        return {name: leaf for key, value in tree.items() for name, leaf in flat(value, f"{prefix}/{key}").items()}
    if isinstance(tree, (list, tuple)):
        return flat(dict(enumerate(tree)), prefix)
    return {prefix: tree}


def assert_same(first, second):
    first, second = flat(first), flat(second)
    assert first.keys() == second.keys()
    for name in first.keys() - {"/seconds"}:
        value = first[name]
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, f"{name} differs"


@pytest.mark.parametrize("name", ["image", "inversion", "motion"])
def test_two_and_two_steps_are_four_bit_for_bit(name, make_stage, tmp_path):
    run(make_stage(name), tmp_path / "whole", 4)
    run(make_stage(name), tmp_path / "parts", 2)
    torch.manual_seed(999)  # whatever state a new process happens to have
    run(make_stage(name), tmp_path / "parts", 4, resume=True)
    assert_same(*(torch.load(tmp_path / part / f"{name}.state.pt", weights_only=True) for part in ("whole", "parts")))
    whole, parts = (load_checkpoint(tmp_path / part / f"{name}.safetensors") for part in ("whole", "parts"))
    assert_same(whole.model.state_dict(), parts.model.state_dict())


@pytest.mark.parametrize("name", ["image", "inversion", "motion"])
def test_steps_change_what_they_train_and_nothing_else(name, make_stage):
    stage = make_stage(name)
    before = {key: value.clone() for key, value in next(iter(stage.networks.values())).state_dict().items()}
    torch.manual_seed(0)
    losses = stage.step(1)  # behind the motion discriminator's head start
    assert all(math.isfinite(value) for value in losses.values())
    changed = {key for key, value in next(iter(stage.networks.values())).state_dict().items()
               if not torch.equal(value, before[key])}  # fmt: skip
    trained = {key for key, parameter in next(iter(stage.networks.values())).named_parameters()
               if parameter.requires_grad}  # fmt: skip
    if name == "motion":
        assert not any(key.startswith("generator.") for key in changed | trained)
    assert len(changed & trained) > 0.8 * len(trained)


def test_seeds_decide_the_run(make_stage, small_config, small_clips, tmp_path):
    run(make_stage("image"), tmp_path / "a", 1)
    run(make_stage("image"), tmp_path / "b", 1)
    train(ImageStage(small_config, small_clips, 4), tmp_path / "c", images=4, seed=4, resume=False, progress=False)
    a, b, c = (load_checkpoint(tmp_path / name / "image.safetensors").model.synthesis.const for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_ctrl_c_finishes_the_step_and_saves(make_stage, tmp_path):
    stage = make_stage("inversion")
    step = stage.step

    def interrupted(index):
        if index == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(index)

    stage.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        run(stage, tmp_path, 50)
    assert torch.load(tmp_path / "inversion.state.pt", weights_only=True)["images"] == 2 * stage.images_per_step
    assert load_checkpoint(tmp_path / "inversion.safetensors").kind == "inversion"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_losses_that_are_not_finite_stop_and_keep_the_last_checkpoint(make_stage, tmp_path, value):
    stage = make_stage("inversion")
    step = stage.step
    stage.step = lambda index: step(index) | ({"l2": value} if index == 2 else {})
    with pytest.raises(TrainingError, match=r"inversion stage, step 2: l2 = .*inversion\.safetensors"):
        run(stage, tmp_path, 9)
    assert torch.load(tmp_path / "inversion.state.pt", weights_only=True)["images"] == 2 * stage.images_per_step
    assert load_checkpoint(tmp_path / "inversion.safetensors").kind == "inversion"


def test_a_failed_save_leaves_the_last_state(make_stage, tmp_path, monkeypatch):
    run(make_stage("inversion"), tmp_path, 1)
    before = (tmp_path / "inversion.state.pt").read_bytes()

    def disk_full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(loop.torch, "save", disk_full)
    with pytest.raises(OSError, match="no space"):
        run(make_stage("inversion"), tmp_path, 2, resume=True)
    assert (tmp_path / "inversion.state.pt").read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))


def test_resuming_what_is_not_there_or_not_it(make_stage, tmp_path, small_config, small_clips):
    with pytest.raises(CheckpointError, match=r"image\.state\.pt: no such file"):
        run(make_stage("image"), tmp_path, 1, resume=True)
    run(make_stage("inversion"), tmp_path, 1)
    (tmp_path / "inversion.state.pt").rename(tmp_path / "image.state.pt")
    with pytest.raises(CheckpointError, match="stage: found 'inversion', expected 'image'"):
        run(make_stage("image"), tmp_path, 1, resume=True)
    (tmp_path / "image.state.pt").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"image\.state\.pt: not a readable training state"):
        run(make_stage("image"), tmp_path, 1, resume=True)
    torch.save({"stage": "image"}, tmp_path / "image.state.pt")
    with pytest.raises(CheckpointError, match=r"config.* missing"):
        run(make_stage("image"), tmp_path, 1, resume=True)
    run(make_stage("image"), tmp_path / "other", 1)
    with pytest.raises(CheckpointError, match="seed: found 3, expected 4"):
        train(
            ImageStage(small_config, small_clips, 4), tmp_path / "other", images=4, seed=4, resume=True, progress=False
        )


def test_state_files_run_no_code(tmp_path, make_stage):
    class Hostile:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    torch.save({"stage": Hostile()}, tmp_path / "image.state.pt")
    with pytest.raises(CheckpointError, match=r"image\.state\.pt"):
        run(make_stage("image"), tmp_path, 1, resume=True)
    assert not (tmp_path / "executed").exists()


def test_logs_are_written(make_stage, tmp_path):
    run(make_stage("image"), tmp_path, 2)
    assert list((tmp_path / "logs" / "image").glob("events.out.tfevents.*"))


def test_perceptual_distance_comes_from_the_image_stage(make_stage, small_config, tmp_path):
    with pytest.raises(CheckpointError, match=r"image\.state\.pt.*--lpips"):
        perceptual_distance(small_config, None, tmp_path / "image.state.pt")
    run(make_stage("image"), tmp_path, 1)
    distance = perceptual_distance(small_config, None, tmp_path / "image.state.pt")
    assert distance(torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)).item() > 0
    run(make_stage("inversion"), tmp_path, 1)
    with pytest.raises(CheckpointError, match="discriminator"):
        perceptual_distance(small_config, None, tmp_path / "inversion.state.pt")


@pytest.mark.parametrize(("count", "shape"), [(1, (3, 4, 4)), (4, (3, 8, 8)), (16, (3, 16, 16)), (6, (3, 12, 8))])
def test_picture_grids_are_as_square_as_may_be(count, shape):
    grid = picture_grid(torch.full((count, 3, 4, 4), 5.0))
    assert grid.shape == shape
    assert grid.max() == 1
