"""`styleinv kernels report`: what the kernels take of a GPU, and what a picture costs at least, fused and unfused."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch

from styleinv.kernels.compiled import COMMAND, TABLE, Row, is_stale, read, variant
from styleinv.kernels.networks import NETWORKS
from styleinv.kernels.plan import Call, Network, fused_calls, moved, unfused_calls
from styleinv.kernels.roofline import GPUS, Gpu, milliseconds
from styleinv.kernels.tiles import DEFAULT, dtype_name

DTYPES = {dtype_name(dtype): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32)}
Lines = list[tuple[str, ...]]
LIBRARY = ("transposed", "times style")  # calls that PyTorch's own kernels answer
KERNEL_HEADER = (
    "kernel", "layer", "warps", "registers", "spilled B", "shared B", "occupancy", "instruction",
    "MB", "GFLOP", "FLOP/B", "least us",
)  # fmt: skip
ESTIMATE = """\
Milliseconds and microseconds are an estimate from data-sheet peaks: nobody measured them. A call takes as long as the
slower of two, moving its bytes at the peak bandwidth and computing at the peak rate; launch overheads and caches are
left out. Unfused is one pass over memory for each elementwise operator, filter and product. Peaks:"""


def main(argv: list[str]) -> int:
    """Prints the report. Raises ValueError and OSError where the table of compiled kernels cannot be read."""
    parser = argparse.ArgumentParser(
        prog="styleinv kernels report",
        description="Says what the kernels of a synthesis network take of a GPU, compiled for it ahead of time, and "
        "estimates what a picture costs on each GPU at least, fused and unfused.",
    )
    parser.add_argument("--network", choices=NETWORKS, default="paper256", help="default %(default)s")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="default %(default)s")
    parser.add_argument("--gpu", choices=GPUS, default="H100", help="whose kernels are listed; default %(default)s")
    arguments = parser.parse_args(argv)
    network, gpu = replace(NETWORKS[arguments.network], dtype=DTYPES[arguments.dtype]), GPUS[arguments.gpu]
    rows = read()
    print(f"One picture of {arguments.network} in {arguments.dtype}, its kernels compiled for {gpu.name}:")
    print(*aligned(kernel_lines(network, gpu, rows)), "", *aligned(roofline_lines(network)), "", ESTIMATE, sep="\n")
    print(*(f"  {peaks(each)}" for each in GPUS.values()), sep="\n")
    if is_stale(rows):
        print(f"\n{TABLE.name} was made of other kernels or tuning tables than these: `{COMMAND}` makes it anew.")
    return 0


def kernel_lines(network: Network, gpu: Gpu, rows: Sequence[Row]) -> Lines:
    """A line for each kernel of a picture, in the order of the plan, and for each call that is a library's."""
    lines: Lines = [KERNEL_HEADER]
    for call in fused_calls(network, gpu.device):
        layer = "{} -> {}, {}x{}".format(*call.layer)
        least = f"{milliseconds([call], network.dtype, gpu) * 1000:.2f}"
        compiled = rows_of(call, network, gpu, rows)
        for row in compiled:
            lines.append((
                row.kernel, layer, str(row.warps), str(row.registers), str(row.spilled), str(row.shared),
                f"{row.occupancy:.0%}", row.instruction, f"{row.bytes / 1e6:.2f}", f"{row.flops / 1e9:.2f}",
                f"{row.intensity:.1f}", least if row is compiled[-1] else "",
            ))  # fmt: skip
        if not compiled:
            which = "a library's" if call.operator in LIBRARY else "not in the table"
            numbers = f"{call.moved / 1e6:.2f}", f"{call.flops / 1e9:.2f}", f"{call.flops / call.moved:.1f}"
            lines.append((f"({call.operator})", layer, *("",) * 5, which, *numbers, least))
    return lines


def rows_of(call: Call, network: Network, gpu: Gpu, rows: Sequence[Row]) -> list[Row]:
    """The kernels of a call, as tuned for a GPU where they are, else by default; none where it is a library's."""
    key = call.operator, dtype_name(network.dtype), *call.layer, variant(call), gpu.target
    found = [
        row for row in rows
        if key == (row.operator, row.dtype, row.inputs, row.outputs, row.height, row.width, row.variant, row.target)
    ]  # fmt: skip
    tuned = [row for row in found if row.device == gpu.device]
    return tuned or [row for row in found if row.device == DEFAULT]


def roofline_lines(network: Network) -> Lines:
    """A line for each GPU: megabytes and milliseconds of a picture, unfused and fused."""
    lines: Lines = [("GPU", "target", "unfused MB", "fused MB", "share", "unfused ms", "fused ms", "times as fast")]
    for gpu in GPUS.values():
        unfused, fused = unfused_calls(network), fused_calls(network, gpu.device)
        slow, fast = milliseconds(unfused, network.dtype, gpu), milliseconds(fused, network.dtype, gpu)
        lines.append((
            gpu.name, f"sm_{gpu.target}", f"{moved(unfused) / 1e6:.1f}", f"{moved(fused) / 1e6:.1f}",
            f"{moved(fused) / moved(unfused):.3f}", f"{slow:.3f}", f"{fast:.3f}", f"{slow / fast:.1f}",
        ))  # fmt: skip
    return lines


def peaks(gpu: Gpu) -> str:
    """A GPU's peaks and where they are from."""
    return (
        f"{gpu.name}: {gpu.bandwidth:g} GB/s, {gpu.tensor:g} TFLOP/s in half precision on tensor cores, "
        f"{gpu.float32:g} in float32 ({gpu.source})"
    )


def aligned(lines: Lines) -> list[str]:
    """The lines of a table as text: the first two columns to the left, the others, which are numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if place < 2 else text.rjust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
