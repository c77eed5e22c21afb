"""The graphs of a bundle: which parts of a model are exported, what goes in and out of each, and its two forms.

The once-per-clip parts (`mapping`, `content`, and `synthesis` for the first picture) are apart from the per-frame
ones (`latent`, `synthesis`; the bundle's `frame` graph is these two joined). No graph sees time: the time code v is
computed on the host.

Each graph has the form that learns, which stays the definition, and the form that is exported, with all that is
constant folded into its weights (`inference_synthesis.py`, `inference_encoder.py`). Arrays that go in and out are
float32 (the frame uint8) whatever a graph computes in.

Shapes: B batch, Z size of z, W size of a latent, S size of a temporal style, V size of a time code, C channels,
R resolution.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from styleinv.export.arithmetic import EXACT, Arithmetic
from styleinv.export.folding import FoldedLinear, constant
from styleinv.export.inference_encoder import InferenceEncoder
from styleinv.export.inference_synthesis import InferenceSynthesis
from styleinv.kernels.reference import to_uint8
from styleinv.training.config import Config
from styleinv.training.generator import Generator, MappingNetwork
from styleinv.training.layers import normalize_second_moment
from styleinv.training.model import InversionModel, StyleInV

EXAMPLE_BATCH = 2  # of the inputs a graph is traced with; the batch stays dynamic

Outputs = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Graph:
    """One part of the model, ready to be exported: its inputs by name with examples [B, ...], its outputs by name.

    `reference` is its form that learns, `build` makes the form that is exported; both take the inputs and return the
    outputs, then the `internal` values. Those are no outputs of the exported graph, but keep their names inside it, so
    that a checker can look at them.
    """

    name: str
    reference: Callable[..., Outputs]
    build: Callable[[], nn.Module]
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    internal: tuple[str, ...] = ()


class MappingGraph(nn.Module):
    """z [B, Z], truncation_psi [B] and, where conditional, label [B, label_dim] -> w0 [B, W]."""

    def __init__(self, mapping: MappingNetwork) -> None:
        super().__init__()
        self.embed = None if mapping.embed is None else FoldedLinear(mapping.embed)
        self.layers = nn.Sequential(*(FoldedLinear(layer) for layer in mapping.layers))
        self.latent_average = constant(mapping.latent_average)

    def forward(self, z: Tensor, truncation_psi: Tensor, label: Tensor | None = None) -> Tensor:
        x = normalize_second_moment(z)
        if self.embed is not None:
            assert label is not None
            x = torch.cat([x, normalize_second_moment(self.embed(label))], dim=1)
        w: Tensor = self.layers(x)
        return self.latent_average + truncation_psi[:, None] * (w - self.latent_average)


class SynthesisGraph(nn.Module):
    """w [B, W] -> image [B, 3, R, R] in about [-1, 1], frame [B, R, R, 3] uint8."""

    def __init__(self, generator: Generator, noise: str, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.synthesis = InferenceSynthesis(generator.synthesis, noise, arithmetic)

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        image = self.synthesis(w)
        return image, to_uint8(image)


class ContentGraph(nn.Module):
    """image [B, 3, R, R] -> what of the encoder does not depend on time: features, prepared [B, C, r, r]."""

    def __init__(self, encoder: InferenceEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder.content(image)


class LatentGraph(nn.Module):
    """features, prepared [B, C, r, r], w0 [B, W], v [B, V] -> w [B, W] and, internal, style [B, S]."""

    def __init__(self, model: StyleInV, encoder: InferenceEncoder) -> None:
        super().__init__()
        self.style = FoldedStyle(model)
        self.encoder = encoder
        self.input_residual = model.input_residual  # else the encoder's base is the average latent

    def forward(self, features: Tensor, prepared: Tensor, w0: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        style = self.style(w0, v)
        offset = self.encoder.offset(features, prepared, style)
        return w0 + offset if self.input_residual else offset, style


class EncoderlessLatentGraph(nn.Module):
    """The same of a model without an encoder: w0 [B, W], v [B, V] -> w [B, W] and, internal, style [B, W]."""

    def __init__(self, model: StyleInV) -> None:
        super().__init__()
        self.style = FoldedStyle(model)

    def forward(self, w0: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        style = self.style(w0, v)
        return w0 + style, style


class FoldedStyle(nn.Module):
    """Temporal style: w0 [B, W], v [B, V] -> s [B, S]."""

    def __init__(self, model: StyleInV) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(FoldedLinear(layer) for layer in model.style.layers))
        self.sees_content = model.style.sees_content

    def forward(self, w0: Tensor, v: Tensor) -> Tensor:
        style: Tensor = self.layers(torch.cat([w0, v], dim=1) if self.sees_content else v)
        return style


@torch.no_grad()
def graphs_of(
    model: nn.Module,
    config: Config,
    noise: str,
    batch: int = EXAMPLE_BATCH,
    seed: int = 0,
    arithmetic: Arithmetic = EXACT,
) -> list[Graph]:
    """The graphs of a model, with inputs drawn as they occur when it plays.

    `noise` is 'const' (the model's fixed noise, baked in) or 'none'.
    """
    draws = torch.Generator().manual_seed(seed)
    resolution = config.model.generator.resolution
    if isinstance(model, InversionModel):
        image = torch.rand(batch, 3, resolution, resolution, generator=draws) * 2 - 1
        build = functools.partial(InferenceEncoder, model.encoder, resolution, arithmetic, model.latent_average)
        return [Graph("inversion", model, build, {"image": image}, ("w0",))]
    if isinstance(model, Generator):
        return _picture_graphs(model, config, noise, batch, draws, arithmetic)

    assert isinstance(model, StyleInV)
    pictures = _picture_graphs(model.generator, config, noise, batch, draws, arithmetic)
    w0 = pictures[1].inputs["w"]
    x0 = model.generator.synthesis(w0, noise)
    t = torch.rand(batch, 1, generator=draws, dtype=torch.float64) * model.motion.anchor_distance
    anchors = model.motion.anchors_needed(t.max().item())
    v = model.motion(torch.randn(batch, anchors, model.motion.noise_dim, generator=draws), t)[:, 0].to(w0.dtype)
    inputs = {"w0": w0, "v": v}

    def reference(*inputs: Tensor) -> Outputs:
        *content, w0, v = inputs
        style = model.style(w0, v)
        return model.latent(tuple(content), w0, style), style

    if model.encoder is None:
        build_latent = functools.partial(EncoderlessLatentGraph, model)
        return [*pictures, Graph("latent", reference, build_latent, inputs, ("w",), ("style",))]
    base = None if model.input_residual else model.latent_average
    encoder = functools.cache(functools.partial(InferenceEncoder, model.encoder, resolution, arithmetic, base))
    content = dict(zip(("features", "prepared"), model.content(x0), strict=True))
    return [
        *pictures,
        Graph("content", model.content, lambda: ContentGraph(encoder()), {"image": x0}, tuple(content)),
        Graph("latent", reference, lambda: LatentGraph(model, encoder()), content | inputs, ("w",), ("style",)),
    ]


def _picture_graphs(
    generator: Generator, config: Config, noise: str, batch: int, draws: torch.Generator, arithmetic: Arithmetic
) -> list[Graph]:
    picture = config.model.generator
    inputs = {
        "z": torch.randn(batch, picture.z_dim, generator=draws),
        "truncation_psi": torch.linspace(1.0, 0.7, batch),
    }
    if picture.label_dim:
        inputs["label"] = torch.eye(picture.label_dim)[torch.arange(batch) % picture.label_dim]
    w0 = generator.mapping(*inputs.values())

    def reference(w: Tensor) -> Outputs:
        image = generator.synthesis(w, noise)
        return image, to_uint8(image)

    build_mapping = functools.partial(MappingGraph, generator.mapping)
    build_synthesis = functools.partial(SynthesisGraph, generator, noise, arithmetic)
    return [
        Graph("mapping", generator.mapping, build_mapping, inputs, ("w0",)),
        Graph("synthesis", reference, build_synthesis, {"w": w0}, ("image", "frame")),
    ]
