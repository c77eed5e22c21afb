"""Sampling from clips: pure functions of (clips, seed, number)."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from styleinv.runtime.errors import DataError
from styleinv.training import data
from styleinv.training.data import ClipSet, clip_batch, frame_batch, sample_times


def weighted(clips: ClipSet, *weights: float) -> ClipSet:
    return dataclasses.replace(clips, weights=np.array(weights, np.float64))


def drawn(clips: ClipSet, start: int, count: int, mirror: bool = False) -> NDArray[np.int64]:
    """The numbers [count] of frames, after 256 where they are flipped."""
    left, right = frame_batch(clips, 3, start, count, mirror)[:, 0, :, 0].astype(np.int64).T
    assert (left + right == 255).all()
    return np.where(left > right, 256 + right, left)


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


def test_the_order_stays_what_it_was() -> None:
    """A run that is resumed with a newer version sees what it would have seen."""
    clips, digest = numbered_clips(5, 3, 9), hashlib.sha256()
    for same in (clips, weighted(clips, 2, 2, 2)):
        for mirror in (False, True):
            digest.update(frame_batch(same, 7, 30, 80, mirror).tobytes())
            frames, times = clip_batch(same, 7, 30, 20, max_span=6, mirror=mirror)
            digest.update(frames.tobytes() + times.tobytes())
    assert digest.hexdigest() == "205094004c945caafada14947963b7c7f22bd4f6ff35f8ffc99ac656964bd5a3"


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.5, 7, 1)])
@pytest.mark.parametrize("workers", [2, 3])
def test_workers_together_see_what_one_sees(workers: int, weights: tuple[float, ...]) -> None:
    """A worker is a process of its own: it has nothing cached, and clips that it loaded itself."""
    batch, steps = 12, 6
    parts: list[tuple[NDArray[np.uint8], ...]] = []
    for worker in range(workers):
        data._shuffled.cache_clear()
        clips = weighted(numbered_clips(5, 3, 9), *weights)
        share = batch // workers
        numbers = [step * batch + worker * share for step in range(steps)]
        runs = np.concatenate([frame_batch(clips, 3, number, share, True) for number in numbers])
        every = np.concatenate([frame_batch(clips, 3, n, 1, True) for n in range(worker, batch * steps, workers)])
        sparse = np.concatenate([clip_batch(clips, 3, number, share, max_span=6, mirror=True)[0] for number in numbers])
        parts.append((runs, every, sparse))
    clips = weighted(numbered_clips(5, 3, 9), *weights)
    frames = frame_batch(clips, 3, 0, batch * steps, True)
    sparse = clip_batch(clips, 3, 0, batch * steps, max_span=6, mirror=True)[0]
    runs_of, every_of, sparse_of = zip(*parts, strict=True)
    for found, expected in ((runs_of, frames), (sparse_of, sparse)):
        by_step = [part.reshape(steps, -1, *part.shape[1:]) for part in found]
        assert (np.concatenate(by_step, axis=1).reshape(expected.shape) == expected).all()
    assert (np.stack(every_of, axis=1).reshape(frames.shape) == frames).all()


@pytest.mark.parametrize("mirror", [False, True])
def test_weights_decide_how_often_frames_are_seen(mirror: bool) -> None:
    clips = weighted(numbered_clips(40, 30, 50), 0.5, 3, 1)
    items = 240 if mirror else 120
    share = np.repeat([0.5, 3, 1], [40, 30, 50]) * 120 / 160
    epochs = np.stack([np.bincount(drawn(clips, items * epoch, items, mirror), minlength=512) for epoch in range(200)])
    for counts in (epochs[:, :120], epochs[:, 256:376]) if mirror else (epochs[:, :120],):
        assert ((counts == np.floor(share)) | (counts == np.ceil(share))).all()  # in each epoch, and on average:
        assert np.abs(counts.mean(0) - share).max() < 0.15  # 4 standard deviations
    assert (drawn(clips, 0, items, mirror) != drawn(clips, items, items, mirror)).any()


def test_weights_decide_how_often_clips_are_seen() -> None:
    clips = weighted(numbered_clips(40, 30, 50), 1, 0.25, 3)
    frames, times = clip_batch(clips, 0, 0, 2000, max_span=16, mirror=False)
    numbers = frames[:, :, 0, 0, 0].astype(int)
    assert (numbers == numbers[:, :1] + times).all()
    seen = np.bincount(np.searchsorted([40, 70], numbers[:, 0], side="right")) / 2000
    assert np.allclose(seen, np.array([1, 0.25, 3]) / 4.25, atol=0.04)


@pytest.mark.parametrize(
    ("weights", "seen"),
    [((1e308, 1e308, 1e300), {0, 1}), ((5e-324, 1.0, 1e308), {2}), ((1e308, 1.0, 5e-324), {0})],
)
def test_extreme_weights(weights: tuple[float, ...], seen: set[int]) -> None:
    clips = weighted(numbered_clips(5, 3, 9), *weights)
    of_frames = np.searchsorted([5, 8], drawn(clips, 0, 500), side="right")
    frames, _ = clip_batch(clips, 0, 0, 50, max_span=3, mirror=False)
    assert set(of_frames.tolist()) == seen
    assert set(np.searchsorted([5, 8], frames[:, 0, 0, 0, 0], side="right").tolist()) == seen


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


def test_flips_keep_colours() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1, 3, 5, 3), dtype=np.uint8)
    clips = ClipSet(("clip",), np.array([4]), np.array([0]), frame.repeat(4, 0))
    for batch in (
        frame_batch(clips, 0, 0, 8, mirror=True),
        clip_batch(clips, 0, 0, 8, max_span=4, mirror=True)[0][:, 2],
    ):
        plain, flipped = (batch == frame).all((1, 2, 3)), (batch == frame[:, :, ::-1]).all((1, 2, 3))
        assert (plain ^ flipped).all() and plain.any() and flipped.any()


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
