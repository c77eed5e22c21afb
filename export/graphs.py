"""The graphs of a bundle: which parts of a model are exported, and what goes in and out of each.

The once-per-clip parts (`mapping`, `content`, and `synthesis` for the first picture) are apart from the per-frame
ones (`latent`, `synthesis`; the bundle's `frame` graph is these two joined). No graph sees time: the time code v is
computed on the host.

Shapes: B batch, Z size of z, W size of a latent, S size of a temporal style, V size of a time code, C channels,
R resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from styleinv.kernels import reference
from styleinv.training.config import Config
from styleinv.training.encoder import Encoder
from styleinv.training.generator import Generator, MappingNetwork, SynthesisNetwork
from styleinv.training.model import InversionModel, StyleInV

EXAMPLE_BATCH = 2  # of the inputs a graph is traced with; the batch stays dynamic


@dataclass(frozen=True)
class Graph:
    """One part of the model, ready to be exported: its inputs by name with examples [B, ...], its outputs by name.

    The module returns its outputs and then the `internal` values. Those are no outputs of the exported graph, but keep
    their names inside it, so that a checker can look at them.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    internal: tuple[str, ...] = ()


class MappingGraph(nn.Module):
    """z [B, Z], truncation_psi [B] and, where conditional, label [B, label_dim] -> w0 [B, W]."""

    def __init__(self, mapping: MappingNetwork) -> None:
        super().__init__()
        self.mapping = mapping

    def forward(self, z: Tensor, truncation_psi: Tensor, label: Tensor | None = None) -> Tensor:
        w0: Tensor = self.mapping(z, truncation_psi, label)
        return w0


class SynthesisGraph(nn.Module):
    """w [B, W] -> image [B, 3, R, R] in about [-1, 1], frame [B, R, R, 3] uint8."""

    def __init__(self, synthesis: SynthesisNetwork, noise: str) -> None:
        super().__init__()
        self.synthesis = synthesis
        self.noise = noise

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        image = self.synthesis(w, self.noise)
        return image, reference.to_uint8(image)


class ContentGraph(nn.Module):
    """image [B, 3, R, R] -> what of the encoder does not depend on time: features, prepared [B, C, r, r]."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder.content(image)


class LatentGraph(nn.Module):
    """features, prepared [B, C, r, r], w0 [B, W], v [B, V] -> w [B, W] and, internal, style [B, S]."""

    def __init__(self, model: StyleInV) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, prepared: Tensor, w0: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        style = self.model.style(w0, v)
        return self.model.latent((features, prepared), w0, style), style


class EncoderlessLatentGraph(nn.Module):
    """The same of a model without an encoder: w0 [B, W], v [B, V] -> w [B, W] and, internal, style [B, W]."""

    def __init__(self, model: StyleInV) -> None:
        super().__init__()
        self.model = model

    def forward(self, w0: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        style = self.model.style(w0, v)
        return self.model.latent((), w0, style), style


@torch.no_grad()
def graphs_of(model: nn.Module, config: Config, noise: str, batch: int = EXAMPLE_BATCH, seed: int = 0) -> list[Graph]:
    """The graphs of a model, with inputs drawn as they occur when it plays.

    `noise` is 'const' (the model's fixed noise, baked in) or 'none'.
    """
    draws = torch.Generator().manual_seed(seed)
    if isinstance(model, InversionModel):
        resolution = config.model.generator.resolution
        image = torch.rand(batch, 3, resolution, resolution, generator=draws) * 2 - 1
        return [Graph("inversion", model, {"image": image}, ("w0",))]
    if isinstance(model, Generator):
        return _picture_graphs(model, config, noise, batch, draws)

    assert isinstance(model, StyleInV)
    pictures = _picture_graphs(model.generator, config, noise, batch, draws)
    w0 = pictures[1].inputs["w"]
    x0 = model.generator.synthesis(w0, noise)
    t = torch.rand(batch, 1, generator=draws, dtype=torch.float64) * model.motion.anchor_distance
    anchors = model.motion.anchors_needed(t.max().item())
    v = model.motion(torch.randn(batch, anchors, model.motion.noise_dim, generator=draws), t)[:, 0].to(w0.dtype)
    inputs = {"w0": w0, "v": v}
    if model.encoder is None:
        return [*pictures, Graph("latent", EncoderlessLatentGraph(model), inputs, ("w",), ("style",))]
    content = dict(zip(("features", "prepared"), model.content(x0), strict=True))
    return [
        *pictures,
        Graph("content", ContentGraph(model.encoder), {"image": x0}, tuple(content)),
        Graph("latent", LatentGraph(model), content | inputs, ("w",), ("style",)),
    ]


def _picture_graphs(
    generator: Generator, config: Config, noise: str, batch: int, draws: torch.Generator
) -> list[Graph]:
    picture = config.model.generator
    inputs = {
        "z": torch.randn(batch, picture.z_dim, generator=draws),
        "truncation_psi": torch.linspace(1.0, 0.7, batch),
    }
    if picture.label_dim:
        inputs["label"] = torch.eye(picture.label_dim)[torch.arange(batch) % picture.label_dim]
    w0 = generator.mapping(*inputs.values())
    return [
        Graph("mapping", MappingGraph(generator.mapping), inputs, ("w0",)),
        Graph("synthesis", SynthesisGraph(generator.synthesis, noise), {"w": w0}, ("image", "frame")),
    ]
