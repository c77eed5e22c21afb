"""What a bundle is verified against: its model in PyTorch, or else its own fp32 graphs in ONNX Runtime.

Shapes: B batch, T frames, W size of a latent, V size of a time code, R resolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from styleinv.export.additions import Additions, bundle_graphs
from styleinv.kernels.reference import to_uint8
from styleinv.runtime.bundle import Bundle
from styleinv.runtime.motion import MotionCodes
from styleinv.runtime.noise import MOTION_DOMAIN, Z_DOMAIN, standard_normal
from styleinv.runtime.rollout import Rollout
from styleinv.runtime.sessions import Sessions
from styleinv.runtime.sessions.base import Arrays
from styleinv.training.checkpoint import Checkpoint
from styleinv.training.generator import Generator
from styleinv.training.model import StyleInV

Frame = npt.NDArray[np.uint8]  # [R, R, 3]

SEED = 1  # of what verification plays


class Reference(Protocol):
    """Says what must come out."""

    name: str

    def outputs(self, graph: str, transfer: str | None, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """What a graph must give for these inputs, by name."""

    def frames(self, ts: Sequence[float]) -> Iterator[Frame]:
        """The frames of the clip with the seed `SEED` (and the first label) at these frame indices."""


class SessionReference:
    """The bundle's own graphs, in sessions that are trusted."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.name = f"{sessions.engine} {sessions.precision}"

    def outputs(self, graph: str, transfer: str | None, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        return self.sessions.session(graph, transfer).run(inputs)

    def frames(self, ts: Sequence[float]) -> Iterator[Frame]:
        return Rollout(self.sessions, SEED, label=sample_label(self.sessions.bundle)).frames(ts)


class PyTorchReference:
    """The model in the form that it was trained in; graphs that are not the model's are asked of `others`."""

    def __init__(
        self, checkpoint: Checkpoint, noise: str, additions: Additions | None = None, others: Reference | None = None
    ) -> None:
        self.name = "PyTorch"
        self._model, self._noise, self._others = checkpoint.model, noise, others
        graphs = bundle_graphs(checkpoint.model, additions or Additions(), checkpoint.config, noise, batch=1)
        self._graphs = {(transfer, graph.name): graph for transfer, graph in graphs}

    def outputs(self, graph: str, transfer: str | None, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        if graph == "frame":  # the two that it joins
            w = self.outputs("latent", None, inputs)["w"]
            return {"frame": self.outputs("synthesis", None, {"w": w})["frame"]}
        part = self._graphs.get((transfer, graph))
        if part is None:
            assert self._others is not None
            return self._others.outputs(graph, transfer, inputs)
        with torch.no_grad():
            found = part.reference(*(torch.from_numpy(np.array(inputs[name])) for name in part.inputs))
        outputs = (found,) if isinstance(found, torch.Tensor) else found
        return {name: output.numpy() for name, output in zip(part.outputs, outputs, strict=False)}

    def frames(self, ts: Sequence[float]) -> Iterator[Frame]:
        return reference_frames(self._model, self._noise, SEED, ts)


def sample_label(bundle: Bundle) -> int | None:
    """The class that verification plays: the first one, of a conditional model."""
    return 0 if bundle.generator["label_dim"] else None


def reference_frames(model: nn.Module, noise: str, seed: int, ts: Sequence[float]) -> Iterator[Frame]:
    """The frames that PyTorch makes of a rollout with this seed (and the first label), one by one."""
    generator = model.generator if isinstance(model, StyleInV) else model
    assert isinstance(generator, Generator)
    mapping = generator.mapping
    with torch.no_grad():
        z = torch.from_numpy(standard_normal(seed, Z_DOMAIN, 0, mapping.z_dim)).float()[None]
        label = torch.eye(mapping.label_dim)[:1] if mapping.label_dim else None
        w0 = mapping(z, label=label)
        x0 = generator.synthesis(w0, noise)
        if isinstance(model, Generator):
            yield from [to_uint8(x0).numpy()[0]] * len(ts)
            return
        assert isinstance(model, StyleInV)
        anchors = model.motion.anchors_needed(max(ts))
        size = model.motion.noise_dim
        motion_noise = np.stack([standard_normal(seed, MOTION_DOMAIN, anchor, size) for anchor in range(anchors)])
        v = model.motion(torch.from_numpy(motion_noise)[None], torch.tensor([list(ts)], dtype=torch.float64))[0]
    for _, _, image in clip_frames(model, w0, x0, v, noise):
        yield to_uint8(image).numpy()[0]


def clip_frames(
    model: StyleInV, w0: torch.Tensor, x0: torch.Tensor, v: torch.Tensor, noise: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Temporal style [1, S], latent [1, W] and image [1, 3, R, R] of each time code of [T, V], one at a time: at 1024
    pixels a batch would take gigabytes."""
    with torch.no_grad():
        content = model.content(x0)
    for time_code in v.to(w0.dtype):
        with torch.no_grad():
            style = model.style(w0, time_code[None])
            w = model.latent(content, w0, style)
            image = model.generator.synthesis(w, noise)
        yield style, w, image


def sample_inputs(sessions: Sessions, batch: int) -> dict[tuple[str | None, str], Arrays]:
    """Inputs of every graph, as they occur when the bundle plays, by transfer (None: the bundle's own) and name.

    Each row of the batch is another clip at another time.
    """
    bundle = sessions.bundle
    resolution = bundle.generator["resolution"]
    if bundle.kind == "inversion":
        pixels = np.random.default_rng(SEED).uniform(-1.0, 1.0, (batch, 3, resolution, resolution))
        return {(None, "inversion"): {"image": pixels.astype(np.float32)}}
    z = [standard_normal(SEED + row, Z_DOMAIN, 0, bundle.generator["z_dim"]) for row in range(batch)]
    inputs: Arrays = {
        "z": np.stack(z).astype(np.float32),
        "truncation_psi": np.linspace(1.0, 0.7, batch, dtype=np.float32),
    }
    labels = bundle.generator["label_dim"]
    if labels:
        inputs["label"] = np.eye(labels, dtype=np.float32)[np.arange(batch) % labels]
    samples: dict[tuple[str | None, str], Arrays] = {(None, "mapping"): inputs}
    w0 = sessions.session("mapping").run(inputs)["w0"]
    samples[None, "synthesis"] = {"w": w0}
    samples |= {(transfer, "synthesis"): {"w": w0} for transfer in bundle.transfers}
    image = sessions.session("synthesis").run({"w": w0}, ["image"])["image"]
    graphs = bundle.manifest["graphs"]
    if "inversion" in graphs:
        samples[None, "inversion"] = {"image": image}
    if bundle.kind == "styleinv":
        clip: Arrays = {"w0": w0, "v": _time_codes(sessions, batch)}
        if "content" in graphs:
            samples[None, "content"] = {"image": image}
            clip |= sessions.session("content").run({"image": image})
        samples[None, "latent"] = samples[None, "frame"] = clip
    return samples


def _time_codes(sessions: Sessions, batch: int) -> npt.NDArray[np.float32]:
    """Time codes [B, V] of several clips, each some way further between and behind its first anchors."""
    distance = sessions.bundle.motion["anchor_distance"]
    network = sessions.motion_network()
    codes = [MotionCodes(network, SEED + row).time_code(distance * (0.37 + 0.61 * row)) for row in range(batch)]
    return np.stack(codes).astype(np.float32)
