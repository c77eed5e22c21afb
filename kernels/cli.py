"""`styleinv kernels`: what the GPU kernels compile to and move, and their tuning for the GPU at hand."""

from __future__ import annotations

import argparse
import importlib
import sys

COMMANDS = {
    "report": ("styleinv.kernels.report:main", "say what each kernel takes of a GPU, and estimate what it gains"),
    "tune": ("styleinv.kernels.tune:main", "time launch parameters on this machine's GPU and write tuning tables"),
}


def main(argv: list[str]) -> int:
    """Runs one of the commands and returns its exit status: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="styleinv kernels",
        description="The fused GPU kernels.",
        epilog="; ".join(f"{name}: {text}" for name, (_, text) in COMMANDS.items()),
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="`styleinv kernels COMMAND --help` explains them")
    arguments = parser.parse_args(argv)
    module, _, function = COMMANDS[arguments.command][0].partition(":")
    try:
        status: int = getattr(importlib.import_module(module), function)(arguments.arguments)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("styleinv"):
            raise
        return _fail(f"`kernels {arguments.command}` needs {error.name}, which is not installed: "
                     "`pip install 'styleinv[kernels]'`")  # fmt: skip
    except BrokenPipeError:  # as in `styleinv kernels report | head -1`; runtime/cli.py answers it for all commands
        raise
    except (OSError, ValueError) as error:
        return _fail(str(error))
    return status


def _fail(message: str) -> int:
    print(f"styleinv kernels: error: {message}", file=sys.stderr)
    return 2
