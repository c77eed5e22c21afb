"""What stays for a whole clip: its first latent, its first picture and what the encoder sees in that picture.

Shapes: B batch, W size of a latent, H W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from styleinv.runtime.inversion import invert
from styleinv.runtime.mapping import check_alone, given_latent, mapping_inputs
from styleinv.runtime.pictures import Picture, as_image, fit_picture, read_picture

if TYPE_CHECKING:
    from styleinv.runtime.sessions import Sessions
    from styleinv.runtime.sessions.base import Arrays


class Clip:
    """The start of a clip (section 3.2 of StyleInV, ICCV 2023), computed when it is first needed.

    Args:
        start: inputs of the graph `mapping`, a batch of one; or w0 itself, float32 [W].
    """

    def __init__(self, sessions: Sessions, start: Arrays | npt.NDArray[np.float32]) -> None:
        self._sessions = sessions
        self._start = start

    @cached_property
    def first_latent(self) -> npt.NDArray[np.float32]:
        """w0: float32 [W], read-only."""
        start = self._start
        w0 = start if isinstance(start, np.ndarray) else self._run("mapping", start, "w0")[0]
        w0.flags.writeable = False
        return w0

    @cached_property
    def first_image(self) -> npt.NDArray[np.float32]:
        """x0, the bundle's own generator's picture of w0: float32 [3, H, W] in about [-1, 1], read-only."""
        x0: npt.NDArray[np.float32] = self._run("synthesis", {"w": self.first_latent[None]}, "image")[0]
        x0.flags.writeable = False
        return x0

    @cached_property
    def conditions(self) -> Arrays:
        """What the graph `latent` takes besides the time code, a batch of one: w0, and the features of x0, if any."""
        features: Arrays = {}
        if "content" in self._sessions.bundle.manifest["graphs"]:
            features = self._sessions.session("content").run({"image": self.first_image[None]})
        return {**features, "w0": self.first_latent[None]}

    def _run(self, graph: str, inputs: Arrays, output: str) -> npt.NDArray[Any]:
        return self._sessions.session(graph).run(inputs, [output])[output]


def open_clip(
    sessions: Sessions,
    seed: int,
    *,
    z: npt.ArrayLike | None,
    w0: npt.ArrayLike | None,
    image: str | Path | Picture | None,
    truncation: float,
    label: int | None,
) -> Clip:
    """The clip that the arguments of a `Rollout` ask for; errors as there."""
    generator = sessions.bundle.generator
    if w0 is not None:
        check_alone("w0", z=z, image=image, truncation=truncation, label=label)
        return Clip(sessions, given_latent(generator, w0))
    if image is not None:
        check_alone("image", z=z, truncation=truncation, label=label)
        picture = _checked_picture(image) if isinstance(image, np.ndarray) else read_picture(image)
        return Clip(sessions, invert(sessions, as_image(fit_picture(picture, generator["resolution"]))))
    return Clip(sessions, mapping_inputs(generator, seed, z, truncation, label))


def _checked_picture(image: Picture) -> Picture:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image: found {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")
    return image


def joined_conditions(clips: Sequence[Clip]) -> Arrays:
    """The conditions of several clips, one row for each: [B, ...] by name, read-only, so that sessions keep them."""
    rows = [clip.conditions for clip in clips]
    joined = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    for array in joined.values():
        array.flags.writeable = False
    return joined
