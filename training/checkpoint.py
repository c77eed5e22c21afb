"""Checkpoints: one safetensors file holds a model, its kind and its configuration (see `checkpoint_file.py`).

Training state (optimizers, discriminator, position in the data) lies beside it in a file of its own: an application
never needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from styleinv.runtime.errors import CheckpointError
from styleinv.training.checkpoint_file import halved, opened, read_header, write_file
from styleinv.training.config import Config
from styleinv.training.generator import Generator
from styleinv.training.model import InversionModel, StyleInV, build_generator, build_inversion, build_styleinv

Model = Generator | InversionModel | StyleInV
BUILDERS: dict[str, Any] = {
    "image": lambda config: build_generator(config.model.generator),
    "inversion": lambda config: build_inversion(config.model),
    "styleinv": lambda config: build_styleinv(config.model),
    "transfer": lambda config: build_generator(config.model.generator),
}
KINDS = {Generator: ("image", "transfer"), InversionModel: ("inversion",), StyleInV: ("styleinv",)}
WIDENED = (torch.float16, torch.float32)  # as a tensor is stored, as a model has it
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Checkpoint:
    """A model as it lay in a file, in evaluation mode."""

    path: Path
    kind: str  # image, inversion, styleinv or transfer
    config: Config
    model: Model
    provenance: Mapping[str, str] = field(default_factory=dict)  # of an imported model: the file it came from


def kind_of(model: nn.Module) -> str:
    """The kind under which a model is stored, unless it is said to be another."""
    return KINDS[type(model)][0]


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    config: Config,
    kind: str | None = None,
    *,
    half: bool = False,
    provenance: Mapping[str, str] | None = None,
) -> None:
    """Write a model; the file appears whole or not at all.

    `kind` is by default `kind_of(model)`; 'transfer' makes of a generator one that draws another model's latents in
    another style. CheckpointError where it does not fit the model's class. With `half` most weights are stored as
    float16 (see `checkpoint_file.halved`); CheckpointError names those that are too large for it.
    """
    kinds = KINDS[type(model)]
    if kind is not None and kind not in kinds:
        expected = " or ".join(map(repr, kinds))
        raise CheckpointError(f"{path}: kind: found {kind!r}, expected {expected} for a {type(model).__name__}")
    arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in model.state_dict().items()}
    write_file(path, kind or kind_of(model), config, halved(arrays, path) if half else arrays, provenance)


def load_checkpoint(path: str | Path, *, kind: str | None = None) -> Checkpoint:
    """Read a model on the CPU. `kind` is what the caller needs, if it matters. Weights stored as float16 are widened.

    Raises CheckpointError naming the file, the field, what was found and what was expected; missing and unexpected
    tensors are listed together.
    """
    path = Path(path)
    header = read_header(path)
    if kind is not None and header.kind != kind:
        raise CheckpointError(f"{path}: kind: found {header.kind!r}, expected {kind!r}")
    with opened(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    with torch.device("meta"):
        model: Model = BUILDERS[header.kind](header.config)
    _check_tensors(path, model, tensors)
    types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: tensor.to(types[name]) for name, tensor in tensors.items()}, assign=True)
    return Checkpoint(path, header.kind, header.config, model.eval().requires_grad_(False), header.provenance)


def load_network(network: Network, model: Network) -> Network:
    """Copy a loaded model's weights into a network that is to be trained."""
    network.load_state_dict(model.state_dict())
    return network


def _check_tensors(path: Path, model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    expected = model.state_dict()
    problems = [f"missing {name} {list(expected[name].shape)}" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"unexpected {name} {list(tensors[name].shape)}" for name in sorted(tensors.keys() - expected.keys())]
    for name in sorted(expected.keys() & tensors.keys()):
        if expected[name].shape != tensors[name].shape:
            found, wanted = list(tensors[name].shape), list(expected[name].shape)
            problems.append(f"{name}: found shape {found}, expected {wanted}")
        elif (types := (tensors[name].dtype, expected[name].dtype)) != WIDENED and types[0] != types[1]:
            problems.append(f"{name}: found {tensors[name].dtype}, expected {expected[name].dtype}")
        elif tensors[name].is_floating_point() and not tensors[name].isfinite().all():
            problems.append(f"{name}: holds values that are not finite")
    if problems:
        raise CheckpointError(f"{path}: tensors do not fit the configuration:\n  " + "\n  ".join(problems))
