"""A graph's ONNX file against what the manifest says of it, before any engine opens it.

A hash shows only that the file is the one the manifest was written with. Whoever writes both could still exchange
graphs, or have one read its weights from anywhere on the machine: so the file's arrays must be those that the manifest
tells of, and all that it points to must be files of the bundle.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from styleinv.runtime.errors import BundleError
from styleinv.runtime.manifest_fields import listed, shown
from styleinv.runtime.onnx_file import ExternalData, OnnxArray, OnnxFileError, OnnxModel, read_onnx

LARGEST_GRAPH_FILE = 64 * 2**20  # bytes; weights lie outside, and it is read whole


@dataclass(frozen=True)
class GraphFile:
    """What a graph's file holds: a model, or why it is none. `is_linked`: it is a link to a file in another folder."""

    sha256: str
    model: OnnxModel | OnnxFileError
    is_linked: bool


def read_graph_file(file: Path) -> GraphFile:
    """Reads the file, once and whole. Raises OSError where it cannot be read."""
    content = file.read_bytes()
    try:
        model: OnnxModel | OnnxFileError = read_onnx(content)
    except OnnxFileError as error:
        model = error
    is_linked = file.resolve().parent != file.parent.resolve()
    return GraphFile(hashlib.sha256(content).hexdigest(), model, is_linked)


def declared_graphs(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every graph of a checked manifest, and the field it stands in: those of transfers and other precisions, too."""
    precisions = manifest.get("precisions") or {}
    parts = {"": manifest, **{f"precisions.{name}.": entries for name, entries in precisions.items()}}
    for part, entries in parts.items():
        for name, graph in entries["graphs"].items():
            yield f"{part}graphs.{name}", graph
        for name, transfer in entries["transfers"].items():
            yield f"{part}transfers.{name}.synthesis", transfer["synthesis"]


def check_graph(file: GraphFile, graph: Mapping[str, Any], sizes: Mapping[PurePosixPath, int], where: str) -> None:
    """Checks a graph's file against its entry in the manifest.

    Args:
        sizes: of all files that the manifest declares, which are known to lie in the bundle; by their paths in it.
        where: bundle and field, for messages.
    Raises: BundleError where it is no ONNX file, where its arrays have other names, dtypes or shapes, or where weights
        of it would be read from anything but the declared files.
    """
    name = graph["file"]
    if isinstance(file.model, OnnxFileError):
        raise BundleError(f"{where}.file: found {file.model} in {name}, expected an ONNX model")
    for part, found in (("inputs", file.model.inputs), ("outputs", file.model.outputs)):
        if found.keys() != graph[part].keys():
            raise BundleError(f"{where}.{part}: found {listed(found)} in {name}, expected {listed(graph[part])}")
        for array, entry in graph[part].items():
            if not _fits(found[array], entry):
                raise BundleError(
                    f"{where}.{part}.{array}: found {_described(found[array].dtype, found[array].shape)} in {name}, "
                    f"expected {_described(entry['dtype'], entry['shape'])}"
                )
    if file.is_linked and file.model.external_data:  # engines do not agree from which of the two folders they read
        raise BundleError(f"{where}.file: found {name}, a link into another folder, expected a file beside its weights")
    for data in file.model.external_data:
        _check_external_data(data, PurePosixPath(name), sizes, f"{where}.external_data")


def _fits(found: OnnxArray, expected: Mapping[str, Any]) -> bool:
    """A size that the manifest gives as a number is that number in the file; one it names is not a number there."""
    if found.dtype != expected["dtype"] or found.shape is None or len(found.shape) != len(expected["shape"]):
        return False
    return all(
        not isinstance(size, int) if isinstance(wanted, str) else size == wanted
        for size, wanted in zip(found.shape, expected["shape"], strict=True)
    )


def _check_external_data(
    data: ExternalData, file: PurePosixPath, sizes: Mapping[PurePosixPath, int], where: str
) -> None:
    # The declared files were found inside the bundle, so a location that leaves it is none of theirs.
    size = sizes.get(file.parent / data.location)
    if size is None:
        raise BundleError(
            f"{where}: found the location {shown(data.location)} in {file}, expected the relative path, from the "
            "folder of that file, of a file in the bundle that the manifest declares"
        )
    numbers = [data.offset] if data.length is None else [data.offset, data.length]
    for number in numbers:
        if not re.fullmatch("[0-9]{1,19}", number):
            raise BundleError(f"{where}: found the number {shown(number)} in {file}, expected one of bytes, at least 0")
    if (end := sum(map(int, numbers))) > size:
        raise BundleError(f"{where}: found weights up to byte {end} of {data.location}, expected {size} at most")


def _described(dtype: str, shape: Iterable[int | str | None] | None) -> str:
    return f"{dtype} of unknown shape" if shape is None else f"{dtype} {shown(list(shape))}"
