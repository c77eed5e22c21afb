"""Times each kernel of a synthesis network on a GPU, against torch's own operators in three ways.

    python -m styleinv.kernels.bench --network paper256 --dtype float16

Each call of the network's plan gets random operands and is computed in all ways, which take turns; its results are held
to the reference before. The last rows are of all calls together, as one CUDA graph: the network without what connects
its layers. Operands of torch's operators are brought into their layout and dtype before time runs.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from styleinv.kernels.bench_csv import Value, append_rows, check_header
from styleinv.kernels.bench_ways import WAYS, Way, way_of
from styleinv.kernels.networks import NETWORKS, NUMBERS, adain_calls, counted, layer_calls, network_of
from styleinv.kernels.plan import Call, Network
from styleinv.kernels.random_operands import (
    TOLERANCES,
    Operands,
    as_tuned,
    expected,
    moved_by,
    random_operands,
    worst_error,
)
from styleinv.kernels.tiles import device_name, dtype_name
from styleinv.kernels.timing import Timer, cuda_timer, describe

DTYPES = {dtype_name(dtype): dtype for dtype in TOLERANCES}
COLUMNS = (
    "date", "network", "operator", "inputs", "outputs", "height", "width", "calls", "dtype", "batch", "way",
    "ms_p20", "ms_p50", "ms_p80", "runs", "speedup_of_fused", "bytes", "flops", "gb_per_s", "tflop_per_s", "error",
    "device", "compute_capability", "driver", "cuda", "cudnn", "torch", "triton", "python",
)  # fmt: skip
Row = dict[str, Value]


@dataclass(frozen=True)
class Setup:
    """What is timed, and where."""

    name: str  # of the network
    network: Network
    batch: int
    device: torch.device
    ways: tuple[str, ...] = tuple(WAYS)


@dataclass(frozen=True)
class Timed:
    """A call, or all of them, in one way.

    Args:
        milliseconds: of each run; none where the results are wrong.
        error: of the results, see `random_operands.worst_error`; None where it is all calls.
    """

    way: str
    milliseconds: list[float]
    error: float | None

    def percentile(self, percent: float) -> float | None:
        return float(np.percentile(self.milliseconds, percent)) if self.milliseconds else None


def bench(setup: Setup, timer: Timer, report: Callable[[list[Row]], None]) -> None:
    """Times all calls of the plan, those that are alike once, and then all together; `report` gets the rows of each.

    A way whose results are wrong is not timed, and neither is the network in that way.
    """
    network, batch = setup.network, setup.batch
    facts = describe(setup.device)
    calls = counted(layer_calls(network, device_name(setup.device)))
    together: dict[str, list[Way]] = {name: [] for name in setup.ways}
    moved = flops = 0
    for call in [*calls, *adain_calls(network)]:
        operands, count = random_operands(call, network, batch, setup.device), calls.get(call, 0)
        ways = {name: way_of(name, call, operands) for name in setup.ways}
        timed = time_call(call, operands, ways, timer)
        bytes_moved = moved_by(call, as_tuned(call, operands), batch)
        report([_row(setup, facts, call, count, bytes_moved, one, timed) for one in timed])
        moved, flops = moved + count * bytes_moved, flops + count * call.flops
        for one in timed:
            if not one.milliseconds:
                together.pop(one.way, None)
            elif one.way in together:
                together[one.way] += [ways[one.way]] * count
    if together:
        samples = timer([_all(ways) for ways in together.values()])
        timed = [Timed(name, found, None) for name, found in zip(together, samples, strict=True)]
        whole = Call("network", (network.w_dim, 3, network.resolution, network.resolution), flops=flops)
        report([_row(setup, facts, whole, 1, moved, one, timed) for one in timed])


def time_call(call: Call, operands: Operands, ways: dict[str, Way], timer: Timer) -> list[Timed]:
    """A call in all ways, of which only those are timed whose results are right."""
    reference = expected(call.operator, operands)
    errors = {name: worst_error(way(), reference) for name, way in ways.items()}
    right = {name: way for name, way in ways.items() if errors[name] <= _tolerance(operands)}
    samples = dict(zip(right, timer(list(right.values())), strict=True)) if right else {}
    return [Timed(name, samples.get(name, []), errors[name]) for name in ways]


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m styleinv.kernels.bench`: 0; 1 where results are wrong; 2 where nothing can be timed."""
    parser = argparse.ArgumentParser(prog="python -m styleinv.kernels.bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--network", default="paper256", metavar="NAME",
                        help=f"{', '.join(NETWORKS)}, or {NUMBERS} (default: paper256)")  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--batch", type=int, default=1, metavar="N")
    parser.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS), help="default: all of them")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="N", help="for each call and way (default: 0.5)")
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/results/kernels.csv"), metavar="FILE",
                        help="where rows are added (default: benchmarks/results/kernels.csv)")  # fmt: skip
    arguments = parser.parse_args(argv)
    try:
        network = replace(network_of(arguments.network), dtype=DTYPES[arguments.dtype])
        if arguments.batch < 1:
            raise ValueError(f"batch: found {arguments.batch}, expected at least 1")
        check_header(arguments.csv, COLUMNS)
        if not torch.cuda.is_available():
            raise ValueError(f"found no CUDA device, expected one: torch {torch.__version__} sees none")
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    setup = Setup(arguments.network, network, arguments.batch, torch.device("cuda"), tuple(arguments.way))
    return bench_into(arguments.csv, setup, cuda_timer(arguments.seconds))


def bench_into(path: Path, setup: Setup, timer: Timer) -> int:
    """Adds the rows of `bench` to a file as they come, and prints them: 0, or 1 where results are wrong."""
    wrong: list[Row] = []

    def report(rows: list[Row]) -> None:
        append_rows(path, rows)
        for row in rows:
            print(_line(row), flush=True)
        wrong.extend(row for row in rows if row["ms_p50"] is None)

    # Each call compiles the same functions anew; torch would stop after 8 of them.
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=256):
        bench(setup, timer, report)
    for row in wrong:
        print(
            f"{_what(row)}: {row['way']}: found an error of {row['error']:.1e}, expected at most "
            f"{TOLERANCES[setup.network.dtype]}: not timed",
            file=sys.stderr,
        )
    return 1 if wrong else 0


def _tolerance(operands: Operands) -> float:
    return TOLERANCES[(operands["x"] if "x" in operands else operands["affine"]).dtype]


def _all(ways: list[Way]) -> Callable[[], object]:
    return lambda: [way() for way in ways]


def _row(
    setup: Setup, facts: dict[str, str], call: Call, count: int, moved: int, one: Timed, timed: list[Timed]
) -> Row:
    inputs, outputs, height, width = call.layer
    median = one.percentile(50)
    fused = next((other.percentile(50) for other in timed if other.way == "fused"), None)
    flops = call.flops * setup.batch
    row: Row = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "network": setup.name, "operator": call.operator,
        "inputs": inputs, "outputs": outputs, "height": height, "width": width, "calls": count,
        "dtype": dtype_name(setup.network.dtype), "batch": setup.batch, "way": one.way,
        "ms_p20": one.percentile(20), "ms_p50": median, "ms_p80": one.percentile(80), "runs": len(one.milliseconds),
        "speedup_of_fused": median / fused if median and fused else None,
        "bytes": moved, "flops": flops,
        "gb_per_s": moved / median / 1e6 if median else None,
        "tflop_per_s": flops / median / 1e9 if median else None,
        "error": one.error,
    }  # fmt: skip
    return row | facts


def _what(row: Row) -> str:
    return f"{row['operator']} {row['inputs']} -> {row['outputs']} at {row['height']} x {row['width']}"


def _line(row: Row) -> str:
    times = " ".join(_number(row[name], 9, 4) for name in ("ms_p20", "ms_p50", "ms_p80"))
    rates = f"{_number(row['gb_per_s'], 8, 1)} GB/s {_number(row['tflop_per_s'], 7, 2)} TFLOP/s"
    return f"{_what(row):<52} {row['way']:<8}{times} ms {rates}  {_number(row['speedup_of_fused'], 6, 2)}"


def _number(value: Value, width: int, digits: int) -> str:
    return f"{value:{width}.{digits}f}" if isinstance(value, float) else "-".rjust(width)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # rows that are finished are in the file
        sys.exit(130)
