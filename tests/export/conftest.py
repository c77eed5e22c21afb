"""What the tests of engines share: caches that are not the user's, and a bundle to add engines to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from torch.onnx._internal.exporter._registration import ONNXRegistry

from styleinv.export.writer import export_bundle
from styleinv.training.checkpoint import load_checkpoint


@pytest.fixture(scope="session", autouse=True)
def operators_read_once():
    """PyTorch's exporter reads its table of operators anew for every graph, which takes a second; here it copies it."""
    read, tables = ONNXRegistry.from_torchlib, {}

    def copied(opset_version: int) -> ONNXRegistry:
        if opset_version not in tables:
            tables[opset_version] = read(opset_version)
        table = ONNXRegistry()
        table._opset_version = opset_version
        table.functions = {name: list(forms) for name, forms in tables[opset_version].functions.items()}
        return table

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(copied))
        yield


@pytest.fixture(scope="session")
def every_precision(small_checkpoint, tmp_path_factory) -> Path:
    """The small model's bundle with graphs in every precision; not to be changed."""
    path = tmp_path_factory.mktemp("every-precision") / "all.bundle"
    export_bundle(load_checkpoint(small_checkpoint), path, precisions=["bf16", "fp16"], progress=False)
    return path


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(shared_cache, monkeypatch) -> Path:
    """Engines of one test are there for the next, but not those of the user."""
    monkeypatch.setenv("STYLEINV_CACHE", str(shared_cache))
    return shared_cache / "engines"


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """A cache that is empty."""
    monkeypatch.setenv("STYLEINV_CACHE", str(tmp_path / "own-cache"))
    return tmp_path / "own-cache" / "engines"


@pytest.fixture
def small_copy(small_bundle, tmp_path) -> Path:
    return Path(shutil.copytree(small_bundle, tmp_path / "small.bundle"))
