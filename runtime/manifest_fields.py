"""The fields of a manifest, and the rules that each keeps by itself."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from styleinv.runtime.errors import BundleError

FORMAT_VERSION = 1

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
# What graphs compute in; fp32 ones are always there, for every engine. In fp8 and int8 it is the convolutions of the
# synthesis that do, the rest being fp16.
PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8")
OPTIONAL_GRAPHS = {"styleinv": GRAPHS["inversion"], "image": GRAPHS["inversion"], "inversion": {}}


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


def is_capability(value: Any) -> bool:
    """Whether it is a compute capability of NVIDIA's, such as '8.9' or '12.0'."""
    return isinstance(value, str) and re.fullmatch(r"[1-9][0-9]?\.[0-9]", value) is not None


def is_batch_range(value: Any) -> bool:
    """Whether it is the least batch of an engine, the one that it is fastest at, and the largest."""
    return isinstance(value, list) and len(value) == 3 and all(map(COUNT.holds, value)) and value == sorted(value)


def _is_row(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_number, value))


def one_of(*words: str) -> Rule:
    """One of these words."""
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
ARRAYS = Each({"dtype": one_of("float32", "float16", "uint8", "int64"), "shape": SHAPE})
FILE = {"sha256": SHA256, "bytes": SIZE}
WEIGHTS = {"file": TEXT, **FILE}
COUNT_OR_NOTHING = Rule("a whole number of at least 1", lambda value: value is None or COUNT.holds(value))
GRAPH = {
    "file": TEXT,
    "sha256": SHA256,
    "precision": one_of(*PRECISIONS),
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
CPU_TARGET = "x86-64-v3"  # what a package for CPUs is compiled for: any with AVX2, by its ABI's name
TARGETS = Rule(
    f"a list of compute capabilities, such as 8.9, or of {CPU_TARGET}",
    lambda value: (
        isinstance(value, list)
        and len(value) > 0
        and all(target == CPU_TARGET or is_capability(target) for target in value)
    ),
)
ENGINE = {  # a graph that a library has compiled for some GPUs, or for CPUs
    "engine": one_of("rtx", "tensorrt", "inductor"),  # the session that loads it
    "version": TEXT,  # of the library
    "precision": one_of(*PRECISIONS),
    "targets": TARGETS,
    "graph": TEXT,
    "transfer": Rule("the name of a transfer", lambda value: value is None or TRANSFER_NAME.holds(value)),
    "batch": Rule("three whole numbers, each at least the one before", lambda value: is_batch_range(value)),
    "refittable": Rule("true or false", lambda value: type(value) is bool),
    "key": SHA256,  # of all that it was built from (see `styleinv.export.engine_cache`)
    **WEIGHTS,
    "log": WEIGHTS,
}
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
    "kind": one_of(*GRAPHS),
    "frame_rate": POSITIVE,
    "noise": one_of("const", "none"),
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


def check(value: Any, schema: Schema, bundle: str, field: str) -> None:
    """Raises BundleError, naming the bundle and the field, where the value does not keep the schema."""
    if isinstance(schema, Rule):
        if not schema.holds(value):
            raise BundleError(f"{bundle}: {field}: found {shown(value)}, expected {schema.expected}")
        return
    check(value, OBJECT, bundle, field)
    below = dict.fromkeys(value, schema.rule) if isinstance(schema, Each) else schema
    for name, rule in below.items():
        check(value.get(name), rule, bundle, f"{field}.{name}" if field else name)


def listed(names: Iterable[str]) -> str:
    """Names as they stand in a message: sorted, cut short."""
    return _cut(", ".join(sorted(names)) or "none", 200)


def shown(value: object) -> str:
    """A value as it stands in a message: the JSON of it, cut short; nothing where the field is missing."""
    return "nothing" if value is None else _cut(json.dumps(value), 80)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
