"""A rollout: one clip of a bundle, being played.

    rollout = Rollout.open("sky.bundle", seed=7)
    frame = rollout[1000.5]                  # uint8 [H, W, 3]; any t, any order, same answer
    for frame in rollout.play(fps=25): ...   # endless, constant memory

A frame is a pure function of (bundle, seed or z or w0 or image, motion, truncation, t): nothing accumulates while
playing. Three clocks (sections 3.1 and 3.2 of StyleInV, ICCV 2023): w0, the first picture and its features once per
clip; motion codes once per anchor; time code, latent and picture for every frame.

Shapes: B batch, T frames, H W height and width, Z size of z, W size of a latent, V size of the time code.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Self, TypedDict, Unpack, overload

import numpy as np
import numpy.typing as npt

from styleinv.runtime.bundle import Bundle
from styleinv.runtime.clip import open_clip
from styleinv.runtime.closing import Closing
from styleinv.runtime.device_array import DeviceArray
from styleinv.runtime.errors import BundleError, StyleInVError
from styleinv.runtime.frame_times import batches, playing_times, slice_times
from styleinv.runtime.frames import Frame, check_out, owned
from styleinv.runtime.latent_stride import PSNR_DB, STRIDED_BATCH, checked_stride
from styleinv.runtime.latents import ClipLatents, Latents
from styleinv.runtime.motion import FrameIndex, MotionCodes
from styleinv.runtime.noise import check_word
from styleinv.runtime.sessions import FUSED_GRAPH, Session, Sessions
from styleinv.runtime.sessions.base import Arrays, Pending, one_ahead
from styleinv.runtime.timeline import Timeline, TimeMap


class Arguments(TypedDict, total=False):
    """What decides a rollout besides its seed, as `Rollout` takes it."""

    z: npt.ArrayLike | None
    w0: npt.ArrayLike | None
    image: str | Path | npt.NDArray[np.uint8] | None
    motion_seed: int | None
    truncation: float
    label: int | None
    transfer: str | None
    latent_stride: int | str
    latent_psnr_db: float


class Options(TypedDict):
    """What decides how it is computed, as `Sessions` takes it."""

    engine: str
    precision: str
    threads: int | None
    trust: bool


class Rollout(Closing):
    """One clip. Threads may share it; many rollouts may share one `Sessions`.

    Args:
        sessions: the loaded graphs of a bundle; they stay open when the rollout is closed (see `Rollout.open`).
        seed: 0 .. 2^64 - 1; decides z and, unless `motion_seed` is given, the motion.
        z: float [Z], instead of the z that the seed gives.
        w0: float [W], the first latent itself. It stands in for the mapping network's output, so z and label stay None
            and truncation stays 1; the seed decides the motion.
        image: the picture from which the clip is to begin: a file, or uint8 [H, W, 3] of any size, of which the centred
            square is taken. The bundle's inversion encoder finds its w0, so what goes for `w0` goes for it.
        motion_seed: 0 .. 2^64 - 1; other motion for the same first picture.
        truncation: psi of the mapping network; 1 is the model as trained, towards 0 all clips become alike.
        label: class of a conditional model, 0 .. label_dim - 1; None for all other models.
        transfer: name of the transfer that draws the frames; None is the bundle's own generator. Latents, and the
            first image, from which the encoder starts, are the same for all of them.
        latent_stride: latents of every k-th frame alone are the encoder's, those between lie on a smooth curve: faster,
            and close (see `latent_stride.StridedLatents`). 'auto' takes the largest k of which no frame that export
            looked at was further than `latent_psnr_db` decibels from the exact one.
    Raises: BundleError where the bundle plays nothing by itself, has no such transfer, no inversion encoder or no
        measured strides; DataError where the image cannot be read; ValueError where an argument is out of range or does
        not go with another.
    """

    def __init__(
        self,
        sessions: Sessions,
        seed: int = 0,
        *,
        z: npt.ArrayLike | None = None,
        w0: npt.ArrayLike | None = None,
        image: str | Path | npt.NDArray[np.uint8] | None = None,
        motion_seed: int | None = None,
        truncation: float = 1.0,
        label: int | None = None,
        transfer: str | None = None,
        latent_stride: int | str = 1,
        latent_psnr_db: float = PSNR_DB,
    ) -> None:
        self.sessions, self.bundle = sessions, sessions.bundle
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
        self.latent_stride = checked_stride(self.bundle, latent_stride, latent_psnr_db)
        self._owns_sessions = False
        self.clip = open_clip(sessions, self.seed, z=z, w0=w0, image=image, truncation=truncation, label=label)
        self._timeline: Timeline | None = None
        if self.bundle.kind == "styleinv":
            self._timeline = Timeline(MotionCodes(sessions.motion_network(), self.motion_seed))
        self._latents = ClipLatents(sessions, self.clip, self._timeline, self.latent_stride)

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        seed: int = 0,
        *,
        engine: str = "auto",
        precision: str = "fp32",
        threads: int | None = None,
        verify_hashes: bool = True,
        trust: bool = False,
        **arguments: Unpack[Arguments],
    ) -> Self:
        """Opens a bundle and a rollout of it; closing the rollout closes the sessions.

        Args:
            bundle: its folder, or a bundle opened before.
            engine: 'auto' takes the fastest that this machine has, and on which the bundle's probe comes out right;
                `Rollout.engine` says which.
            precision: what it computes in. 'fp32' is exact, 'bf16' twice as fast where the CPU has it, and close;
                'fp16' is for GPUs.
            threads: CPU threads; None lets the engine decide.
            trust: compiled engines in a bundle are native code, which can do anything: 'auto' takes them only from a
                bundle that is trusted, such as one's own. Who names such an engine trusts the bundle.
            verify_hashes: read every file of the folder to compare its SHA-256, while the engine loads.
            arguments: as in the class: z, w0, image, motion_seed, truncation, label, transfer, latent_stride,
                latent_psnr_db.
        Raises: as the class; BundleError where the bundle is damaged; EngineError where the engine cannot be had.
        """
        options: Options = {"engine": engine, "precision": precision, "threads": threads, "trust": trust}
        if isinstance(bundle, Bundle):
            return cls._opened(Sessions(bundle, **options), seed, arguments)
        opened = Bundle.open(bundle, verify_hashes=False)
        if not verify_hashes:
            return cls._opened(Sessions(opened, **options), seed, arguments)
        with ThreadPoolExecutor(1) as pool:
            verification = pool.submit(opened.verify)
            try:
                rollout = cls._opened(Sessions(opened, **options), seed, arguments)
            except StyleInVError:
                verification.result()  # damage explains better why an engine did not load it
                raise
            if (damage := verification.exception()) is not None:
                rollout.close()
                raise damage
        return rollout

    @classmethod
    def _opened(cls, sessions: Sessions, seed: int, arguments: Arguments) -> Self:
        """A rollout that owns its sessions, everything loaded: what cannot be had is told now."""
        try:
            rollout = cls(sessions, seed, **arguments)
            sessions.preload(rollout.transfer, fused=rollout._fused([rollout.transfer]))
        except BaseException:
            sessions.close()
            raise
        rollout._owns_sessions = True
        return rollout

    @property
    def engine(self) -> str:
        """What computes the frames: engine, version and device."""
        return self._drawing([self.transfer])[0].name

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a frame, in pixels."""
        resolution = int(self.bundle.generator["resolution"])
        return resolution, resolution

    @property
    def first_latent(self) -> npt.NDArray[np.float32]:
        """w0, the latent of the first picture: float32 [W], read-only."""
        return self.clip.first_latent

    @property
    def first_image(self) -> npt.NDArray[np.float32]:
        """x0, the picture of w0, from which the encoder starts: float32 [3, H, W] in about [-1, 1], read-only. It is
        the bundle's own generator's, whichever transfer draws the frames."""
        return self.clip.first_image

    def __getitem__(self, t: FrameIndex | slice) -> Frame:
        """The frame at frame index t, uint8 [H, W, 3]; of a slice start:stop:step, real numbers, uint8 [T, H, W, 3].

        The array is new, C-contiguous and the caller's.
        Raises: TypeError or ValueError where t is no real number >= 0, or a slice does not say where to begin and end;
        BundleError where a bundle of an image model is asked for t other than 0.
        """
        if not isinstance(t, slice):
            return self.frame(t)
        times = slice_times(t)
        frames = np.empty((len(times), *self.size, 3), np.uint8)
        for place, moment in zip(frames, times, strict=True):
            self.frame(moment, out=place)
        return frames

    @overload
    def frame(self, t: FrameIndex, *, out: Frame | None = None, device: Literal["cpu"] = "cpu") -> Frame: ...
    @overload
    def frame(self, t: FrameIndex, *, device: Literal["cuda"]) -> DeviceArray: ...
    def frame(self, t: FrameIndex, *, out: Frame | None = None, device: str = "cpu") -> Frame | DeviceArray:
        """The frame at frame index t, uint8 [H, W, 3]: a new array, or `out`, written over.

        With device="cuda" it stays on the GPU that the session is on: an object with `__dlpack__` and
        `__cuda_array_interface__`, for `torch.from_dlpack`, `cupy.asarray` and their like.
        Raises: as `rollout[t]`; ValueError where `out` has another shape or dtype or is read-only, or goes with another
        device; EngineError where the session is on no GPU.
        """
        if device == "cpu":
            return next(self.frames([t], 1, out=out))
        if device != "cuda" or out is not None:
            raise ValueError(
                f"device: found {device!r}{' and out' if out is not None else ''}, expected cpu, or cuda alone"
            )
        (session,), inputs = self._drawing([self.transfer]), self._inputs([t], [self.transfer])
        batch = session.run_on_device(inputs, ["frame"])["frame"]  # [1, H, W, 3]
        return dataclasses.replace(batch, shape=batch.shape[1:])

    def frames(
        self, ts: Iterable[FrameIndex], batch: int | None = None, *, out: Frame | None = None
    ) -> Iterator[Frame]:
        """Yields the frame, uint8 [H, W, 3], at each frame index of `ts`, which may be endless.

        `batch` frames are computed at a time; None is one, or two with strided latents. The same batch size gives the
        same bytes; another one may differ by a level, where an engine then adds in another order. Each frame is a new
        array, or `out`, written over with the next one each time. A GPU computes the next `batch` meanwhile, so it is
        asked for one of them earlier. Raises, as it goes, what `rollout.frame` raises.
        """
        check_out(out, (*self.size, 3))
        return (owned(frame, out) for (frame,) in self._rendered(ts, [self.transfer], batch))

    def renderings(
        self, ts: Iterable[FrameIndex], transfers: Sequence[str | None], batch: int | None = None
    ) -> Iterator[tuple[Frame, ...]]:
        """Yields, at each frame index of `ts`, the frame as several generators draw it from the one latent w_t: for
        each name of `transfers` that transfer's, for None the bundle's own. Otherwise as `frames`.

        Raises: BundleError where there is no such transfer.
        """
        for transfer in transfers:
            self.bundle.graph("synthesis", transfer)
        return (tuple(owned(frame) for frame in frames) for frames in self._rendered(ts, transfers, batch))

    def latents(self, ts: Iterable[FrameIndex], batch: int = 1) -> Latents:
        """The latent w_t at each frame index of `ts`: float32 [T, W]. Raises what `rollout[t]` raises."""
        rows = [self._latents.at(filled)[:wanted] for filled, wanted in batches(ts, batch)]
        return np.concatenate(rows) if rows else np.empty((0, self.bundle.generator["w_dim"]), np.float32)

    def play(
        self,
        fps: float | None = None,
        start: FrameIndex = 0,
        speed: float = 1.0,
        count: int | None = None,
        *,
        out: Frame | None = None,
    ) -> Iterator[Frame]:
        """Yields frames, uint8 [H, W, 3], at t = start + n * speed * frame_rate / fps for n = 0, 1, ...; endless unless
        `count` is given, in constant memory. Backwards it ends at the beginning of the clip.

        Args:
            fps: frames per second of the player; None is the bundle's frame rate.
            start: frame index of the first frame.
            speed: 0.5 is slow motion, 2 is twice as fast, below 0 is backwards.
            out: where every frame is written, instead of new arrays.
        Raises: ValueError where fps is not above 0, speed is 0, or start is no frame index.
        """
        return self.frames(self.times(fps, start, speed, count), out=out)

    def times(
        self, fps: float | None = None, start: FrameIndex = 0, speed: float = 1.0, count: int | None = None
    ) -> Iterator[FrameIndex]:
        """The frame indices that `play` plays; arguments and errors as there."""
        return playing_times(self.bundle.frame_rate, fps, start, speed, count)

    def warm_up(self, t: FrameIndex = 0) -> None:
        """Computes what comes before the picture at t, once per clip or graph, so that the next frame takes no longer
        than others. Raises as `rollout[t]`."""
        session, inputs = self._drawing([self.transfer])[0], self._inputs([t], [self.transfer])
        if session.overlaps:  # a GPU's first runs take long
            session.run(inputs, ["frame"])

    def splice(self, motion_seed: int, anchor: int, fade: int = 1) -> Self:
        """A rollout that moves like this one up to an anchor, then, `fade` anchors later, by another motion seed.

        Up to frame anchor * d (d is `anchor_distance`) its frames are this one's, from frame (anchor + fade) * d on
        those of the other motion. Like all edits it shares this one's sessions, which must stay open.
        Raises: ValueError where an argument is out of range; BundleError where the bundle does not move.
        """
        return self._edited(self._moving().splice(motion_seed, anchor, fade))

    def loop(self, anchors: int) -> Self:
        """A rollout that closes: its first `anchors` motion codes again and again, so `anchors` * d frames for ever.

        Raises: as `splice`.
        """
        return self._edited(self._moving().loop(anchors))

    def remap(self, time_map: TimeMap) -> Self:
        """A rollout that shows at t what this one shows at time_map(t); any function to frame indices will do, such as
        `lambda t: 100 + 50 * math.sin(t / 30)`.

        Frames raise ValueError where it gives no frame index. Motions that are spliced or looped later are seen through
        the map, too. Raises: BundleError where the bundle does not move.
        """
        return self._edited(self._moving().remap(time_map))

    def with_motion_of(self, other: Rollout) -> Self:
        """A rollout of this one's content that moves like the other one, with all that was edited there.

        Raises: ValueError where they share no sessions; BundleError where the bundle does not move.
        """
        if other.sessions is not self.sessions:
            raise ValueError(f"with_motion_of: found {other.bundle.path}, opened apart, expected shared sessions")
        edited = self._edited(other._moving())
        edited.motion_seed = other.motion_seed
        return edited

    @property
    def anchor_distance(self) -> int:
        """d, the frames between two anchors. Raises BundleError where the bundle does not move."""
        return self._moving().motion.network.anchor_distance

    def time_codes(self, ts: Iterable[FrameIndex]) -> npt.NDArray[np.float32]:
        """The time code v_t at each frame index of `ts`: float32 [T, V]. Raises what `rollout[t]` raises."""
        timeline = self._moving()
        size = 2 * len(timeline.motion.network.frequencies)
        return np.array([timeline.time_code(t) for t in ts], np.float32).reshape(-1, size)

    def close(self) -> None:
        """Closes the sessions, if `Rollout.open` opened them. Closing twice is allowed."""
        if self._owns_sessions:
            self.sessions.close()

    def _edited(self, timeline: Timeline) -> Self:
        """This rollout along another timeline. The clip, once computed, is shared."""
        edited = copy.copy(self)
        edited._owns_sessions = False
        edited._timeline = timeline
        edited._latents = ClipLatents(self.sessions, self.clip, timeline, self.latent_stride)
        return edited

    def _moving(self) -> Timeline:
        if self._timeline is None:
            raise BundleError(f"{self.bundle.path}: kind: found image, expected styleinv: single pictures do not move")
        return self._timeline

    def _rendered(
        self, ts: Iterable[FrameIndex], transfers: Sequence[str | None], batch: int | None
    ) -> Iterator[tuple[Frame, ...]]:
        """At each frame index its picture by each generator; the arrays are parts of larger ones."""
        if batch is None:
            batch = 1 if self.latent_stride == 1 else STRIDED_BATCH
        runs = ((self._submitted(filled, transfers), wanted) for filled, wanted in batches(ts, batch))
        return itertools.chain.from_iterable(
            itertools.islice(zip(*(run.result()["frame"] for run in drawing), strict=True), wanted)
            for drawing, wanted in one_ahead(runs, lambda: any(each.overlaps for each in self._drawing(transfers)))
        )

    def _submitted(self, ts: Sequence[FrameIndex], transfers: Sequence[str | None]) -> list[Pending]:
        """Asks for the frames at these frame indices, by each generator."""
        inputs = self._inputs(ts, transfers)
        return [session.submit(inputs, ["frame"]) for session in self._drawing(transfers)]

    def _drawing(self, transfers: Sequence[str | None]) -> list[Session]:
        """What draws the frames, for each of the generators."""
        if self._fused(transfers):
            return [self.sessions.session(FUSED_GRAPH)]
        return [self.sessions.session("synthesis", transfer) for transfer in transfers]

    def _inputs(self, ts: Sequence[FrameIndex], transfers: Sequence[str | None]) -> Arrays:
        """What that takes to draw the frames at these frame indices."""
        return self._latents.encoder_inputs(ts) if self._fused(transfers) else {"w": self._latents.at(ts)}

    def _fused(self, transfers: Sequence[str | None]) -> bool:
        """Whether frames come straight from time codes: every latent is the encoder's, and one generator draws."""
        exact = self._timeline is not None and self.latent_stride == 1
        return exact and list(transfers) == [None] and self.sessions.fused
