"""Distances between two sets of features, all in float64.

Shapes: N M vectors of the two sets, F features of each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from styleinv.runtime.errors import DataError

Features = NDArray[np.float32] | NDArray[np.float64]
NEIGHBOURS = 3  # of precision and recall


def frechet(first: Features, second: Features) -> float:
    """The Frechet distance of two Gaussians with the sets' means and (unbiased) covariances: [N, F], [M, F] -> number.

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)   (Heusel et al. 2017, section 2; Dowson and Landau 1982)

    With S = A^T A / (n - 1) of centred features A, the last trace is the sum of the singular values of A1 A2^T, divided
    by the root of (n1 - 1)(n2 - 1). No root of a covariance is taken: those of fewer vectors than features are
    singular. DataError for fewer than 2 vectors.
    """
    _check(first, second, minimum=2)
    means, factors = zip(*(_gaussian(features) for features in (first, second)), strict=True)
    traces = sum(float(np.square(factor).sum()) for factor in factors)
    overlap = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    return float(np.square(means[0] - means[1]).sum() + traces - 2 * overlap)


def kernel_distance(first: Features, second: Features) -> float:
    """The unbiased squared maximum mean discrepancy with the kernel (x.y / F + 1)^3: [N, F], [M, F] -> number.

    Over Inception features this is KID (Binkowski et al. 2018, section 3), here over all vectors at once rather than
    the mean over random subsets. It may be below 0. DataError for fewer than 2 vectors.
    """
    _check(first, second, minimum=2)
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)

    def kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: NDArray[np.float64]) -> float:
        values = kernel(a, a)
        return float((values.sum() - np.trace(values)) / (len(a) * (len(a) - 1)))

    return within(x) + within(y) - 2 * float(kernel(x, y).mean())


def precision_recall(real: Features, generated: Features, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """The share of generated vectors near real ones, and of real vectors near generated ones: [N, F], [M, F].

    Near is inside the ball around any vector of the other set that reaches that vector's k-th nearest neighbour in its
    own set (Kynkaanniemi et al. 2019, section 2, k = 3). DataError where a set has no k neighbours.
    """
    _check(real, generated, minimum=neighbours + 1)
    across = _distances(real, generated)
    precision = (across <= _radii(real, neighbours)[:, None]).any(axis=0).mean()
    recall = (across <= _radii(generated, neighbours)[None, :]).any(axis=1).mean()
    return float(precision), float(recall)


def _gaussian(features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean [F], and a factor [min(N, F), F] whose square is the covariance."""
    values = np.asarray(features, np.float64)
    mean = values.mean(axis=0)
    factor = (values - mean) / np.sqrt(len(values) - 1)
    if len(values) > values.shape[1]:
        factor = np.asarray(np.linalg.qr(factor, mode="r"))
    return mean, factor


def _distances(first: Features, second: Features) -> NDArray[np.float64]:
    """Squared distances of all pairs, [N, M]."""
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    squares = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)[None, :] - 2 * x @ y.T
    return np.maximum(squares, 0)


def _radii(features: Features, neighbours: int) -> NDArray[np.float64]:
    """The squared distance of each vector to its k-th nearest neighbour, [N]."""
    squares = _distances(features, features)
    np.fill_diagonal(squares, np.inf)  # nothing is its own neighbour
    return np.partition(squares, neighbours - 1, axis=1)[:, neighbours - 1]


def _check(first: Features, second: Features, minimum: int) -> None:
    if first.shape[1:] != second.shape[1:] or first.ndim != 2:
        raise DataError(f"features: found {list(first.shape)} and {list(second.shape)}, expected [N, F] and [M, F]")
    if min(len(first), len(second)) < minimum:
        raise DataError(f"features: found sets of {len(first)} and {len(second)}, expected at least {minimum} of each")
