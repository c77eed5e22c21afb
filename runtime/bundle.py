"""The bundle: the folder that export writes and runtime plays.

    sky.bundle/   manifest.json   <graph>.onnx ...   weights.bin   motion.safetensors
                  transfers/<name>/synthesis.onnx   transfers/<name>/weights.bin
                  <precision>/...                   the same graphs, computing in another precision, where it has them
                  engines/<engine>-<precision>-<targets>/<graph>.<key>.engine   graphs compiled for GPUs

The manifest carries the hash of every other file and a digest of itself, so damage is found when the bundle is
opened and not after a night of strange frames. Hashes show integrity, not origin.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from styleinv.runtime.errors import BundleError
from styleinv.runtime.graph_file import LARGEST_GRAPH_FILE, check_graph, declared_graphs, read_graph_file
from styleinv.runtime.manifest import (
    MANIFEST_NAME,
    MOTION_FILE,
    DeclaredFile,
    canonical_json,
    check_manifest,
    declared_files,
    manifest_digest,
)
from styleinv.runtime.manifest_fields import FORMAT_VERSION

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "MOTION_FILE",
    "ArraySpec",
    "Bundle",
    "EngineSpec",
    "GraphSpec",
    "canonical_json",
    "file_sha256",
    "manifest_digest",
    "write_manifest",
]

LARGEST_MANIFEST = 2**24  # bytes; those that are written have some thousands
SPECIAL_CHARACTERS = frozenset('\\:*?"<>|')  # of file names, on other systems or, as *, in engines


@dataclass(frozen=True)
class ArraySpec:
    """An input or output of a graph: numpy's name of its dtype, and its sizes, dynamic ones by name."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One exported network part: its file on this machine and what it takes and gives."""

    name: str
    file: Path
    sha256: str
    precision: str
    inputs: Mapping[str, ArraySpec]
    outputs: Mapping[str, ArraySpec]


@dataclass(frozen=True)
class EngineSpec:
    """A graph that a library has compiled for some GPUs or CPUs, and batches from a least to a largest size, the one in
    the middle fastest. It holds native code: what loads it must trust it."""

    engine: str  # the session that loads it: rtx, tensorrt or inductor
    version: str  # of the library
    precision: str  # in which the bundle plays on it; the graph's own may be more exact, as that of `mapping` is
    targets: tuple[str, ...]  # compute capabilities, such as '8.9', or a kind of CPU
    batch: tuple[int, int, int]
    refittable: bool
    key: str  # hash of all that it was built from
    file: Path
    sha256: str
    graph: GraphSpec  # what it was built from
    transfer: str | None  # whose graph that is


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its checked manifest. Opening holds no file open."""

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path, verify_hashes: bool = True) -> Bundle:
        """Opens the bundle folder at `path`.

        Args:
            verify_hashes: also read every file and compare its SHA-256; without it names, sizes and what the graphs
                take, give and point to are still checked.
        Raises: BundleError naming the bundle, the field, what was found and what was expected.
        """
        folder = Path(path)
        manifest = _read_manifest(folder)
        check_manifest(manifest, str(folder))
        _check_files(folder, manifest, verify_hashes)
        return cls(folder, manifest)

    def verify(self) -> None:
        """Reads every file and compares its SHA-256, as `open` does unless it is told not to. Raises as `open`."""
        sha256 = functools.cache(file_sha256)
        for declared in declared_files(self.manifest):
            where = f"{self.path}: {declared.field}"
            try:
                found = sha256(self.path / declared.name)
            except OSError as error:
                raise BundleError(f"{where}: found {error}, expected a readable file") from error
            _check_hash(where, declared, found)

    @property
    def kind(self) -> str:
        """'styleinv' (clips), 'image' (single pictures) or 'inversion' (picture to latent)."""
        return str(self.manifest["kind"])

    @property
    def frame_rate(self) -> float:
        """Frames per second of the clips the model learned from."""
        return float(self.manifest["frame_rate"])

    @property
    def generator(self) -> Mapping[str, Any]:
        """The generator's configuration: resolution, z_dim, w_dim, label_dim, ..."""
        configuration: Mapping[str, Any] = self.manifest["model"]["generator"]
        return configuration

    @property
    def motion(self) -> Mapping[str, Any]:
        """The motion network's configuration; of bundles of kind 'styleinv' only."""
        configuration: Mapping[str, Any] = self.manifest["model"]["motion"]
        return configuration

    @property
    def transfers(self) -> tuple[str, ...]:
        """Names of the styles it can also draw in: generators tuned for another style, of the same latents."""
        return tuple(sorted(self.manifest["transfers"]))

    @property
    def precisions(self) -> tuple[str, ...]:
        """What it has graphs in: fp32, and fp16 or bf16 where they were exported, too."""
        return ("fp32", *(self.manifest.get("precisions") or {}))

    def graph(self, name: str, transfer: str | None = None, precision: str = "fp32") -> GraphSpec:
        """The graph of this name; with `transfer`, that transfer's own, of which there is `synthesis` alone.

        Raises: BundleError where the bundle has no such graph, transfer or precision, listing those there are.
        """
        if precision not in self.precisions:
            raise BundleError(
                f"{self.path}: precisions: found {', '.join(self.precisions)}, expected {precision}: export again with "
                f"`styleinv export MODEL --precision {precision} --out BUNDLE`"
            )
        entries = self.manifest if precision == "fp32" else self.manifest["precisions"][precision]
        graphs, field = entries["graphs"], "graphs"
        if transfer is not None:
            if transfer not in self.transfers:
                raise BundleError(
                    f"{self.path}: transfers: found {', '.join(self.transfers) or 'none'}, expected {transfer}"
                )
            graphs, field = {"synthesis": entries["transfers"][transfer]["synthesis"]}, f"transfers.{transfer}"
        if name not in graphs:
            raise BundleError(f"{self.path}: {field}: found {', '.join(sorted(graphs))}, expected {name}")
        entry = graphs[name]
        return GraphSpec(
            name=name,
            file=self.path / entry["file"],
            sha256=entry["sha256"],
            precision=entry["precision"],
            inputs=_array_specs(entry["inputs"]),
            outputs=_array_specs(entry["outputs"]),
        )

    @property
    def engines(self) -> tuple[EngineSpec, ...]:
        """All engines that it holds."""
        return tuple(
            EngineSpec(
                engine=entry["engine"],
                version=entry["version"],
                precision=entry["precision"],
                targets=tuple(entry["targets"]),
                batch=(entry["batch"][0], entry["batch"][1], entry["batch"][2]),
                refittable=entry["refittable"],
                key=entry["key"],
                file=self.path / entry["file"],
                sha256=entry["sha256"],
                graph=self.graph(entry["graph"], entry["transfer"], entry["precision"]),
                transfer=entry["transfer"],
            )
            for entry in self.manifest["engines"]
        )

    def motion_tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Reads motion.safetensors: float32 arrays by name. Raises BundleError where it cannot be read."""
        try:
            return dict(load_file(self.path / MOTION_FILE))
        except (OSError, SafetensorError) as error:
            raise BundleError(f"{self.path}: {MOTION_FILE}: found {error}, expected a safetensors file") from error


def write_manifest(path: str | Path, manifest: Mapping[str, Any]) -> None:
    """Writes manifest.json into the bundle folder `path`, with the digest added (or replaced): whole, or not at all."""
    complete = {**manifest, "digest": manifest_digest(manifest)}
    text = json.dumps(complete, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False)
    file = Path(path) / MANIFEST_NAME
    temporary = file.with_name(f".{MANIFEST_NAME}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text + "\n", encoding="ascii")
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_manifest(folder: Path) -> Any:
    where = f"{folder}: {MANIFEST_NAME}"
    try:
        if not folder.is_dir():
            found = "a file" if folder.exists() else "nothing"
            raise BundleError(f"{folder}: found {found}, expected the folder of a bundle")
        if not os.path.lexists(folder / MANIFEST_NAME):
            raise BundleError(f"{folder}: found no {MANIFEST_NAME}, expected one: this is no bundle")
        file = _file_inside(folder, where, MANIFEST_NAME)
        if (size := file.stat().st_size) > LARGEST_MANIFEST:
            raise BundleError(f"{where}: found {size} bytes, expected {LARGEST_MANIFEST} at most")
        text = file.read_text(encoding="utf-8")
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise BundleError(f"{where}: found {error}, expected a readable text") from error
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: found {error}, expected JSON") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"the number {name}")


def _check_files(folder: Path, manifest: Mapping[str, Any], verify_hashes: bool) -> None:
    """Checks every file that the manifest declares; each is read once, however often it is declared."""
    graphs = dict(declared_graphs(manifest))
    graph_names = {graph["file"] for graph in graphs.values()}
    graph_file, sha256 = functools.cache(read_graph_file), functools.cache(file_sha256)
    sizes: dict[PurePosixPath, int] = {}  # by the file's place in the bundle
    for declared in declared_files(manifest):
        where = f"{folder}: {declared.field}"
        try:
            file = _file_inside(folder, where, declared.name)
            size = sizes[PurePosixPath(declared.name)] = file.stat().st_size
            if declared.size is not None and size != declared.size:
                raise BundleError(f"{where}: found {size} bytes, expected {declared.size}: {declared.name} is damaged")
            if declared.name in graph_names:
                if size > LARGEST_GRAPH_FILE:
                    raise BundleError(f"{where}: found {size} bytes, expected {LARGEST_GRAPH_FILE} at most in a graph")
                found = graph_file(file).sha256
            else:
                found = sha256(file) if verify_hashes else declared.sha256
        except (OSError, RuntimeError) as error:  # unreadable, a name too long, links in a circle
            raise BundleError(f"{where}: found {error}, expected a readable file") from error
        if verify_hashes:
            _check_hash(where, declared, found)
    for field, graph in graphs.items():
        check_graph(graph_file(folder / graph["file"]), graph, sizes, f"{folder}: {field}")


def _check_hash(where: str, declared: DeclaredFile, found: str) -> None:
    if found != declared.sha256:
        raise BundleError(f"{where}: found SHA-256 {found}, expected {declared.sha256}: {declared.name} is damaged")


def _file_inside(folder: Path, where: str, name: str) -> Path:
    """The file a manifest names, which must lie in the bundle: a manifest is input, and may be hostile.

    Never a pipe, whose reading would wait. Characters that separate paths or mean something on any system are refused.
    """
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not name.isprintable() or not SPECIAL_CHARACTERS.isdisjoint(name):
        raise BundleError(f"{where}: found {name!r}, expected a relative path inside the bundle")
    file = folder / pure
    if not file.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{where}: found {name!r}, a link that leaves the bundle, expected a file in it")
    if not file.is_file():
        raise BundleError(f"{where}: found no file {name}, expected one")
    return file


def _array_specs(entries: Mapping[str, Any]) -> dict[str, ArraySpec]:
    return {name: ArraySpec(entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}
