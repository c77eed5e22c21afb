"""`styleinv inspect`: says what a file or folder is: a pickle of the authors', a checkpoint or a bundle."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from styleinv.export.engine_commands import polygraphy_commands
from styleinv.export.official import describe_networks, read_model
from styleinv.runtime.bundle import Bundle, EngineSpec
from styleinv.runtime.errors import CheckpointError
from styleinv.training.checkpoint_file import parameters_by_part, read_header
from styleinv.training.config import Config

PICKLE_MAGIC = b"\x80"
HEADER_PLACE, HEADER_START = 8, b"{"  # of safetensors: JSON, after a length whose first byte may be a pickle's


def main(argv: list[str]) -> int:
    """Inspect one file or folder."""
    parser = argparse.ArgumentParser(
        prog="styleinv inspect",
        description="Say what a file is: kind, configuration, parameters of each part, resolution and where it came "
        "from. Takes a pickle of the authors' (read as data; nothing in it is executed), a checkpoint or a bundle.",
    )
    parser.add_argument(
        "path", type=Path, metavar="FILE", help="a .pkl or .safetensors file, or the folder of a bundle"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument(
        "--engine",
        action="store_true",
        help="of a bundle its engines alone, each with commands of Polygraphy, NVIDIA's tool, that look into it, build "
        "and compare it",
    )
    arguments = parser.parse_args(argv)
    description = describe_engines(arguments.path) if arguments.engine else describe(arguments.path)
    print(json.dumps(description, indent=1) if arguments.json else as_text(description))
    return 0


def describe(path: Path) -> dict[str, Any]:
    """What a file or folder is, as JSON's values. Raises CheckpointError or BundleError where it is damaged."""
    if path.is_dir():
        return _describe_bundle(path)
    try:
        with path.open("rb") as file:
            head = file.read(HEADER_PLACE + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: found {error.strerror}, expected a pickle, a checkpoint or a bundle") from None
    is_pickle = head.startswith(PICKLE_MAGIC) and head[HEADER_PLACE:] != HEADER_START
    return _describe_pickle(path) if is_pickle else _describe_checkpoint(path)


def as_text(description: dict[str, Any]) -> str:
    """The description for people: a line for each field, those in groups below the group's name."""
    return "\n".join(_lines(description, ""))


def _lines(group: dict[str, Any], indent: str) -> list[str]:
    width = max(map(len, group), default=0)
    lines = []
    for name, value in group.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name:{width}}  {_shown(value)}")
    return lines


def _shown(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:,}" if type(value) is int else str(value)


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    header = read_header(path)
    return {
        "file": str(path),
        "format": "checkpoint",
        **_model_fields(header.kind, header.config, header.shapes),
        "provenance": dict(header.provenance),
    }


def _describe_pickle(path: Path) -> dict[str, Any]:
    """The networks in the file, and the model that an import would make of it, or why it would not."""
    description: dict[str, Any] = {"file": str(path), "format": "pickle", "networks": describe_networks(path)}
    try:
        model = read_model(path)
    except CheckpointError as error:
        return description | {"import": f"refused: {error}"}
    shapes = {name: array.shape for name, array in model.tensors.items()}
    return description | _model_fields(model.kind, model.config, shapes) | {"provenance": model.provenance()}


def _describe_bundle(path: Path) -> dict[str, Any]:
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    return {
        "file": str(path),
        "format": "bundle",
        "kind": bundle.kind,
        "resolution": bundle.generator["resolution"],
        "frame_rate": bundle.frame_rate,
        "noise": manifest["noise"],
        "parameters": _with_total(manifest.get("parameters", {})),
        "graphs": {name: graph["precision"] for name, graph in manifest["graphs"].items()},
        "precisions": list(bundle.precisions),
        "transfers": sorted(manifest["transfers"]),
        "latent_strides": dict(manifest.get("latent_strides") or {}),
        "engines": [_engine_name(engine) for engine in bundle.engines],
        "configuration": dict(manifest["model"]),
        "provenance": dict(manifest["provenance"]),
    }


def describe_engines(path: Path) -> dict[str, Any]:
    """The engines of a bundle, as JSON's values. Raises BundleError where it is damaged, or none."""
    bundle = Bundle.open(path)
    engines = {_engine_name(engine): _describe_engine(bundle, engine) for engine in bundle.engines}
    return {"file": str(path), "format": "bundle", "engines": engines or []}


def _describe_engine(bundle: Bundle, engine: EngineSpec) -> dict[str, Any]:
    return {
        "graph": engine.graph.file.relative_to(bundle.path).as_posix(),
        "targets": list(engine.targets),
        "batch": dict(zip(("least", "usual", "largest"), engine.batch, strict=True)),
        "refittable": engine.refittable,
        "key": engine.key,
        "file": str(engine.file),
        "bytes": engine.file.stat().st_size,
        "log": str(engine.file.with_suffix(".log")),
        "commands": {command.purpose: str(command) for command in polygraphy_commands(engine)},
    }


def _engine_name(engine: EngineSpec) -> str:
    graph = engine.graph.name if engine.transfer is None else f"{engine.graph.name} of {engine.transfer}"
    return f"{graph}, {engine.engine} {engine.version} {engine.precision} for {'/'.join(engine.targets)}"


def _model_fields(kind: str, config: Config, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {
        "kind": kind,
        "resolution": config.model.generator.resolution,
        "frame_rate": config.frame_rate,
        "parameters": _with_total(parameters_by_part(shapes)),
        "configuration": _used(kind, dataclasses.asdict(config.model)),
    }


def _with_total(counts: Mapping[str, int]) -> dict[str, int]:
    return {**counts, "total": sum(counts.values())}


def _used(kind: str, model: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that a model of this kind has a use for."""
    if kind in ("image", "transfer"):
        return {"generator": model["generator"]}
    if kind == "inversion":
        return {"generator": model["generator"], "encoder": model["encoder"]}
    return model
