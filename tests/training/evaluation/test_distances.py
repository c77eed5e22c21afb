"""Distances of feature sets against closed forms, and of bytes against pairs counted one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from styleinv.runtime.errors import DataError
from styleinv.training.evaluation.distances import frechet, kernel_distance, precision_recall
from styleinv.training.evaluation.movement import (
    absolute_difference,
    mean_flow,
    mean_pairwise,
    mean_pairwise_between,
    mean_squared_error,
    mean_step,
    psnr,
)


def with_moments(count, mean, factor, seed):
    """Vectors [count, F] whose mean and covariance are exactly `mean` [F] and factor factor^T."""
    raw = np.random.default_rng(seed).normal(size=(count, len(mean)))
    raw -= raw.mean(axis=0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    return white @ np.transpose(factor) + mean


@pytest.mark.parametrize("counts", [(40, 23), (9, 300)])
def test_frechet_of_gaussians_with_a_common_basis(counts):
    basis = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))[0]
    deviations = np.array([3.0, 2.0, 1.0, 0.5, 0.1]), np.array([1.0, 2.5, 0.2, 0.5, 4.0])
    means = np.zeros(5), np.array([1.0, -2.0, 0.0, 0.5, 0.0])
    sets = [with_moments(n, m, basis * d, n) for n, m, d in zip(counts, means, deviations, strict=True)]
    wanted = np.square(means[1]).sum() + np.square(deviations[0] - deviations[1]).sum()
    assert frechet(*sets) == pytest.approx(wanted, rel=1e-10)


def test_frechet_of_covariances_that_do_not_commute():
    first, second = np.array([[2.0, 0.0], [1.0, 1.0]]), np.array([[1.0, 0.5], [0.0, 3.0]])
    product = first @ first.T @ second @ second.T
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))  # trace of the root of a 2x2 matrix
    wanted = np.square(first).sum() + np.square(second).sum() - 2 * root
    sets = (with_moments(30, np.zeros(2), factor, seed) for seed, factor in enumerate((first, second)))
    assert frechet(*sets) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("count", [7, 200])
def test_equal_sets(count):
    features = np.random.default_rng(0).normal(size=(count, 50)).astype(np.float32)
    assert abs(frechet(features, features)) < 1e-10
    assert precision_recall(features, features) == (1.0, 1.0)
    assert abs(frechet(features, features[::-1])) < 1e-10


def test_kernel_distance_is_the_mean_over_pairs():
    draws = np.random.default_rng(1)
    x, y = draws.normal(size=(5, 3)), draws.normal(1, 1, size=(4, 3))

    def kernel(pairs):
        return np.mean([(a @ b / 3 + 1) ** 3 for a, b in pairs])

    wanted = kernel(itertools.permutations(x, 2)) + kernel(itertools.permutations(y, 2))
    wanted -= 2 * kernel(itertools.product(x, y))
    assert kernel_distance(x, y) == pytest.approx(wanted, rel=1e-12)


def test_kernel_distance_has_no_bias():
    draws = np.random.default_rng(2)
    found = [kernel_distance(draws.normal(size=(10, 4)), draws.normal(size=(10, 4))) for _ in range(300)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 300**0.5
    assert min(found) < 0


def test_precision_and_recall():
    line = np.arange(10.0)[:, None]  # the third neighbour of 0 is 3 away, that of 5 is 2 away
    assert precision_recall(line, line + 100) == (0.0, 0.0)
    assert precision_recall(line, np.array([[-3.0], [-3.1], [4.5], [5.0]])) == (0.75, 1.0)
    narrow = np.array([[5.0], [5.01], [5.02], [5.03]])  # drawn: right, and all alike
    assert precision_recall(line, narrow) == (1.0, 0.1)


def test_sets_that_cannot_be_compared():
    with pytest.raises(DataError, match=r"sets of 1 and 4, expected at least 2"):
        frechet(np.zeros((1, 3)), np.zeros((4, 3)))
    with pytest.raises(DataError, match="expected at least 4"):
        precision_recall(np.zeros((3, 3)), np.zeros((5, 3)))
    with pytest.raises(DataError, match=r"found \[5, 3\] and \[5, 4\]"):
        frechet(np.zeros((5, 3)), np.zeros((5, 4)))


def test_differences_of_bytes():
    frames = np.random.default_rng(0).integers(0, 256, (7, 3, 5, 3), dtype=np.uint8)
    groups = np.array([0, 0, 1, 1, 1, 2, 0])
    apart = {(i, j): absolute_difference(frames[i], frames[j]) for i, j in itertools.combinations(range(7), 2)}
    assert mean_pairwise(frames) == pytest.approx(np.mean(list(apart.values())))
    across = [found for (i, j), found in apart.items() if groups[i] != groups[j]]
    assert mean_pairwise_between(frames, groups) == pytest.approx(np.mean(across))
    assert mean_pairwise_between(frames, np.zeros(7, np.int64)) is None
    assert mean_step(frames) == pytest.approx(np.mean([apart[i, i + 1] for i in range(6)]))
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert absolute_difference(black, white) == absolute_difference(white, black) == 255
    assert psnr(mean_squared_error(black, white)) == pytest.approx(0)
    assert psnr(mean_squared_error(black, black + np.uint8(1))) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(0.0) == pytest.approx(58.92, abs=0.01)


def test_flow_is_how_far_a_pattern_moves():
    pytest.importorskip("cv2")
    y, x = np.mgrid[0:48, 0:48]

    def clip(speed):
        waves = [np.sin((x - speed * t) * 0.3) + np.cos(y * 0.35 + x * 0.1 - 0.1 * speed * t) for t in range(4)]
        return np.repeat((np.stack(waves)[..., None] * 60 + 128).astype(np.uint8), 3, axis=3)

    assert mean_flow(clip(1.0)) == pytest.approx(1.0, abs=0.25)
    assert mean_flow(clip(0.0)) < 0.02  # not 0: the pyramid's levels interpolate
