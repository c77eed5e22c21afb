"""Motion codes and the time code, on the host and in float64 (section 3.1 of StyleInV, ICCV 2023).

    noise z_k  ──two convolutions over anchors──>  motion code u_k  ──P, Q, A──>  time code v_t

Everything here happens once per anchor and is cached, but for one sine and cosine per frame. It is not a graph
because float32 cannot hold f*p*t for large t, and because frames at large t agree between machines only if u_k, p
and phi come from one float64 implementation.

Shapes: Z noise_dim, U code_dim, F frequencies, V = 2F time code, K kernel_size, d anchor_distance.
"""

from __future__ import annotations

import functools
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from styleinv.runtime.errors import BundleError
from styleinv.runtime.noise import MOTION_DOMAIN, check_word, standard_normal

Array = npt.NDArray[np.float64]
FrameIndex = int | float | np.integer[Any] | np.floating[Any]

LARGEST_FRAME_INDEX = 2**53  # beyond it a float64 no longer tells neighbouring frames apart
CACHED_ANCHORS = 32  # playing needs 2, and as many more hidden rows as a code sees; the rest serves seeking nearby


def as_frame_index(t: FrameIndex, name: str = "frame index") -> int | float:
    """Returns the frame index t as an int or a float, exactly; `name` is what messages call it.

    Raises: TypeError where t is not a real number (a bool is none); ValueError where it is negative, not finite or
    above 2^53.
    """
    if isinstance(t, (bool, np.bool_)) or not isinstance(t, numbers.Real):
        raise TypeError(f"{name}: found {t!r} of type {type(t).__name__}, expected a real number")
    number = int(t) if isinstance(t, numbers.Integral) else float(t)
    if not 0 <= number <= LARGEST_FRAME_INDEX:  # false for NaN, too
        raise ValueError(f"{name}: found {number}, expected a finite number from 0 to 2^53")
    return number


class MotionNetwork:
    """The motion network's weights, made ready once and shared by all rollouts of a bundle. It holds no state.

    Args:
        tensors: what motion.safetensors holds: float32, raw as in the checkpoint.
        config: the manifest's model.motion.
        source: the file the tensors come from, for messages.
    Raises: BundleError where a tensor is missing or has another shape or dtype than the configuration asks for.
    """

    def __init__(
        self, tensors: Mapping[str, npt.NDArray[Any]], config: Mapping[str, Any], source: str = "motion.safetensors"
    ) -> None:
        self.noise_dim: int = config["noise_dim"]
        self.code_dim: int = config["code_dim"]
        self.anchor_distance: int = config["anchor_distance"]
        Z, U, K, F = self.noise_dim, self.code_dim, config["kernel_size"], config["frequencies"]
        aware = config.get("first_frame_aware") is not False  # older bundles do not say; they are
        # Where frame 0 is to be the same for every motion, the taps of the future are masked: an odd kernel's centre is
        # the present, an even kernel sees the past only. Otherwise a kernel sees the present and the future.
        self.reach = K // 2 if aware else 0  # anchors back to the first that a convolution sees
        self.taps = (K + 1) // 2 if aware else K

        def tensor(name: str, *shape: int) -> Array:
            found = tensors.get(name)
            if found is None or found.shape != shape or found.dtype != np.float32:
                description = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
                raise BundleError(f"{source}: {name}: found {description}, expected float32 {list(shape)}")
            return found.astype(np.float64)

        def convolution(name: str, channels: int) -> tuple[Array, Array]:
            gain = config["lr_multiplier"] / math.sqrt(Z * K)
            seen = tensor(f"{name}.weight", channels, Z, K)[:, :, : self.taps] * gain
            matrix = np.ascontiguousarray(seen.transpose(0, 2, 1).reshape(channels, self.taps * Z))
            return matrix, tensor(f"{name}.bias", channels) * config["lr_multiplier"]

        self.first_code_noise = tensor("first_code_noise", Z) if aware else None  # in place of anchor 0's noise
        self._first = convolution("conv.0", Z)
        self._second = convolution("conv.1", U)
        self.frequencies = tensor("frequencies", F)  # radians per frame
        self._period = tensor("period.weight", F, U) / math.sqrt(U)
        self._phase = tensor("phase.weight", F, U) / math.sqrt(U)
        self._phase_scale = config["max_period"] * self.frequencies / (2.0 * math.pi)
        self._aligner = tensor("aligner.weight", 2 * F, U) / math.sqrt(U)

    def hidden(self, noise_window: Array) -> Array:
        """First layer at one anchor: noise of the anchors that it sees [taps, Z], oldest first -> row [Z]."""
        return _activated(self._first, noise_window)

    def code(self, hidden_window: Array) -> Array:
        """Second layer at one anchor: the hidden rows that it sees [taps, Z], oldest first -> motion code u [U]."""
        return _activated(self._second, hidden_window)

    def rate_and_phase(self, code: Array) -> tuple[Array, Array]:
        """Angle per frame f*p [F] and phase phi [F], in radians, of the waves right of the anchor with this code."""
        rate = self.frequencies * (np.tanh(self._period @ code) + 1.0)
        return rate, (self._phase @ code) * self._phase_scale

    def aligner(self, code: Array) -> Array:
        """The value [V] that the time code takes at the anchor with this code."""
        return self._aligner @ code


@dataclass(frozen=True, eq=False)
class Segment:
    """What the frames between anchor l and anchor l + 1 have in common."""

    rate: Array  # [F] f*p, radians per frame
    angle: Array  # [F] at the left anchor, modulo 2 pi
    left: Array  # [V] aligner minus wave at the left anchor
    right: Array  # [V] the same at the right anchor, with the left anchor's rate and phase


class Motion(ABC):
    """The motion codes of one clip, and the time codes that follow from them: a pure function of the anchor and of t.

    Threads may share an instance; its caches are bounded.
    """

    def __init__(self, network: MotionNetwork) -> None:
        self.network = network
        self._segment = functools.lru_cache(CACHED_ANCHORS)(self._compute_segment)

    @abstractmethod
    def code(self, anchor: int) -> Array:
        """The motion code u_k, float64 [U], of anchor k >= 0, which stands at frame k * d. Not to be written to."""

    def wrapped(self, t: int | float) -> int | float:
        """The frame index, of the first round, that shows what t shows; t itself where the motion has no rounds."""
        return t

    def time_code(self, t: FrameIndex) -> Array:
        """The time code v_t, float64 [V], of frame index t >= 0, in frames. Raises as `as_frame_index`."""
        wrapped = self.wrapped(as_frame_index(t))
        anchor, offset = divmod(wrapped, self.network.anchor_distance)  # exact for int and for float
        segment = self._segment(int(anchor))
        alpha = offset / self.network.anchor_distance
        return _wave(segment.angle + segment.rate * offset) + (1.0 - alpha) * segment.left + alpha * segment.right

    def _compute_segment(self, anchor: int) -> Segment:
        distance = self.network.anchor_distance
        code = self.code(anchor)
        rate, phase = self.network.rate_and_phase(code)
        angle = np.mod(rate * float(anchor * distance) + phase, 2.0 * math.pi)
        return Segment(
            rate=rate,
            angle=angle,
            left=self.network.aligner(code) - _wave(angle),
            right=self.network.aligner(self.code(anchor + 1)) - _wave(angle + rate * distance),
        )


class MotionCodes(Motion):
    """The motion that noise gives: a pure function of (network, seed), whatever the order of access.

    Every row is computed by the same matrix-vector product of the same shape, so that its bytes do not depend on
    what was asked for before.

    Args:
        seed: 0 .. 2^64 - 1, of the anchors' noise.
        noise: [K, Z], instead of the noise that the seed gives; frames that need more anchors are an IndexError.
    """

    def __init__(self, network: MotionNetwork, seed: int = 0, *, noise: npt.ArrayLike | None = None) -> None:
        super().__init__(network)
        self._seed = check_word("motion_seed", seed)
        self._given_noise = None if noise is None else np.asarray(noise, np.float64)
        self._hidden = functools.lru_cache(CACHED_ANCHORS + network.taps)(self._compute_hidden)
        self._code = functools.lru_cache(CACHED_ANCHORS)(self._compute_code)

    def code(self, anchor: int) -> Array:
        """As `Motion.code`."""
        return self._code(anchor)

    def _compute_code(self, anchor: int) -> Array:
        hidden_window = np.stack([self._hidden(k) for k in self._window(anchor)])
        return _read_only(self.network.code(hidden_window))

    def _compute_hidden(self, anchor: int) -> Array:
        if anchor < 0:  # each layer is padded with zeros, the second one, too
            return np.zeros(self.network.noise_dim)
        noise_window = np.stack([self._noise(k) for k in self._window(anchor)])
        return self.network.hidden(noise_window)

    def _noise(self, anchor: int) -> Array:
        if anchor < 0:
            return np.zeros(self.network.noise_dim)
        if anchor == 0 and self.network.first_code_noise is not None:
            return self.network.first_code_noise  # learned, so that frame 0 does not depend on the noise
        if self._given_noise is not None:
            return self._given_noise[anchor]
        return standard_normal(self._seed, MOTION_DOMAIN, anchor, self.network.noise_dim)

    def _window(self, anchor: int) -> range:
        first = anchor - self.network.reach
        return range(first, first + self.network.taps)


def _activated(layer: tuple[Array, Array], window: Array) -> Array:
    matrix, bias = layer
    row = matrix @ window.reshape(-1) + bias
    return np.where(row < 0.0, 0.2 * row, row)  # no sqrt(2) here, unlike in the other networks


def _wave(angle: Array) -> Array:
    return np.concatenate([np.sin(angle), np.cos(angle)])


def _read_only(row: Array) -> Array:
    row.flags.writeable = False  # it is cached and handed out
    return row
