"""`styleinv export`: compile a checkpoint into a bundle."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from styleinv.export.forms import TARGETS
from styleinv.export.writer import NOISE_MODES, export_bundle
from styleinv.runtime.manifest_fields import PRECISIONS, TRANSFER_NAME
from styleinv.training.checkpoint import load_checkpoint

DESCRIPTION = """\
Compile a checkpoint into a bundle: the folder that `styleinv stream` and applications play. Every graph is
checked against PyTorch first; where one differs, nothing is written.
"""
EXAMPLES = """\
examples:
  styleinv export run/motion.safetensors --out sky.bundle
      what `styleinv stream sky.bundle` plays
  styleinv export model.safetensors --inversion psp.safetensors --out faces.bundle
      with an inversion encoder: `styleinv animate faces.bundle photo.png` starts from a picture
  styleinv export model.safetensors --precision fp16 bf16 --out sky.bundle
      with graphs in half precision, too, for engines of GPUs
  styleinv export model.safetensors --transfer arcane=style.safetensors --out faces.bundle
      with another style: `styleinv stream faces.bundle --transfer arcane` plays in it
"""


def main(argv: list[str]) -> int:
    """Export and verify."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    names = [name for name, _ in arguments.transfer]
    for name in names:
        if names.count(name) > 1:
            parser.error(f"--transfer {name}: found {names.count(name)} files, expected one for each name")
    checkpoint = load_checkpoint(arguments.checkpoint)
    result = export_bundle(
        checkpoint,
        arguments.out,
        noise=arguments.noise,
        precisions=arguments.precision,
        target=arguments.optimize_for,
        inversion=load_checkpoint(arguments.inversion, kind="inversion") if arguments.inversion else None,
        transfers={name: load_checkpoint(file) for name, file in arguments.transfer},
    )
    worst = max(comparison.share for comparison in result.comparisons)
    print(
        f"{arguments.out} written: {len(result.comparisons)} comparisons with PyTorch passed, "
        f"the closest at {worst:.0%} of its tolerance; see {arguments.out / 'report.md'}",
        file=sys.stderr,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="styleinv export",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the .safetensors file of a trained model")
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="the folder to write, such as "
                        "sky.bundle; an earlier bundle there is replaced")  # fmt: skip
    parser.add_argument("--noise", choices=NOISE_MODES, default="const",
                        help="const: the model's fixed noise, baked in (default); none: without")  # fmt: skip
    parser.add_argument("--inversion", type=Path, metavar="FILE", help="checkpoint of an inversion encoder, which "
                        "finds the latent of a picture: for `styleinv animate`. The model's own encoder, modulated "
                        "over time, does not do that, so it is given beside it")  # fmt: skip
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"], metavar="PRECISION",
                        help="what graphs to write: fp32, fp16, bf16. Those in fp32 are always there; they are what a "
                        "CPU plays, in bf16, too. Those in fp16 and bf16 are for TensorRT and CUDA (default "
                        "fp32)")  # fmt: skip
    parser.add_argument("--optimize-for", choices=TARGETS, default="openvino",
                        help="the engine on which the fp32 graphs are fastest; they run on all of them "
                        "(default openvino)")  # fmt: skip
    parser.add_argument("--transfer", type=_named_file, action="append", default=[], metavar="NAME=FILE",
                        help="checkpoint of a generator fine-tuned for another style, and a name for that style, of "
                        "letters, digits, - and _: for `styleinv stream --transfer NAME`; may be given several "
                        "times")  # fmt: skip
    return parser


def _named_file(text: str) -> tuple[str, Path]:
    name, _, file = text.partition("=")
    if not file or not TRANSFER_NAME.holds(name):
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected NAME=FILE, such as arcane=style.safetensors, with {TRANSFER_NAME.expected}"
        )
    return name, Path(file)
