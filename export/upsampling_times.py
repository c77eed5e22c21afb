"""Times the forms of upsampling convolutions on this machine's CPU engines, and chooses for each layer the fastest.

    python -m styleinv.export.upsampling_times --csv benchmarks/results/upsampling.csv --table export/upsampling.json

Each layer is timed alone, followed by a mean over its pixels, so that writing its output away does not count; all forms
of a layer take turns.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from styleinv.export.graphs import Graph
from styleinv.export.onnx_graph import array_specs, export_onnx, write_models
from styleinv.export.upsampling import FORMS, MODULES, TARGETS, Form
from styleinv.runtime.bundle import ArraySpec, GraphSpec
from styleinv.runtime.sessions import ENGINES, SessionOptions, open_graph

# Input channels, output channels, input resolution: of paper256, of 512 and 1024 pixels, and of tiny64.
LAYERS = [
    (512, 512, 4), (512, 512, 8), (512, 512, 16), (512, 256, 32), (256, 128, 64), (128, 64, 128),
    (512, 512, 32), (512, 256, 64), (256, 128, 128), (128, 64, 256), (64, 32, 512),
    (128, 128, 4), (128, 64, 8), (64, 32, 16), (32, 16, 32),
]  # fmt: skip
RUNS = 15


class Layer(nn.Module):
    """x [B, I, H, W] -> the mean over pixels of what a form makes of it, [B, O]."""

    def __init__(self, weight: Tensor, form: Form) -> None:
        super().__init__()
        self.upsample = MODULES[form](weight)

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = self.upsample(x).mean(dim=(2, 3))
        return mean


def milliseconds(target: str, inputs: int, outputs: int, size: int, folder: Path) -> dict[Form, float]:
    """The time of each form of a layer at batch 1: the 20th percentile of several runs, in milliseconds."""
    weight, x = torch.randn(outputs, inputs, 3, 3), torch.randn(1, inputs, size, size)
    sessions: dict[Form, Any] = {}
    for form in FORMS:
        layer = Layer(weight, form)
        (folder / form).mkdir(exist_ok=True)
        model = export_onnx(Graph(form, layer, lambda layer=layer: layer, {"x": x.repeat(2, 1, 1, 1)}, ("y",)))
        file = write_models({form: model}, folder / form)[form]
        spec = GraphSpec(form, file, "", "fp32", _specs(model.graph.input), _specs(model.graph.output))
        sessions[form] = open_graph(target, spec, SessionOptions())
    array, times = x.numpy(), {form: [] for form in FORMS}
    for run in range(-3, RUNS):
        for form, session in sessions.items():
            begin = time.perf_counter()
            session.run({"x": array})
            if run >= 0:
                times[form].append(1000.0 * (time.perf_counter() - begin))
    for session in sessions.values():
        session.close()
    return {form: float(np.percentile(found, 20)) for form, found in times.items()}


def main() -> None:
    """Times all layers on all targets and writes both files."""
    assert set(TARGETS) <= ENGINES.keys()
    parser = argparse.ArgumentParser(prog="python -m styleinv.export.upsampling_times", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--csv", type=Path, metavar="FILE", help="where every time goes, in milliseconds")
    parser.add_argument("--table", type=Path, metavar="FILE", help="where the choice goes; `styleinv export` reads it")
    arguments = parser.parse_args()
    rows, table = [], {}
    for target in TARGETS:
        table[target] = []
        for layer in LAYERS:
            with tempfile.TemporaryDirectory() as folder:
                times = milliseconds(target, *layer, Path(folder))
            fastest = min(times, key=times.__getitem__)
            table[target].append([*layer, fastest])
            rows.append([target, *layer, *(f"{times[form]:.3f}" for form in FORMS), fastest])
            print(*rows[-1], flush=True)
    machine = [_processor(), datetime.datetime.now(datetime.UTC).date().isoformat()]
    if arguments.csv:
        with arguments.csv.open("w", encoding="utf-8", newline="") as file:
            head = ["engine", "input_channels", "output_channels", "input_resolution"]
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*head, *(f"{form}_ms" for form in FORMS), "fastest", "machine", "date"])
            writer.writerows([*row, *machine] for row in rows)
    if arguments.table:
        lines = ",\n".join(
            f' "{target}": [\n' + ",\n".join(f"  {json.dumps(layer)}" for layer in layers) + "\n ]"
            for target, layers in table.items()
        )
        arguments.table.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


def _specs(values: Any) -> dict[str, ArraySpec]:
    return {name: ArraySpec(spec["dtype"], tuple(spec["shape"])) for name, spec in array_specs(values).items()}


def _processor() -> str:
    """The CPU's name, as Linux gives it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
