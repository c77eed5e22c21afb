"""Engines in the manifest of a test's bundle: files that no library would load, unless it is told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from styleinv.runtime.bundle import file_sha256


def add_engine(bundle: Any, graph: str, content: bytes | None = None, **fields: Any) -> Path:
    """Adds an engine of a graph to a `TinyBundle`, with these fields in the manifest; returns its file."""
    folder = bundle.path / "engines"
    folder.mkdir(exist_ok=True)
    stem = f"{graph}.{len(list(folder.iterdir()))}"
    file, log = folder / f"{stem}.engine", folder / f"{stem}.log"
    file.write_bytes(content if content is not None else stem.encode())
    log.write_text("built")
    entry = {
        "engine": "rtx",
        "version": "1.7.1",
        "precision": "fp32",
        "targets": ["8.9"],
        "graph": graph,
        "transfer": None,
        "batch": [1, 1, 4],
        "refittable": False,
        "key": "0" * 64,
        **fields,
        **_file(bundle.path, file),
        "log": _file(bundle.path, log),
    }
    bundle.change_manifest(lambda manifest: manifest["engines"].append(entry))
    return file


def built_engine(
    library: Any, file: Path, capability: str = "SM89", profile: tuple[int, int, int] = (1, 1, 4)
) -> bytes:
    """A real engine, by tensorrt_rtx or tensorrt, of an ONNX file whose inputs have a batch alone that is dynamic."""
    logger = library.Logger(library.Logger.ERROR)
    builder = library.Builder(logger)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert library.OnnxParser(network, logger).parse_from_file(str(file))
    config, batches = builder.create_builder_config(), builder.create_optimization_profile()
    if hasattr(library, "ComputeCapability"):  # tensorrt builds for the GPU at hand
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(library.ComputeCapability, capability), 0)
    for index in range(network.num_inputs):
        array = network.get_input(index)
        batches.set_shape(array.name, *[(batch, *tuple(array.shape)[1:]) for batch in profile])
    config.add_optimization_profile(batches)
    return bytes(builder.build_serialized_network(network, config))


def _file(bundle: Path, file: Path) -> dict[str, Any]:
    return {"file": str(file.relative_to(bundle)), "sha256": file_sha256(file), "bytes": file.stat().st_size}
