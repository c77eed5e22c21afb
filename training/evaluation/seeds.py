"""The random numbers of a seed, the same as those of a rollout with that seed.

They are frozen (`styleinv.runtime.noise` says why, and a test compares the two): Philox4x64-10 with key
(seed, domain) and counter (0, 0, index, 0), float64 Box-Muller on its raw output. Training knows nothing of the runtime
but its errors, so the few lines stand here a second time.

Shapes: B clips, K anchors, Z size of z or of an anchor's noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Z_DOMAIN, MOTION_DOMAIN = 0, 1


def standard_normal(seed: int, domain: int, index: int, count: int) -> NDArray[np.float64]:
    """N(0, 1) numbers [count] that are a pure function of (seed, domain, index)."""
    key, counter = np.array([seed, domain], np.uint64), np.array([0, 0, index, 0], np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(count + count % 2)
    radius = np.sqrt(-2.0 * np.log(((raw[0::2] >> np.uint64(11)) + np.uint64(1)) * 2.0**-53))
    angle = 2.0 * np.pi * ((raw[1::2] >> np.uint64(11)) * 2.0**-53)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:count]


def first_inputs(seeds: Sequence[int], z_dim: int) -> Tensor:
    """z of clips, float32 [B, Z]."""
    rows = np.stack([standard_normal(seed, Z_DOMAIN, 0, z_dim) for seed in seeds])
    return torch.from_numpy(rows.astype(np.float32))


def motion_noise(seeds: Sequence[int], total: int, anchors: Iterable[int], noise_dim: int) -> Tensor:
    """Noise of clips' anchors, float64 [B, K, Z] with K = `total`; drawn for these `anchors` alone, zero elsewhere."""
    noise = np.zeros((len(seeds), total, noise_dim))
    for anchor in anchors:
        for row, seed in enumerate(seeds):
            noise[row, anchor] = standard_normal(seed, MOTION_DOMAIN, anchor, noise_dim)
    return torch.from_numpy(noise)
