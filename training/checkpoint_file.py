"""The file of a checkpoint: tensors in the safetensors format, and in its metadata what they are. Imports no torch.

The metadata carries `format_version`, `kind`, `config` (see `config.py`) and, where it is known, `provenance`.
Weights are float32. A file may hold them as float16, in half the bytes (see `halved`): whoever reads it gets float32.
"""

from __future__ import annotations

import contextlib
import glob
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from styleinv.runtime.errors import CheckpointError, ConfigError
from styleinv.training import config as configuration
from styleinv.training.config import Config

FORMAT_VERSION = 1
KINDS = ("image", "inversion", "styleinv", "transfer")
BUFFERS = (  # last parts of the names of tensors that are no parameters
    "latent_average", "noise", "frequencies", "directions", "running_mean", "running_var", "num_batches_tracked",
)  # fmt: skip

# Tensors that stay float32 in a file of float16, all of them small. Angles are frequencies times t: an error of 2e-4 in
# anything of the motion network that decides them is another movement after some thousand frames, of the same seed.
# Variances may be smaller than float16 can tell from 0; and every latent counts from the average one.
WIDE_BUFFERS = ("frequencies", "latent_average", "running_mean", "running_var")
WIDE_PART = "motion"


@dataclass(frozen=True)
class Header:
    """What a checkpoint's metadata says, and the shape of each of its tensors."""

    kind: str
    config: Config
    provenance: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]


def write_file(
    path: str | Path,
    kind: str,
    config: Config,
    arrays: Mapping[str, npt.NDArray[Any]],
    provenance: Mapping[str, str] | None = None,
) -> None:
    """Write a checkpoint; the file appears whole or not at all. Contiguous arrays are written without a copy.

    Raises CheckpointError where the file cannot be written.
    """
    metadata = {"format_version": str(FORMAT_VERSION), "kind": kind, "config": configuration.to_json(config)}
    if provenance:
        metadata["provenance"] = json.dumps(dict(provenance), sort_keys=True)
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    try:
        with replacing(Path(path)) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode  # that of any new file; safetensors would make it private
            save_file(contiguous, temporary, metadata)
            temporary.chmod(mode)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from error


def read_header(path: str | Path) -> Header:
    """What a checkpoint is. CheckpointError where the file is none of ours, or of a newer format."""
    path = Path(path)
    with opened(path) as file:
        metadata = file.metadata() or {}
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    missing = [name for name in ("format_version", "kind", "config") if name not in metadata]
    if missing:
        raise CheckpointError(f"{path}: metadata: {', '.join(missing)} missing; not a checkpoint of this package")
    version = metadata["format_version"]
    if version != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{path}: format_version: found {version!r}, expected {FORMAT_VERSION}; a newer release may read it"
        )
    if metadata["kind"] not in KINDS:
        raise CheckpointError(f"{path}: kind: found {metadata['kind']!r}, expected one of {', '.join(KINDS)}")
    try:
        config = configuration.from_json(metadata["config"])
        provenance = json.loads(metadata.get("provenance", "{}"))
    except (ConfigError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Header(metadata["kind"], config, provenance, shapes)


def read_arrays(path: str | Path) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a checkpoint as numpy arrays, by our names; those stored as float16 come as float32."""
    with opened(Path(path), framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    return {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in arrays.items()}


def halved(arrays: Mapping[str, npt.NDArray[Any]], path: str | Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a checkpoint in half the bytes: float32 as float16, but for those that need their precision.

    Each value keeps 11 bits: it changes by at most 2**-11 of itself, and by 2**-25 where it is below 2**-14.
    Raises CheckpointError naming `path`, which they are meant for, and every tensor with a value beyond float16.
    """
    result, problems = dict(arrays), []
    for name, array in arrays.items():
        words = name.split(".")
        if array.dtype != np.float32 or words[0] == WIDE_PART or words[-1] in WIDE_BUFFERS:
            continue
        with np.errstate(over="ignore"):
            result[name] = array.astype(np.float16)
        if not np.isfinite(result[name]).all():
            problems.append(f"{name}: found a value of {np.abs(array).max():g}, expected at most 65504")
    if problems:
        raise CheckpointError(f"{path}: weights do not fit float16:\n  " + "\n  ".join(problems))
    return result


def parameters_by_part(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """How many weights each part of a model has: generator.mapping, generator.synthesis, motion, style, encoder, ..."""
    counts: dict[str, int] = {}
    for name, shape in shapes.items():
        words = name.split(".")
        if words[-1] not in BUFFERS:
            part = ".".join(words[:2]) if words[0] == "generator" else words[0]
            counts[part] = counts.get(part, 0) + math.prod(shape)
    return counts


@contextlib.contextmanager
def opened(path: Path, framework: str = "np") -> Iterator[Any]:
    """The safetensors file; CheckpointError where it is none."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, expected a .safetensors checkpoint")
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError) as error:
        hint = "; `styleinv import` turns a pickle into one" if path.suffix == ".pkl" else ""
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}{hint}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling that takes the place of `path` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if not _is_running(abandoned.name.split(".")[-2]):
            abandoned.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_running(process: str) -> bool:
    """Whether the writer of a temporary file may still be at it: kill -9 leaves its file behind."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True
