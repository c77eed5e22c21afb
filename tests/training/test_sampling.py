"""Sampling from clips: pure functions of (clips, seed, number)."""

from __future__ import annotations

import numpy as np
import pytest

from styleinv.runtime.errors import DataError
from styleinv.training.data import ClipSet, clip_batch, frame_batch, sample_times


def numbered_clips(*lengths: int) -> ClipSet:
    """A ClipSet [N,2,2,3] whose frame n has n at its left and 255 - n at its right."""
    numbers = np.arange(sum(lengths), dtype=np.uint8)
    frames = np.stack([numbers, 255 - numbers], axis=1)[:, None, :, None].repeat(2, 1).repeat(3, 3)
    offsets = np.cumsum(lengths) - np.array(lengths)
    return ClipSet(tuple(f"clip{i}" for i in range(len(lengths))), np.array(lengths), offsets, frames)


@pytest.mark.parametrize("mirror", [False, True])
def test_every_epoch_is_a_new_order_of_all_frames(mirror: bool) -> None:
    clips = numbered_clips(5, 3, 9)
    items = 34 if mirror else 17
    epochs = [frame_batch(clips, 3, items * epoch, items, mirror)[:, 1, :, 2].tolist() for epoch in range(3)]
    everything = [[n, 255 - n] for n in range(17)] + ([[255 - n, n] for n in range(17)] if mirror else [])
    assert all(sorted(epoch) == sorted(everything) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != frame_batch(clips, 4, 0, items, mirror)[:, 1, :, 2].tolist()


@pytest.mark.parametrize("mirror", [False, True])
def test_samples_do_not_depend_on_the_batch_size(mirror: bool) -> None:
    clips = numbered_clips(5, 3, 9)
    singles = [frame_batch(clips, 3, n, 1, mirror) for n in range(10, 80)]
    assert (frame_batch(clips, 3, 10, 70, mirror) == np.concatenate(singles)).all()

    frames, times = clip_batch(clips, 3, 0, 20, max_span=6, mirror=mirror)
    singles_of_clips = [clip_batch(clips, 3, n, 1, max_span=6, mirror=mirror) for n in range(20)]
    assert (frames == np.concatenate([single[0] for single in singles_of_clips])).all()
    assert (times == np.concatenate([single[1] for single in singles_of_clips])).all()


def test_the_order_is_that_of_a_philox_permutation() -> None:
    clips = numbered_clips(5, 3, 9)
    order = np.random.Generator(np.random.Philox(key=[7, 2])).permutation(17)  # of epoch 2 with seed 7
    assert frame_batch(clips, 7, 34, 17, mirror=False)[:, 0, 0, 0].tolist() == order.tolist()
    assert len(frame_batch(clips, 2**64 - 1, 10**15, 4, mirror=True)) == 4


def test_sparse_clips_show_the_frames_at_their_times() -> None:
    clips = numbered_clips(40, 3, 90)
    frames, times = clip_batch(clips, 0, 0, 600, max_span=32, mirror=True)
    assert frames.shape == (600, 4, 2, 2, 3) and frames.dtype == np.uint8 and times.dtype == np.float64
    left, right = frames[:, :, 0, 0, 0].astype(int), frames[:, :, 0, 1, 0].astype(int)
    flipped = left[:, :1] > right[:, :1]
    numbers = np.where(flipped, right, left)
    assert (numbers == numbers[:, :1] + times).all() and (left + right == 255).all()
    of_clip = np.searchsorted([40, 43], numbers, side="right")
    assert (of_clip == of_clip[:, :1]).all()
    assert (np.bincount(of_clip[:, 0]) > 150).all()  # of 200: each clip is as likely, whatever its length
    assert 0.4 < flipped.mean() < 0.6
    assert {0, 42, 132} <= set(numbers.flat)  # first and last frames take part


def test_clips_too_short_for_motion() -> None:
    with pytest.raises(DataError, match="clip1: found a clip of 2 frames, expected at least 3"):
        clip_batch(numbered_clips(8, 2), 0, 0, 1, max_span=8, mirror=False)


@pytest.mark.parametrize("fractional", [False, True])
@pytest.mark.parametrize("max_span", [3, 4, 5, 6, 32, 33, 128])
def test_sample_times(max_span: int, fractional: bool) -> None:
    times = sample_times(np.random.default_rng(0), 2000, max_span, fractional)
    first, start, middle, end = times.T
    spans = np.rint(end - start).astype(int)
    assert times.shape == (2000, 4) and times.dtype == np.float64
    assert (first == 0).all() and start.min() >= 1 and end.max() <= max_span - 1
    assert (start <= middle).all() and (middle <= end).all()
    powers = [2**k for k in range(8) if 2**k <= max_span - 2]
    assert np.unique(spans).tolist() == powers
    assert np.bincount(spans)[powers].min() > 0.7 * 2000 / len(powers)
    if fractional:
        assert np.allclose(end - start, spans)
    else:
        assert (times == np.rint(times)).all()
        assert (start < middle)[spans > 1].all() and (middle < end)[spans > 1].all()
        assert start.min() == 1 and end.max() == max_span - 1
        assert 0.4 < (middle == start)[spans == 1].mean() < 0.6


def test_sample_times_without_room() -> None:
    with pytest.raises(ValueError, match="found max_span 2, expected at least 3"):
        sample_times(np.random.default_rng(0), 1, 2, fractional=True)
