"""Writes a bundle: graphs, weights, motion network, manifest and report, all of it or nothing."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.numpy import save
from torch import nn
from tqdm import tqdm

from styleinv.export.additions import Additions, bundle_graphs
from styleinv.export.onnx_graph import OPSET, WEIGHTS_FILE, array_specs, export_onnx, join, write_models
from styleinv.export.verify import SEED, Comparison, as_table, sample_label, verify
from styleinv.runtime.bundle import FORMAT_VERSION, MANIFEST_NAME, MOTION_FILE, Bundle, file_sha256, write_manifest
from styleinv.runtime.errors import BundleError
from styleinv.runtime.rollout import Rollout
from styleinv.runtime.sessions.onnxruntime import import_onnxruntime
from styleinv.runtime.sinks import encode_png
from styleinv.training.checkpoint import Checkpoint
from styleinv.training.checkpoint_file import parameters_by_part
from styleinv.training.model import StyleInV

NOISE_MODES = ("const", "none")
PREVIEW_FRAMES = 8
PROBE_TIMES = (0.0, 1.0, 1000.5)


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    *,
    noise: str = "const",
    inversion: Checkpoint | None = None,
    transfers: Mapping[str, Checkpoint] | None = None,
    progress: bool = True,
) -> list[Comparison]:
    """Export a checkpoint into the bundle folder `out` and verify it against PyTorch.

    An `inversion` encoder lets the bundle find a picture's latent; `transfers`, generators by the name of their style,
    let it draw its frames in other styles.

    `out` appears at the end, whole; an earlier bundle there is replaced, anything else is not touched.
    Returns what was verified. EngineError where onnxruntime, which verification runs on, is not installed;
    CheckpointError where a checkpoint is of the wrong kind or does not fit the model; BundleError where `out` is in the
    way, or where a graph does not compute what the model computes (then nothing is left behind).
    """
    additions = Additions(inversion, transfers or {})
    additions.check(checkpoint)
    if noise not in NOISE_MODES:
        raise BundleError(f"noise: found {noise!r}, expected one of {', '.join(NOISE_MODES)}")
    import_onnxruntime()  # verification needs it: better said now than after the export
    with _replacing_folder(out) as folder:
        manifest = write_bundle(checkpoint, folder, additions, noise=noise, progress=progress)
        comparisons = verify(folder, checkpoint.model, checkpoint.config, noise, additions)
        manifest["verification"] = {item.what: item.error for item in comparisons}
        if checkpoint.kind != "inversion":
            manifest["probes"] = _play_samples(folder, checkpoint.kind)
        (folder / "report.md").write_text(_report(checkpoint, additions, noise, comparisons), encoding="utf-8")
        write_manifest(folder, manifest)
        Bundle.open(folder)
    return comparisons


def write_bundle(
    checkpoint: Checkpoint, folder: Path, additions: Additions | None = None, *, noise: str, progress: bool = False
) -> dict[str, Any]:
    """Write graphs, weights, motion network and manifest into an empty folder: a bundle that plays, not yet verified.

    Returns the manifest. Users want `export_bundle`.
    """
    additions = additions or Additions()
    models = _export_graphs(checkpoint, additions, noise, progress)
    for transfer, own_models in models.items():
        _folder_of(transfer, folder).mkdir(parents=True, exist_ok=True)
        write_models(own_models, _folder_of(transfer, folder))
    if isinstance(checkpoint.model, StyleInV):
        (folder / MOTION_FILE).write_bytes(save(motion_tensors(checkpoint.model)))
    manifest = _manifest(checkpoint, additions, noise, folder, models)
    write_manifest(folder, manifest)
    return manifest


def motion_tensors(model: StyleInV) -> dict[str, np.ndarray]:
    """The motion network's weights, as they are in the checkpoint: gains are applied in float64 at run time."""
    return {name: tensor.numpy() for name, tensor in model.motion.state_dict().items()}


def _export_graphs(
    checkpoint: Checkpoint, additions: Additions, noise: str, progress: bool
) -> dict[str | None, dict[str, onnx.ModelProto]]:
    """The bundle's own models by name (under None), and those of each transfer under its name."""
    graphs = list(bundle_graphs(checkpoint.model, additions, checkpoint.config, noise))
    models: dict[str | None, dict[str, onnx.ModelProto]] = {}
    for transfer, graph in tqdm(graphs, desc="export", unit=" graphs", disable=not progress):
        models.setdefault(transfer, {})[graph.name] = export_onnx(graph)
    own = models[None]
    if "latent" in own:
        own["frame"] = join(own["latent"], own["synthesis"], "w", ["frame"])
    return models


def _folder_of(transfer: str | None, bundle: Path) -> Path:
    """Where a transfer's files lie (None: the bundle's own); beside their weights, which ONNX wants there."""
    return bundle if transfer is None else bundle / "transfers" / transfer


def _manifest(
    checkpoint: Checkpoint,
    additions: Additions,
    noise: str,
    folder: Path,
    models: Mapping[str | None, Mapping[str, onnx.ModelProto]],
) -> dict[str, Any]:
    others = [name for name in (WEIGHTS_FILE, MOTION_FILE) if (folder / name).exists()]
    return {
        "format_version": FORMAT_VERSION,
        "kind": checkpoint.kind,
        "frame_rate": checkpoint.config.frame_rate,
        "noise": noise,
        "model": dataclasses.asdict(checkpoint.config.model),
        "parameters": parameters_by_part({name: tuple(t.shape) for name, t in checkpoint.model.state_dict().items()}),
        "graphs": _graph_entries(None, folder, models),
        "files": {name: _file_entry(folder / name) for name in others},
        "engines": [],
        "transfers": {
            transfer: {
                **_graph_entries(transfer, folder, models),
                "weights": {
                    "file": f"transfers/{transfer}/{WEIGHTS_FILE}",
                    **_file_entry(_folder_of(transfer, folder) / WEIGHTS_FILE),
                },
            }
            for transfer in additions.transfers
        },
        "provenance": _provenance(checkpoint, additions),
        "verification": {},
        "probes": {},
    }


def _graph_entries(
    transfer: str | None, folder: Path, models: Mapping[str | None, Mapping[str, onnx.ModelProto]]
) -> dict[str, Any]:
    files = {name: _folder_of(transfer, folder) / f"{name}.onnx" for name in models[transfer]}
    return {
        name: {
            "file": files[name].relative_to(folder).as_posix(),
            "sha256": file_sha256(files[name]),
            "precision": "fp32",
            "inputs": array_specs(model.graph.input),
            "outputs": array_specs(model.graph.output),
        }
        for name, model in models[transfer].items()
    }


def _file_entry(file: Path) -> dict[str, Any]:
    return {"sha256": file_sha256(file), "bytes": file.stat().st_size}


def _provenance(checkpoint: Checkpoint, additions: Additions) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint.path.name,
        "checkpoint_sha256": file_sha256(checkpoint.path),
        "additions": {
            what: {"checkpoint": added.path.name, "checkpoint_sha256": file_sha256(added.path)}
            for what, added in additions.files().items()
        },
        **({"import": dict(checkpoint.provenance)} if checkpoint.provenance else {}),
        "preset": checkpoint.config.preset,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "opset": OPSET,
        "versions": {
            "styleinv": importlib.metadata.version("styleinv"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
        },
    }


def _play_samples(folder: Path, kind: str) -> dict[str, Any]:
    """Writes preview.png, a row of frames over time and one below it for each transfer; returns values that every
    session must reproduce."""
    bundle = Bundle.open(folder)
    with Rollout.open(bundle, seed=SEED, label=sample_label(bundle)) as rollout:
        distance = rollout.bundle.motion["anchor_distance"] if kind == "styleinv" else 0
        times = [distance * step / 2 for step in range(PREVIEW_FRAMES)] if kind == "styleinv" else [0.0]
        columns = [np.vstack(frames) for frames in rollout.renderings(times, [None, *bundle.transfers])]
        (folder / "preview.png").write_bytes(encode_png(np.hstack(columns)))
        probes = PROBE_TIMES if kind == "styleinv" else (0.0,)
        return {
            "seed": SEED,
            "t": list(probes),
            "w": [[float(value) for value in latent[:8]] for latent in rollout.latents(probes)],
            "mean_level": [float(frame.mean()) for frame in rollout.frames(probes)],
        }


def _report(checkpoint: Checkpoint, additions: Additions, noise: str, comparisons: list[Comparison]) -> str:
    picture = checkpoint.config.model.generator
    added = "".join(
        f"\nWith it: {what}, from {item.path.name}, {count_parameters(item.model) / 1e6:.2f} M parameters.\n"
        for what, item in additions.files().items()
    )
    preview = "\n![frames over time](preview.png)\n" if checkpoint.kind != "inversion" else ""
    return f"""# {checkpoint.path.name}, exported

A model of kind `{checkpoint.kind}` (preset `{checkpoint.config.preset}`), {picture.resolution}x{picture.resolution},
{count_parameters(checkpoint.model) / 1e6:.2f} M parameters, noise `{noise}`, fp32.
{added}{preview}
## Verified against PyTorch

Graphs: largest error over the largest value. Bytes (`uint8` outputs and whole frames): largest difference in levels.

{as_table(comparisons)}
"""


def count_parameters(model: nn.Module) -> int:
    """Number of weights of a model, buffers aside."""
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _replacing_folder(out: Path) -> Iterator[Path]:
    """A temporary sibling that takes the place of `out` when the block ends well, and vanishes when it does not."""
    if out.exists() and not (out / MANIFEST_NAME).is_file():
        raise BundleError(f"{out}: found something that is not a bundle, expected a new name or an earlier bundle")
    if not out.parent.is_dir():
        raise BundleError(f"{out}: found no folder {out.parent}, expected one")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    temporary.mkdir()
    try:
        yield temporary
        if out.exists():
            out.rename(old)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
