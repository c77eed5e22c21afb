"""How good a model is, against real clips: everything that `styleinv evaluate` measures.

Everything follows from the seeds 0 .. frames - 1, so an evaluation repeats exactly; without truncation, of all seeds.

Shapes: N pictures, B clips, T frames, H W size of a frame, F features.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from styleinv.runtime.errors import CheckpointError, ConfigError, DataError
from styleinv.training.checkpoint import Checkpoint
from styleinv.training.data import ClipSet
from styleinv.training.evaluation.clip_distance import clip_distances
from styleinv.training.evaluation.distances import frechet, kernel_distance, precision_recall
from styleinv.training.evaluation.features import FeatureNetwork
from styleinv.training.evaluation.generated import CLIPS, batches, draw_clips, draw_pictures
from styleinv.training.evaluation.movement import (
    absolute_difference,
    mean_flow,
    mean_pairwise,
    mean_squared_error,
    mean_step,
    psnr,
    require_opencv,
)
from styleinv.training.evaluation.reference import Reference, measure_real, real_flow, real_spread
from styleinv.training.generator import Generator
from styleinv.training.model import InversionModel, StyleInV

DRIFT_TIMES = (0, 128, 1000, 1024, 10_000)  # frame indices
LATE = 1000  # the frame index at which a clip has left its beginning behind
SPREAD_SEEDS = 256  # that are compared in pairs
MOVING_FRAMES = 32  # of a clip whose motion is measured, from t = 0 and from t = LATE
MOTION_SEEDS_AT = 60  # frame index at which two motions of one sky are compared
SKIES = 16  # of which they are compared
OTHER_MOTION = 2**32  # added to a seed: the other motion's seed
VERSIONS = ("styleinv", "torch", "onnxruntime", "opencv-python-headless", "numpy")


def evaluate(
    checkpoint: Checkpoint,
    clips: ClipSet,
    network: FeatureNetwork,
    *,
    frames: int = 2000,
    clip_network: FeatureNetwork | None = None,
    clip_count: int = 256,
    data: str = "",
    progress: bool = True,
) -> dict[str, Any]:
    """Measure an image, transfer or styleinv model; the result is plain numbers and text, as in evaluation.json.

    frames: how many seeds pictures and frames at each time are drawn of.
    clip_network, clip_count: distances of so many clips too, where there is a network that takes clips.
    data: what the real clips are called in the result.
    Raises: CheckpointError for an inversion model or a network of the wrong kind, ConfigError for fewer than 8 frames,
        DataError where there are too few real frames, EngineError where OpenCV is not installed.
    """
    model = checkpoint.model
    if isinstance(model, InversionModel):
        raise CheckpointError(
            f"{checkpoint.path}: kind: found 'inversion', expected 'image', 'transfer' or 'styleinv': "
            "an inversion model draws nothing by itself"
        )
    require_comparable(frames, clips, network, clip_network)
    if isinstance(model, StyleInV):
        require_opencv()
    result: dict[str, Any] = {
        "model": str(checkpoint.path),
        "kind": checkpoint.kind,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "data": data,
        "features": network.distance,
        "frames": frames,
    }
    real = measure_real(clips, network)
    seeds = range(frames)
    if isinstance(model, Generator):
        features, spread = _draw_pictures(model, seeds, network, progress)
        result |= {"pictures": compare(real.features, features), "diversity": _diversity([spread], clips)}
    else:
        result |= _evaluate_clips(model, seeds, clips, network, real, progress)
        if clip_network is not None:
            result["clips"] = clip_distances(model, clips, clip_network, clip_count, progress)
    return result | {"versions": versions()}


def quick_evaluation(
    model: Generator | StyleInV, real: Reference, network: FeatureNetwork, frames: int = 200
) -> dict[str, float]:
    """The few numbers that are worth a curve of a training run, from `frames` seeds; takes no random numbers.

    Compare them with those of as many frames alone: a distance of few frames comes out too large.
    real: what `measure_real` says of the clips, once per run.
    """
    seeds = range(frames)
    if isinstance(model, Generator):
        return {network.distance: frechet(real.features, _draw_pictures(model, seeds, network, False)[0])}
    features, error, _ = _drift(model, seeds, (0, LATE), network, False)
    found = {t: frechet(real.features, features[t]) for t in (0, LATE)}
    step = _motion(model, _moving_seeds(frames), 0, False)[0]
    return {
        network.distance: found[0],
        f"{network.distance}_{LATE}": found[LATE],
        "first_frame_psnr": error,
        **({"motion_ratio": step / real.step} if real.step else {}),
    }


def compare(real: NDArray[np.float32], drawn: NDArray[np.float32]) -> dict[str, float]:
    """The distances of two sets of features [N, F], and precision and recall."""
    precision, recall = precision_recall(real, drawn)
    return {
        "fd": frechet(real, drawn),
        "kernel_distance": kernel_distance(real, drawn),
        "precision": precision,
        "recall": recall,
    }


def _evaluate_clips(
    model: StyleInV, seeds: Sequence[int], clips: ClipSet, network: FeatureNetwork, real: Reference, progress: bool
) -> dict[str, Any]:
    features, error, spread = _drift(model, seeds, DRIFT_TIMES, network, progress)
    drift = {str(t): frechet(real.features, features[t]) for t in DRIFT_TIMES}
    moving = _moving_seeds(len(seeds))
    step, flow = _motion(model, moving, 0, progress, with_flow=True)
    late_step, _ = _motion(model, moving, LATE, progress)
    distance = _between_motions(model, seeds[:SKIES])
    motion: dict[str, float] = {"generated_step": step, "generated_flow": flow, f"generated_step_{LATE}": late_step}
    if real.step is not None:
        motion = {"real_step": real.step, "real_flow": real_flow(clips), "ratio": step / max(real.step, 1e-6)} | motion
    return {
        "pictures": compare(real.features, features["x0"]),
        "drift": drift,
        f"drift_ratio_{LATE}": drift[str(LATE)] / drift["0"],
        "first_frame_psnr": error,
        "motion": motion,
        "diversity": _diversity(spread, clips),
        "motion_seeds": {"distance": distance, "step": step, "steps": distance / max(step, 1e-6)},
    }


def _draw_pictures(
    generator: Generator, seeds: Sequence[int], network: FeatureNetwork, progress: bool
) -> tuple[NDArray[np.float32], float]:
    """Features of the pictures of seeds [N, F], and how far the first of them are apart, in levels."""
    features, kept = [], []
    with tqdm(total=len(seeds), desc="pictures", unit=" frames", disable=not progress, dynamic_ncols=True) as bar:
        for some in batches(seeds, 32):
            drawn = draw_pictures(generator, some)
            features.append(network(drawn))
            kept.append(drawn[: max(0, SPREAD_SEEDS - some[0])])
            bar.update(len(some))
    return np.concatenate(features), mean_pairwise(np.concatenate(kept))


def _drift(
    model: StyleInV, seeds: Sequence[int], times: Sequence[int], network: FeatureNetwork, progress: bool
) -> tuple[dict[int | str, NDArray[np.float32]], float, list[float]]:
    """Features [N, F] of frames at each of the times, the first of which is 0, and of the pictures 'x0'; the PSNR of
    the frame at t = 0 against x0; and how far seeds are apart at t = 0 and, where it is among the times, at t = LATE.
    """
    found: dict[int | str, list[NDArray[np.float32]]] = {"x0": [], **{t: [] for t in times}}
    kept: dict[int, list[NDArray[np.uint8]]] = {t: [] for t in times if t in (0, LATE)}
    errors: list[float] = []
    total = len(seeds) * (len(times) + 1)
    with tqdm(total=total, desc="drift", unit=" frames", disable=not progress, dynamic_ncols=True) as bar:
        for some in batches(seeds, CLIPS):
            drawn, x0 = draw_clips(model, some, times)
            found["x0"].append(network(x0))
            for place, t in enumerate(times):
                found[t].append(network(drawn[:, place]))
            for t, parts in kept.items():
                parts.append(drawn[: max(0, SPREAD_SEEDS - some[0]), times.index(t)])
            errors += [mean_squared_error(frame, picture) for frame, picture in zip(drawn[:, 0], x0, strict=True)]
            bar.update(len(some) * (len(times) + 1))
    spread = [mean_pairwise(np.concatenate(parts)) for parts in kept.values()]
    return {name: np.concatenate(parts) for name, parts in found.items()}, psnr(float(np.mean(errors))), spread


def _moving_seeds(frames: int) -> range:
    """As many clips as have about so many frames, from 4 to 64."""
    return range(min(64, max(4, frames // MOVING_FRAMES)))


def _motion(
    model: StyleInV, seeds: Sequence[int], start: int, progress: bool, with_flow: bool = False
) -> tuple[float, float]:
    """The mean step, in levels, and where it is asked for the mean flow, in pixels per frame, from frame `start` on."""
    steps, flows = [], []
    times = range(start, start + MOVING_FRAMES)
    for some in tqdm(list(batches(seeds, CLIPS)), desc=f"motion from t = {start}", disable=not progress, leave=False):
        for clip in draw_clips(model, some, times)[0]:
            steps.append(mean_step(clip))
            flows.append(mean_flow(clip) if with_flow else 0.0)
    return float(np.mean(steps)), float(np.mean(flows))


def _between_motions(model: StyleInV, seeds: Sequence[int]) -> float:
    """How far two motions of one seed are apart at t = 60, in levels, over all seeds."""
    first, _ = draw_clips(model, seeds, [MOTION_SEEDS_AT])
    second, _ = draw_clips(model, seeds, [MOTION_SEEDS_AT], [seed + OTHER_MOTION for seed in seeds])
    return absolute_difference(first, second)


def _diversity(spread: Sequence[float], clips: ClipSet) -> dict[str, float | None]:
    """How far seeds are apart, at t = 0 and, if given, later; the ratio to real scenes is of the smaller one."""
    real = real_spread(clips)
    late = {f"generated_{LATE}": later for later in spread[1:]}
    return {"generated": spread[0], **late, "real": real, "ratio": min(spread) / max(real, 1e-6) if real else None}


def require_comparable(
    frames: int, clips: ClipSet, network: FeatureNetwork, clip_network: FeatureNetwork | None = None
) -> None:
    """Raises what `evaluate` does where so few frames, or these networks, give no distance."""
    if frames < 8:
        raise ConfigError(f"frames: found {frames}, expected at least 8")
    if clips.total_frames < 8:
        raise DataError(f"{clips.names[0]}: found {clips.total_frames} real frames in all, expected at least 8")
    if network.takes_clips:
        raise CheckpointError(f"{network.path}: found one of clips, expected a network of pictures [N, 3, S, S]")
    if clip_network is not None and not clip_network.takes_clips:
        raise CheckpointError(
            f"{clip_network.path}: found a network of pictures, expected one of clips [N, 3, T, S, S]"
        )


def versions() -> dict[str, str]:
    """What the numbers were computed with."""
    found = {"python": platform.python_version()}
    for package in VERSIONS:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # such as onnxruntime-gpu in place of onnxruntime
    return found
