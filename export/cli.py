"""`styleinv export`: compile a checkpoint into a bundle."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from styleinv.export.writer import NOISE_MODES, export_bundle
from styleinv.training.checkpoint import load_checkpoint


def main(argv: list[str]) -> int:
    """Export and verify."""
    parser = argparse.ArgumentParser(
        prog="styleinv export",
        description="Compile a checkpoint into a bundle: the folder that `styleinv stream` and applications play. "
        "Every graph is checked against PyTorch first; where one differs, nothing is written.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the .safetensors file of a trained model")
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="the folder to write, such as "
                        "sky.bundle; an earlier bundle there is replaced")  # fmt: skip
    parser.add_argument("--noise", choices=NOISE_MODES, default="const",
                        help="const: the model's fixed noise, baked in (default); none: without")  # fmt: skip
    arguments = parser.parse_args(argv)
    checkpoint = load_checkpoint(arguments.checkpoint)
    comparisons = export_bundle(checkpoint, arguments.out, noise=arguments.noise)
    worst = max(comparison.error / comparison.allowed for comparison in comparisons)
    print(
        f"{arguments.out} written: {len(comparisons)} comparisons with PyTorch passed, "
        f"the closest at {worst:.0%} of its tolerance; see {arguments.out / 'report.md'}",
        file=sys.stderr,
    )
    return 0
