"""Finds the launch parameters with which a kernel is fastest for a layer, among those that give right results."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from unittest import mock

import torch
from torch import Tensor
from triton.errors import TritonError

from styleinv.kernels import launch
from styleinv.kernels.plan import Call, Network
from styleinv.kernels.random_operands import (
    TOLERANCES,
    Operands,
    as_form,
    expected,
    random_operands,
    run,
    worst_error,
)
from styleinv.kernels.tiles import Form, Tile
from styleinv.kernels.timing import Timer

Measure = Callable[[Tile], float]  # milliseconds; raises UnfitError
Compute = Callable[[str, Operands], tuple[Tensor, ...]]
Prepare = Callable[[Call, Network, Form], Measure]


class UnfitError(Exception):
    """A tile with which a kernel does not compile, does not run or is wrong; the message says which."""


@dataclass(frozen=True)
class Found:
    """The fastest tile, and what it was the fastest of.

    Args:
        tried: tiles, those that are unfit among them.
        default_milliseconds: with the tile that the tables had before; None where it is unfit.
    """

    tile: Tile
    milliseconds: float
    default_milliseconds: float | None
    tried: int


def fastest(tiles: Sequence[Tile], measure: Measure, seconds: float, tell: Callable[[str], None]) -> Found | None:
    """Measures tiles in their order, the default one first, until time is over; None where all of them are unfit."""
    times: dict[Tile, float] = {}
    end, tried = time.monotonic() + seconds, 0
    for tile in tiles:
        if tried and time.monotonic() >= end:
            break
        tried += 1
        try:
            times[tile] = measure(tile)
        except UnfitError as reason:
            tell(f"{tile}: left out: {reason}")
    if not times:
        return None
    best = min(times, key=times.__getitem__)
    return Found(best, times[best], times.get(tiles[0]), tried)


def prepare_on(device: torch.device, timer: Timer, compute: Compute = run) -> Prepare:
    """Measures calls on a GPU, with random operands at batch 1; the results of each tile are held to the reference.

    compute: runs an operator's kernels; in tests those of Triton's interpreter.
    """

    def prepare(call: Call, network: Network, form: Form) -> Measure:
        operands = random_operands(call, network, 1, device)
        wanted = tuple(result.to(device) for result in expected(call.operator, operands))
        if call.operator == "modulated_conv2d_up2":
            operands = as_form(operands, form)

        def measure(tile: Tile) -> float:
            # The launcher looks its tile up by this name; no other thread launches kernels meanwhile.
            with mock.patch.object(launch, "tile_for", lambda *_: tile):
                try:
                    error = worst_error(compute(call.operator, operands), wanted)
                    if error > TOLERANCES[network.dtype]:
                        raise UnfitError(f"found an error of {error:.1e}, expected at most {TOLERANCES[network.dtype]}")
                    return median(timer([lambda: compute(call.operator, operands)])[0])
                except (TritonError, RuntimeError) as failure:
                    raise UnfitError(str(failure).strip().split("\n")[0] or type(failure).__name__) from failure

        return measure

    return prepare
