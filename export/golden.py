"""Checks a checkpoint against values that the authors' own model computed: in PyTorch and through exported graphs.

A golden folder holds `config.json` (at least truncation_psi and noise_mode) and `expected.npz`: the inputs z [1, Z],
motion_z [1, K, Z] and t_frames [T] (frame indices, some fractional), and what must come out: w0 [1, W], x0
[1, 3, R, R], motion_v [T, V], style [T, S], w_t [T, W] and frames [T, 3, R, R]. An image model's has z, w0 and x0 only,
a conditional model's also the label `c` [1, label_dim].
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from styleinv.export.references import clip_frames
from styleinv.export.writer import write_bundle
from styleinv.runtime.bundle import ArraySpec, Bundle
from styleinv.runtime.errors import DataError
from styleinv.runtime.motion import MotionCodes
from styleinv.runtime.sessions import SessionOptions, Sessions
from styleinv.runtime.sessions.onnxruntime import OnnxRuntimeSession, import_onnxruntime
from styleinv.training.checkpoint import Checkpoint
from styleinv.training.model import StyleInV

Arrays = dict[str, npt.NDArray[Any]]

TOLERANCES = {  # of the largest expected value; times reached the authors' model as float32
    "w0": 1e-4, "x0": 1e-4, "motion_v": 2e-3, "style": 2e-3, "w_t": 2e-3, "frames": 2e-3,
}  # fmt: skip
PICTURE_INPUTS = ("z",)
CLIP_INPUTS = ("motion_z", "t_frames")


@dataclass(frozen=True)
class GoldenSet:
    """A golden folder: its arrays, and the settings that its values were computed with."""

    folder: Path
    arrays: Arrays
    truncation: float
    noise: str  # const or none


@dataclass(frozen=True)
class GoldenResult:
    """One quantity by one way of computing it. Errors are the largest, relative to the largest expected value."""

    way: str
    quantity: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # also false where the error is not a number

    def __str__(self) -> str:
        verdict = "pass" if self.passed else "FAIL"
        return f"{self.way:12} {self.quantity:8}  max error {self.error:.2e}  allowed {self.allowed:.0e}  {verdict}"


def read_golden(folder: Path) -> GoldenSet:
    """Reads a golden folder. DataError names the file, the field, what was found and what was expected."""
    settings_file, values_file = folder / "config.json", folder / "expected.npz"
    try:
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
        with np.load(values_file, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{folder}: found {error}, expected a golden folder with config.json and expected.npz"
        ) from error
    noise, truncation = settings.get("noise_mode", "const"), settings.get("truncation_psi", 1.0)
    if noise not in ("const", "none"):
        raise DataError(f"{settings_file}: noise_mode: found {noise!r}, expected const or none")
    if not isinstance(truncation, (int, float)):
        raise DataError(f"{settings_file}: truncation_psi: found {truncation!r}, expected a number")
    return GoldenSet(folder, arrays, float(truncation), noise)


def check_golden(checkpoint: Checkpoint, golden: GoldenSet) -> Iterator[GoldenResult]:
    """Compares, first in PyTorch, then through the graphs of a bundle that is exported for it.

    Raises DataError where the golden set does not fit the checkpoint, EngineError without onnxruntime.
    """
    clip = checkpoint.kind == "styleinv"
    if checkpoint.kind == "inversion":
        raise DataError(f"{checkpoint.path}: kind: found inversion, expected styleinv, image or transfer")
    inputs = PICTURE_INPUTS + (CLIP_INPUTS if clip else ())
    wanted = [name for name in TOLERANCES if name in golden.arrays and (clip or name in ("w0", "x0"))]
    missing = [name for name in inputs if name not in golden.arrays]
    if missing or not wanted:
        raise DataError(
            f"{golden.folder / 'expected.npz'}: found {', '.join(sorted(golden.arrays))}, "
            f"expected {', '.join(inputs)} and at least one of {', '.join(TOLERANCES)}"
        )
    _check_inputs(checkpoint, golden)
    import_onnxruntime()  # better missed now than after the export
    yield from _compared("PyTorch", _pytorch_values(checkpoint, golden), golden, wanted)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "golden.bundle"
        bundle.mkdir()
        exported = replace(checkpoint, kind="image") if checkpoint.kind == "transfer" else checkpoint
        write_bundle(exported, bundle, noise=golden.noise)  # not verified: the golden values are what verifies it
        yield from _compared("ONNX Runtime", _bundle_values(Bundle.open(bundle), golden), golden, wanted)


def _check_inputs(checkpoint: Checkpoint, golden: GoldenSet) -> None:
    """Raises DataError where an input has another shape than the model takes, or frame indices are none."""
    generator, motion = checkpoint.config.model.generator, checkpoint.config.model.motion
    shapes: dict[str, tuple[int, ...]] = {"z": (1, generator.z_dim)}
    if generator.label_dim:
        shapes["c"] = (1, generator.label_dim)
    if isinstance(checkpoint.model, StyleInV):
        t = golden.arrays["t_frames"]
        if t.ndim != 1 or not len(t) or not (t >= 0).all():
            raise DataError(f"{golden.folder / 'expected.npz'}: t_frames: found {t}, expected frame indices")
        given = golden.arrays["motion_z"].shape
        anchors = max(checkpoint.model.motion.anchors_needed(float(t.max())), given[1] if len(given) == 3 else 0)
        shapes["motion_z"] = (1, anchors, motion.noise_dim)
    for name, shape in shapes.items():
        found = golden.arrays[name].shape if name in golden.arrays else None
        if found != shape:
            raise DataError(
                f"{golden.folder / 'expected.npz'}: {name}: found {'nothing' if found is None else list(found)}, "
                f"expected shape {list(shape)}"
            )


def _compared(way: str, found: Arrays, golden: GoldenSet, wanted: list[str]) -> Iterator[GoldenResult]:
    for name in wanted:
        expected = golden.arrays[name].astype(np.float64)
        if found[name].shape != expected.shape:
            raise DataError(
                f"{golden.folder / 'expected.npz'}: {name}: found shape {list(expected.shape)}, "
                f"expected the model's {list(found[name].shape)}"
            )
        error = np.abs(found[name] - expected).max() / np.abs(expected).max()
        yield GoldenResult(way, name, float(error), TOLERANCES[name])


@torch.no_grad()
def _pytorch_values(checkpoint: Checkpoint, golden: GoldenSet) -> Arrays:
    model, arrays = checkpoint.model, golden.arrays
    generator: Any = model.generator if isinstance(model, StyleInV) else model
    label = torch.from_numpy(arrays["c"]).float() if generator.mapping.label_dim else None
    w0 = generator.mapping(torch.from_numpy(arrays["z"]).float(), golden.truncation, label)
    x0 = generator.synthesis(w0, golden.noise)
    values = {"w0": w0, "x0": x0}
    if isinstance(model, StyleInV):
        t = torch.from_numpy(arrays["t_frames"]).double()[None]
        v = model.motion(torch.from_numpy(arrays["motion_z"]).float(), t)[0]
        frames = zip(*clip_frames(model, w0, x0, v, golden.noise), strict=True)
        style, w, images = (torch.cat(rows) for rows in frames)
        values |= {"motion_v": v, "style": style, "w_t": w, "frames": images}
    return {name: value.numpy() for name, value in values.items()}


def _bundle_values(bundle: Bundle, golden: GoldenSet) -> Arrays:
    arrays = golden.arrays
    with Sessions(bundle, engine="onnxruntime") as sessions:
        inputs = {"z": arrays["z"].astype(np.float32), "truncation_psi": np.array([golden.truncation], np.float32)}
        if bundle.generator["label_dim"]:
            inputs["label"] = arrays["c"].astype(np.float32)
        w0 = sessions.session("mapping").run(inputs)["w0"]
        x0 = sessions.session("synthesis").run({"w": w0}, ["image"])["image"]
        values: Arrays = {"w0": w0, "x0": x0}
        if bundle.kind == "styleinv":
            codes = MotionCodes(sessions.motion_network(), noise=arrays["motion_z"][0])
            v = np.stack([codes.time_code(float(t)) for t in arrays["t_frames"]])
            clip = {"w0": w0}
            if "content" in bundle.manifest["graphs"]:
                clip |= sessions.session("content").run({"image": x0})
            with _latent_and_style(bundle) as session:
                latents = [session.run({**clip, "v": row[None].astype(np.float32)}) for row in v]
            style, w = (np.concatenate([latent[name] for latent in latents]) for name in ("style", "w"))
            frames = [sessions.session("synthesis").run({"w": row[None]}, ["image"])["image"] for row in w]
            values |= {"motion_v": v, "style": style, "w_t": w, "frames": np.concatenate(frames)}
    return values


def _latent_and_style(bundle: Bundle) -> OnnxRuntimeSession:
    """The graph `latent`, giving the temporal style, too, which is a value inside it."""
    graph = bundle.graph("latent")
    model = onnx.load(graph.file, load_external_data=False)
    model.graph.output.extend(value for value in model.graph.value_info if value.name == "style")
    tapped = graph.file.with_name("latent_and_style.onnx")  # beside it, where its weights are
    tapped.write_bytes(model.SerializeToString())
    outputs = {**graph.outputs, "style": ArraySpec("float32", ("batch", _style_size(model)))}
    return OnnxRuntimeSession(replace(graph, file=tapped, outputs=outputs), SessionOptions())


def _style_size(model: onnx.ModelProto) -> int:
    (style,) = (value for value in model.graph.output if value.name == "style")
    return int(style.type.tensor_type.shape.dim[1].dim_value)
