"""A rollout: one clip of a bundle, being played.

    rollout = Rollout.open("sky.bundle", seed=7)
    frame = rollout[1000.5]                  # uint8 [H, W, 3]; any t, any order, same answer
    for frame in rollout.play(fps=25): ...   # endless, constant memory

A frame is a pure function of (bundle, seed or z or w0, motion seed, truncation, t): nothing accumulates while playing.
Three clocks (sections 3.1 and 3.2 of StyleInV, ICCV 2023): w0, the first picture and its features once per clip; motion
codes once per anchor; time code, latent and picture for every frame.

Shapes: B batch, T frames, H W height and width, Z size of z, W size of a latent, V size of the time code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from styleinv.runtime.bundle import Bundle
from styleinv.runtime.closing import Closing
from styleinv.runtime.errors import BundleError
from styleinv.runtime.mapping import given_latent, mapping_inputs
from styleinv.runtime.motion import FrameIndex, MotionCodes, as_frame_index
from styleinv.runtime.noise import check_word
from styleinv.runtime.sessions import Sessions
from styleinv.runtime.sessions.base import Arrays

Frame = npt.NDArray[np.uint8]  # [H, W, 3], RGB
Latents = npt.NDArray[np.float32]  # [B, W]


class Rollout(Closing):
    """One clip. Threads may share it; many rollouts may share one `Sessions`.

    Args:
        sessions: the loaded graphs of a bundle; they stay open when the rollout is closed (see `Rollout.open`).
        seed: 0 .. 2^64 - 1; decides z and, unless `motion_seed` is given, the motion.
        z: float [Z], instead of the z that the seed gives.
        motion_seed: 0 .. 2^64 - 1; other motion for the same first picture.
        truncation: psi of the mapping network; 1 is the model as trained, towards 0 all clips become alike.
        label: class of a conditional model, 0 .. label_dim - 1; None for all other models.
        w0: float [W], the first latent itself, such as `inversion.invert` finds for a picture. It stands in for the
            mapping network's output, so z and label stay None and truncation stays 1; the seed decides the motion.
        transfer: name of the transfer that draws the frames; None is the bundle's own generator. Latents, and the
            first image, from which the encoder starts, are the same for all of them.
    Raises: BundleError where the bundle plays nothing by itself or has no such transfer; ValueError where an argument
        is out of range or does not go with another.
    """

    def __init__(
        self,
        sessions: Sessions,
        seed: int = 0,
        *,
        z: npt.ArrayLike | None = None,
        motion_seed: int | None = None,
        truncation: float = 1.0,
        label: int | None = None,
        w0: npt.ArrayLike | None = None,
        transfer: str | None = None,
    ) -> None:
        self.bundle = sessions.bundle
        if self.bundle.kind == "inversion":
            raise BundleError(
                f"{self.bundle.path}: kind: found inversion, expected styleinv or image: "
                "a bundle of an inversion model plays nothing by itself"
            )
        self.seed = check_word("seed", seed)
        self.motion_seed = self.seed if motion_seed is None else check_word("motion_seed", motion_seed)
        self.transfer = transfer
        if transfer is not None:
            self.bundle.graph("synthesis", transfer)  # raises where there is none
        self._sessions = sessions
        self._owns_sessions = False
        generator = self.bundle.generator
        self._w0 = None if w0 is None else given_latent(generator, w0, z, truncation, label)
        self._mapping_inputs = mapping_inputs(generator, self.seed, z, truncation, label) if w0 is None else {}
        self._repeated: tuple[int, Arrays] | None = None
        self._motion = (
            MotionCodes(sessions.motion_network(), self.motion_seed) if self.bundle.kind == "styleinv" else None
        )

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        seed: int = 0,
        *,
        z: npt.ArrayLike | None = None,
        motion_seed: int | None = None,
        truncation: float = 1.0,
        label: int | None = None,
        w0: npt.ArrayLike | None = None,
        transfer: str | None = None,
        engine: str = "auto",
        precision: str = "fp32",
        threads: int | None = None,
    ) -> Self:
        """Opens a bundle and a rollout of it; closing the rollout closes the sessions. Arguments as in the class.

        Args:
            bundle: its folder, or a bundle opened before.
            engine: 'auto' takes the fastest that this machine has; `Rollout.engine` says which.
            precision: what it computes in. 'fp32' is exact, 'bf16' twice as fast where the CPU has it, and close;
                'fp16' is for GPUs.
            threads: CPU threads; None lets the engine decide.
        Raises: as the class; BundleError where the bundle is damaged; EngineError where the engine cannot be had.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        sessions = Sessions(opened, engine=engine, precision=precision, threads=threads)
        rollout = cls(
            sessions,
            seed,
            z=z,
            motion_seed=motion_seed,
            truncation=truncation,
            label=label,
            w0=w0,
            transfer=transfer,
        )
        sessions.session("synthesis", transfer)  # an engine that cannot be had is told here, not at the first frame
        rollout._owns_sessions = True
        return rollout

    @property
    def engine(self) -> str:
        """What computes the frames: engine, version and device."""
        return self._sessions.session("synthesis", self.transfer).name

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame, in pixels."""
        resolution = int(self.bundle.generator["resolution"])
        return resolution, resolution

    @cached_property
    def first_latent(self) -> Latents:
        """w0, the latent of the first picture: float32 [W], read-only."""
        w0: Latents = self._run("mapping", self._mapping_inputs, "w0")[0] if self._w0 is None else self._w0
        w0.flags.writeable = False
        return w0

    @cached_property
    def first_image(self) -> npt.NDArray[np.float32]:
        """x0, the picture of w0, from which the encoder starts: float32 [3, H, W] in about [-1, 1], read-only. It is
        the bundle's own generator's, whichever transfer draws the frames."""
        x0: npt.NDArray[np.float32] = self._run("synthesis", {"w": self.first_latent[None]}, "image")[0]
        x0.flags.writeable = False
        return x0

    def __getitem__(self, t: FrameIndex | slice) -> Frame:
        """The frame at frame index t, uint8 [H, W, 3]; of a slice start:stop:step, real numbers, uint8 [T, H, W, 3].

        The array is new, C-contiguous and the caller's.
        Raises: TypeError or ValueError where t is no real number >= 0, or a slice has no stop or does not run forward;
        BundleError where a bundle of an image model is asked for t other than 0.
        """
        if not isinstance(t, slice):
            return next(self.frames([t]))
        indices = _slice_indices(t)
        frames = np.empty((len(indices), *self.size, 3), np.uint8)
        for place, frame in zip(frames, self.frames(indices), strict=True):
            place[...] = frame
        return frames

    def frames(self, ts: Iterable[FrameIndex], batch: int = 1) -> Iterator[Frame]:
        """Yields the frame, uint8 [H, W, 3], at each frame index of `ts`, which may be endless.

        `batch` frames are computed at a time. The same batch size gives the same bytes; another one may differ by a
        level, where an engine then adds in another order. Raises, as it goes, what `rollout[t]` raises.
        """
        return (frame for (frame,) in self.renderings(ts, [self.transfer], batch))

    def renderings(
        self, ts: Iterable[FrameIndex], transfers: Sequence[str | None], batch: int = 1
    ) -> Iterator[tuple[Frame, ...]]:
        """Yields, at each frame index of `ts`, the frame as several generators draw it from the one latent w_t: for
        each name of `transfers` that transfer's, for None the bundle's own. Otherwise as `frames`.

        Raises: BundleError where there is no such transfer.
        """
        for transfer in transfers:
            self.bundle.graph("synthesis", transfer)
        return (
            tuple(np.array(frame, order="C") for frame in frames)  # copies: keeping a frame does not keep its batch
            for filled, wanted in _batches(ts, batch)
            for frames in itertools.islice(self._drawn(self._latents_at(filled), transfers), wanted)
        )

    def latents(self, ts: Iterable[FrameIndex], batch: int = 1) -> Latents:
        """The latent w_t at each frame index of `ts`: float32 [T, W]. Raises what `rollout[t]` raises."""
        rows = [self._latents_at(filled)[:wanted] for filled, wanted in _batches(ts, batch)]
        return np.concatenate(rows) if rows else np.empty((0, self.bundle.generator["w_dim"]), np.float32)

    def play(
        self, fps: float | None = None, start: FrameIndex = 0, speed: float = 1.0, count: int | None = None
    ) -> Iterator[Frame]:
        """Yields frames, uint8 [H, W, 3], at t = start + n * speed * frame_rate / fps for n = 0, 1, ...; endless unless
        `count` is given, in constant memory.

        Args:
            fps: frames per second of the player; None is the bundle's frame rate.
            start: frame index of the first frame.
            speed: 0.5 is slow motion, 2 is twice as fast.
        Raises: ValueError where fps or speed is not above 0, or start is no frame index.
        """
        return self.frames(self.times(fps, start, speed, count))

    def times(
        self, fps: float | None = None, start: FrameIndex = 0, speed: float = 1.0, count: int | None = None
    ) -> Iterator[FrameIndex]:
        """The frame indices that `play` plays; arguments and errors as there."""
        fps = self.bundle.frame_rate if fps is None else _checked_positive("fps", fps)
        stride = _checked_positive("speed", speed) * (self.bundle.frame_rate / fps)
        first = as_frame_index(start, "start")
        step = int(stride) if stride.is_integer() else stride  # integers keep t exact for ever
        numbers_of_frames = itertools.count() if count is None else range(count)
        return (first + n * step for n in numbers_of_frames)  # multiplied, so that no error adds up

    def close(self) -> None:
        """Closes the sessions, if `Rollout.open` opened them. Closing twice is allowed."""
        if self._owns_sessions:
            self._sessions.close()

    def _latents_at(self, frame_indices: Sequence[FrameIndex]) -> Latents:
        ts = [as_frame_index(t) for t in frame_indices]
        if self._motion is None:
            if any(ts):
                raise BundleError(
                    f"{self.bundle.path}: found t = {next(filter(None, ts))}, expected 0: "
                    "a bundle of an image model plays single pictures"
                )
            return np.repeat(self.first_latent[None], len(ts), axis=0)
        v = np.stack([self._motion.time_code(t) for t in ts]).astype(np.float32)
        return self._run("latent", {**self._clip_inputs(len(ts)), "v": v}, "w")

    def _clip_inputs(self, batch: int) -> Arrays:
        """What does not depend on t, repeated for each of the batch: the content graph's outputs, if any, and w0."""
        repeated = self._repeated
        if repeated is None or repeated[0] != batch:
            clip: Arrays = {}
            if "content" in self.bundle.manifest["graphs"]:
                clip = self._sessions.session("content").run({"image": self.first_image[None]})
            clip["w0"] = self.first_latent[None]
            repeated = batch, {name: np.repeat(array, batch, axis=0) for name, array in clip.items()}
            self._repeated = repeated
        return repeated[1]

    def _drawn(self, latents: Latents, transfers: Sequence[str | None]) -> Iterator[tuple[Frame, ...]]:
        """For each latent of [B, W] its picture by each generator."""
        return zip(
            *(
                self._sessions.session("synthesis", transfer).run({"w": latents}, ["frame"])["frame"]
                for transfer in transfers
            ),
            strict=True,
        )

    def _run(self, graph: str, inputs: Arrays, output: str) -> npt.NDArray[Any]:
        return self._sessions.session(graph).run(inputs, [output])[output]


def _checked_positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: found {value!r}, expected a finite number above 0")
    return float(value)


def _batches(ts: Iterable[FrameIndex], batch: int) -> Iterator[tuple[list[FrameIndex], int]]:
    """Frame indices in lists of `batch`, and how many of each list were asked for: the last list is filled up, so that
    every run of a graph has the same shape."""
    if batch < 1:
        raise ValueError(f"batch: found {batch}, expected at least 1")
    remaining = iter(ts)
    chunks = iter(lambda: list(itertools.islice(remaining, batch)), [])
    return ((chunk + chunk[-1:] * (batch - len(chunk)), len(chunk)) for chunk in chunks)


def _slice_indices(span: slice) -> list[int | float]:
    """Frame indices start, start + step, ... before stop; start is 0 and step is 1 where they are left out."""
    if span.stop is None:
        raise ValueError("slice: found no stop, expected one; `play` yields frames without end")
    start = as_frame_index(0 if span.start is None else span.start, "slice start")
    stop = as_frame_index(span.stop, "slice stop")
    step = as_frame_index(1 if span.step is None else span.step, "slice step")
    if step == 0:
        raise ValueError("slice: found step 0, expected a step above 0")
    return [start + n * step for n in range(max(0, math.ceil((stop - start) / step)))]
