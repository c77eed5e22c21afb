"""Augmentation: off at p = 0, shared by the frames of a clip, differentiable, and steered by the logits."""

import pytest
import torch

from styleinv.training.augment import AdaptiveProbability, _colour, _geometry, augment, draw_transforms


def augmented(clips, p):
    return augment(clips, draw_transforms(len(clips), p, clips.shape[-1]))


def test_p_zero_changes_nothing():
    clips = torch.randn(2, 3, 3, 8, 8)
    assert augmented(clips, 0.0) is clips


def test_frames_of_a_clip_share_their_transform():
    torch.manual_seed(0)
    frame = torch.rand(4, 1, 3, 16, 16)
    found = augmented(frame.expand(-1, 3, -1, -1, -1), 1.0)
    assert torch.allclose(found[:, 0], found[:, 1], atol=1e-6)
    assert torch.allclose(found[:, 0], found[:, 2], atol=1e-6)
    assert not torch.allclose(found, frame.expand(-1, 3, -1, -1, -1), atol=0.1)


def test_clips_get_transforms_of_their_own():
    torch.manual_seed(0)
    found = augmented(torch.rand(1, 1, 3, 16, 16).expand(4, -1, -1, -1, -1), 1.0)
    assert not torch.allclose(found[0], found[1], atol=0.1)


def test_small_p_leaves_most_clips_alone():
    torch.manual_seed(0)
    clips = torch.rand(64, 1, 3, 8, 8)
    same = (augmented(clips, 0.01) - clips).abs().amax(dim=(1, 2, 3, 4)) < 1e-5
    assert 0.75 < same.float().mean() < 1


def test_gradients_reach_the_clips():
    torch.manual_seed(0)
    clips = torch.rand(2, 4, 3, 8, 8, requires_grad=True)
    augmented(clips, 0.8).sum().backward()
    assert clips.grad.isfinite().all()
    assert clips.grad.abs().sum() > 0


def test_some_clips_get_the_transforms_that_they_have_among_all():
    torch.manual_seed(0)
    clips, transforms = torch.rand(6, 2, 3, 8, 8), draw_transforms(6, 1.0, 8)
    rows = torch.tensor([4, 1, 5])
    found = augment(clips[rows], transforms.of(rows))
    assert torch.allclose(found, augment(clips, transforms)[rows], atol=1e-6)
    assert not torch.allclose(found, augment(clips[rows], transforms.of(rows.flip(0))), atol=0.1)


def test_colours_and_places_stay_float32_in_mixed_precision():
    clips, transforms = torch.rand(2, 1, 3, 8, 8), draw_transforms(2, 1.0, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = augment(clips.bfloat16(), transforms)
    assert found.dtype == torch.float32
    assert torch.equal(found, augment(clips.bfloat16().float(), transforms))


@pytest.mark.parametrize("seed", range(5))
def test_identity_transforms_at_p_zero(seed):
    torch.manual_seed(seed)
    assert torch.equal(_geometry(3, 0.0, 16), torch.eye(3).repeat(3, 1, 1))
    assert torch.allclose(_colour(3, 0.0), torch.eye(4).repeat(3, 1, 1), atol=1e-6)


def test_p_follows_the_sign_of_the_logits():
    control = AdaptiveProbability(target=0.6, speed_images=100, interval=2)
    for _ in range(4):
        control.update(1.0, images=4)
    assert control.p == pytest.approx(4 * 4 / 100)
    for _ in range(8):
        control.update(-1.0, images=4)
    assert control.p == 0.0


def test_target_zero_switches_augmentation_off():
    control = AdaptiveProbability(target=0.0, speed_images=1, interval=1)
    control.update(1.0, images=4)
    assert control.p == 0.0
