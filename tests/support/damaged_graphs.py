"""Bundles whose graph files are no ONNX, have other arrays, or would read their weights from elsewhere."""

import functools
import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from damage import ONNX_FILES, Case, change_manifest, forge, read_manifest, then_forge, truncate
from damaged_files import TRAVERSALS


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
