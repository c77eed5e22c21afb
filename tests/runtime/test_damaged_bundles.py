"""Bundles damaged by accident or on purpose: each is refused by a BundleError, and nothing outside of it is read.

Each case below damages a copy of one small bundle in one way, drawn by a generator that the case's name seeds. A
`forged` one has hashes and digest that are right: it must be refused without looking at hashes, too.
"""

import contextlib
import functools
import itertools
import json
import os
import random
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from styleinv.runtime import Bundle, BundleError
from styleinv.runtime.bundle import canonical_json, file_sha256, manifest_digest, write_manifest

pytestmark = pytest.mark.timeout(30)  # a bundle must not make us wait

Damage = Callable[[Path, random.Random], object]


@dataclass(frozen=True)
class Case:
    """One way to damage the bundle folder; `said` is searched for in the message."""

    name: str
    damage: Damage
    said: str = ""
    forged: bool = False


# --- the bundle, and what is true of it

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


@pytest.fixture(scope="module")
def pristine(make_bundle, tmp_path_factory) -> Path:
    """The bundle; beside it `outside.bin`, its weights, and `outside`, a copy, which would do if they were read."""
    folder = tmp_path_factory.mktemp("damaged")
    bundle = make_bundle(folder / "pristine", inversion=True, transfers=("ink",), precisions=("fp16",))
    shutil.copytree(bundle.path, folder / "outside")
    shutil.copy(bundle.path / "synthesis.bin", folder / "outside.bin")
    return bundle.path


@pytest.fixture
def bundle(pristine, request) -> Iterator[Path]:
    """A copy to damage, which also has files that nothing declares: a link and weights."""
    copy = pristine.with_name("sky.bundle")
    shutil.copytree(pristine, copy)
    (copy / "link.bin").symlink_to("../outside.bin")
    shutil.copy(copy / "synthesis.bin", copy / "undeclared.bin")
    yield copy
    shutil.rmtree(copy)


# --- ways to damage it


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


def bits_and_lengths() -> Iterator[Case]:
    for name in FILES:
        damaged = "" if name == "manifest.json" else f"{re.escape(name)} is damaged"
        for seed in range(2):
            yield Case(f"bit-{seed}-{name}", functools.partial(flip_bit, name), damaged)
            yield Case(f"truncated-{seed}-{name}", functools.partial(truncate, name, None), damaged)
        yield Case(f"emptied-{name}", functools.partial(truncate, name, 0), damaged)
        yield Case(f"longer-{name}", lambda bundle, draw, name=name: os.truncate(bundle / name, 10**5), damaged)
        yield Case(f"deleted-{name}", lambda bundle, draw, name=name: (bundle / name).unlink(), "found no")


def swapped_graphs() -> Iterator[Case]:
    pairs = list(itertools.combinations((f"{graph}.onnx" for graph in INTERFACES), 2))
    pairs += [(f"fp16/{first}", f"fp16/{second}") for first, second in pairs[::3]]
    pairs += [("transfers/ink/synthesis.onnx", "frame.onnx"), ("fp16/latent.onnx", "content.onnx")]
    for first, second in pairs:
        damage = functools.partial(swap, first, second)
        yield Case(f"swapped-{first}-{second}", damage, "is damaged")
        said = r"(inputs|outputs): found .* in \S+onnx, expected"
        yield Case(f"forged-swap-{first}-{second}", functools.partial(then_forge, damage), said, True)
    for graph, other in itertools.pairwise([*INTERFACES, "mapping"]):

        def share(manifest: dict[str, Any], graph: str = graph, other: str = other) -> None:
            manifest["graphs"][graph]["file"] = f"{other}.onnx"
            manifest["graphs"][graph]["sha256"] = manifest["graphs"][other]["sha256"]

        yield Case(f"shared-{graph}-{other}", functools.partial(in_manifest, share), rf"graphs\.{graph}\..* in", True)


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "larger": lambda array: array["shape"].append(array["shape"].pop() + 1),
    "more": lambda array: array["shape"].append(1),
    "fewer": lambda array: array["shape"].pop(),
    "named": lambda array: array["shape"].append(["size", array["shape"].pop()][0]),
    "fixed": lambda array: array["shape"].__setitem__(0, 1),
    "dtype": lambda array: array.update(dtype={"float32": "float16", "uint8": "int64"}[array["dtype"]]),
}


def edited_arrays() -> Iterator[Case]:
    """Everywhere in the manifest alike, so that only the graph's file tells."""

    def edit(edits: dict[str, Callable], graph: str, array: str, manifest: dict[str, Any]) -> None:
        synthesis = [manifest["transfers"]["ink"], manifest["precisions"]["fp16"]["transfers"]["ink"]]
        for graphs in [manifest["graphs"], manifest["precisions"]["fp16"]["graphs"], *synthesis]:
            for part in ("inputs", "outputs"):
                if array in graphs.get(graph, {part: {}})[part]:
                    edits(graphs[graph][part][array])

    for graph, arrays in INTERFACES.items():
        for array in arrays:
            known = list(EDITS) if array != "truncation_psi" else ["more", "fewer", "fixed", "dtype"]
            for name in random.Random(graph + array).sample(known, 3):
                change = functools.partial(edit, EDITS[name], graph, array)
                said = rf"graphs\.{graph}\.(inputs|outputs)\.{array}: found .* in {graph}\.onnx, expected "
                yield Case(f"{name}-{graph}-{array}", functools.partial(in_manifest, change), said, True)

    def rename(old: str, new: str, graphs: tuple[str, ...], manifest: dict[str, Any]) -> None:
        for entry in (manifest, manifest["precisions"]["fp16"]):
            for graph, part in itertools.product(graphs, ("inputs", "outputs")):
                arrays = entry["graphs"][graph][part]
                if old in arrays:
                    arrays[new] = arrays.pop(old)

    for old, new in (("features", "feature"), ("prepared", "v2"), ("features", "Features")):
        change = functools.partial(rename, old, new, ("content", "latent", "frame"))
        yield Case(f"renamed-{old}-{new}", functools.partial(in_manifest, change), r"found .* in \w+\.onnx, exp", True)
    for graph in INTERFACES:
        extra = {"dtype": "float32", "shape": ["batch"]}

        def add(manifest: dict[str, Any], graph: str = graph, extra: dict[str, Any] = extra) -> None:
            manifest["graphs"][graph]["outputs"]["extra"] = extra

        yield Case(f"extra-output-{graph}", functools.partial(in_manifest, add), "extra|expected those", True)


TRAVERSALS = [
    "../outside.bin",
    "../../x",
    "/etc/passwd",
    "//etc/passwd",
    "/proc/self/environ",
    "fp16/../../outside.bin",
]
TRAVERSALS += [
    "..",
    ".",
    r"..\outside.bin",
    r"C:\x",
    "C:x",
    "NUL:",
    r"\\host\x",
    "~/x",
    "*/_ORT_MEM_ADDR_/*",
    "x" * 300,
]
TRAVERSALS += ["link.bin", "nothing.bin", "fp16", "fp16/", "a\0b", "\ud800", "a\nb", "link.bin/../../outside.bin"]
TRAVERSALS += ["fp16/../synthesis.bin"]  # one that leads to a file of the bundle, but not everywhere


def traversing_names() -> Iterator[Case]:
    places: dict[str, Callable[[dict[str, Any], str, str], object]] = {
        r"graphs\.latent": lambda m, name, sha: m["graphs"]["latent"].update(file=name, sha256=sha),
        r"transfers\.ink\.weights": lambda m, name, sha: m["transfers"]["ink"]["weights"].update(file=name, sha256=sha),
        r"precisions\.fp16\.weights": lambda m, name, sha: m["precisions"]["fp16"]["weights"].update(file=name),
        r"files\.|manifest\.json: found the name": lambda m, name, sha: m["files"].update(
            {name: {"sha256": sha, "bytes": m["files"]["synthesis.bin"]["bytes"]}}
        ),
        r"engines\.0\.graphs\.latent": lambda m, name, sha: m["engines"].append(
            {"graphs": {"latent": {"file": name, "sha256": sha}}}
        ),
    }
    for index, name in enumerate(TRAVERSALS):
        for said, change in itertools.islice(places.items(), index % 2, None, 2):

            def declare(bundle: Path, draw: random.Random, name: str = name, change: Callable = change) -> None:
                sha256 = file_sha256(bundle / "synthesis.bin")  # right for what links lead to
                change_manifest(bundle, lambda manifest: change(manifest, name, sha256))

            place = said.split("|")[0].replace("\\", "")
            yield Case(f"name-{name[:20]!r}-{place}", declare, said, True)


def put_socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as listener:  # such paths must be short
        listener.bind(path.name)


def no_plain_files() -> Iterator[Case]:
    things: dict[str, Callable[[Path, Path], object]] = {
        "link-out": lambda path, twin: path.symlink_to(twin),
        "relative-link-out": lambda path, twin: path.symlink_to(os.path.relpath(twin, path.parent)),
        "dangling-link": lambda path, twin: path.symlink_to("nothing"),
        "link-to-itself": lambda path, twin: path.symlink_to(path.name),
        "device": lambda path, twin: path.symlink_to("/dev/zero"),
        "pipe": lambda path, twin: os.mkfifo(path),
        "folder": lambda path, twin: path.mkdir(),
        "socket": lambda path, twin: put_socket(path),
    }
    for name in ("manifest.json", "latent.onnx", "synthesis.bin", "motion.safetensors", "fp16/weights.bin"):
        for thing, put in things.items():

            def replace(bundle: Path, draw: random.Random, name: str = name, put: Callable = put) -> None:
                (bundle / name).unlink()
                put(bundle / name, bundle.with_name("outside") / name)

            yield Case(f"{thing}-{name}", replace, forged=True)
    for folder in ("fp16", "transfers", "fp16/transfers/ink"):

        def link(bundle: Path, draw: random.Random, folder: str = folder) -> None:
            shutil.rmtree(bundle / folder)
            (bundle / folder).symlink_to(bundle.with_name("outside") / folder)

        yield Case(f"linked-folder-{folder}", link, "a link that leaves the bundle", True)

    def move(bundle: Path, draw: random.Random) -> None:
        """Engines that follow the link would read weights beside its target, where nothing is declared."""
        (bundle / "elsewhere").mkdir()
        (bundle / "synthesis.onnx").rename(bundle / "elsewhere" / "synthesis.onnx")
        (bundle / "elsewhere" / "synthesis.bin").symlink_to("../../outside.bin")
        (bundle / "synthesis.onnx").symlink_to("elsewhere/synthesis.onnx")

    yield Case("graph-linked-away-from-its-weights", move, "a link into another folder", True)


def change_model(bundle: Path, name: str, change: Callable[[Any], object]) -> None:
    import onnx

    model = onnx.load(bundle / name, load_external_data=False)
    change(model)
    (bundle / name).write_bytes(model.SerializeToString())
    forge(bundle)


def point(tensor: Any, **entries: str) -> None:
    del tensor.external_data[:]
    tensor.data_location = 1
    for key, value in entries.items():
        tensor.external_data.add(key=key.rstrip("_"), value=value)


def new_tensor(place: str, model: Any) -> Any:
    """A tensor at a place of a model where one can be."""
    branch = model.graph.node.add(op_type="If", output=["unused"]).attribute.add
    return {
        "initializer": lambda: model.graph.initializer.add(),
        "sparse": lambda: model.graph.sparse_initializer.add().values,
        "sparse-indices": lambda: model.graph.sparse_initializer.add().indices,
        "attribute": lambda: branch(name="value", type=4).t,
        "attribute-list": lambda: branch(name="values", type=9).tensors.add(),
        "attribute-sparse": lambda: branch(name="values", type=12).sparse_tensors.add().values,
        "subgraph": lambda: branch(name="then_branch", type=5).g.initializer.add(),
        "subgraph-list": lambda: branch(name="branches", type=10).graphs.add().node.add().attribute.add().t,
        "function": lambda: model.functions.add().node.add().attribute.add().t,
        "function-default": lambda: model.functions.add().attribute_proto.add().t,
        "training": lambda: model.training_info.add().algorithm.initializer.add(),
    }[place]()


PLACES = ["initializer", "sparse", "sparse-indices", "attribute", "attribute-list", "attribute-sparse", "subgraph"]
PLACES += ["subgraph-list", "function", "function-default", "training"]
LOCATIONS = ["", "undeclared.bin", "manifest.json", "file:///etc/passwd", "transfers/../synthesis.bin"]
LOCATIONS += [name for name in TRAVERSALS if name != "\ud800"]  # protobuf does not write half a character
NUMBERS = [{"offset": text} for text in ("-1", "x", "", " 1", "0x10", "1e3", "1.0", "+1", "36865", "9" * 30, "١")]
NUMBERS += [{"length": text} for text in ("-1", "x", "", "36865", "9" * 19, "9" * 30, "None")]
NUMBERS += [{"offset": "1", "length": "36864"}, {"offset": "36864", "length": "1"}]


def external_data() -> Iterator[Case]:
    def damage(
        name: str, place: str, entries: dict[str, str], outside: bool, bundle: Path, draw: random.Random
    ) -> None:
        if outside:
            entries = {**entries, "location": str(bundle.with_name("outside.bin"))}
        change_model(bundle, name, lambda model: point(new_tensor(place, model), **entries))

    def case(what: str, name: str, place: str, entries: dict[str, str], outside: bool = False, said: str = "") -> Case:
        said = said or r"synthesis\.external_data: found |synthesis\.file: found the name "
        return Case(f"{what}-{place}-{name}", functools.partial(damage, name, place, entries, outside), said, True)

    for place, location in itertools.zip_longest(PLACES, LOCATIONS):
        where = place or random.Random(location).choice(PLACES)
        yield case(f"location-{location[:20]!r}", "synthesis.onnx", where, {"location": location})
    for place in PLACES:
        yield case("location-absolute", "synthesis.onnx", place, {"offset": "0"}, outside=True)
        yield case("location-outside", "fp16/synthesis.onnx", place, {"location": "../../outside.bin"})
    for entries in NUMBERS:
        what = "-".join(f"{key}-{text}" for key, text in entries.items())
        yield case(what, "synthesis.onnx", "initializer", {"location": "synthesis.bin", **entries})
    for name, location in (
        ("fp16/synthesis.onnx", "../synthesis.bin"),
        ("fp16/synthesis.onnx", "synthesis.bin"),
        ("transfers/ink/synthesis.onnx", "../../synthesis.bin"),
        ("transfers/ink/synthesis.onnx", "transfers/ink/synthesis.bin"),
    ):
        yield case(f"elsewhere-{location}", name, "initializer", {"location": location})

    def declare_address(bundle: Path, draw: random.Random) -> None:
        """Where ONNX Runtime reads "weights" from an address in memory, should such a file be declared."""
        name = "*/_ORT_MEM_ADDR_/*"
        (bundle / name).parent.mkdir(parents=True)
        shutil.copy(bundle / "synthesis.bin", bundle / name)
        entry = read_manifest(bundle)["files"]["synthesis.bin"]
        change_manifest(bundle, lambda manifest: manifest["files"].update({name: entry}))
        damage("synthesis.onnx", "initializer", {"location": name}, False, bundle, draw)

    yield Case("memory-address", declare_address, "expected a relative path", True)
    twice = {"location": "synthesis.bin", "location_": "../outside.bin"}
    yield case("twice", "synthesis.onnx", "attribute", twice, said="external data of two locations")
    yield case("none", "synthesis.onnx", "attribute", {"offset": "0"}, said="external data without a location")
    yield case("empty", "synthesis.onnx", "attribute", {}, said="external data without a location")


def no_onnx_files() -> Iterator[Case]:
    contents: dict[str, Callable[[random.Random], bytes]] = {
        "nothing": lambda draw: b"",
        "zeros": lambda draw: bytes(1000),
        "text": lambda draw: b"this is no graph\n" * 100,
        "no-end": lambda draw: b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        "fields": lambda draw: b"\x08\x00" * 2_000_000,
        "large": lambda draw: bytes(64 * 2**20 + 1),
        **{f"random-{seed}": lambda draw: draw.randbytes(draw.randrange(1, 3000)) for seed in range(8)},
    }
    for what, content in contents.items():

        def write(bundle: Path, draw: random.Random, content: Callable = content) -> None:
            (bundle / "latent.onnx").write_bytes(content(draw))
            forge(bundle)

        yield Case(f"onnx-{what}", write, r"graphs\.latent\.file: found", True)
    for seed in range(8):
        for name in random.Random(seed).sample(ONNX_FILES, 2):
            damage = functools.partial(then_forge, functools.partial(truncate, name, None))
            yield Case(
                f"forged-truncation-{seed}-{name}", damage, r"\.file: found .* in \S+onnx, expected an ONNX", True
            )


def other_arrays_in_the_file() -> Iterator[Case]:
    changes: dict[str, Callable[[Any], object]] = {
        "rank-unknown": lambda model: model.graph.input[3].type.tensor_type.ClearField("shape"),
        "scalar": lambda model: model.graph.input[3].type.tensor_type.shape.Clear(),
        "size-unknown": lambda model: model.graph.input[3].type.tensor_type.shape.dim[1].Clear(),
        "size-named": lambda model: model.graph.input[3].type.tensor_type.shape.dim[1].__setattr__("dim_param", "n"),
        "size-zero": lambda model: model.graph.input[3].type.tensor_type.shape.dim[1].__setattr__("dim_value", 0),
        "size-below-zero": lambda model: (
            model.graph.input[3].type.tensor_type.shape.dim[1].__setattr__("dim_value", -8)
        ),
        "batch-fixed": lambda model: model.graph.input[3].type.tensor_type.shape.dim[0].__setattr__("dim_value", 1),
        "bfloat16": lambda model: model.graph.input[3].type.tensor_type.__setattr__("elem_type", 16),
        "no-dtype": lambda model: model.graph.input[3].type.tensor_type.ClearField("elem_type"),
        "no-type": lambda model: model.graph.input[3].ClearField("type"),
        "sequence": lambda model: model.graph.input[3].type.sequence_type.Clear(),
        "twice": lambda model: model.graph.input.append(model.graph.input[3]),
        "one-less": lambda model: model.graph.input.pop(),
        "one-more": lambda model: model.graph.input.add(name="u", type=model.graph.input[3].type),
        "long-name": lambda model: model.graph.input.add(name="u" * 10**5, type=model.graph.input[3].type),
        "long-size": lambda model: (
            model.graph.input[3].type.tensor_type.shape.dim[1].__setattr__("dim_param", "n" * 999)
        ),
        "no-outputs": lambda model: model.graph.ClearField("output"),
    }
    for what, change in changes.items():

        def damage(bundle: Path, draw: random.Random, change: Callable = change) -> None:
            change_model(bundle, "fp16/latent.onnx", change)

        said = r"precisions\.fp16\.graphs\.latent\.(inputs|file).*: found .* in fp16/latent\.onnx, expected"
        yield Case(f"array-{what}", damage, said, True)


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
        change = functools.partial(set_field, "engines", [{"file": "latent.onnx", "sha256": sha256}])
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


CASES = [
    *bits_and_lengths(),
    *swapped_graphs(),
    *edited_arrays(),
    *traversing_names(),
    *no_plain_files(),
    *external_data(),
    *no_onnx_files(),
    *other_arrays_in_the_file(),
    *fields_of_the_manifest(),
    *texts_of_the_manifest(),
]


# --- what must come of it


class Watch:
    """The files and folders that are opened while it watches; Python can add such hooks, but not remove them."""

    watching = False
    seen: list[Any]

    def __init__(self) -> None:
        self.seen = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.watching and event in ("open", "os.listdir", "os.scandir"):
            self.seen.append(arguments[0])

    @contextlib.contextmanager
    def files(self) -> Iterator[list[Any]]:
        self.seen, self.watching = [], True
        try:
            yield self.seen
        finally:
            self.watching = False


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


def outside(seen: list[Any], bundle: Path) -> list[Any]:
    """Of what was opened, what lies elsewhere; a link lies where it leads."""
    return [path for path in seen if not Path(os.path.realpath(path)).is_relative_to(bundle.resolve())]


def test_there_are_enough_cases():
    assert len(CASES) >= 200 and len({case.name for case in CASES}) == len(CASES)
    assert sum(case.forged for case in CASES) >= 200


def test_the_undamaged_bundle_opens(pristine, bundle, watch):
    assert sorted(FILES) == sorted(path.relative_to(pristine).as_posix() for path in pristine.rglob("*.*"))
    forge(bundle)
    for path, verify in itertools.product((pristine, bundle), (True, False)):
        with watch.files() as seen:
            opened = Bundle.open(path, verify_hashes=verify)
        assert opened.precisions == ("fp32", "fp16") and opened.transfers == ("ink",)
        expected = [name for name in FILES if verify or not name.endswith((".bin", ".safetensors"))]
        assert sorted(seen) == sorted(str(path / name) for name in expected)  # each once
    change_manifest(bundle, lambda manifest: manifest.update(precisions=None))
    assert Bundle.open(bundle).precisions == ("fp32",)


@pytest.mark.parametrize("place", PLACES)
def test_weights_that_are_declared_are_fine(bundle, place):
    """The damage that the cases do with a location and an offset is none where these are right."""

    def change(model: Any) -> None:
        point(new_tensor(place, model), location="./synthesis.bin", offset="36863", length="1", checksum="x")

    change_model(bundle, "synthesis.onnx", change)
    Bundle.open(bundle)


def test_names_of_dynamic_sizes_do_not_matter(bundle):
    def change(model: Any) -> None:
        first, second, *_ = (array.type.tensor_type.shape.dim[0] for array in model.graph.input)
        first.dim_param, second.dim_param = "n", ""

    change_model(bundle, "latent.onnx", change)
    Bundle.open(bundle)


def test_the_watch_sees(pristine, watch):
    with watch.files() as seen:
        (pristine / ".." / "outside.bin").read_bytes()
        (pristine / "synthesis.bin").read_bytes()
        list(pristine.parent.iterdir())
    assert outside(seen, pristine) == [str(pristine / ".." / "outside.bin"), str(pristine.parent)]
    (pristine.parent / "outside.bin").read_bytes()
    assert len(seen) == 3


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_damaged_bundle(bundle, watch, case):
    case.damage(bundle, random.Random(case.name))
    for verify in [True, False] if case.forged else [True]:
        with watch.files() as seen, pytest.raises(BundleError) as caught:
            Bundle.open(bundle, **({} if verify else {"verify_hashes": False}))
        message = str(caught.value)
        assert message.startswith(f"{bundle}: ") and re.search(case.said, message), message
        assert message.isprintable() and len(message) < 1500, message
        assert outside(seen, bundle) == []


def test_bits_of_graphs_with_hashes_made_right(bundle, watch):
    """Whatever such a bit says, the bundle opens or is refused: most bits of a graph are not of our business."""
    draw = random.Random(0)
    refused = 0
    for _ in range(100):
        name = draw.choice(ONNX_FILES)
        content = (bundle / name).read_bytes()
        flip_bit(name, bundle, draw)
        forge(bundle)
        with watch.files() as seen:
            try:
                Bundle.open(bundle, verify_hashes=False)
            except BundleError as error:
                refused += 1
                assert str(error).startswith(f"{bundle}: ") and str(error).isprintable()
        assert outside(seen, bundle) == []
        (bundle / name).write_bytes(content)
    assert 10 < refused < 90


def test_values_of_the_manifest_with_the_digest_made_right(bundle, watch):
    """Any value anywhere in the manifest."""
    draw = random.Random(1)
    values = [None, True, -1, 0, 2**70, 1e308, "", "x", "../outside.bin", "\ud800\n", [], [[]], {}, {"file": "../x"}]
    original = read_manifest(bundle)

    def places(value: Any) -> Iterator[tuple[Any, Any]]:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield value, key
            if isinstance(inner, (dict, list)):
                yield from places(inner)

    refused = 0
    for _ in range(300):
        manifest = json.loads(json.dumps(original))
        holder, key = draw.choice(list(places(manifest)))
        holder[key] = draw.choice(values)
        write_manifest(bundle, manifest)
        with watch.files() as seen:
            try:
                opened = Bundle.open(bundle, verify_hashes=False)
                assert opened.kind and opened.frame_rate and opened.generator and opened.motion and opened.precisions
            except BundleError as error:
                refused += 1
                assert str(error).startswith(f"{bundle}: ") and str(error).isprintable()
        assert outside(seen, bundle) == []
    assert refused > 200
