"""The bundle's probe: a frame and its latent as export computed them, which an engine must reproduce to be chosen.

An engine that compiles a graph wrongly for some processor is rare, and found neither by hashes nor by loading it. The
bounds are wide, as rounding differs between machines; `styleinv verify` measures closely.

Shapes: T frames, W size of a latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from styleinv.runtime.clip import Clip
from styleinv.runtime.mapping import mapping_inputs
from styleinv.runtime.motion import MotionCodes

if TYPE_CHECKING:
    from styleinv.runtime.sessions import Sessions

# By precision: how far latents may be off, in root mean squares of the probe's, and a frame's mean, in levels of 255.
# In fp8 and int8 it is the pictures that are further off: their latents come from graphs in fp16.
BOUNDS = {"fp32": (1e-3, 0.5), "fp16": (0.03, 2.0), "bf16": (0.1, 4.0), "fp8": (0.1, 6.0), "int8": (0.1, 6.0)}


def deviation(sessions: Sessions) -> str | None:
    """What does not come out as the bundle's manifest says it must, in words; None where all does, or it says nothing.

    Raises: EngineError where the engine does not load or run the graphs; BundleError where the probes are damaged.
    """
    bundle = sessions.bundle
    probes = bundle.manifest["probes"]
    if not probes:
        return None
    generator = bundle.generator
    label = 0 if generator["label_dim"] else None
    clip = Clip(sessions, mapping_inputs(generator, probes["seed"], None, 1.0, label))
    latents, levels = [], []
    for t in probes["t"]:
        w = clip.first_latent[None]
        if bundle.kind == "styleinv":
            v = MotionCodes(sessions.motion_network(), probes["seed"]).time_code(t).astype(np.float32)[None]
            w = sessions.session("latent").run({**clip.conditions, "v": v}, ["w"])["w"]
        latents.append(w[0])
        levels.append(sessions.session("synthesis").run({"w": w}, ["frame"])["frame"].mean())
    expected = np.array(probes["w"])  # [T, the first few of W]
    found = np.stack(latents)[:, : expected.shape[1]]
    error = float(np.abs(found - expected).max() / np.sqrt(np.mean(expected**2)))
    level_error = float(np.abs(np.array(levels) - probes["mean_level"]).max())
    bound, level_bound = BOUNDS[sessions.precision]
    if not error <= bound:  # true for NaN, too
        return f"probes.w: found latents {error:.2g} off, relative to their size, expected {bound:g} at most"
    if not level_error <= level_bound:
        return (
            f"probes.mean_level: found frames {level_error:.2f} levels off on average, expected {level_bound:g} at most"
        )
    return None
