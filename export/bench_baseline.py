"""The yardstick of `styleinv bench --baseline`: the same frames from the training form, in PyTorch eager.

    v_t from the motion network, on the host, as the bundle's own frames have it
    s_t = style(w0, v_t)
    w_t = w0 + encoder(x0, s_t)       all of the encoder, its once-per-clip part included, as a trainer calls it
    frame t = synthesis(w_t), as bytes

A second form keeps the encoder's once-per-clip part, as the bundle does, so that nothing of what is said about speed
hides there. All forms take turns, since a machine is not equally fast all the time.

With latents at every k-th frame only, frames of the bundle do not all cost the same. So it then plays k batches where
PyTorch draws one of them, and the time of its frames is the mean over those.

Shapes: B frames of a batch, V size of the time code, W size of a latent, R resolution.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from styleinv.export.bench_playing import Clock, Milliseconds
from styleinv.export.bench_start import Settings, frame_indices, played_label
from styleinv.kernels.reference import to_uint8
from styleinv.runtime.bundle import MOTION_FILE, Bundle
from styleinv.runtime.motion import MotionCodes, MotionNetwork
from styleinv.runtime.noise import Z_DOMAIN, standard_normal
from styleinv.runtime.rollout import Rollout
from styleinv.training.checkpoint import load_checkpoint
from styleinv.training.generator import Generator
from styleinv.training.model import StyleInV

Frames = npt.NDArray[np.uint8]  # [B, R, R, 3]
Form = Callable[[Sequence[int]], Frames]  # frame indices -> frames, as one batch

BLOCK = 5  # batches that are timed before another form has its turn
ROUNDS = 10  # turns of each form that are timed, if so many frames are


@dataclass(frozen=True)
class Baseline:
    """Milliseconds per frame of each form within the same minutes, and how near the frames are to each other."""

    ours: Milliseconds
    eager: Milliseconds
    cached: Milliseconds | None  # eager, the once-per-clip part kept; None where the model has no such part
    frames: int  # timed, of each form
    psnr_db: float  # of ours against eager's, all frames together; infinite where they are equal
    threads: int  # of PyTorch
    torch: str  # its version

    @property
    def speedup_vs_eager(self) -> float:
        """Median of eager over median of ours."""
        return float(np.median(self.eager) / np.median(self.ours))

    @property
    def speedup_vs_eager_cached(self) -> float | None:
        """The same for eager with the once-per-clip part kept."""
        return None if self.cached is None else float(np.median(self.cached) / np.median(self.ours))


def compare(rollout: Rollout, checkpoint: Path, settings: Settings) -> Baseline:
    """Plays the rollout's clip through the bundle and through PyTorch, in turns.

    PyTorch gets as many threads as the engine, or, as the engine does, what it finds best where none are given.
    Raises CheckpointError where the checkpoint cannot be read.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    eager = Eager(checkpoint, rollout.bundle, settings.seed)
    forms: dict[str, Form] = {"ours": partial(_stride_of_frames, rollout), "eager": eager.frames}
    if eager.has_content:
        forms["cached"] = partial(eager.frames, keep_content=True)
    rounds = max(1, min(ROUNDS, settings.frames // (BLOCK * settings.batch)))
    error = SquaredError()
    stride = rollout.latent_stride
    times = alternate(forms, _batches(rollout.bundle, rounds, settings.batch, stride), error.add)
    return Baseline(
        times["ours"] / stride,
        times["eager"],
        times.get("cached"),
        frames=len(times["ours"]) * settings.batch,
        psnr_db=error.psnr(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )


def _stride_of_frames(rollout: Rollout, ts: Sequence[int]) -> Frames:
    """Plays k batches in order, whole strides of frames, among them the one of these indices; returns that one."""
    batch, stride = len(ts), rollout.latent_stride
    if stride == 1:
        return np.stack(list(rollout.frames(ts, batch)))
    first = ts[0] // (stride * batch) * stride * batch
    played = rollout.frames(range(first, first + stride * batch), batch)
    return np.stack([frame for t, frame in enumerate(played, first) if t in ts])


class Eager:
    """The model in the form that is trained, drawing the frames of the clip with this seed.

    Args:
        channels_last: weights lie in memory with the channels of a pixel beside each other, as tensor cores want them.
    Raises: CheckpointError where the checkpoint cannot be read; BundleError where the motion network's file is damaged.
    """

    def __init__(
        self, checkpoint: Path, bundle: Bundle, seed: int, device: str = "cpu", channels_last: bool = False
    ) -> None:
        model = load_checkpoint(checkpoint).model
        assert isinstance(model, (StyleInV, Generator))  # no other kind's bundle plays
        self.device = device
        layout = torch.channels_last if channels_last else torch.preserve_format
        model.to(device).to(memory_format=layout)  # type: ignore[call-overload]
        self._model = model if isinstance(model, StyleInV) else None
        self._generator = model.generator if isinstance(model, StyleInV) else model
        self._noise: str = bundle.manifest["noise"]
        self._motion: MotionCodes | None = None
        if self._model:
            network = MotionNetwork(bundle.motion_tensors(), bundle.motion, str(bundle.path / MOTION_FILE))
            self._motion = MotionCodes(network, seed)
        with torch.inference_mode():
            self.w0 = self._first_latent(seed, played_label(bundle))  # [1, W]
            self.x0 = self._generator.synthesis(self.w0, self._noise)  # [1, 3, R, R]
            self._content = self._model.content(self.x0) if self._model else ()

    @property
    def has_content(self) -> bool:
        """Whether there is something that could be computed once per clip."""
        return bool(self._content)

    def frames(self, ts: Sequence[int], keep_content: bool = False) -> Frames:
        """The frames at these frame indices, with or without what was computed before."""
        with torch.inference_mode():
            frames: Frames = self.draw(self.time_codes(ts), keep_content).cpu().numpy()
        return frames

    def time_codes(self, ts: Sequence[int]) -> torch.Tensor:
        """v of these frame indices, [B, V], on the device; of an image model, which has no time, [B, 0]."""
        if self._motion is None:
            return torch.empty(len(ts), 0, device=self.device)
        codes = np.stack([self._motion.time_code(t) for t in ts]).astype(np.float32)
        return torch.from_numpy(codes).to(self.device)

    def draw(self, v: torch.Tensor, keep_content: bool = False) -> torch.Tensor:
        """The frames at these time codes, uint8 [B, R, R, 3], on the device."""
        w = self.w0.expand(len(v), -1)
        if self._model is not None:
            content = self._content if keep_content else self._model.content(self.x0)
            content = tuple(part.expand(len(v), -1, -1, -1) for part in content)
            w = self._model.latent(content, w, self._model.style(w, v))
        return to_uint8(self._generator.synthesis(w, self._noise).float())

    def _first_latent(self, seed: int, label: int | None) -> torch.Tensor:
        mapping = self._generator.mapping
        z = torch.from_numpy(standard_normal(seed, Z_DOMAIN, 0, mapping.z_dim)).float()[None].to(self.device)
        one_hot = None if label is None else torch.eye(mapping.label_dim, device=self.device)[label][None]
        w0: torch.Tensor = mapping(z, label=one_hot)
        return w0


def alternate(
    forms: Mapping[str, Form],
    rounds: Sequence[Sequence[Sequence[int]]],
    compared: Callable[[Frames, Frames], None],
    clock: Clock = time.perf_counter,
) -> dict[str, Milliseconds]:
    """Milliseconds per frame of each form. In each round every form has a turn, and draws the same batches.

    The first round is the warm-up, and not timed. Nor is a turn's first batch: the threads of the form before may still
    keep the cores busy, waiting for more.

    Args:
        rounds: for each round its batches, for each of those its frame indices.
        compared: is given the frames of the first form and those of the second.
    """
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn, batches in enumerate(rounds):
        drawn = []
        for name, form in forms.items():
            for number, ts in enumerate(batches):
                begin = clock()
                frames = form(ts)
                if turn > 0 and number > 0:
                    times[name].append(1000.0 * (clock() - begin) / len(ts))
                drawn.append(frames)
        for ours, eager in zip(drawn, drawn[len(batches) : 2 * len(batches)], strict=False):
            compared(ours, eager)
    return {name: np.array(milliseconds) for name, milliseconds in times.items()}


class SquaredError:
    """The mean squared difference of bytes over pairs of pictures."""

    def __init__(self) -> None:
        self._sum, self._count = 0, 0

    def add(self, found: Frames, wanted: Frames) -> None:
        """One more pair, of equal shapes."""
        self._sum += int(np.square(found.astype(np.int64) - wanted).sum())
        self._count += found.size

    @property
    def compared(self) -> bool:
        """Whether there was any pair."""
        return self._count > 0

    def psnr(self) -> float:
        """Peak signal-to-noise ratio in decibels; infinite where no byte differs."""
        return math.inf if self._sum == 0 else 10.0 * math.log10(255.0**2 * self._count / self._sum)


def _batches(bundle: Bundle, rounds: int, batch: int, stride: int) -> list[list[list[int]]]:
    """The clip's frames in order, as batches: for each round, and one before them, BLOCK and one before them.

    Of `stride` batches one is listed: the first of the first, the second of the next and so on, so that frames at and
    between keyframes have their turn.
    """
    ts = frame_indices(bundle)
    played = iter(lambda: [next(ts) for _ in range(batch)], None)
    strides = ([next(played) for _ in range(stride)][number % stride] for number in itertools.count())
    return [[next(strides) for _ in range(BLOCK + 1)] for _ in range(rounds + 1)]
