"""Pairs of draws and real frames: where frames are few, a generator also learns from them directly.

An adversary alone takes long to show a generator what a scene is. Here as many z are drawn as there are real frames,
and each is given one of them, so that all pictures together lie as close to their frames as they can. Until the next
pairing the generator learns to draw that frame from that z. This is implicit maximum likelihood estimation (Li and
Malik 2018, arXiv 1809.09087), but with each draw given to one frame, so that no draw is left out.

Shapes: N real frames, B samples of a batch, Z size of z, R resolution.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.nn import functional as F

from styleinv.runtime.errors import ConfigError
from styleinv.training import workers
from styleinv.training.config import ComputeConfig
from styleinv.training.data import ClipSet
from styleinv.training.generator import Generator
from styleinv.training.stages.common import mixed_precision, to_pictures

MOST_FRAMES = 5_000  # an assignment's time grows with their third power; of these it is under a minute
COARSE = 16  # pixels a side of what pictures are paired by
LEVELS = 4  # sizes at which a picture and its frame are compared: R, R / 2, ...
CHUNK = 16  # pictures drawn at once


class Pairing:
    """A z for every frame of `clips`, [N, Z], None until `renew` has drawn them. ConfigError for too many frames."""

    def __init__(self, clips: ClipSet, z_dim: int) -> None:
        if clips.total_frames > MOST_FRAMES:
            raise ConfigError(
                f"image.pair_weight: found {clips.total_frames} frames to pair, expected at most {MOST_FRAMES}, or 0"
            )
        self.clips = clips
        self.shape = clips.total_frames, z_dim
        self.z: Tensor | None = None

    @torch.no_grad()
    def renew(self, generator: Generator, compute: ComputeConfig) -> None:
        """Draw N new z, and pair them with the frames by what `generator` makes of them now."""
        z = torch.randn(self.shape)
        places = torch.arange(len(z)).split(CHUNK)
        drawn = torch.zeros(len(z), 3 * COARSE**2)
        for place in places[workers.rank() :: workers.count()]:
            with mixed_precision(compute, z.device):
                pictures = generator.synthesis(generator.mapping(z[place]))
            drawn[place] = _coarse(pictures.float())
        frames = torch.cat([_coarse(to_pictures(self._frames(place.cpu().numpy()))) for place in places])
        distances = cdist(frames.cpu().numpy(), workers.total(drawn).cpu().numpy(), "sqeuclidean")  # [N, N]
        _, chosen = linear_sum_assignment(distances)
        self.z = z[torch.as_tensor(chosen)]

    def restore(self, z: Tensor | None) -> None:
        """Take over the z of an earlier run, unless that had none, or had other frames."""
        fits = z is not None and z.shape == self.shape
        self.z = torch.as_tensor(z, device=torch.get_default_device()) if fits else None

    def of(self, numbers: NDArray[np.int64]) -> Tensor:
        """The z [B, Z] of frames, by their numbers over all clips [B]."""
        assert self.z is not None
        return self.z[torch.as_tensor(numbers)]

    def _frames(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.asarray(self.clips.frames[self.clips.rows(numbers)])


def pair_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference of pictures [B, 3, R, R], mean over the levels of a pyramid."""
    total = (found - wanted).abs().mean()
    for _ in range(1, LEVELS):
        found, wanted = F.avg_pool2d(found, 2), F.avg_pool2d(wanted, 2)
        total = total + (found - wanted).abs().mean()
    return total / LEVELS


def _coarse(pictures: Tensor) -> Tensor:
    """[B, 3, R, R] -> [B, 3 * 16 * 16]."""
    return F.adaptive_avg_pool2d(pictures, COARSE).flatten(1)
