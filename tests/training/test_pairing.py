"""Pairs of draws and real frames: who is paired with whom, what is learned from a pair, and how a training goes on."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from styleinv.runtime.errors import ConfigError
from styleinv.training.config import ComputeConfig, from_dict, with_overrides
from styleinv.training.data import ClipSet, frame_numbers
from styleinv.training.loop import load_state, save_state
from styleinv.training.stages.image import ImageStage
from styleinv.training.stages.pairing import MOST_FRAMES, Pairing, pair_distance

PAIRED = ("image.pair_weight=2", "image.pair_interval=12", "image.path_length_interval=0", "image.style_mixing=0")


class Grey(nn.Module):
    """A generator of even pictures as bright as the first number of their z."""

    def mapping(self, z):
        return z

    def synthesis(self, w):
        return (w[:, :1, None, None] / 8).expand(-1, 3, 32, 32)


@pytest.fixture
def make_stage(small_config, small_clips):
    def build(*overrides):
        return ImageStage(with_overrides(small_config, [*PAIRED, *overrides]), small_clips, 3)

    return build


def test_pairs_lie_as_close_together_as_they_can():
    levels = np.random.default_rng(0).permutation(100)
    frames = np.repeat(levels.astype(np.uint8) + 78, 32 * 32 * 3).reshape(-1, 32, 32, 3)
    # Two clips, the second of which lies first in memory, behind a frame that is in neither.
    clips = ClipSet(("a", "b"), np.array([60, 39]), np.array([40, 1]), frames)
    pairing = Pairing(clips, z_dim=3)
    torch.manual_seed(0)
    pairing.renew(Grey(), ComputeConfig(precision="fp32"))
    shown = np.concatenate([levels[40:], levels[1:40]])
    found = pairing.of(np.arange(99))
    # In one dimension the closest pairs are those of equal rank.
    assert (found[:, 0].argsort().numpy() == shown.argsort()).all()
    torch.manual_seed(0)
    drawn = torch.randn(99, 3)
    assert sorted(found.tolist()) == sorted(drawn.tolist())
    assert torch.equal(pairing.of(np.array([7, 3])), found[[7, 3]])

    pairing.renew(Grey(), ComputeConfig(precision="fp32"))
    assert not torch.isin(pairing.z, drawn).any()


def test_the_distance_of_a_pair():
    picture = torch.zeros(2, 3, 16, 16)
    assert pair_distance(picture, picture) == 0
    assert pair_distance(picture + 0.5, picture).item() == pytest.approx(0.5)
    checks = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    assert pair_distance(picture + checks, picture).item() == pytest.approx(0.25)  # seen at full size only


def test_a_stage_draws_what_is_paired_with_the_real_frames_it_is_shown(make_stage, monkeypatch):
    stage = make_stage()
    given = []
    monkeypatch.setattr(stage.generator.mapping, "forward", lambda z: given.append(z) or z[:, :1].expand(-1, 12))
    torch.manual_seed(0)
    losses = stage.step(5)
    numbers, _ = frame_numbers(stage.clips, 3, 5 * 4, 4, mirror=False)
    assert torch.equal(torch.cat(given), stage.pairing.of(numbers))
    assert losses["pairs"] > 0 and {"generator", "discriminator"} <= losses.keys()


def test_the_gradient_of_pairs_has_its_weight(make_stage):
    def gradients(weight):
        stage = make_stage(f"image.pair_weight={weight}", "image.pair_images=100", "compute.precision=fp32")
        found = []
        optimizer = stage.optimizers["generator"]
        optimizer.register_step_pre_hook(
            lambda *_: found.extend(each.grad.clone() for each in stage.generator.parameters() if each.grad is not None)
        )
        torch.manual_seed(0)
        stage.step(0)
        return found

    for once, twice in zip(gradients(1), gradients(2), strict=True):
        torch.testing.assert_close(twice, 2 * once)


def test_pairs_alone_come_first(make_stage):
    stage = make_stage("image.pair_images=8")
    before = [parameter.clone() for parameter in stage.discriminator.parameters()]
    weights = stage.generator.synthesis.const.clone()
    for index in range(2):
        assert stage.step(index).keys() == {"pairs"}
    assert all(map(torch.equal, before, stage.discriminator.parameters()))
    assert not torch.equal(weights, stage.generator.synthesis.const)
    assert stage.step(2).keys() > {"pairs", "discriminator"}
    assert not any(map(torch.equal, before, stage.discriminator.parameters()))


def test_pairs_are_renewed_when_they_have_been_seen(make_stage):
    stage = make_stage("image.pair_images=100")
    seen = [(stage.step(index), stage.pairing.z)[1] for index in range(7)]
    renewed = [index for index in range(1, 7) if seen[index] is not seen[index - 1]]
    assert renewed == [3, 6]  # batches of 4, pairs for 12


def test_a_training_with_pairs_goes_on_bit_for_bit(make_stage, tmp_path):
    def steps(stage, indices):
        for index in indices:
            torch.manual_seed(index)
            stage.step(index)
        return stage

    settings = ("image.pair_images=8", "image.pair_interval=16")
    whole = steps(make_stage(*settings), range(6))
    save_state(steps(make_stage(*settings), range(3)), tmp_path / "state.pt", 3, 3, 0.0)
    resumed = make_stage(*settings)
    assert load_state(resumed, tmp_path / "state.pt", 3)[0] == 3
    steps(resumed, range(3, 6))
    for name, network in whole.networks.items():
        assert all(map(torch.equal, network.state_dict().values(), resumed.networks[name].state_dict().values())), name


def test_a_training_takes_up_pairs_late_or_with_other_frames(make_stage, small_clips, tmp_path):
    without = make_stage("image.pair_weight=0")
    save_state(without, tmp_path / "state.pt", 1, 3, 0.0)  # in the middle of what would be an interval
    stage = make_stage()
    load_state(stage, tmp_path / "state.pt", 3)
    assert stage.pairing.z is None
    stage.step(1)
    assert stage.pairing.z.shape == (24, 8)

    stage.pairing.restore(torch.zeros(23, 8))
    assert stage.pairing.z is None


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("image.pair_weight=-1", "image.pair_weight: found -1"),
        ("image.pair_interval=0", "image.pair_interval: found 0"),
        ("image.mirror=true", "image.pair_weight: found 2 with image.mirror True"),
        ("image.style_mixing=0.5", "image.style_mixing 0.5"),
        ("image.pair_images=-1", "image.pair_images: found -1"),
    ],
)
def test_settings_that_make_no_pairs(small_config, setting, named):
    with pytest.raises(ConfigError, match=named):
        with_overrides(small_config, [*PAIRED, setting])


def test_pairs_alone_need_a_weight(small_config):
    tree = json.loads(json.dumps(dataclasses.asdict(small_config)))
    tree["image"] |= {"pair_weight": 0.0, "pair_images": 100}
    with pytest.raises(ConfigError, match=r"image.pair_images: found 100, expected 0 where image.pair_weight is 0"):
        from_dict(tree)


def test_too_many_frames_to_pair():
    clips = ClipSet(("a",), np.array([MOST_FRAMES + 1]), np.array([0]), np.empty((0, 8, 8, 3), np.uint8))
    with pytest.raises(ConfigError, match=f"found {MOST_FRAMES + 1} frames to pair, expected at most {MOST_FRAMES}"):
        Pairing(clips, 4)
