"""`styleinv pack`: stores a checkpoint in half the bytes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from styleinv.runtime.errors import CheckpointError
from styleinv.training.checkpoint import load_checkpoint, save_checkpoint

DESCRIPTION = """\
Store a checkpoint in half the bytes: most weights as float16, those of the motion network and a few small ones, which
need their precision, as they are. Kind, configuration and provenance are kept. Every command takes the result.
"""


def main(argv: list[str]) -> int:
    """Pack one checkpoint."""
    parser = argparse.ArgumentParser(
        prog="styleinv pack", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="the .safetensors file to pack, of any kind")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write; "
                        "an earlier one is replaced")  # fmt: skip
    arguments = parser.parse_args(argv)
    source, out = arguments.model, arguments.out
    if out.suffix != ".safetensors":
        raise CheckpointError(f"{out}: found the suffix {out.suffix!r}, expected .safetensors")
    checkpoint = load_checkpoint(source)
    if out.exists() and out.samefile(source):
        raise CheckpointError(f"{out}: found MODEL itself, expected another file: packing rounds its weights for good")
    save_checkpoint(
        out, checkpoint.model, checkpoint.config, checkpoint.kind, half=True, provenance=checkpoint.provenance
    )
    before, after = source.stat().st_size, out.stat().st_size
    print(
        f"{out} written: kind {checkpoint.kind}, {before / 1e6:.2f} MB -> {after / 1e6:.2f} MB "
        f"({after / before:.0%} of {source})",
        file=sys.stderr,
    )
    return 0
