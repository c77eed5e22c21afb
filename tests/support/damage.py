"""Ways to damage a bundle, and to make its hashes right again: what the damaged bundles of the tests are made with."""

import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from styleinv.runtime.bundle import file_sha256, write_manifest

Damage = Callable[[Path, random.Random], object]


@dataclass(frozen=True)
class Case:
    """One way to damage the bundle folder; `said` is searched for in the message."""

    name: str
    damage: Damage
    said: str = ""
    forged: bool = False


INTERFACES = {
    "mapping": ("z", "truncation_psi", "w0"),
    "synthesis": ("w", "image", "frame"),
    "content": ("image", "features", "prepared"),
    "latent": ("features", "prepared", "w0", "v", "w"),
    "frame": ("features", "prepared", "w0", "v", "frame"),
    "inversion": ("image", "w0"),
}
ONNX_FILES = [
    *(f"{folder}{graph}.onnx" for folder in ("", "fp16/") for graph in INTERFACES),
    *(f"{folder}transfers/ink/synthesis.onnx" for folder in ("", "fp16/")),
]
WEIGHTS_FILES = ["synthesis.bin", "frame.bin", "fp16/weights.bin"]
WEIGHTS_FILES += ["transfers/ink/synthesis.bin", "fp16/transfers/ink/synthesis.bin"]
FILES = ["manifest.json", "motion.safetensors", *ONNX_FILES, *WEIGHTS_FILES]


def engine_entry(file: str, sha256: Any, size: int) -> dict[str, Any]:
    """A manifest's entry of an engine for which any file stands in."""
    declared = {"file": file, "sha256": sha256, "bytes": size}
    names = {"engine": "rtx", "version": "1", "precision": "fp32", "graph": "latent", "transfer": None}
    rest = {"targets": ["8.9"], "batch": [1, 1, 4], "refittable": False, "key": "0" * 64}
    return {**names, **rest, **declared, "log": declared}


def read_manifest(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "manifest.json").read_text())


def change_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = read_manifest(bundle)
    change(manifest)
    write_manifest(bundle, manifest)


def entries(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a manifest that names a file."""
    if isinstance(value, dict):
        if "file" in value and "sha256" in value:
            yield value
        for inner in value.values():
            yield from entries(inner)


def forge(bundle: Path) -> None:
    """Makes hashes, sizes and the digest right for the files as they are now."""
    manifest = read_manifest(bundle)
    files = [(entry["file"], entry) for entry in entries(manifest)]
    for name, entry in itertools.chain(files, manifest["files"].items()):
        entry["sha256"] = file_sha256(bundle / name)
        if "bytes" in entry:
            entry["bytes"] = (bundle / name).stat().st_size
    write_manifest(bundle, manifest)


def set_field(field: str, value: Any, manifest: dict[str, Any]) -> None:
    *parents, last = field.split("/")
    for parent in parents:
        manifest = manifest[parent]
    if value is ...:
        del manifest[last]
    else:
        manifest[last] = value


def flip_bit(name: str, bundle: Path, draw: random.Random) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    (bundle / name).write_bytes(content)


def truncate(name: str, length: int | None, bundle: Path, draw: random.Random) -> None:
    size = (bundle / name).stat().st_size
    os.truncate(bundle / name, draw.randrange(size - 2) if length is None else length)


def swap(first: str, second: str, bundle: Path, draw: random.Random) -> None:
    (bundle / first).rename(bundle / "swapped")
    (bundle / second).rename(bundle / first)
    (bundle / "swapped").rename(bundle / second)


def then_forge(damage: Damage, bundle: Path, draw: random.Random) -> None:
    damage(bundle, draw)
    forge(bundle)


def in_manifest(change: Callable[[dict[str, Any]], object], bundle: Path, draw: random.Random) -> None:
    change_manifest(bundle, change)
