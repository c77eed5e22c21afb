"""`styleinv kernels tune`: finds the fastest launch parameters for each layer of a network on the GPU at hand.

Each kernel is run with many tiles, on random operands, for each layer; a tile that gives wrong results is left out.
Layers that can be computed in two ways, those that double the size and those before a picture, are measured in both,
and the table says which was faster. What it costs the next layer to read a style is no part of that.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from styleinv.kernels import tiles
from styleinv.kernels.candidates import SHARED_BYTES, candidates
from styleinv.kernels.networks import NETWORKS, NUMBERS, adain_calls, network_of
from styleinv.kernels.plan import Call, Network
from styleinv.kernels.random_operands import TOLERANCES, without_tf32
from styleinv.kernels.search import Found, Prepare, fastest, prepare_on
from styleinv.kernels.tiles import OPERATORS, Form, Layer, device_name, dtype_name, fuses_rgb, tile_for
from styleinv.kernels.timing import cuda_timer, describe
from styleinv.kernels.tuned_tables import write_entry

DTYPES = {dtype_name(dtype): dtype for dtype in TOLERANCES}
COMPARED = {  # what must be measured to choose between two ways
    "modulated_conv2d_up2": ("modulated_conv2d_up2", "filter"),
    "modulated_conv2d_rgb": ("modulated_conv2d_rgb", "modulated_conv2d", "to_rgb_skip"),
}
SECONDS_PER_TILE = 0.1  # besides its compilation


@dataclass(frozen=True)
class Tuning:
    """What is tuned, and how.

    Args:
        device: the name of its tables.
        folder: where they are written.
        seconds: for each layer and operator.
        operators: those whose tables are written.
        shared_bytes: what a block may have of shared memory.
        facts: device and versions, see `timing.describe`; they stand in every entry.
        tell: gets a line on what happens.
    """

    network: Network
    device: str
    folder: Path
    prepare: Prepare
    seconds: float = 60.0
    operators: tuple[str, ...] = OPERATORS
    shared_bytes: int = SHARED_BYTES
    facts: dict[str, str] = field(default_factory=dict)
    tell: Callable[[str], None] = print


def tune(tuning: Tuning) -> None:
    """Tunes a network layer by layer, in order, and writes what it found for one before it goes to the next."""
    network, before = tuning.network, 0
    for resolution in network.resolutions():
        channels = network.channels(resolution)
        if before:
            _tune_upsampling(tuning, (before, channels, resolution // 2, resolution // 2))
        _tune_picture(tuning, (channels, channels, resolution, resolution), last=resolution == network.resolution)
        before = channels
    for call in adain_calls(network):
        _write(tuning, "adain_lrelu", call.layer, _search(tuning, "adain_lrelu", call))


def _tune_upsampling(tuning: Tuning, layer: Layer) -> None:
    inputs, outputs, height, width = layer
    styled = not fuses_rgb(tuning.network.dtype, (inputs, inputs, height, width), tuning.device)
    call = Call("modulated_conv2d_up2", layer, styled, next_styled=True)
    one = _search(tuning, "modulated_conv2d_up2", call)
    two = _search(tuning, "filter", call, "two_steps")
    _write(tuning, "filter", (outputs, outputs, height, width), two)
    if one or two:
        form: Form = "polyphase" if one and (not two or one.milliseconds <= two.milliseconds) else "two_steps"
        other = two.milliseconds if two else None
        _write(tuning, "modulated_conv2d_up2", layer, one, {"form": form}, {"two_steps_milliseconds": other})


def _tune_picture(tuning: Tuning, layer: Layer, last: bool) -> None:
    outputs, _, height, width = layer
    pictured = (outputs, 3, height, width)
    suffix = "_frame" if last else ""
    call = Call("modulated_conv2d_frame" if last else "modulated_conv2d_rgb", layer, height == 4, next_styled=not last)
    convolution = _search(tuning, "modulated_conv2d", Call("modulated_conv2d", layer, styled=height == 4))
    picture = _search(tuning, "to_rgb_skip", Call(f"to_rgb_skip{suffix}", pictured, styled=True))
    fused = _search(tuning, "modulated_conv2d_rgb", call)
    _write(tuning, "modulated_conv2d", layer, convolution)
    _write(tuning, "to_rgb_skip", pictured, picture)
    if convolution and picture:
        apart = convolution.milliseconds + picture.milliseconds
        fuse = fused is not None and fused.milliseconds <= apart
        _write(tuning, "modulated_conv2d_rgb", layer, fused, {"fuse": fuse}, {"apart_milliseconds": apart})


def _search(tuning: Tuning, operator: str, call: Call, form: Form = "polyphase") -> Found | None:
    """The fastest tile; None where no table that is written depends on it, or no tile is fit."""
    if not any(operator in COMPARED.get(written, (written,)) for written in tuning.operators):
        return None
    inputs, outputs, height, width = call.layer
    layer = (outputs, outputs, height, width) if operator == "filter" else call.layer
    dtype = tuning.network.dtype
    tried = candidates(operator, dtype, layer, tile_for(operator, dtype, layer), tuning.shared_bytes)
    what = f"{operator} {dtype_name(dtype)} {inputs} -> {outputs} at {height} x {width}"
    found = fastest(tried, tuning.prepare(call, tuning.network, form), tuning.seconds, tuning.tell)
    if found is None:
        tuning.tell(f"{what}: no tile is fit")
    else:
        before = "unfit" if found.default_milliseconds is None else f"{found.default_milliseconds:.4f} ms"
        number = f"{found.tried} of {len(tried)} tiles tried"
        tuning.tell(f"{what}: {found.milliseconds:.4f} ms, by default {before}; {number}; {found.tile}")
    return found


def _write(
    tuning: Tuning,
    operator: str,
    layer: Layer,
    found: Found | None,
    choice: dict[str, object] | None = None,
    compared: dict[str, object] | None = None,
) -> None:
    """Writes an entry. Where nothing was found there is none, unless a choice was made, against the default tile."""
    if operator not in tuning.operators or (found is None and choice is None):
        return
    dtype = tuning.network.dtype
    measured: dict[str, object] = {
        "milliseconds": found.milliseconds if found else None,
        "default_milliseconds": found.default_milliseconds if found else None,
        **(compared or {}),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **tuning.facts,
    }
    tile = found.tile if found else tile_for(operator, dtype, layer)
    entry = {**(choice or {}), "tile": asdict(tile), "measured": measured}
    write_entry(tuning.folder, operator, dtype_name(dtype), tuning.device, layer, entry)


def main(argv: list[str]) -> int:
    """`styleinv kernels tune`: 0. Raises ValueError where there is no GPU, or arguments are bad; OSError where tables
    cannot be written."""
    parser = argparse.ArgumentParser(prog="styleinv kernels tune", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    # fmt: off
    parser.add_argument("--network", default="paper256", metavar="NAME",
                        help=f"{', '.join(NETWORKS)}, or {NUMBERS} (default: paper256)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float16"], help="default: float16")
    parser.add_argument("--operator", nargs="+", choices=OPERATORS, default=list(OPERATORS), metavar="NAME",
                        help=f"whose tables are written: {', '.join(OPERATORS)} (default: all)")
    parser.add_argument("--seconds-per-layer", type=float, default=60.0, metavar="N",
                        help="for each layer and operator; tiles near the default one come first (default: 60)")
    parser.add_argument("--out", type=Path, default=tiles.TABLES, metavar="DIR",
                        help="where tables are written (default: in the package, where they are read)")
    # fmt: on
    arguments = parser.parse_args(argv)
    network = network_of(arguments.network)
    if not torch.cuda.is_available():
        raise ValueError(f"tune: found no CUDA device, expected one: torch {torch.__version__} sees none")
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not os.access(arguments.out, os.W_OK):
        raise ValueError(f"tune: {arguments.out}: found a folder that may not be written, expected one that may: --out")
    device = torch.device("cuda")
    tuning = Tuning(
        network,
        device_name(device),
        arguments.out,
        prepare_on(device, cuda_timer(SECONDS_PER_TILE)),
        arguments.seconds_per_layer,
        tuple(arguments.operator),
        getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", SHARED_BYTES),
        describe(device),
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    with torch.no_grad(), without_tf32():
        for dtype in arguments.dtype:
            tune(replace(tuning, network=replace(network, dtype=DTYPES[dtype])))
    print(f"wrote the tables of {tuning.device} in {arguments.out}")
    return 0
