"""From a picture to the latent that a bundle's generator draws it from, as well as its inversion encoder can tell.

Shapes: R resolution, W size of a latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from styleinv.runtime.errors import BundleError

if TYPE_CHECKING:
    from styleinv.runtime.sessions import Sessions


def invert(sessions: Sessions, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The latent w0, float32 [W], of an image, float32 [3, R, R] in [-1, 1] (see `pictures.as_image`).

    It goes into `Rollout(sessions, w0=...)`.
    Raises: BundleError where the bundle has no inversion graph; EngineError where the image does not fit it.
    """
    bundle = sessions.bundle
    graphs = bundle.manifest["graphs"]
    if "inversion" not in graphs:
        raise BundleError(
            f"{bundle.path}: graphs: found {', '.join(sorted(graphs))}, expected inversion, too, which finds a "
            "picture's latent: export again with `styleinv export MODEL --inversion ENCODER --out BUNDLE`"
        )
    w0: npt.NDArray[np.float32] = sessions.session("inversion").run({"image": image[None]}, ["w0"])["w0"][0]
    return w0
