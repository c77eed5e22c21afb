"""The manifest: a bundle's description of itself, its canonical form and the rules its fields keep together."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from styleinv.runtime.errors import BundleError
from styleinv.runtime.manifest_fields import (
    ENGINE,
    FILE,
    FORMAT_VERSION,
    GRAPHS,
    LATENT_STRIDES,
    MANIFEST,
    MOTION,
    OPTIONAL_GRAPHS,
    PRECISION,
    PRECISIONS,
    PROBES,
    TRANSFER_NAME,
    VERSION,
    check,
    listed,
    one_of,
    shown,
)

MANIFEST_NAME = "manifest.json"
MOTION_FILE = "motion.safetensors"
DEEPEST = 32  # levels of objects and lists in a manifest; those that are written have 8
LONGEST_NAME = 200  # characters of a name in a manifest


def canonical_json(manifest: Mapping[str, Any]) -> str:
    """The one JSON text that a manifest has. Raises ValueError where a number is not finite."""
    return json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of the canonical JSON of the manifest without its field `digest`."""
    rest = {field: value for field, value in manifest.items() if field != "digest"}
    return hashlib.sha256(canonical_json(rest).encode("ascii")).hexdigest()


def check_manifest(manifest: object, bundle: str) -> None:
    """Checks version, digest and every field. Raises BundleError naming the bundle, the field and what was expected."""
    if not isinstance(manifest, dict):
        raise BundleError(f"{bundle}: {MANIFEST_NAME}: found {shown(manifest)}, expected a JSON object")
    version = manifest.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise BundleError(
            f"{bundle}: format_version: found {version}, expected {FORMAT_VERSION}, which is what this styleinv reads: "
            "the bundle is newer; upgrade with `pip install --upgrade styleinv`"
        )
    _check_nesting(manifest, bundle)
    check(version, VERSION, bundle, "format_version")
    try:
        digest = manifest_digest(manifest)
    except ValueError as error:  # JSON's 1e999 is read as infinity
        raise BundleError(f"{bundle}: {MANIFEST_NAME}: found {error}, expected finite numbers") from error
    if manifest.get("digest") != digest:
        raise BundleError(
            f"{bundle}: digest: found {shown(manifest.get('digest'))}, expected {digest}: "
            f"{MANIFEST_NAME} was changed after it was written"
        )
    check(manifest, MANIFEST, bundle, "")
    if manifest["kind"] == "styleinv":
        check(manifest["model"], {"motion": MOTION}, bundle, "model")
        check(manifest["files"], {MOTION_FILE: FILE}, bundle, "files")
    _check_probes(manifest, bundle)
    if manifest.get("latent_strides"):
        check(manifest["latent_strides"], LATENT_STRIDES, bundle, "latent_strides")
    _check_graphs(manifest, bundle)
    _check_transfers(manifest, bundle)
    _check_precisions(manifest, bundle)
    _check_engines(manifest, bundle)


@dataclass(frozen=True)
class DeclaredFile:
    """A file that a manifest speaks of, and where it does. The size is in bytes, None where it is not given."""

    field: str
    name: str
    sha256: str
    size: int | None


def declared_files(manifest: Mapping[str, Any]) -> Iterator[DeclaredFile]:
    """Every file that a checked manifest speaks of, those of engines and transfers included."""
    for name, entry in manifest["files"].items():
        yield DeclaredFile(f"files.{name}", name, entry["sha256"], entry["bytes"])
    for part in ("graphs", "engines", "transfers", "precisions"):
        yield from _files_below(manifest.get(part), part)


def _files_below(value: Any, field: str) -> Iterator[DeclaredFile]:
    if isinstance(value, dict):
        if isinstance(value.get("file"), str):
            yield DeclaredFile(f"{field}.file", value["file"], value.get("sha256", ""), value.get("bytes"))
        for name, below in value.items():
            yield from _files_below(below, f"{field}.{name}")
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _files_below(below, f"{field}.{index}")


def _check_nesting(manifest: Mapping[str, Any], bundle: str) -> None:
    """Bounds the depth that other functions recurse into, and keeps names fit for messages."""
    values: list[Any] = [manifest]
    for _ in range(DEEPEST):
        for name in itertools.chain.from_iterable(value for value in values if isinstance(value, dict)):
            if not name.isprintable() or len(name) > LONGEST_NAME:
                raise BundleError(
                    f"{bundle}: {MANIFEST_NAME}: found the name {shown(name)}, "
                    f"expected one of {LONGEST_NAME} printable characters at most"
                )
        inner = [
            value.values() if isinstance(value, dict) else value for value in values if isinstance(value, (dict, list))
        ]
        values = list(itertools.chain.from_iterable(inner))
    if values:
        raise BundleError(f"{bundle}: {MANIFEST_NAME}: found more than {DEEPEST} levels, expected fewer")


def _check_probes(manifest: Mapping[str, Any], bundle: str) -> None:
    probes = manifest["probes"]
    if not probes:
        return
    check(probes, PROBES, bundle, "probes")
    w_dim, times = manifest["model"]["generator"]["w_dim"], len(probes["t"])
    for field in ("w", "mean_level"):
        if len(probes[field]) != times:
            raise BundleError(
                f"{bundle}: probes.{field}: found {len(probes[field])} of them, expected {times}, as of t"
            )
    lengths = {len(row) for row in probes["w"]}
    if len(lengths) != 1 or max(lengths) > w_dim:
        raise BundleError(
            f"{bundle}: probes.w: found rows of {listed(map(str, lengths))}, expected equal ones, up to {w_dim}"
        )


def _check_graphs(manifest: Mapping[str, Any], bundle: str) -> None:
    graphs = manifest["graphs"]
    expected_graphs = dict(GRAPHS[manifest["kind"]])
    if manifest["kind"] == "styleinv" and manifest["model"].get("skip_encoder"):
        del expected_graphs["content"]
        if "content" in graphs:
            raise BundleError(f"{bundle}: graphs: found content, expected none of it where model.skip_encoder is true")
    missing = expected_graphs.keys() - graphs.keys()
    if missing:
        raise BundleError(
            f"{bundle}: graphs: found {listed(graphs)}, expected {listed(expected_graphs)} "
            f"in a bundle of kind {manifest['kind']}"
        )
    features = set(graphs["content"]["outputs"]) if "content" in expected_graphs else set()
    optional = {name: arrays for name, arrays in OPTIONAL_GRAPHS[manifest["kind"]].items() if name in graphs}
    for graph, (inputs, outputs) in {**expected_graphs, **optional}.items():
        inputs = inputs | (features if graph in ("latent", "frame") else set())
        if graph == "mapping" and manifest["model"]["generator"]["label_dim"]:
            inputs = inputs | {"label"}
        found = graphs[graph]
        if set(found["inputs"]) != inputs:
            raise BundleError(
                f"{bundle}: graphs.{graph}.inputs: found {listed(found['inputs'])}, expected {listed(inputs)}"
            )
        if not outputs <= set(found["outputs"]):
            raise BundleError(
                f"{bundle}: graphs.{graph}.outputs: found {listed(found['outputs'])}, expected {listed(outputs)}"
            )


def _check_transfers(manifest: Mapping[str, Any], bundle: str) -> None:
    """A transfer's generator stands in for the bundle's own, so it takes and gives the same arrays."""
    for name, entry in manifest["transfers"].items():
        check(name, TRANSFER_NAME, bundle, "transfers")
        if "synthesis" not in manifest["graphs"]:
            raise BundleError(f"{bundle}: transfers: found {name}, expected none in a bundle of kind inversion")
        for arrays in ("inputs", "outputs"):
            found, expected = entry["synthesis"][arrays], manifest["graphs"]["synthesis"][arrays]
            if found != expected:
                raise BundleError(
                    f"{bundle}: transfers.{name}.synthesis.{arrays}: found {shown(found)}, "
                    f"expected those of graphs.synthesis, {shown(expected)}"
                )


def _check_engines(manifest: Mapping[str, Any], bundle: str) -> None:
    """Each engine is a graph of the bundle, compiled."""
    for index, engine in enumerate(manifest["engines"]):
        field = f"engines.{index}"
        check(engine, ENGINE, bundle, field)
        precisions = {"fp32": manifest, **(manifest.get("precisions") or {})}
        check(engine["precision"], one_of(*precisions), bundle, f"{field}.precision")
        entries = precisions[engine["precision"]]
        graphs = entries["graphs"]
        if engine["transfer"] is not None:
            check(engine["transfer"], one_of(*entries["transfers"]), bundle, f"{field}.transfer")
            graphs = ("synthesis",)
        check(engine["graph"], one_of(*sorted(graphs)), bundle, f"{field}.graph")


def _check_precisions(manifest: Mapping[str, Any], bundle: str) -> None:
    """The same graphs in another precision stand in for those in fp32, so they take and give the same arrays."""
    for precision, entry in (manifest.get("precisions") or {}).items():
        field = f"precisions.{precision}"
        check(precision, one_of(*PRECISIONS[1:]), bundle, "precisions")
        check(entry, PRECISION, bundle, field)
        for part in ("graphs", "transfers"):
            if entry[part].keys() != manifest[part].keys():
                raise BundleError(
                    f"{bundle}: {field}.{part}: found {listed(entry[part])}, expected {listed(manifest[part])}"
                )
        pairs = [(f"graphs.{name}", entry["graphs"][name], manifest["graphs"][name]) for name in entry["graphs"]]
        pairs += [
            (f"transfers.{name}.synthesis", entry["transfers"][name]["synthesis"], manifest["graphs"]["synthesis"])
            for name in entry["transfers"]
        ]
        for where, found, expected in pairs:
            for arrays in ("inputs", "outputs"):
                if found[arrays] != expected[arrays]:
                    raise BundleError(
                        f"{bundle}: {field}.{where}.{arrays}: found {shown(found[arrays])}, "
                        f"expected those in fp32, {shown(expected[arrays])}"
                    )
