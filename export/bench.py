"""Measures how fast a bundle plays on this machine: what `styleinv bench` does, without its options and reports.

Frames are played as an application plays them, through a `Rollout`. Cold start and memory are measured in processes of
their own, before this one loads anything large.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from styleinv.export.bench_machine import Convolutions, fastest_convolutions
from styleinv.export.bench_playing import Played, TimedSessions, play
from styleinv.export.bench_start import FIRST_FRAME, Settings, played_label
from styleinv.runtime.bundle import Bundle, file_sha256
from styleinv.runtime.errors import BundleError, CheckpointError, EngineError, StyleInVError
from styleinv.runtime.manifest_fields import CPU_TARGET
from styleinv.runtime.rollout import Rollout

if TYPE_CHECKING:  # it imports torch
    from styleinv.export.bench_baseline import Baseline

FRAME_GRAPHS = {"styleinv": ("latent", "synthesis"), "image": ("synthesis",)}  # by kind, what a frame takes
ON_CPU = ("openvino", "onnxruntime")  # engines that play on the CPU; but for inductor, all others play on a GPU
STARTS = 3
MEMORY_FRAMES = 50  # that the process whose memory is measured plays after the warm-up, if so many are timed


@dataclass(frozen=True)
class Start:
    """Seconds from starting a process to its first frame, of each start, and MiB that playing took at most."""

    seconds: tuple[float, ...]
    peak_memory_mib: float
    memory_frames: int  # played before the memory was looked at

    @property
    def median_seconds(self) -> float:
        return float(np.median(self.seconds))


@dataclass(frozen=True)
class Result:
    """All that was measured."""

    settings: Settings
    bundle: Bundle
    start: Start
    played: Played
    convolutions: Convolutions | str  # why there are none, in words
    baseline: Baseline | None

    @property
    def gmac_per_s(self) -> float | None:
        """10^9 multiply-accumulates per second, over all frames; None where the bundle does not count them."""
        macs = macs_per_frame(self.bundle.manifest, self.played.latent_stride)
        return None if macs is None else macs / 1e9 * self.played.frames_per_second

    @property
    def share_of_peak(self) -> float | None:
        """That rate over the rate of the fastest convolutions measured here."""
        if self.gmac_per_s is None or isinstance(self.convolutions, str):
            return None
        return self.gmac_per_s / self.convolutions.gmac_per_s


def measure(settings: Settings, checkpoint: Path | None, report: Callable[[str], None]) -> Result:
    """Measures everything.

    Args:
        checkpoint: what the bundle was exported from, to run in PyTorch beside it; None for no such comparison.
        report: is told, in words, what is being measured.
    Raises: BundleError where the bundle is damaged or plays nothing by itself; EngineError where the engine cannot be
        had; CheckpointError where the checkpoint is none or another one.
    """
    bundle = open_playable(settings)
    settings = dataclasses.replace(settings, label=played_label(bundle))
    if checkpoint is not None:
        check_origin(bundle, checkpoint)
    report(f"cold start ({STARTS} times) and memory, in processes of their own")
    start = measure_start(settings)
    with TimedSessions(bundle, settings) as sessions:
        rollout = Rollout(sessions, settings.seed, label=settings.label, latent_stride=settings.latent_stride)
        report(f"{settings.whole_batches(settings.frames)} frames on {rollout.engine}")
        played = play(rollout, sessions, settings)
        convolutions: Convolutions | str
        if plays_on_cpu(sessions.engine):
            try:
                convolutions = fastest_convolutions(settings.precision, settings.threads)
            except EngineError as error:
                convolutions = str(error)
        else:
            convolutions = f"{sessions.engine} plays on a GPU, and only those of CPUs are measured"
        baseline = None
        if checkpoint is not None:
            from styleinv.export.bench_baseline import compare

            report("the model in PyTorch eager, in turns with the bundle")
            baseline = compare(rollout, checkpoint, settings)
    return Result(settings, bundle, start, played, convolutions, baseline)


def open_playable(settings: Settings) -> Bundle:
    """The bundle. Raises BundleError where it is damaged or plays nothing by itself."""
    bundle = Bundle.open(settings.bundle, settings.verify_hashes)
    if bundle.kind not in FRAME_GRAPHS:
        raise BundleError(
            f"{bundle.path}: kind: found {bundle.kind}, expected {' or '.join(FRAME_GRAPHS)}: a bundle of an "
            "inversion model plays nothing by itself, so it has no frames to time"
        )
    return bundle


def check_origin(bundle: Bundle, checkpoint: Path) -> None:
    """Raises CheckpointError where the bundle was not exported from this checkpoint file."""
    if not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint}: no such file, expected a .safetensors checkpoint")
    provenance = bundle.manifest["provenance"]
    found, expected = file_sha256(checkpoint), provenance.get("checkpoint_sha256")
    if found != expected:
        raise CheckpointError(
            f"{checkpoint}: found SHA-256 {found}, expected {expected or 'nothing'}, which {bundle.path} says in "
            f"provenance.checkpoint_sha256: it was exported from another checkpoint ({provenance.get('checkpoint')})"
        )


def macs_per_frame(manifest: Mapping[str, Any], latent_stride: int = 1) -> int | None:
    """Multiply-accumulates of a frame at batch 1, of the graph `latent` every k-th one; None in older bundles."""
    counts = {graph: manifest["graphs"][graph].get("macs") for graph in FRAME_GRAPHS[manifest["kind"]]}
    if None in counts.values():
        return None
    return sum(count // latent_stride if graph == "latent" else count for graph, count in counts.items())


def measure_start(settings: Settings) -> Start:
    """Starts a process several times, up to its first frame; the last one plays on, for its memory.

    By then the system has the bundle's files in its cache. Raises StyleInVError, with what the process said, where it
    fails.
    """
    memory_frames = settings.whole_batches(settings.warmup + min(settings.frames, MEMORY_FRAMES))
    counts = [0] * (STARTS - 1) + [memory_frames]
    starts = [_start(dataclasses.replace(settings, frames=count)) for count in counts]
    return Start(tuple(seconds for seconds, _ in starts), starts[-1][1], memory_frames)


def _start(settings: Settings) -> tuple[float, float]:
    """Seconds to the first frame, and MiB of memory at the end, of one process."""
    options = json.dumps(dataclasses.asdict(settings))
    # -P: files of the working directory are not to stand in for modules, as they do not in `styleinv` either
    command = [sys.executable, "-P", "-m", "styleinv.export.bench_start", options]
    with tempfile.TemporaryFile("w+") as errors:
        begin = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            try:
                assert process.stdout is not None
                first = process.stdout.readline().strip()
                seconds = time.perf_counter() - begin
                rest = process.stdout.read()
                status = process.wait()
            except BaseException:
                process.kill()
                raise
        errors.seek(0)
        said = errors.read().strip()
    if status == 2:
        raise StyleInVError(said)
    if status != 0 or first != FIRST_FRAME:
        raise StyleInVError(f"{settings.bundle}: a process that played it ended with status {status}: {said}")
    return seconds, float(rest)


def plays_on_cpu(engine: str) -> bool:
    """Whether an engine plays on the CPU of this machine; packages of Inductor do where PyTorch sees no GPU."""
    if engine != "inductor":
        return engine in ON_CPU
    from styleinv.runtime.sessions.inductor import here  # it asks PyTorch

    return here(engine).target == CPU_TARGET
