"""The cache of engines: a key changes with all that decides an engine and with nothing else; entries are whole."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from styleinv.export import engine_cache
from styleinv.export.engine_cache import CachedEngine, cached, engine_key, graph_hash, keep
from styleinv.export.onnx_graph import write_models
from styleinv.runtime.cache_folder import cache_folder
from styleinv.runtime.errors import EngineError

PARTS = {
    "graph": "a" * 64,
    "library": "rtx",
    "version": "1.7.1",
    "targets": ("8.6", "8.9"),
    "options": {"batch": (1, 1, 4), "refittable": False},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("STYLEINV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.mark.parametrize(
    "changes",
    [
        {"graph": "b" * 64},
        {"library": "tensorrt"},
        {"version": "1.7.2"},
        {"targets": ("8.6",)},
        {"targets": ("8.6", "8.9", "12.0")},
        {"options": {"batch": (1, 1, 8), "refittable": False}},
        {"options": {"batch": (1, 1, 4), "refittable": True}},
    ],
)
def test_key_changes_with_each_part(changes):
    assert engine_key(**PARTS) != engine_key(**(PARTS | changes))


def test_key_does_not_change_with_the_order_of_its_parts():
    assert engine_key(**PARTS) == engine_key(**dict(reversed(PARTS.items())))
    assert engine_key(**PARTS) == engine_key(**(PARTS | {"targets": ("8.9", "8.6")}))
    assert engine_key(**PARTS) == engine_key(**(PARTS | {"options": {"refittable": False, "batch": [1, 1, 4]}}))


def product(weight: np.ndarray) -> onnx.ModelProto:
    """y = x @ weight."""
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size])
        for name, size in zip("xy", weight.shape, strict=True)
    )
    node = onnx.helper.make_node("MatMul", ["x", "weight"], ["y"])
    graph = onnx.helper.make_graph([node], "product", [x], [y], [onnx.numpy_helper.from_array(weight, "weight")])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def test_graph_hash_is_of_the_graph_and_its_own_weights(tmp_path):
    draw = np.random.default_rng(0)
    weights = {name: draw.standard_normal((32, 16)).astype(np.float32) for name in ("first", "second")}

    def written(folder: str, **changes: np.ndarray) -> str:
        place = tmp_path / folder
        place.mkdir()
        return graph_hash(write_models({n: product(w) for n, w in (weights | changes).items()}, place)["second"])

    plain = written("plain")
    assert written("elsewhere") == plain
    assert written("other-first", first=weights["first"] + 1) == plain  # its neighbour's weights are not its own
    longer = draw.standard_normal((999, 16)).astype(np.float32)
    assert written("moved", first=longer) == plain  # nor does it matter where its own lie in the file
    changed = weights["second"].copy()
    changed[3, 4] = np.nextafter(changed[3, 4], np.float32(1))
    assert written("changed", second=changed) != plain


def made(folder: Path, content: bytes = b"engine") -> CachedEngine:
    folder.mkdir(exist_ok=True)
    (folder / "e").write_bytes(content)
    (folder / "l").write_bytes(b"log")
    return CachedEngine(folder / "e", folder / "l")


def test_what_is_kept_is_found_again(tmp_path, own_cache):
    assert cached("k") is None
    kept = keep("k", made(tmp_path / "built"))
    shutil.rmtree(tmp_path / "built")
    assert cached("k") == kept and kept.engine.read_bytes() == b"engine" and kept.log.read_bytes() == b"log"
    assert cached("other") is None
    assert own_cache.stat().st_mode & 0o777 == 0o700
    assert [entry.name for entry in own_cache.iterdir()] == ["k"]  # nothing temporary stays


@pytest.mark.parametrize("damage", ["engine", "sha256", "log", "cut"])
def test_what_is_damaged_counts_as_missing(tmp_path, own_cache, damage):
    keep("k", made(tmp_path / "built"))
    if damage == "cut":
        (own_cache / "k" / "engine").write_bytes(b"engin")
    else:
        (own_cache / "k" / damage).unlink()
    assert cached("k") is None
    keep("k", made(tmp_path / "built"))
    found = cached("k")
    assert found is not None and found.engine.read_bytes() == b"engine"


def test_many_at_once(tmp_path, own_cache):
    """Each writes an engine of its own under one key: one of them stays, whole, and all are told of that one."""
    built = [made(tmp_path / f"built{index}", bytes([index]) * 100_000) for index in range(16)]
    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda engine: keep("k", engine), built))
    assert len(set(kept)) == 1
    content = kept[0].engine.read_bytes()
    assert len(content) == 100_000 and len(set(content)) == 1
    assert cached("k") == kept[0] and [entry.name for entry in own_cache.iterdir()] == ["k"]


def test_the_oldest_go_first(tmp_path, own_cache, monkeypatch):
    size = sum(map(os.path.getsize, [*map(str, (keep("a", made(tmp_path / "built")).engine.parent).iterdir())]))
    monkeypatch.setattr(engine_cache, "LARGEST_CACHE", 3 * size)
    for key in ("b", "c"):
        keep(key, made(tmp_path / "built"))
    for key, used in {"a": 3, "b": 1, "c": 2}.items():
        os.utime(own_cache / key, (used, used))
    assert cached("b") is not None  # used again, so now `c` is the oldest
    keep("d", made(tmp_path / "built"))
    assert sorted(entry.name for entry in own_cache.iterdir()) == ["a", "b", "d"]
    monkeypatch.setattr(engine_cache, "LARGEST_CACHE", 0)
    keep("e", made(tmp_path / "built"))
    assert [entry.name for entry in own_cache.iterdir()] == ["e"]  # the newest stays, whatever its size


def test_a_folder_that_others_may_write_to_is_refused(tmp_path, own_cache):
    cache_folder("engines")
    own_cache.chmod(0o777)
    with pytest.raises(EngineError, match=r"mode 777, expected one that user \d+ alone can write to"):
        cached("k")


def test_a_place_where_no_folder_can_be_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("STYLEINV_CACHE", str(tmp_path / "file"))
    with pytest.raises(EngineError, match="Not a directory, expected a folder to keep engines in; STYLEINV_CACHE"):
        cache_folder("engines")


def test_without_the_variable_it_is_below_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("STYLEINV_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("engines") == tmp_path / "xdg" / "styleinv" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("engines") == tmp_path / ".cache" / "styleinv" / "engines"
