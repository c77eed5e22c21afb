"""The commands of Polygraphy, NVIDIA's tool, that look into an engine of a bundle, build it and compare it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from styleinv.export.tolerances import TOLERANCES
from styleinv.runtime.bundle import EngineSpec

LEVELS = 127.5  # of a byte of a frame, for each unit of the image; to them comes one where the two round differently
RTX = {"POLYGRAPHY_USE_TENSORRT_RTX": "1"}  # which of the two libraries Polygraphy takes


@dataclass(frozen=True)
class Command:
    """A command, by its arguments and the variables it wants, and what it is for."""

    purpose: str
    arguments: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """As typed into a shell."""
        return " ".join([*(f"{name}={value}" for name, value in self.variables), shlex.join(self.arguments)])


def polygraphy_commands(engine: EngineSpec) -> list[Command]:
    """What Polygraphy can do with an engine of TensorRT's and the graph it was built from, the files by their paths
    from here; nothing with others."""
    if engine.engine == "inductor":
        return []
    variables = tuple(RTX.items()) if engine.engine == "rtx" else ()
    graph, file = _path(engine.graph.file), _path(engine.file)
    by_size = dict(_shapes(engine))
    shapes = [word for name, arrays in by_size.items() for word in (f"--trt-{name}-shapes", *arrays)]
    targets = ["--compute-capabilities", *engine.targets] if engine.engine == "rtx" else []
    relative = TOLERANCES[engine.precision].relative
    bytes_allowed = [
        f"{name}:{1 + int(relative * LEVELS)}" for name, spec in engine.graph.outputs.items() if spec.dtype == "uint8"
    ]
    allowed = ["--atol", f"{relative:g}", *bytes_allowed, "--rtol", f"{relative:g}"]

    def command(purpose: str, *arguments: str) -> Command:
        return Command(purpose, ("polygraphy", *arguments), variables)

    again = ["-o", f"{engine.file.stem}.again.engine", *shapes, *targets]
    return [
        command("its graph, layer by layer", "inspect", "model", graph, "--show", "layers"),
        command("the engine, on a GPU that it is for", "inspect", "model", file, "--model-type", "engine"),
        command("builds it again", "convert", graph, "--convert-to", "trt", *again),
        command(
            "builds it again, on a GPU, and compares it with ONNX Runtime",
            *("run", graph, "--trt", "--onnxrt", *shapes, "--input-shapes", *by_size["opt"], *allowed),
        ),
    ]


def _shapes(engine: EngineSpec) -> Iterator[tuple[str, list[str]]]:
    """The least, usual and largest shapes of all inputs, as Polygraphy takes them: 'w:[1,512]'."""
    for name, batch in zip(("min", "opt", "max"), engine.batch, strict=True):
        shapes = {array: ",".join(map(str, (batch, *spec.shape[1:]))) for array, spec in engine.graph.inputs.items()}
        yield name, [f"{array}:[{shape}]" for array, shape in shapes.items()]


def _path(file: Path) -> str:
    """From the current folder where it lies below that; as it is elsewhere."""
    return os.path.relpath(file) if file.resolve().is_relative_to(Path.cwd()) else str(file)
