"""Bundles whose files are damaged, exchanged, named elsewhere, or no plain files."""

import contextlib
import functools
import itertools
import os
import random
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from damage import (
    FILES,
    INTERFACES,
    Case,
    change_manifest,
    engine_entry,
    flip_bit,
    in_manifest,
    swap,
    then_forge,
    truncate,
)

from styleinv.runtime.bundle import file_sha256


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
        r"engines\.0\.file": lambda m, name, sha: m["engines"].append(
            engine_entry(name, sha, m["files"]["synthesis.bin"]["bytes"])
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
