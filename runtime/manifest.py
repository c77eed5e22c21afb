"""The manifest: a bundle's description of itself, its canonical form and the rules its fields keep."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from styleinv.runtime.errors import BundleError

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
MOTION_FILE = "motion.safetensors"
DEEPEST = 32  # levels of objects and lists in a manifest; those that are written have 8
LONGEST_NAME = 200  # characters of a name in a manifest

# For each kind of bundle, its graphs; for each graph, the inputs and outputs that the runtime relies on. `latent` and
# `frame` also take every output of `content`, under the same names; where the model skips its encoder there is none.
GRAPHS: dict[str, dict[str, tuple[set[str], set[str]]]] = {
    "styleinv": {
        "mapping": ({"z", "truncation_psi"}, {"w0"}),
        "synthesis": ({"w"}, {"image", "frame"}),
        "content": ({"image"}, set()),
        "latent": ({"w0", "v"}, {"w"}),
        "frame": ({"w0", "v"}, {"frame"}),
    },
    "image": {
        "mapping": ({"z", "truncation_psi"}, {"w0"}),
        "synthesis": ({"w"}, {"image", "frame"}),
    },
    "inversion": {"inversion": ({"image"}, {"w0"})},
}
PRECISIONS = ("fp32", "fp16", "bf16")  # what graphs compute in; fp32 ones are always there, for every engine
OPTIONAL_GRAPHS = {"styleinv": GRAPHS["inversion"], "image": GRAPHS["inversion"], "inversion": {}}


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
    _check(version, VERSION, bundle, "format_version")
    try:
        digest = manifest_digest(manifest)
    except ValueError as error:  # JSON's 1e999 is read as infinity
        raise BundleError(f"{bundle}: {MANIFEST_NAME}: found {error}, expected finite numbers") from error
    if manifest.get("digest") != digest:
        raise BundleError(
            f"{bundle}: digest: found {shown(manifest.get('digest'))}, expected {digest}: "
            f"{MANIFEST_NAME} was changed after it was written"
        )
    _check(manifest, MANIFEST, bundle, "")
    if manifest["kind"] == "styleinv":
        _check(manifest["model"], {"motion": MOTION}, bundle, "model")
        _check(manifest["files"], {MOTION_FILE: FILE}, bundle, "files")
    _check_probes(manifest, bundle)
    if manifest.get("latent_strides"):
        _check(manifest["latent_strides"], LATENT_STRIDES, bundle, "latent_strides")
    _check_graphs(manifest, bundle)
    _check_transfers(manifest, bundle)
    _check_precisions(manifest, bundle)
    for file in _files_below(manifest["engines"], "engines"):
        _check(file.sha256, SHA256, bundle, file.field.removesuffix("file") + "sha256")
        _check(file.size, SIZE_OR_NOTHING, bundle, file.field.removesuffix("file") + "bytes")


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


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words and as a test."""

    expected: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Each:
    """An object whose names are free and whose values all keep one rule."""

    rule: Rule | Each | Mapping[str, Any]


Schema = Rule | Each | Mapping[str, Any]  # a mapping: these fields must be there, others may


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # false for NaN, and for 10**400, too


def _is_row(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_number, value))


def _one_of(*words: str) -> Rule:
    return Rule("one of " + ", ".join(words), lambda value: value in words)


VERSION = Rule(f"the number {FORMAT_VERSION}", lambda value: type(value) is int and value == FORMAT_VERSION)
TEXT = Rule("a text", lambda value: isinstance(value, str) and value != "")
COUNT = Rule("a whole number of at least 1", lambda value: type(value) is int and value >= 1)
SIZE = Rule("a whole number of at least 0", lambda value: type(value) is int and value >= 0)
SIZE_OR_NOTHING = Rule("a whole number of at least 0", lambda value: value is None or SIZE.holds(value))
FLAG_OR_NOTHING = Rule("true or false", lambda value: value is None or type(value) is bool)
POSITIVE = Rule("a number above 0", lambda value: _is_number(value) and value > 0)
OBJECT = Rule("an object", lambda value: isinstance(value, dict))
LIST = Rule("a list", lambda value: isinstance(value, list))
SHA256 = Rule(
    "64 lower-case hexadecimal digits",
    lambda value: isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"),
)
SHAPE = Rule(
    "a list of whole numbers and names of dynamic sizes",
    lambda value: isinstance(value, list) and all(COUNT.holds(size) or TEXT.holds(size) for size in value),
)
ARRAYS = Each({"dtype": _one_of("float32", "float16", "uint8", "int64"), "shape": SHAPE})
FILE = {"sha256": SHA256, "bytes": SIZE}
WEIGHTS = {"file": TEXT, **FILE}
COUNT_OR_NOTHING = Rule("a whole number of at least 1", lambda value: value is None or COUNT.holds(value))
GRAPH = {
    "file": TEXT,
    "sha256": SHA256,
    "precision": _one_of(*PRECISIONS),
    "inputs": ARRAYS,
    "outputs": ARRAYS,
    "macs": COUNT_OR_NOTHING,  # multiplications and additions of one run at batch 1; nothing in older bundles
}
TRANSFER = {"synthesis": GRAPH, "weights": WEIGHTS}
PRECISION = {"graphs": Each(GRAPH), "weights": WEIGHTS, "transfers": Each(TRANSFER)}
TRANSFER_NAME = Rule(
    "a name of letters, digits, - and _, at most 100 of them",
    lambda value: isinstance(value, str) and re.fullmatch("[A-Za-z0-9_-]{1,100}", value) is not None,
)
MOTION = {
    "noise_dim": COUNT,
    "code_dim": COUNT,
    "anchor_distance": COUNT,
    "kernel_size": COUNT,
    "first_frame_aware": FLAG_OR_NOTHING,  # nothing, as in older bundles, is true
    "lr_multiplier": POSITIVE,
    "frequencies": COUNT,
    "max_period": POSITIVE,
    "min_period": POSITIVE,
}
PROBES = {  # what every engine must reproduce; empty where nothing was played
    "seed": SIZE,
    "t": Rule("a list of numbers, at least one", lambda value: _is_row(value) and min(value) >= 0),
    "w": Rule("a list of such lists", lambda value: isinstance(value, list) and all(map(_is_row, value))),
    "mean_level": Rule("a list of numbers, at least one", lambda value: _is_row(value)),
}
LATENT_STRIDES = {  # how near frames with strided latents come to those without, in decibels
    "least_psnr_db": Rule(
        "numbers by stride",
        lambda value: (
            isinstance(value, dict)
            and all(stride.isdecimal() and int(stride) > 1 and _is_number(psnr) for stride, psnr in value.items())
        ),
    )
}
MANIFEST = {
    "kind": _one_of(*GRAPHS),
    "frame_rate": POSITIVE,
    "noise": _one_of("const", "none"),
    "model": {
        "generator": {"resolution": COUNT, "z_dim": COUNT, "w_dim": COUNT, "label_dim": SIZE},
        "skip_encoder": FLAG_OR_NOTHING,  # nothing, as in older bundles, is false
    },
    "graphs": Each(GRAPH),
    "files": Each(FILE),
    "engines": LIST,
    "transfers": Each(TRANSFER),
    "provenance": OBJECT,
    "verification": OBJECT,
    "probes": OBJECT,
    "latent_strides": Rule("an object", lambda value: value is None or isinstance(value, dict)),  # nothing: unmeasured
    "precisions": Rule("an object", lambda value: value is None or isinstance(value, dict)),  # nothing: fp32 alone
}


def _check(value: Any, schema: Schema, bundle: str, field: str) -> None:
    if isinstance(schema, Rule):
        if not schema.holds(value):
            raise BundleError(f"{bundle}: {field}: found {shown(value)}, expected {schema.expected}")
        return
    _check(value, OBJECT, bundle, field)
    below = dict.fromkeys(value, schema.rule) if isinstance(schema, Each) else schema
    for name, rule in below.items():
        _check(value.get(name), rule, bundle, f"{field}.{name}" if field else name)


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
    _check(probes, PROBES, bundle, "probes")
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
        _check(name, TRANSFER_NAME, bundle, "transfers")
        if "synthesis" not in manifest["graphs"]:
            raise BundleError(f"{bundle}: transfers: found {name}, expected none in a bundle of kind inversion")
        for arrays in ("inputs", "outputs"):
            found, expected = entry["synthesis"][arrays], manifest["graphs"]["synthesis"][arrays]
            if found != expected:
                raise BundleError(
                    f"{bundle}: transfers.{name}.synthesis.{arrays}: found {shown(found)}, "
                    f"expected those of graphs.synthesis, {shown(expected)}"
                )


def _check_precisions(manifest: Mapping[str, Any], bundle: str) -> None:
    """The same graphs in another precision stand in for those in fp32, so they take and give the same arrays."""
    for precision, entry in (manifest.get("precisions") or {}).items():
        field = f"precisions.{precision}"
        _check(precision, _one_of(*PRECISIONS[1:]), bundle, "precisions")
        _check(entry, PRECISION, bundle, field)
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


def listed(names: Iterable[str]) -> str:
    """Names as they stand in a message: sorted, cut short."""
    return _cut(", ".join(sorted(names)) or "none", 200)


def shown(value: object) -> str:
    """A value as it stands in a message: the JSON of it, cut short; nothing where the field is missing."""
    return "nothing" if value is None else _cut(json.dumps(value), 80)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
