"""How near frames with strided latents come to those without: what `latent_stride="auto"` goes by.

Quality, not speed, and of the model rather than of a machine: measured once, at export, in fp32, so that 'auto' means
the same stride wherever the bundle is played.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from styleinv.export.comparison import peak_signal_to_noise
from styleinv.export.references import SEED, sample_label
from styleinv.runtime.latent_stride import PSNR_DB, stride_within
from styleinv.runtime.rollout import Rollout
from styleinv.runtime.sessions import Sessions

SPAN = 32  # frames that a window's probes lie in; keyframes of all its probes are computed once
PROBES = 8  # of each window
LEAST_WORTH_KNOWING = 30.0  # decibels; where a stride is further off, larger ones are not looked at
STRIDES = (2, 4, 8, 16, 32, 64)
IDENTICAL = 120.0  # decibels, in place of infinity, which JSON has not


def measure_strides(sessions: Sessions, progress: bool = False) -> dict[str, Any]:
    """The manifest's field `latent_strides`: for each stride 2, 4, 8, ... how near its frames come to exact ones.

    In decibels of PSNR: `least_psnr_db` of the furthest of the probed frames, `psnr_db` of all of them together; and
    `stride`, the choice that follows for the default bound.

    Probes are frames at random real times in windows of three clips: at the beginning, across an anchor, between two
    anchors and far away.
    """
    label = sample_label(sessions.bundle)
    clips = [Rollout(sessions, SEED + number, label=label) for number in range(3)]
    distance = clips[0].anchor_distance
    windows = [(clips[0], 0), (clips[0], max(0, 3 * distance - SPAN // 2)), (clips[1], 7 * distance), (clips[2], 10**6)]
    draws = np.random.default_rng(SEED)
    probes = [(clip, start + t) for clip, start in windows for t in np.sort(draws.uniform(0.0, SPAN, PROBES))]
    shown = tqdm(probes, "latent strides", unit=" frames", disable=not progress)
    exact = np.stack([clip[t] for clip, t in shown])
    least: dict[str, float] = {}
    together: dict[str, float] = {}
    for stride in STRIDES:
        strided = {clip.seed: Rollout(sessions, clip.seed, label=label, latent_stride=stride) for clip in clips}
        found = np.stack([strided[clip.seed][t] for clip, t in probes])
        least[str(stride)] = min(_psnr(*pair) for pair in zip(found, exact, strict=True))
        together[str(stride)] = _psnr(found, exact)
        if least[str(stride)] < LEAST_WORTH_KNOWING:
            break
    return {
        "precision": sessions.precision,
        "frames": len(probes),
        "least_psnr_db": least,
        "psnr_db": together,
        "bound_psnr_db": PSNR_DB,
        "stride": stride_within(least, PSNR_DB),
    }


def _psnr(found: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8]) -> float:
    """In decibels, as JSON can say it."""
    return round(min(IDENTICAL, peak_signal_to_noise(found, expected, np.uint8)), 2)
