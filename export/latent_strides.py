"""How near frames with strided latents come to those without: what `latent_stride="auto"` goes by.

Quality, not speed, and of the model rather than of a machine: measured once, at export, in fp32, so that 'auto' means
the same stride wherever the bundle is played.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tqdm import tqdm

from styleinv.export.references import SEED, sample_label
from styleinv.runtime.rollout import Rollout
from styleinv.runtime.sessions import Sessions

SPAN = 32  # frames that a window's probes lie in; keyframes of all its probes are computed once
PROBES = 8  # of each window
LEAST_WORTH_KNOWING = 30.0  # decibels; where a stride is further off, larger ones are not looked at
STRIDES = (2, 4, 8, 16, 32, 64)
IDENTICAL = 120.0  # decibels, in place of infinity, which JSON has not


def measure_strides(sessions: Sessions, progress: bool = False) -> dict[str, Any]:
    """The manifest's field `latent_strides`: for each stride 2, 4, 8, ... how near its frames come to exact ones.

    In decibels of PSNR: `least_psnr_db` of the furthest of the probed frames, `psnr_db` of all of them together.
    Probes are frames at random real times in windows of three clips: at the beginning, across an anchor, between two
    anchors and far away.
    """
    label = sample_label(sessions.bundle)
    clips = [Rollout(sessions, SEED + number, label=label) for number in range(3)]
    distance = clips[0].anchor_distance
    windows = [(clips[0], 0), (clips[0], max(0, 3 * distance - SPAN // 2)), (clips[1], 7 * distance), (clips[2], 10**6)]
    draws = np.random.default_rng(SEED)
    probes = [(clip, start + t) for clip, start in windows for t in np.sort(draws.uniform(0.0, SPAN, PROBES))]
    exact = [
        clip[t].astype(np.float64) for clip, t in tqdm(probes, "latent strides", unit=" frames", disable=not progress)
    ]
    least: dict[str, float] = {}
    together: dict[str, float] = {}
    for stride in STRIDES:
        strided = [Rollout(sessions, clip.seed, label=label, latent_stride=stride) for clip in clips]
        errors = [
            float(np.square(strided[clips.index(clip)][t] - frame).mean())
            for (clip, t), frame in zip(probes, exact, strict=True)
        ]
        least[str(stride)], together[str(stride)] = _psnr(max(errors)), _psnr(float(np.mean(errors)))
        if least[str(stride)] < LEAST_WORTH_KNOWING:
            break
    return {"precision": sessions.precision, "frames": len(probes), "least_psnr_db": least, "psnr_db": together}


def _psnr(squared_error: float) -> float:
    """In decibels, of the mean squared difference of bytes."""
    return (
        IDENTICAL
        if squared_error == 0.0
        else round(min(IDENTICAL, 10.0 * float(np.log10(255.0**2 / squared_error))), 2)
    )
