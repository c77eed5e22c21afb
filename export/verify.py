"""Proof that a bundle computes what its model computes: every graph, and whole frames, against PyTorch.

Shapes: B batch, T frames, R resolution.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from styleinv.export.additions import Additions, bundle_graphs
from styleinv.kernels.reference import to_uint8
from styleinv.runtime.bundle import Bundle
from styleinv.runtime.errors import BundleError
from styleinv.runtime.noise import MOTION_DOMAIN, Z_DOMAIN, standard_normal
from styleinv.runtime.rollout import Rollout
from styleinv.runtime.sessions import Sessions
from styleinv.training.config import Config
from styleinv.training.generator import Generator
from styleinv.training.model import StyleInV

BATCHES = (1, 3)
GRAPH_TOLERANCE = 1e-4  # of the largest value, fp32
FRAME_TOLERANCE = 1  # levels of a byte
SEED = 1


@dataclass(frozen=True)
class Comparison:
    """How far one output is from PyTorch's, in the unit its tolerance has."""

    what: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # also false where the error is not a number


def compare_graphs(
    sessions: Sessions, model: nn.Module, config: Config, noise: str, additions: Additions
) -> list[Comparison]:
    """Every graph on inputs drawn as they occur, at several batch sizes: largest error over largest value."""
    comparisons = []
    for batch in BATCHES:
        for transfer, graph in bundle_graphs(model, additions, config, noise, batch, SEED):
            where = graph.name if transfer is None else f"transfers.{transfer}.{graph.name}"
            with torch.no_grad():
                expected = graph.reference(*graph.inputs.values())
            if isinstance(expected, torch.Tensor):
                expected = (expected,)
            inputs = {name: tensor.numpy() for name, tensor in graph.inputs.items()}
            found = sessions.session(graph.name, transfer).run(inputs, graph.outputs)
            outputs = expected[: len(graph.outputs)]  # internal values come behind them
            for name, wanted in zip(graph.outputs, outputs, strict=True):
                comparisons.append(_compare(f"{where}.{name}, batch {batch}", found[name], wanted.numpy()))
            if graph.name == "latent":
                joined = sessions.session("frame").run(inputs, ["frame"])["frame"]
                frame = sessions.session("synthesis").run({"w": found["w"]}, ["frame"])["frame"]
                comparisons.append(_compare(f"frame.frame, batch {batch}", joined, frame))
    return comparisons


def compare_frames(sessions: Sessions, model: nn.Module, noise: str, ts: Sequence[float]) -> list[Comparison]:
    """Frames of a rollout against the model's own, end to end: largest difference in levels."""
    rollout = Rollout(sessions, SEED, label=sample_label(sessions.bundle))
    expected = reference_frames(model, noise, SEED, ts)
    return [
        _compare(f"frame at t = {t:g}", found, wanted)
        for t, found, wanted in zip(ts, rollout.frames(ts), expected, strict=True)
    ]


def sample_label(bundle: Bundle) -> int | None:
    """The class that verification plays: the first one, of a conditional model."""
    return 0 if bundle.generator["label_dim"] else None


@torch.no_grad()
def reference_frames(model: nn.Module, noise: str, seed: int, ts: Sequence[float]) -> np.ndarray:
    """The frames that PyTorch makes of a rollout with this seed (and the first label): uint8 [T, R, R, 3]."""
    generator = model.generator if isinstance(model, StyleInV) else model
    assert isinstance(generator, Generator)
    mapping = generator.mapping
    z = torch.from_numpy(standard_normal(seed, Z_DOMAIN, 0, mapping.z_dim)).float()[None]
    label = torch.eye(mapping.label_dim)[:1] if mapping.label_dim else None
    if isinstance(model, Generator):
        return to_uint8(model(z, noise=noise, label=label)).numpy().repeat(len(ts), axis=0)
    assert isinstance(model, StyleInV)
    anchors = model.motion.anchors_needed(max(ts))
    size = model.motion.noise_dim
    motion_noise = np.stack([standard_normal(seed, MOTION_DOMAIN, anchor, size) for anchor in range(anchors)])
    w0 = mapping(z, label=label)
    v = model.motion(torch.from_numpy(motion_noise)[None], torch.tensor([list(ts)], dtype=torch.float64))[0]
    frames = clip_frames(model, w0, generator.synthesis(w0, noise), v, noise)
    return np.concatenate([to_uint8(image).numpy() for _, _, image in frames])


def clip_frames(
    model: StyleInV, w0: torch.Tensor, x0: torch.Tensor, v: torch.Tensor, noise: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Temporal style [1, S], latent [1, W] and image [1, 3, R, R] of each time code of [T, V], one at a time: at 1024
    pixels a batch would take gigabytes."""
    content = model.content(x0)
    for time_code in v.to(w0.dtype):
        style = model.style(w0, time_code[None])
        w = model.latent(content, w0, style)
        yield style, w, model.generator.synthesis(w, noise)


def frame_indices(model: nn.Module) -> list[float]:
    """Sixteen times that end-to-end verification looks at: whole, fractional, around an anchor, far away."""
    if not isinstance(model, StyleInV):
        return [0.0]
    distance = float(model.motion.anchor_distance)
    near = [0.0, 1.0, 2.0, 2.5, 3.0, distance / 2]
    border = [distance - 1, distance - 0.25, distance, distance + 0.25, distance + 1]
    return [*near, *border, 2 * distance, 3.5 * distance, 10 * distance, 1000.5, 100_000.0]


def verify(
    bundle: Path, model: nn.Module, config: Config, noise: str, additions: Additions | None = None
) -> list[Comparison]:
    """All comparisons of a bundle with its model, and of what was added to it. BundleError names the first that is out
    of tolerance."""
    with Sessions(Bundle.open(bundle)) as sessions:
        comparisons = compare_graphs(sessions, model, config, noise, additions or Additions())
        if isinstance(model, (StyleInV, Generator)):
            comparisons += compare_frames(sessions, model, noise, frame_indices(model))
    for comparison in comparisons:
        if not comparison.passed:
            raise BundleError(
                f"{bundle.name}: {comparison.what}: found an error of {comparison.error:.3g} against PyTorch, "
                f"expected at most {comparison.allowed:g}"
            )
    return comparisons


def as_table(comparisons: Iterable[Comparison]) -> str:
    """The comparisons as a Markdown table."""
    rows = [f"| {item.what} | {item.error:.3g} | {item.allowed:g} |" for item in comparisons]
    return "\n".join(["| output | error | allowed |", "|---|---|---|", *rows])


def _compare(what: str, found: np.ndarray, wanted: np.ndarray) -> Comparison:
    if found.shape != wanted.shape:
        raise BundleError(f"{what}: found shape {list(found.shape)}, expected {list(wanted.shape)}")
    difference = np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max()
    if wanted.dtype == np.uint8:
        return Comparison(what, float(difference), FRAME_TOLERANCE)
    return Comparison(what, float(difference / max(np.abs(wanted).max(), 1e-30)), GRAPH_TOLERANCE)
