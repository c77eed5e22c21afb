"""`styleinv verify`: checks a bundle against its model, or a checkpoint against values of the authors' own model."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from styleinv.export.bad_node import find_bad_node
from styleinv.export.comparison import Comparison
from styleinv.export.golden import check_golden, read_golden
from styleinv.export.report import write_reports
from styleinv.export.verify import BATCHES, FRAMES, LATENTS, verify, ways_of
from styleinv.runtime.arguments import real_number, whole_number
from styleinv.runtime.bundle import Bundle
from styleinv.runtime.errors import CheckpointError, EngineError
from styleinv.runtime.manifest_fields import PRECISIONS
from styleinv.runtime.sessions import ENGINES
from styleinv.training.checkpoint import Checkpoint, load_checkpoint

DESCRIPTION = f"""\
Check that a bundle computes what its model computes: every graph at batch {", ".join(map(str, BATCHES))}, and {FRAMES}
frames end to end, on every engine and in every precision that this machine has, against the model in
PyTorch (--against), or else against the bundle's own fp32 graphs in ONNX Runtime. Where a precision
rounds, the latents of {LATENTS} consecutive frames are looked at, too. What was measured is written to
report.md, parity.csv and parity.png in the bundle. Exits with 2 where anything is out of tolerance.

Given a checkpoint instead, compare it with a folder of golden values (--golden: config.json,
expected.npz), in PyTorch and through exported graphs in ONNX Runtime. Prints a line for each quantity:
the largest error relative to the largest expected value, what is allowed, and pass or FAIL. Exits with 1
where one failed.
"""
EXAMPLES = """\
examples:
  styleinv verify sky.bundle --against model.safetensors
      everything, against the model that the bundle was exported from
  styleinv verify sky.bundle --precision fp32 --frames 8 --out /tmp
      less of it, and nothing written into the bundle
  styleinv verify sky.bundle --find-node latent --engine openvino --precision bf16
      the first node of a graph at which an engine leaves the tolerance
  styleinv verify model.safetensors --golden tests/golden/sky64
      an imported checkpoint, against values of the authors' own model
"""


def main(argv: list[str]) -> int:
    """Verify a bundle or a checkpoint; see the description. Raises StyleInVError where a bundle is out of tolerance."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.path.is_dir() or arguments.golden is None:
        if arguments.golden is not None:
            parser.error("--golden goes with a checkpoint, not with a bundle")
        if arguments.path.is_file():
            parser.error("a checkpoint is verified against golden values: give --golden DIR, too")
        return _verify_bundle(arguments)
    return _verify_checkpoint(arguments.path, arguments.golden)


def _verify_checkpoint(checkpoint: Path, folder: Path) -> int:
    golden = read_golden(folder)
    failed = False
    for result in check_golden(load_checkpoint(checkpoint), golden):
        print(result, flush=True)
        failed = failed or not result.passed
    return 1 if failed else 0


def _verify_bundle(arguments: argparse.Namespace) -> int:
    bundle = Bundle.open(arguments.path, verify_hashes=not arguments.no_verify_hash)
    ways, absent = ways_of(bundle, arguments.engine, arguments.precision)
    if not ways:
        reasons = "; ".join(f"{way}: {reason}" for way, reason in absent.items())
        raise EngineError(f"{bundle.path}: found no session to verify in ({reasons}), expected one")
    if arguments.find_node:
        for way in (way for way in ways if not way.as_files):
            found = find_bad_node(bundle, arguments.find_node, way, arguments.out or Path(), arguments.allowed)
            print(found, flush=True)
        return 0
    against = None
    if arguments.against is not None:
        against = load_checkpoint(arguments.against)
        _check_same_model(bundle, against)
    result = verify(
        bundle,
        against,
        ways=ways,
        batches=arguments.batches,
        frames=arguments.frames,
        latents=arguments.latents,
        progress=sys.stderr.isatty(),
    )
    result.absent = absent
    folder = arguments.out or bundle.path
    write_reports(bundle, result, folder)
    for name in dict.fromkeys(item.way for item in result.comparisons):
        print(f"{name:28} {_summary([item for item in result.comparisons if item.way == name])}")
    for drift in result.drifts:
        print(f"{drift.way:28} latents of {drift.frames} frames: largest error {drift.largest:.1e}")
    for name, reason in absent.items():
        print(f"{name:28} not to be had: {reason}")
    print(f"see {folder / 'report.md'}", file=sys.stderr)
    result.check(str(bundle.path))
    return 0


def _summary(items: list[Comparison]) -> str:
    frames = [item.psnr for item in items if item.psnr is not None and item.what.startswith("frame at")]
    verdict = "FAIL" if any(item.failures for item in items) else "pass"
    worst = f", frames at least {min(frames):.1f} dB" if frames else ""
    return f"{len(items)} comparisons{worst}: {verdict}"


def _check_same_model(bundle: Bundle, checkpoint: Checkpoint) -> None:
    """Raises CheckpointError where the checkpoint is of another kind or another architecture than the bundle."""
    if checkpoint.kind != bundle.kind:
        raise CheckpointError(f"{checkpoint.path}: kind: found {checkpoint.kind}, expected {bundle.kind}")
    found, expected = dataclasses.asdict(checkpoint.config.model), bundle.manifest["model"]
    for part in found:
        if _as_json(found[part]) != _as_json(expected.get(part)):
            raise CheckpointError(
                f"{checkpoint.path}: config.model.{part}: found {found[part]}, expected {expected.get(part)}, as in "
                f"{bundle.path}"
            )


def _as_json(value: object) -> object:
    """Tuples as lists, as JSON has them."""
    if isinstance(value, dict):
        return {name: _as_json(below) for name, below in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="styleinv verify",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("path", type=Path, metavar="BUNDLE", help="folder of the bundle; or the .safetensors file of a checkpoint")
    add("--against", type=Path, metavar="FILE", help="the checkpoint that the bundle was exported from")
    add("--golden", type=Path, metavar="DIR", help="with a checkpoint: the folder of golden values")
    add("--engine", choices=list(ENGINES), help="this engine alone (default: all there are)")
    add("--precision", choices=PRECISIONS, help="this precision alone (default: all there are)")
    add("--batches", type=whole_number(1), nargs="+", default=list(BATCHES), metavar="N",
        help=f"batch sizes for the graphs (default {' '.join(map(str, BATCHES))})")  # fmt: skip
    add("--frames", type=whole_number(0), default=FRAMES, metavar="N",
        help=f"whole frames to compare (default {FRAMES})")  # fmt: skip
    add("--latents", type=whole_number(0), default=LATENTS, metavar="N",
        help=f"consecutive frames whose latents are compared where a precision rounds (default {LATENTS})")  # fmt: skip
    add("--find-node", metavar="GRAPH",
        help="instead: bisect one graph for the first node at which the engine leaves the tolerance")  # fmt: skip
    add("--allowed", type=real_number("a number above 0", lambda number: number > 0.0), metavar="ERROR",
        help="with --find-node: the largest error over the largest value (default: the precision's)")  # fmt: skip
    add("--out", type=Path, metavar="DIR", help="where the report goes (default: into the bundle); with --find-node, "
        "where the piece of the graph goes (default: here)")  # fmt: skip
    add("--no-verify-hash", action="store_true", help="open the bundle without comparing SHA-256 of its files")
    return parser
