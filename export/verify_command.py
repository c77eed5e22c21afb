"""`styleinv verify`: checks a checkpoint against values that the authors' own model computed."""

from __future__ import annotations

import argparse
from pathlib import Path

from styleinv.export.golden import check_golden, read_golden
from styleinv.training.checkpoint import load_checkpoint


def main(argv: list[str]) -> int:
    """Verify one checkpoint; 1 where a quantity is out of tolerance."""
    parser = argparse.ArgumentParser(
        prog="styleinv verify",
        description="Compare a checkpoint with a folder of golden values (config.json, expected.npz), in PyTorch and "
        "through exported graphs in ONNX Runtime. Prints a line for each quantity: the largest error relative to the "
        "largest expected value, what is allowed, and pass or FAIL. Exits with 1 where one failed.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the .safetensors file of a model")
    parser.add_argument("--golden", type=Path, required=True, metavar="DIR", help="the folder of golden values")
    arguments = parser.parse_args(argv)
    golden = read_golden(arguments.golden)
    failed = False
    for result in check_golden(load_checkpoint(arguments.checkpoint), golden):
        print(result, flush=True)
        failed = failed or not result.passed
    return 1 if failed else 0
