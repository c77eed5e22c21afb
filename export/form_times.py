"""Times the exact forms of convolutions on this machine's CPU engines, and chooses for each layer the fastest.

    python -m styleinv.export.form_times --csv benchmarks/results/forms.csv --table export/forms.json

A layer stands between a 1x1 convolution and a mean over pixels, so that arrays come to it as they do in a network, and
writing its output away does not count; plain convolutions stand three in a row. All forms of a layer take turns.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from styleinv.export.folding import FoldedConv2d
from styleinv.export.forms import TARGETS
from styleinv.export.graphs import Graph
from styleinv.export.onnx_graph import export_onnx, graph_spec, write_models
from styleinv.export.upsampling import MODULES
from styleinv.export.winograd import PairedWinogradConv2d, paired, unpaired
from styleinv.runtime.machine import describe_machine
from styleinv.runtime.sessions import Session, SessionOptions, open_graph

# Input channels, output channels, input resolution: of tiny64, paper256, and models of 512 and 1024 pixels.
LAYERS = {
    "upsampling": [
        (128, 128, 4), (128, 64, 8), (64, 32, 16), (32, 16, 32),
        (512, 512, 4), (512, 512, 8), (512, 512, 16), (512, 256, 32), (256, 128, 64), (128, 64, 128),
        (512, 512, 32), (512, 256, 64), (256, 128, 128), (128, 64, 256), (64, 32, 512),
    ],
    "convolution": [
        (128, 128, 4), (128, 128, 8), (96, 96, 8), (64, 64, 16), (32, 32, 32), (16, 16, 64),
        (512, 512, 4), (512, 512, 8), (512, 512, 16), (512, 512, 32), (256, 256, 32), (256, 256, 64), (128, 128, 64),
        (128, 128, 128), (64, 64, 128), (64, 64, 256), (512, 512, 64), (256, 256, 128), (128, 128, 256), (32, 32, 512),
    ],
}  # fmt: skip
FORMS = {"upsampling": tuple(MODULES), "convolution": ("direct", "winograd")}
IN_A_ROW = 3
RUNS = 15


class Layer(nn.Module):
    """x [B, I, H, W] -> [B, O]: a 1x1 convolution, the layer in one of its forms, the mean over pixels."""

    def __init__(self, kind: str, form: str, inputs: int, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before = FoldedConv2d(torch.randn(inputs, inputs, 1, 1) / math.sqrt(inputs))
        weight = torch.randn(outputs, inputs, 3, 3) / math.sqrt(9 * inputs)
        self.pairs = form == "winograd"
        upsampling: dict[str, type[nn.Module]] = {str(name): module for name, module in MODULES.items()}
        convs = {"direct": FoldedConv2d, "winograd": PairedWinogradConv2d} | upsampling
        self.convs = nn.ModuleList(convs[form](weight) for _ in range(1 if kind == "upsampling" else IN_A_ROW))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        x = paired(x) if self.pairs else x
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
        x = unpaired(x) if self.pairs else x
        return x.mean(dim=(2, 3))


def milliseconds(target: str, kind: str, layer: tuple[int, int, int], folder: Path) -> dict[str, float]:
    """The time of each form of a layer at batch 1: the 20th percentile of several runs, in milliseconds."""
    inputs, outputs, size = layer
    x = torch.randn(1, inputs, size, size)
    sessions: dict[str, Session] = {}
    times: dict[str, list[float]] = {form: [] for form in FORMS[kind]}
    for form in FORMS[kind]:
        build = functools.partial(Layer, kind, form, inputs, outputs)
        (folder / form).mkdir(exist_ok=True)
        model = export_onnx(Graph(form, build(), build, {"x": x.repeat(2, 1, 1, 1)}, ("y",)))
        file = write_models({form: model}, folder / form)[form]
        sessions[form] = open_graph(target, graph_spec(model, file), SessionOptions())
    array = x.numpy()
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
    parser = argparse.ArgumentParser(prog="python -m styleinv.export.form_times", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--csv", type=Path, metavar="FILE", help="where every time goes, in milliseconds")
    parser.add_argument("--table", type=Path, metavar="FILE", help="where the choice goes; `styleinv export` reads it")
    arguments = parser.parse_args()
    rows: list[list[object]] = []
    table: dict[str, dict[str, list[list[object]]]] = {target: {kind: [] for kind in LAYERS} for target in TARGETS}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    for target in TARGETS:
        for kind, layers in LAYERS.items():
            for layer in layers:
                with tempfile.TemporaryDirectory() as folder:
                    times = milliseconds(target, kind, layer, Path(folder))
                fastest = min(times, key=times.__getitem__)
                table[target][kind].append([*layer, fastest])
                for form, time_of_form in times.items():
                    chosen = "yes" if form == fastest else "no"
                    rows.append([target, kind, *layer, form, f"{time_of_form:.3f}", chosen])
                print(target, kind, *layer, {form: round(found, 3) for form, found in times.items()}, flush=True)
    if arguments.csv:
        with arguments.csv.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            layer_columns = ["input_channels", "output_channels", "resolution"]
            writer.writerow(["engine", "kind", *layer_columns, "form", "milliseconds", "fastest", "machine", "date"])
            writer.writerows([*row, describe_machine().processor, today] for row in rows)
    if arguments.table:
        arguments.table.write_text(_as_json(table), encoding="utf-8")


def _as_json(table: dict[str, dict[str, list[list[object]]]]) -> str:
    """JSON with a line for each layer."""
    targets = []
    for target, kinds in table.items():
        parts = [
            f'  "{kind}": [\n' + ",\n".join(f"   {json.dumps(layer)}" for layer in layers) + "\n  ]"
            for kind, layers in kinds.items()
        ]
        targets.append(f' "{target}": {{\n' + ",\n".join(parts) + "\n }")
    return "{\n" + ",\n".join(targets) + "\n}\n"


if __name__ == "__main__":
    main()
