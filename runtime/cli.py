"""The command line: `styleinv COMMAND ...`.

Each command is a function that takes its arguments as a list and returns an exit status (or None). It is imported only
when it is called, so `styleinv stream` never loads what `styleinv train` needs.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from styleinv.runtime.errors import StyleInVError

# For each command: 'module:function', what to install for it, and what it does.
COMMANDS = {
    "stream": ("styleinv.runtime.stream:main", "runtime-cpu", "play a bundle into a video, pictures or a pipe"),
    "animate": ("styleinv.runtime.animate:main", "runtime-cpu", "make a picture move, with a bundle's model"),
    "train": ("styleinv.training.cli:train", "train", "train one stage of a model on videos or pictures"),
    "init": ("styleinv.training.cli:init", "train", "write an untrained but well-conditioned model of any size"),
    "evaluate": (
        "styleinv.training.evaluation.cli:main",
        "evaluate",
        "measure how good a checkpoint is, against real clips",
    ),
    "pack": ("styleinv.training.pack_command:main", "train", "store a checkpoint in half the bytes"),
    "import": ("styleinv.export.import_command:main", "export", "turn a checkpoint of the authors' code into ours"),
    "inspect": ("styleinv.export.inspect_command:main", "export", "say what a pickle, a checkpoint or a bundle is"),
    "export": ("styleinv.export.cli:main", "export,runtime-cpu", "compile a checkpoint into a bundle"),
    "verify": (
        "styleinv.export.verify_command:main",
        "export,runtime-cpu",
        "check a bundle against its model, or a checkpoint",
    ),
    "bench": (
        "styleinv.export.bench_command:main",
        "bench,runtime-cpu",
        "measure how fast a bundle plays on this machine",
    ),
    "kernels": (
        "styleinv.kernels.cli:main",
        "kernels",
        "say what the GPU kernels compile to and move, or tune them for this GPU",
    ),
    "doctor": (
        "styleinv.runtime.doctor:main",
        "runtime-cpu",
        "say what this machine has, and which engines would load",
    ),
    "demo": ("styleinv.export.demo:main", "demo", "export and stream the sample model, in a minute or two"),
    "demo-train": (
        "styleinv.export.demo_train:main",
        "demo",
        "train, export and play a small model, in minutes, on this machine",
    ),
}

Command = Callable[[list[str]], int | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0 done, 2 bad input, 130 interrupted, 143 terminated.

    argparse leaves by SystemExit, as everywhere.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    terminated = threading.Event()
    try:
        with _interrupted_by_sigterm(terminated):
            return _run(arguments)
    except StyleInVError as error:
        print(f"styleinv: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + (signal.SIGTERM if terminated.is_set() else signal.SIGINT)
    except BrokenPipeError:  # as in `styleinv --help | head -1`; nothing more can be said on that pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


@contextmanager
def _interrupted_by_sigterm(terminated: threading.Event) -> Iterator[None]:
    """SIGTERM does what Ctrl-C does, so that what is being written is finished, and sets `terminated`."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        terminated.set()
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # a shell lets background jobs ignore Ctrl-C
            raise KeyboardInterrupt
        handler(signal.SIGINT, frame)

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help(), flush=True)
        return 0
    if arguments[0] == "--version":
        print(f"styleinv {importlib.metadata.version('styleinv')}", flush=True)
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(COMMANDS)}"
        print(f"styleinv: error: found no command {name}; {hint}", file=sys.stderr)
        return 2
    return _load(name)(rest) or 0


def _load(name: str) -> Command:
    target, extra, _ = COMMANDS[name]
    module, _, function = target.partition(":")
    try:
        command: Command = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("styleinv"):
            raise
        raise StyleInVError(
            f"`styleinv {name}` needs {error.name}, which is not installed: `pip install 'styleinv[{extra}]'`"
        ) from error
    return command


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {text}" for name, (_, _, text) in COMMANDS.items())
    return (
        "usage: styleinv [--help] [--version] COMMAND ...\n\n"
        "StyleInV: endless video from a generator of single pictures.\n\n"
        f"commands:\n{commands}\n\n"
        "`styleinv COMMAND --help` explains one of them."
    )


if __name__ == "__main__":
    sys.exit(main())
