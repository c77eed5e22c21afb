"""`styleinv bench`: measures how fast a bundle plays on this machine."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from styleinv.export.bench import measure
from styleinv.export.bench_csv import COLUMNS, append_rows, as_row, check_header
from styleinv.export.bench_report import as_json, as_table
from styleinv.export.bench_start import Settings
from styleinv.runtime.arguments import latent_stride, seed_number, whole_number
from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.latent_stride import STRIDED_BATCH
from styleinv.runtime.machine import describe_machine
from styleinv.runtime.manifest_fields import PRECISIONS
from styleinv.runtime.sessions import ENGINES

DESCRIPTION = """\
Measures how fast a bundle (the folder that `styleinv export` writes and `styleinv stream`
plays) runs on this machine, and prints a table: milliseconds per frame (half of all frames
stay within p50, 95 of 100 within p95, 99 within p99), frames per second, how much of a
frame each network takes, the time from starting a program to its first frame, the memory
that takes, and how near all this comes to the fastest convolutions measured here.

Jitter is the mean difference between the times of neighbouring frames. Cold starts (files
in the system's cache) and memory are those of processes of their own, without PyTorch.
Let nothing else run meanwhile: other programs are measured along.

With --compare the clip is played, in turns, in every way that this machine has: PyTorch,
eager and compiled, and each engine of the bundle on that device, in one table.
"""
EXAMPLES = """\
examples:
  styleinv bench sky.bundle
      200 frames of the clip with seed 0, on the fastest engine that this machine has
  styleinv bench sky.bundle --precision bf16 --csv bench.csv --plot bench.png
      the same in bfloat16, kept as a row of a CSV file and as a picture
  styleinv bench sky.bundle --baseline model.safetensors --json bench.json
      how many times faster than the model it was exported from, in PyTorch; for scripts
  styleinv bench sky.bundle --batch 8 --threads 4
      eight frames at a time, for throughput rather than latency
  styleinv bench sky.bundle --baseline model.safetensors --compare --precision fp16
      on a GPU: PyTorch, torch.compile, ONNX Runtime, TensorRT and TensorRT for RTX
"""


def main(argv: list[str]) -> int:
    """Runs `styleinv bench`; returns the exit status. Raises StyleInVError where something given is bad."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    _check_together(parser, arguments)
    _check_installed(arguments)
    _check_outputs(arguments)
    settings = Settings(
        bundle=str(arguments.bundle),
        engine=arguments.engine,
        precision=arguments.precision[0],
        threads=arguments.threads,
        batch=arguments.batch or (1 if arguments.latent_stride == 1 else STRIDED_BATCH),
        seed=arguments.seed,
        warmup=arguments.warmup,
        frames=arguments.frames,
        verify_hashes=not arguments.no_verify_hash,
        latent_stride=arguments.latent_stride,
    )
    try:
        return _compare(arguments, settings) if arguments.compare else _measure(arguments, settings)
    except OSError as error:
        raise StyleInVError(f"{error.filename}: cannot be written: {error.strerror}") from error


def _measure(arguments: argparse.Namespace, settings: Settings) -> int:
    machine = describe_machine()
    result = measure(settings, arguments.baseline, lambda text: _report(arguments, f"measuring {text}"))
    print(as_table(result, machine), flush=True)
    if arguments.csv is not None:
        append_rows(arguments.csv, [as_row(result, machine)])
    if arguments.json is not None:
        _write(arguments.json, as_json(result, machine).encode())
    if arguments.plot is not None:
        from styleinv.export.bench_plot import plot

        _write(arguments.plot, plot(result, machine))
    return 0


def _compare(arguments: argparse.Namespace, settings: Settings) -> int:
    from styleinv.export import bench_compare, bench_compare_report

    machine = describe_machine()
    comparison = bench_compare.compare_ways(
        settings, arguments.precision, arguments.device, arguments.baseline, lambda text: _report(arguments, text)
    )
    print(bench_compare_report.as_table(comparison, machine), flush=True)
    rows = bench_compare_report.as_rows(comparison, machine)
    if arguments.csv is not None:
        append_rows(arguments.csv, rows)
    if arguments.json is not None:
        _write(arguments.json, bench_compare_report.as_json(rows).encode())
    return 0


def _report(arguments: argparse.Namespace, text: str) -> None:
    print(f"{arguments.bundle}: {text}", file=sys.stderr, flush=True)


def _check_together(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Leaves as argparse does where options do not go with each other; fills in the default precision."""
    arguments.precision = list(dict.fromkeys(arguments.precision or ["fp32"]))
    if not arguments.compare:
        if arguments.device is not None:
            parser.error("--device goes with --compare; otherwise --engine says where to play")
        if len(arguments.precision) > 1:
            parser.error("--precision: give one, or --compare to compare several")
        return
    if arguments.baseline is None:
        parser.error("--compare takes --baseline, the checkpoint that PyTorch is to play")
    given = {
        "--engine": arguments.engine != "auto",
        "--latent-stride": arguments.latent_stride != 1,
        "--plot": arguments.plot is not None,
    }
    if unfit := [option for option, is_given in given.items() if is_given]:
        parser.error(f"{', '.join(unfit)}: --compare plays exact latents on every engine, and draws no picture")


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Raises StyleInVError where a file could not be written: better now than after minutes of measuring."""
    for option in ("csv", "json", "plot"):
        file: Path | None = getattr(arguments, option)
        if file is None:
            continue
        if not file.parent.is_dir():
            raise StyleInVError(f"--{option} {file}: found no folder {file.parent}, expected one")
        if file.is_dir():
            raise StyleInVError(f"--{option} {file}: found a folder, expected the name of a file")
    if arguments.csv is not None:
        check_header(arguments.csv, _compared_columns() if arguments.compare else COLUMNS)


def _compared_columns() -> Iterable[str]:
    from styleinv.export import bench_compare_report

    return bench_compare_report.COLUMNS


def _check_installed(arguments: argparse.Namespace) -> None:
    """Raises StyleInVError where an option needs a package that is not there."""
    for option, package, extra in (("plot", "matplotlib", "bench"), ("baseline", "torch", "train")):
        if getattr(arguments, option) is not None and importlib.util.find_spec(package) is None:
            raise StyleInVError(
                f"--{option} needs {package}, which is not installed: `pip install 'styleinv[{extra}]'`"
            )


def _write(path: Path, content: bytes) -> None:
    """The file appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _png(text: str) -> Path:
    if not text.endswith(".png"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a file name that ends in .png")
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="styleinv bench",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle, such as sky.bundle")
    add("--engine", choices=["auto", *ENGINES], default="auto", help="what computes the frames (default auto)")
    add("--precision", choices=PRECISIONS, action="append", help="what they are computed in; with --compare it may be "
        "given several times (default fp32)")  # fmt: skip
    add("--threads", type=whole_number(1), metavar="N", help="CPU threads to use (default: as the engine finds best)")
    add("--frames", type=whole_number(1), default=200, metavar="N", help="how many frames to time (default 200)")
    add("--warmup", type=whole_number(1), default=10, metavar="N", help="frames played before those that are timed, so "
        "that graphs are loaded and caches filled (default 10)")  # fmt: skip
    add("--batch", type=whole_number(1), metavar="N", help="frames computed at a time; the time of each is then the "
        "batch's divided by N (default 1, with --latent-stride 2, as when it plays)")  # fmt: skip
    add(
        "--latent-stride",
        type=latent_stride,
        default=1,
        metavar="K",
        help="latents from the encoder at every K-th "
        "frame only, the others from a curve through them; auto takes what export found good enough (default 1)",
    )
    add("--seed", type=seed_number, default=0, metavar="N", help="which clip (default 0)")
    add("--baseline", type=Path, metavar="FILE", help="the checkpoint that the bundle was exported from: its model "
        "then draws frames in PyTorch, as it is trained, in turns with the bundle, to say how many times faster the "
        "bundle is and how near its frames are")  # fmt: skip
    add("--compare", action="store_true", help="play in every way that this machine has, in turns with PyTorch: the "
        "checkpoint as trained and as exported, eager and compiled, and all engines in these precisions; what cannot "
        "be had is listed with its reason. Takes --baseline. torch.compile needs minutes before the first "
        "frame")  # fmt: skip
    add("--device", choices=["cpu", "cuda"], help="where to compare: cuda takes engines and PyTorch on the GPU, cpu "
        "those on the CPU (default cuda where PyTorch has it)")  # fmt: skip
    add("--csv", type=Path, metavar="FILE", help="add a row with settings, results, versions and machine to this file; "
        "with --compare a row for each way, to a file of its own")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the results for machines: fps, latency_ms, cold_start_s, "
        "peak_rss_mib, session, precision, ...")  # fmt: skip
    add("--plot", type=_png, metavar="FILE.png", help="draw the time of every frame, and a histogram of them")
    add("--no-verify-hash", action="store_true", help="open the bundle without reading every file to compare its "
        "SHA-256, which a cold start otherwise includes")  # fmt: skip
    return parser
