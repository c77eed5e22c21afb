"""Writes a bundle: graphs, weights, motion network, manifest and report, all of it or nothing."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.numpy import save
from torch import nn
from tqdm import tqdm

from styleinv.export.additions import Additions, bundle_graphs
from styleinv.export.arithmetic import DTYPES, Arithmetic, arithmetic_in
from styleinv.export.eight_bits import (
    CALIBRATION_LATENTS,
    CALIBRATION_SEED,
    EIGHT_BITS,
    HELD_OUT_LATENTS,
    HELD_OUT_SEED,
    Quantised,
    import_quantizer,
    quantise,
    sample_latents,
)
from styleinv.export.engine_options import EngineOptions
from styleinv.export.engines import BuiltEngine, build_engines, check_refitted, place_engines
from styleinv.export.forms import TARGETS
from styleinv.export.inductor import Programs
from styleinv.export.latent_strides import measure_strides
from styleinv.export.multiplications import multiply_accumulates
from styleinv.export.onnx_graph import WEIGHTS_FILE, array_specs, export_onnx, join, opset_of, write_models
from styleinv.export.references import SEED, sample_label
from styleinv.export.report import write_reports
from styleinv.export.verify import Verification, verify, ways_of
from styleinv.runtime.bundle import FORMAT_VERSION, MANIFEST_NAME, MOTION_FILE, Bundle, file_sha256, write_manifest
from styleinv.runtime.errors import BundleError
from styleinv.runtime.manifest_fields import PRECISIONS
from styleinv.runtime.rollout import Rollout
from styleinv.runtime.sessions import Sessions
from styleinv.runtime.sessions.onnxruntime import import_onnxruntime
from styleinv.runtime.sinks import encode_png
from styleinv.training.checkpoint import Checkpoint
from styleinv.training.checkpoint_file import parameters_by_part
from styleinv.training.model import StyleInV

NOISE_MODES = ("const", "none")
PREVIEW_FRAMES = 8
PROBE_TIMES = (1000.5,)  # one frame, through every graph, is what `engine="auto"` has time for
VERIFIED_BATCHES = (1, 3)  # at export; `styleinv verify` looks at more, and longer
VERIFIED_FRAMES = 16

Models = dict[str, onnx.ModelProto]  # by the graph's name
Place = tuple[str, str | None]  # a precision, and the name of a transfer or None for the bundle's own


@dataclass(frozen=True)
class Export:
    """What came of an export, besides the bundle."""

    verification: Verification
    engines: list[BuiltEngine]


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    *,
    noise: str = "const",
    precisions: Iterable[str] = ("fp32",),
    target: str = "openvino",
    inversion: Checkpoint | None = None,
    transfers: Mapping[str, Checkpoint] | None = None,
    engines: Iterable[EngineOptions] = (),
    progress: bool = True,
) -> Export:
    """Export a checkpoint into the bundle folder `out` and verify it against PyTorch.

    Graphs in fp32 are always written, those in other `precisions` (fp16, bf16) beside them. `target` is the engine that
    the fp32 graphs are made fastest for. An `inversion` encoder lets the bundle find a picture's latent; `transfers`,
    generators by the name of their style, let it draw its frames in other styles. When all that is verified, its graphs
    are compiled into `engines`.

    `out` appears at the end, whole; an earlier bundle there is replaced, anything else is not touched.
    EngineError where onnxruntime, which verification runs on, is not installed, or an engine cannot be built;
    CheckpointError where a checkpoint is of the wrong kind or does not fit the model; BundleError where `out` is in the
    way, or where a graph does not compute what the model computes (then nothing is left behind).
    """
    additions, engines = Additions(inversion, transfers or {}), list(engines)
    additions.check(checkpoint)
    _check_word("noise", noise, NOISE_MODES)
    _check_word("target", target, TARGETS)
    for precision in precisions:
        _check_word("precision", precision, PRECISIONS)
    import_onnxruntime()  # verification needs it: better said now than after the export
    with _replacing_folder(out) as folder:
        manifest = write_bundle(
            checkpoint, folder, additions, noise=noise, precisions=precisions, target=target, progress=progress
        )
        bundle = Bundle.open(folder)
        ways, _ = ways_of(bundle)
        result = verify(
            bundle,
            checkpoint,
            additions,
            ways=[way for way in ways if way.graphs == way.precision],  # bf16 on fp32 graphs is the player's choice
            batches=VERIFIED_BATCHES,
            frames=VERIFIED_FRAMES,
            latents=0,
            progress=progress,
        )
        result.check(out.name)
        manifest["verification"] = {
            f"{item.way}: {item.what}": item.max_error if item.is_bytes else item.relative
            for item in result.comparisons
        }
        if checkpoint.kind != "inversion":
            manifest["probes"] = _play_samples(bundle)
        if checkpoint.kind == "styleinv":
            with Sessions(bundle) as sessions:
                manifest["latent_strides"] = measure_strides(sessions, progress)
        write_reports(bundle, result, folder)
        built = build_engines(bundle, engines, Programs(checkpoint, additions, noise), progress=progress)
        manifest["engines"] = place_engines(built, folder)
        write_manifest(folder, manifest)
        check_refitted(Bundle.open(folder), engines)
    return Export(result, built)


def write_bundle(
    checkpoint: Checkpoint,
    folder: Path,
    additions: Additions | None = None,
    *,
    noise: str,
    precisions: Iterable[str] = ("fp32",),
    target: str = "openvino",
    progress: bool = False,
) -> dict[str, Any]:
    """Write graphs, weights, motion network and manifest into an empty folder: a bundle that plays, not yet verified.

    Returns the manifest. Users want `export_bundle`. Raises EngineError where fp8 or int8 is asked for and ONNX Model
    Optimizer cannot be had.
    """
    additions = additions or Additions()
    eight_bits = EIGHT_BITS.keys() & precisions
    if eight_bits:
        import_quantizer()
    also = ("fp32", "fp16") if eight_bits else ("fp32",)
    wanted = [precision for precision in PRECISIONS if precision in (*also, *precisions)]
    models: dict[Place, Models] = {}
    quantised: dict[Place, Quantised] = {}
    for precision in wanted:
        if precision in EIGHT_BITS:
            results = _quantise(checkpoint, additions, noise, precision, models, progress)
            quantised |= results
            models |= {place: {"synthesis": result.model} for place, result in results.items()}
        else:
            arithmetic = arithmetic_in(precision, target)
            models |= _export_graphs(checkpoint, additions, noise, precision, arithmetic, progress)
        own, latents = models[precision, None], models["fp16" if precision in EIGHT_BITS else precision, None]
        if "latent" in latents:
            own["frame"] = join(latents["latent"], own["synthesis"], "w", ["frame"])
    for place, own_models in models.items():
        _folder_of(place, folder).mkdir(parents=True, exist_ok=True)
        write_models(own_models, _folder_of(place, folder))
    if isinstance(checkpoint.model, StyleInV):
        (folder / MOTION_FILE).write_bytes(save(motion_tensors(checkpoint.model)))
    manifest = _manifest(checkpoint, additions, noise, folder, models)
    for (precision, transfer), result in quantised.items():
        entry = manifest["precisions"][precision]
        (entry if transfer is None else entry["transfers"][transfer])["quantization"] = result.entry()
    write_manifest(folder, manifest)
    return manifest


def motion_tensors(model: StyleInV) -> dict[str, np.ndarray]:
    """The motion network's weights, as they are in the checkpoint: gains are applied in float64 at run time."""
    return {name: tensor.numpy() for name, tensor in model.motion.state_dict().items()}


def _export_graphs(
    checkpoint: Checkpoint,
    additions: Additions,
    noise: str,
    precision: str,
    arithmetic: Arithmetic,
    progress: bool,
) -> dict[Place, Models]:
    """The bundle's own models in a precision, and those of each transfer."""
    graphs = list(bundle_graphs(checkpoint.model, additions, checkpoint.config, noise, arithmetic=arithmetic))
    if precision != "fp32":  # styles are computed in fp32 whatever the precision, so there is one mapping
        graphs = [(transfer, graph) for transfer, graph in graphs if graph.name != "mapping"]
    models: dict[Place, Models] = {}
    for transfer, graph in tqdm(graphs, desc=f"export {precision}", unit=" graphs", disable=not progress):
        models.setdefault((precision, transfer), {})[graph.name] = export_onnx(graph, opset_of(arithmetic.dtype))
    return models


def _quantise(
    checkpoint: Checkpoint,
    additions: Additions,
    noise: str,
    precision: str,
    models: Mapping[Place, Models],
    progress: bool,
) -> dict[Place, Quantised]:
    """The bundle's own synthesis in 8 bits, made of the one in fp16 that is among the models, and each transfer's."""
    calibration = sample_latents(checkpoint, noise, CALIBRATION_LATENTS, CALIBRATION_SEED)
    held_out = sample_latents(checkpoint, noise, HELD_OUT_LATENTS, HELD_OUT_SEED)
    # The same form as in fp16, but exact: what scales are found in and pictures are compared with.
    exact = dataclasses.replace(arithmetic_in("fp16"), dtype=torch.float32)
    graphs = bundle_graphs(checkpoint.model, additions, checkpoint.config, noise, arithmetic=exact)
    syntheses = [(transfer, graph) for transfer, graph in graphs if graph.name == "synthesis"]
    results: dict[Place, Quantised] = {}
    for transfer, graph in tqdm(syntheses, desc=f"export {precision}", unit=" graphs", disable=not progress):
        fp16 = models["fp16", transfer]["synthesis"]
        results[precision, transfer] = quantise(fp16, export_onnx(graph), precision, calibration, held_out)
    return results


def _folder_of(place: Place, bundle: Path) -> Path:
    """Where its files lie; beside their weights, which ONNX wants there."""
    precision, transfer = place
    folder = bundle if precision == "fp32" else bundle / precision
    return folder if transfer is None else folder / "transfers" / transfer


def _manifest(
    checkpoint: Checkpoint, additions: Additions, noise: str, folder: Path, models: Mapping[Place, Models]
) -> dict[str, Any]:
    others = [name for name in (WEIGHTS_FILE, MOTION_FILE) if (folder / name).exists()]
    transfers: dict[str, dict[str, Any]] = {precision: {} for precision, _ in models}
    for precision, transfer in models:
        if transfer is not None:
            place = precision, transfer
            entries = _graph_entries(place, folder, models[place])
            transfers[precision][transfer] = {**entries, "weights": _weights_entry(place, folder)}
    graphs = {precision: _graph_entries((precision, None), folder, models[precision, None]) for precision in transfers}
    for precision in graphs:  # what a precision has no graph of its own for, it takes from one that is more exact
        graphs[precision] = {**graphs["fp16" if precision in EIGHT_BITS else "fp32"], **graphs[precision]}
    return {
        "format_version": FORMAT_VERSION,
        "kind": checkpoint.kind,
        "frame_rate": checkpoint.config.frame_rate,
        "noise": noise,
        "model": dataclasses.asdict(checkpoint.config.model),
        "parameters": parameters_by_part({name: tuple(t.shape) for name, t in checkpoint.model.state_dict().items()}),
        "graphs": graphs["fp32"],
        "files": {name: _file_entry(folder / name) for name in others},
        "engines": [],
        "transfers": transfers["fp32"],
        "precisions": {
            precision: {
                "graphs": graphs[precision],
                "weights": _weights_entry((precision, None), folder),
                "transfers": transfers[precision],
            }
            for precision in graphs
            if precision != "fp32"
        },
        "provenance": _provenance(checkpoint, additions, graphs),
        "verification": {},
        "probes": {},
    }


def _graph_entries(place: Place, folder: Path, models: Models) -> dict[str, Any]:
    files = {name: _folder_of(place, folder) / f"{name}.onnx" for name in models}
    return {
        name: {
            "file": files[name].relative_to(folder).as_posix(),
            "sha256": file_sha256(files[name]),
            "precision": place[0],
            "inputs": array_specs(model.graph.input),
            "outputs": array_specs(model.graph.output),
            "macs": multiply_accumulates(model),
        }
        for name, model in models.items()
    }


def _weights_entry(place: Place, folder: Path) -> dict[str, Any]:
    file = _folder_of(place, folder) / WEIGHTS_FILE
    return {"file": file.relative_to(folder).as_posix(), **_file_entry(file)}


def _file_entry(file: Path) -> dict[str, Any]:
    return {"sha256": file_sha256(file), "bytes": file.stat().st_size}


def _provenance(checkpoint: Checkpoint, additions: Additions, precisions: Iterable[str]) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint.path.name,
        "checkpoint_sha256": file_sha256(checkpoint.path),
        "additions": {
            what: {
                "checkpoint": added.path.name,
                "checkpoint_sha256": file_sha256(added.path),
                "parameters": count_parameters(added.model),
            }
            for what, added in additions.files().items()
        },
        **({"import": dict(checkpoint.provenance)} if checkpoint.provenance else {}),
        "preset": checkpoint.config.preset,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "opset": {precision: opset_of(DTYPES.get(precision, torch.float16)) for precision in precisions},
        "versions": {
            "styleinv": importlib.metadata.version("styleinv"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
        },
    }


def _play_samples(bundle: Bundle) -> dict[str, Any]:
    """Writes preview.png, a row of frames over time and one below it for each transfer; returns values that every
    session must reproduce."""
    clip = bundle.kind == "styleinv"
    with Sessions(bundle, engine="onnxruntime") as sessions:
        rollout = Rollout(sessions, SEED, label=sample_label(bundle))
        distance = bundle.motion["anchor_distance"] if clip else 0
        times = [distance * step / 2 for step in range(PREVIEW_FRAMES)] if clip else [0.0]
        columns = [np.vstack(frames) for frames in rollout.renderings(times, [None, *bundle.transfers])]
        (bundle.path / "preview.png").write_bytes(encode_png(np.hstack(columns)))
        probes = PROBE_TIMES if clip else (0.0,)
        return {
            "seed": SEED,
            "t": list(probes),
            "w": [[float(value) for value in latent[:8]] for latent in rollout.latents(probes)],
            "mean_level": [float(frame.mean()) for frame in rollout.frames(probes)],
        }


def count_parameters(model: nn.Module) -> int:
    """Number of weights of a model, buffers aside."""
    return sum(parameter.numel() for parameter in model.parameters())


def _check_word(field: str, word: str, words: Iterable[str]) -> None:
    if word not in words:
        raise BundleError(f"{field}: found {word!r}, expected one of {', '.join(words)}")


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
