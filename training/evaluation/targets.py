"""The bounds that the shipped sample is held to, over FD-MobileNetV2 of 2,000 frames of 64x64 pixels.

For scale, over the same features, of 1,184 real frames: one half of the scenes is 122 from the other, all frames are
102 from themselves blurred with a deviation of 1 pixel, 194 with one of 4 pixels, and uniform noise is 423 away.
"""

from __future__ import annotations

from typing import Any

from styleinv.runtime.errors import ConfigError

DISTANCE, FRAMES = "FD-MobileNetV2", 2000
PICTURES_FD = 90.0
DRIFT_RATIO = 1.25
FIRST_FRAME_PSNR = 25.0  # dB
MOTION_FACTOR = 2.0
DIVERSITY_RATIO = 0.7
MOTION_SEED_STEPS = 3.0


def check_comparable(distance: str, frames: int) -> None:
    """ConfigError where an evaluation says nothing about the bounds."""
    if distance != DISTANCE:
        raise ConfigError(f"--targets: found features of {distance}, expected {DISTANCE}, which the bounds are for")
    if frames < FRAMES:
        raise ConfigError(f"--targets: found {frames} frames, expected at least {FRAMES}: fewer change the distances")


def judge(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Each target with what was found, its bound and whether it is met; a target that could not be measured is not.

    An image or a transfer model is held to the pictures' alone.
    """
    targets = [_at_most(f"{evaluation['features']} of pictures, at most", evaluation["pictures"]["fd"], PICTURES_FD)]
    if evaluation["kind"] != "styleinv":
        return targets
    ratio = evaluation["motion"].get("ratio")
    factor = None if ratio is None else max(ratio, 1 / max(ratio, 1e-6))
    return [
        *targets,
        _at_most("frames at t = 1000 over frames at t = 0, at most", evaluation["drift_ratio_1000"], DRIFT_RATIO),
        _at_least("frame at t = 0 against x0, dB, at least", evaluation["first_frame_psnr"], FIRST_FRAME_PSNR),
        _at_most("motion against real clips, a factor of at most", factor, MOTION_FACTOR),
        _at_least(
            "between seeds over between real scenes, at least", evaluation["diversity"]["ratio"], DIVERSITY_RATIO
        ),
        _at_least(
            "between motion seeds at t = 60, steps, at least", evaluation["motion_seeds"]["steps"], MOTION_SEED_STEPS
        ),
    ]


def _at_most(name: str, found: float | None, bound: float) -> dict[str, Any]:
    return {"name": name, "found": found, "bound": bound, "met": found is not None and found <= bound}


def _at_least(name: str, found: float | None, bound: float) -> dict[str, Any]:
    return {"name": name, "found": found, "bound": bound, "met": found is not None and found >= bound}
