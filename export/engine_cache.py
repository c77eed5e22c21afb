"""Engines that were built before, by the hash of all that they were built from.

An entry is a folder <key>/ with the engine, its build log and the engine's SHA-256. It is written beside and renamed,
so that several exports may fill the cache at once; what is damaged counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from styleinv.runtime.bundle import file_sha256
from styleinv.runtime.cache_folder import cache_folder

LARGEST_CACHE = 8 * 2**30  # bytes; the entries used longest ago go first
ENGINE, LOG, SHA256 = "engine", "log", "sha256"  # the files of an entry


@dataclass(frozen=True)
class CachedEngine:
    """The files of an engine and of the log of its build."""

    engine: Path
    log: Path


def graph_hash(file: Path) -> str:
    """SHA-256 of a graph with its weights, wherever in their file these lie: in hexadecimal."""
    return hashlib.sha256(onnx.load(file).SerializeToString(deterministic=True)).hexdigest()


def engine_key(graph: str, library: str, version: str, targets: tuple[str, ...], options: Mapping[str, Any]) -> str:
    """The key of an engine: SHA-256, in hexadecimal, of the hash of its graph, the library and its version, the GPUs it
    is for, in any order, and the options of its build, which are JSON's values."""
    parts = {"graph": graph, "library": library, "version": version, "targets": sorted(targets), "options": options}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cached(key: str) -> CachedEngine | None:
    """The engine of this key; None where it is not in the cache, or damaged. Raises EngineError as `cache_folder`."""
    folder = cache_folder("engines") / key
    entry = CachedEngine(folder / ENGINE, folder / LOG)
    whole = False
    with suppress(OSError):
        whole = entry.log.is_file() and file_sha256(entry.engine) == (folder / SHA256).read_text(encoding="ascii")
    if not whole:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    os.utime(folder)  # it was used now
    return entry


def keep(key: str, built: CachedEngine) -> CachedEngine:
    """Copies an engine and its log into the cache; returns where they lie there. Raises EngineError as `cache_folder`,
    OSError where there is no room."""
    cache = cache_folder("engines")
    folder = cache / key
    temporary = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=cache))
    try:
        shutil.copyfile(built.engine, temporary / ENGINE)
        shutil.copyfile(built.log, temporary / LOG)
        (temporary / SHA256).write_text(file_sha256(temporary / ENGINE), encoding="ascii")
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another export was faster, and its engine is as good
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _forget_oldest(cache, key)
    return CachedEngine(folder / ENGINE, folder / LOG)


def _forget_oldest(cache: Path, newest: str) -> None:
    """Removes entries until the cache is small enough; never the newest, nor those that are being written."""
    entries = []
    for folder in cache.iterdir():
        with suppress(FileNotFoundError):  # another export forgets it now
            size = sum(file.stat().st_size for file in folder.iterdir())
            entries.append((folder.stat().st_mtime, folder, size))
    total = sum(size for _, _, size in entries)
    for _, folder, size in sorted(entries):
        if total <= LARGEST_CACHE:
            return
        if folder.name != newest and not folder.name.startswith("."):
            total -= size
            shutil.rmtree(folder, ignore_errors=True)
