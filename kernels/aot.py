"""Compiles every kernel of the networks ahead of time, for every kind of GPU, on a machine that has none.

    python -m styleinv.kernels.aot --write    # makes compiled.csv anew; some minutes on two cores

The layers are those of the models of `networks.py`, their encoders' temporal blocks included; the tiles those of every
tuning table there is.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
import triton

from styleinv.kernels.compiled import TABLE, Row, as_csv, source_hash, variant
from styleinv.kernels.launches import Launch, launches_of
from styleinv.kernels.networks import NETWORKS, adain_calls
from styleinv.kernels.plan import Call, Network, fused_calls
from styleinv.kernels.resources import LIMITS, Resources, occupancy, resources
from styleinv.kernels.roofline import GPUS
from styleinv.kernels.tiles import DEFAULT, TABLES, dtype_name

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Job:
    """A call whose kernels are compiled for some targets."""

    call: Call
    network: Network
    device: str
    targets: tuple[int, ...]


def jobs() -> list[Job]:
    """The whole matrix: every layer of the networks, each once, in every dtype, by every device's tables.

    A device's own tables are compiled for that device's target where it is known, and only where they give a kernel
    that the default ones do not.
    """
    found: dict[object, Job] = {}
    for dtype, device, plain in itertools.product(DTYPES, devices(), NETWORKS.values()):
        network = replace(plain, dtype=dtype)
        for call in [*fused_calls(network, device), *adain_calls(network)]:
            key = call.operator, dtype, call.layer, variant(call)
            tuned = (*key, DEFAULT) not in found or differs(call, network, device)
            if (*key, device) not in found and tuned:
                found[*key, device] = Job(call, network, device, targets(device))
    return list(found.values())


def devices() -> list[str]:
    """Those that have tuning tables, the default first."""
    names = {file.name.split(".")[2] for file in TABLES.glob("*.json")}
    return [DEFAULT, *sorted(names - {DEFAULT})]


def targets(device: str) -> tuple[int, ...]:
    """A device's compute capability; all of them for the default tables and for a device that is not known."""
    known = {gpu.device: (gpu.target,) for gpu in GPUS.values()}
    return known.get(device, tuple(LIMITS))


def differs(call: Call, network: Network, device: str) -> bool:
    """Whether a device's tables say something else of a call than the default ones."""
    tuned, default = (
        [(launch.constants, launch.options) for launch in launches_of(call, network, name)]
        for name in (device, DEFAULT)
    )
    return tuned != default


def rows(job: Job) -> list[Row]:
    """Compiles a job: a row for each kernel and target."""
    return [
        row(job, launch, target, resources(launch, target))
        for launch in launches_of(job.call, job.network, job.device)
        for target in job.targets
    ]


def row(job: Job, launch: Launch, target: int, used: Resources) -> Row:
    """What the table says of one kernel."""
    inputs, outputs, height, width = job.call.layer
    count = flops(job, launch)
    return Row(
        kernel=launch.name,
        operator=job.call.operator,
        dtype=dtype_name(job.network.dtype),
        inputs=inputs,
        outputs=outputs,
        height=height,
        width=width,
        variant=variant(job.call),
        target=target,
        device=job.device,
        constants=" ".join(f"{name}={value}" for name, value in launch.constants.items()),
        warps=used.warps,
        stages=used.stages,
        registers=used.registers,
        spilled=used.spilled,
        shared=used.shared,
        occupancy=round(occupancy(used, target), 3),
        instruction=used.instruction,
        bytes=launch.moved,
        flops=count,
        intensity=round(count / launch.moved, 2),
        triton=triton.__version__,
        source=source_hash(triton.__version__),
    )


def flops(job: Job, launch: Launch) -> int:
    """Multiplications and additions of one of a call's kernels; the plan counts those of the call."""
    if job.call.operator == "adain_lrelu":  # statistics, and what is done with them
        return job.call.flops // 2
    if job.call.operator == "style_demod":
        product = 2 * job.call.layer[0] * job.call.layer[1]  # of w and all affines
        return product if launch.name == "styles_kernel" else job.call.flops - product
    return job.call.flops


def compile_all(matrix: Iterable[Job], processes: int) -> Iterator[Row]:
    """The rows of some jobs, in their order, as they become known."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for made in pool.imap(rows, matrix):
            yield from made


def main(argv: list[str] | None = None) -> int:
    """Compiles the matrix and writes the table, or prints it."""
    parser = argparse.ArgumentParser(prog="python -m styleinv.kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"to {TABLE.name} of the package, not to the screen")
    parser.add_argument("--processes", type=int, default=min(os.cpu_count() or 1, 2), help="that compile (%(default)s)")
    arguments = parser.parse_args(argv)
    matrix, made = jobs(), []
    for number, compiled in enumerate(compile_all(matrix, arguments.processes), 1):
        made.append(compiled)
        if number % 100 == 0:
            print(f"{number} kernels compiled", file=sys.stderr, flush=True)
    if arguments.write:
        TABLE.write_text(as_csv(made), encoding="utf-8", newline="\n")
    else:
        print(as_csv(made), end="")
    print(f"{len(made)} kernels compiled of {len(matrix)} calls", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
