"""What the tests of engines share: caches that are not the user's, and a bundle to add engines to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


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
