"""Bundles whose manifest lacks fields, has values of other types, or is no such text."""

import functools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from damage import Case, engine_entry, in_manifest, set_field

from styleinv.runtime.bundle import canonical_json, manifest_digest

NUMBER, TEXT, OBJECT, LIST = (
    ["7", [], {}, True],
    [5, [], {}, False],
    [5, "x", [], True],
    [5, "x", {}, True],
)  # wrong ones
GRAPH = {"file": TEXT, "sha256": TEXT, "precision": TEXT, "inputs": OBJECT, "outputs": OBJECT}
WEIGHTS = {"file": TEXT, "sha256": TEXT, "bytes": NUMBER}


def below(field: str, rules: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {field: OBJECT, **{f"{field}/{name}": rule for name, rule in rules.items()}}


REQUIRED = {  # each field that must be there, and values of other types than its own
    "frame_rate": NUMBER,
    "engines": LIST,
    **dict.fromkeys(["kind", "noise"], TEXT),
    **dict.fromkeys(["model", "graphs", "files", "transfers", "provenance", "verification", "probes"], OBJECT),
    **below("model/generator", dict.fromkeys(["resolution", "z_dim", "w_dim", "label_dim"], NUMBER)),
    **below("model/motion", dict.fromkeys(["noise_dim", "code_dim", "anchor_distance", "kernel_size"], NUMBER)),
    **below("model/motion", dict.fromkeys(["lr_multiplier", "frequencies", "max_period", "min_period"], NUMBER)),
    **dict.fromkeys(["graphs/mapping", "graphs/synthesis", "graphs/content", "graphs/frame"], OBJECT),
    **below("graphs/latent", GRAPH),
    **below("graphs/latent/inputs/v", {"dtype": TEXT, "shape": LIST}),
    **below("files/motion.safetensors", {"sha256": TEXT, "bytes": NUMBER}),
    **below("files/synthesis.bin", {"sha256": TEXT, "bytes": NUMBER}),
    **below("transfers/ink", {}),
    **below("transfers/ink/synthesis", GRAPH),
    **below("transfers/ink/weights", WEIGHTS),
    **dict.fromkeys(["precisions/fp16/graphs", "precisions/fp16/transfers"], OBJECT),
    **below("precisions/fp16/graphs/content", GRAPH),
    **below("precisions/fp16/weights", WEIGHTS),
    **below("precisions/fp16/transfers/ink/synthesis", GRAPH),
    **below("precisions/fp16/transfers/ink/weights", WEIGHTS),
}


def fields_of_the_manifest() -> Iterator[Case]:
    for field, wrong in REQUIRED.items():
        said = f"({field.split('/')[0]}|external_data).*: found .* expected "
        missing = functools.partial(set_field, field, ...)
        yield Case(f"missing-{field}", functools.partial(in_manifest, missing), said, True)
        value = random.Random(field).choice(wrong)
        change = functools.partial(set_field, field, value)
        yield Case(f"type-{field}", functools.partial(in_manifest, change), said, True)
    for version in (2, 3, 10**6, 10**30):
        change = functools.partial(set_field, "format_version", version)
        yield Case(f"newer-{version}", functools.partial(in_manifest, change), "pip install --upgrade styleinv", True)
    for version in (0, -1, 1.0, "1", True, None, ..., [1], 1.5):
        change = functools.partial(set_field, "format_version", version)
        yield Case(f"version-{version!r}", functools.partial(in_manifest, change), "format_version: found", True)
    for what, value in {"huge": 10**400, "tiny": -(10**400), "zero": 0, "nothing": None}.items():
        change = functools.partial(set_field, "frame_rate", value)
        yield Case(f"frame-rate-{what}", functools.partial(in_manifest, change), "frame_rate: found", True)
    for what, name in {"control": "a\x1bb", "half": "\udc80", "long": "x" * 300}.items():
        change = functools.partial(set_field, f"provenance/{name}", 1)
        yield Case(f"key-{what}", functools.partial(in_manifest, change), "manifest.json: found the name", True)
    for sha256 in (5, None, "", "0" * 63, "A" * 64):
        change = functools.partial(set_field, "engines", [engine_entry("latent.onnx", sha256, 1)])
        yield Case(f"engine-{sha256!r}", functools.partial(in_manifest, change), r"engines\.0\.sha256: found", True)


def texts_of_the_manifest() -> Iterator[Case]:
    def replace(change: Callable[[str], str | bytes], bundle: Path, draw: random.Random) -> None:
        text = change((bundle / "manifest.json").read_text())
        (bundle / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    def deepen(levels: int, text: str) -> str:
        manifest = json.loads(text)
        manifest["engines"] = functools.reduce(lambda inner, _: [inner], range(levels), [])
        return canonical_json({**manifest, "digest": manifest_digest(manifest)})

    def redigest(digest: Any, text: str) -> str:
        manifest = json.loads(text)
        return json.dumps({**manifest, "digest": digest(manifest["digest"])})

    rate = '"frame_rate": 25.0'
    changes: dict[str, Callable[[str], str | bytes]] = {
        "empty": lambda text: "",
        "null": lambda text: "null",
        "list": lambda text: f"[{text}]",
        "two": lambda text: text + text,
        "nan": lambda text: text.replace(rate, '"frame_rate": NaN'),
        "infinity": lambda text: text.replace(rate, '"frame_rate": Infinity'),
        "minus-infinity": lambda text: text.replace(rate, '"frame_rate": -Infinity'),
        "overflow": lambda text: text.replace(rate, '"frame_rate": 1e999'),
        "digits": lambda text: text.replace(rate, f'"frame_rate": {"9" * 5000}'),
        "other-rate": lambda text: text.replace(rate, '"frame_rate": 24.0'),
        "repeated-key": lambda text: text.replace(rate, rate + ', "frame_rate": 24.0'),
        "no-comma": lambda text: text.replace(",", "", 1),
        "bare-key": lambda text: text.replace('"kind"', "kind"),
        "comment": lambda text: "// a bundle\n" + text,
        "latin1": lambda text: text.replace("styleinv", "stylé").encode("latin-1"),
        "utf16": lambda text: text.encode("utf-16"),
        "byte-order-mark": lambda text: text.encode("utf-8-sig"),
        "zeros": lambda text: bytes(len(text)),
        "large": lambda text: " " * 2**24 + text,
        "deep": lambda text: "[" * 100_000,
        "deep-objects": lambda text: '{"format_version":' * 100_000,
        "digest-upper": functools.partial(redigest, str.upper),
        "digest-other": functools.partial(redigest, lambda digest: digest[::-1]),
        "digest-short": functools.partial(redigest, lambda digest: digest[:-1]),
        "digest-number": functools.partial(redigest, lambda digest: 5),
        "digest-nothing": functools.partial(redigest, lambda digest: None),
        **{f"levels-{levels}": functools.partial(deepen, levels) for levels in (40, 200, 600)},
    }
    for what, change in changes.items():
        yield Case(f"text-{what}", functools.partial(replace, change), "manifest.json|digest", True)
