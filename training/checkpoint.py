"""Checkpoints: one safetensors file holds a model, its kind and its configuration.

The file's metadata carries `format_version`, `kind` and `config` (see `config.py`). Training state (optimizers,
discriminator, position in the data) lies beside it in a file of its own: an application never needs it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from styleinv.runtime.errors import CheckpointError, ConfigError
from styleinv.training import config as configuration
from styleinv.training.config import Config
from styleinv.training.generator import Generator
from styleinv.training.model import InversionModel, StyleInV, build_generator, build_inversion, build_styleinv

FORMAT_VERSION = 1
Model = Generator | InversionModel | StyleInV
BUILDERS: dict[str, Any] = {
    "image": lambda config: build_generator(config.model.generator),
    "inversion": lambda config: build_inversion(config.model),
    "styleinv": lambda config: build_styleinv(config.model),
}
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Checkpoint:
    """A model as it lay in a file, in evaluation mode."""

    path: Path
    kind: str  # image, inversion or styleinv
    config: Config
    model: Model


def kind_of(model: nn.Module) -> str:
    """The kind under which a model is stored."""
    kinds = {Generator: "image", InversionModel: "inversion", StyleInV: "styleinv"}
    return kinds[type(model)]


def save_checkpoint(path: str | Path, model: nn.Module, config: Config) -> None:
    """Write a model; the file appears whole or not at all."""
    metadata = {
        "format_version": str(FORMAT_VERSION),
        "kind": kind_of(model),
        "config": configuration.to_json(config),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(save(tensors, metadata))


def load_checkpoint(path: str | Path, *, kind: str | None = None) -> Checkpoint:
    """Read a model on the CPU. `kind` is what the caller needs, if it matters.

    Raises CheckpointError naming the file, the field, what was found and what was expected; missing and unexpected
    tensors are listed together.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, expected a .safetensors checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error
    found_kind, config = _read_metadata(path, metadata)
    if kind is not None and found_kind != kind:
        raise CheckpointError(f"{path}: kind: found {found_kind!r}, expected {kind!r}")
    with torch.device("meta"):
        model: Model = BUILDERS[found_kind](config)
    _check_tensors(path, model, tensors)
    model.load_state_dict(tensors, assign=True)
    return Checkpoint(path, found_kind, config, model.eval().requires_grad_(False))


def load_network(network: Network, model: Network) -> Network:
    """Copy a loaded model's weights into a network that is to be trained."""
    network.load_state_dict(model.state_dict())
    return network


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling that takes the place of `path` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_metadata(path: Path, metadata: dict[str, str]) -> tuple[str, Config]:
    missing = [name for name in ("format_version", "kind", "config") if name not in metadata]
    if missing:
        raise CheckpointError(f"{path}: metadata: {', '.join(missing)} missing; not a checkpoint of this package")
    version = metadata["format_version"]
    if version != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: format_version: found {version!r}, expected {FORMAT_VERSION}; a newer release may read it"
        )
    if metadata["kind"] not in BUILDERS:
        raise CheckpointError(f"{path}: kind: found {metadata['kind']!r}, expected one of {', '.join(BUILDERS)}")
    try:
        return metadata["kind"], configuration.from_json(metadata["config"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_tensors(path: Path, model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    expected = model.state_dict()
    problems = [f"missing {name} {list(expected[name].shape)}" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"unexpected {name} {list(tensors[name].shape)}" for name in sorted(tensors.keys() - expected.keys())]
    for name in sorted(expected.keys() & tensors.keys()):
        if expected[name].shape != tensors[name].shape:
            found, wanted = list(tensors[name].shape), list(expected[name].shape)
            problems.append(f"{name}: found shape {found}, expected {wanted}")
        elif expected[name].dtype != tensors[name].dtype:
            problems.append(f"{name}: found {tensors[name].dtype}, expected {expected[name].dtype}")
        elif tensors[name].is_floating_point() and not tensors[name].isfinite().all():
            problems.append(f"{name}: holds values that are not finite")
    if problems:
        raise CheckpointError(f"{path}: tensors do not fit the configuration:\n  " + "\n  ".join(problems))
