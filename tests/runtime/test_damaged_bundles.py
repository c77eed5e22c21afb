"""Bundles damaged by accident or on purpose: each is refused by a BundleError, and nothing outside of it is read.

Each case of tests/support/damaged_*.py damages a copy of one small bundle in one way, drawn by a generator that the
case's name seeds. A `forged` one has hashes and digest that are right: it must be refused without reading hashes, too.
"""

import contextlib
import itertools
import json
import os
import random
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from damage import FILES, ONNX_FILES, change_manifest, flip_bit, forge, read_manifest
from damaged_files import bits_and_lengths, edited_arrays, no_plain_files, swapped_graphs, traversing_names
from damaged_graphs import (
    PLACES,
    change_model,
    external_data,
    new_tensor,
    no_onnx_files,
    other_arrays_in_the_file,
    point,
)
from damaged_manifests import fields_of_the_manifest, texts_of_the_manifest

from styleinv.runtime import Bundle, BundleError
from styleinv.runtime.bundle import write_manifest

pytestmark = pytest.mark.timeout(30)  # a bundle must not make us wait

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
