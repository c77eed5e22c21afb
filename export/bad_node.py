"""Finds the node at which an engine leaves the tolerance: Polygraphy bisects the graph, this file says good or bad.

`polygraphy debug reduce` cuts a graph shorter and shorter from its outputs and runs this module on each piece; what is
left in the end is the shortest piece whose last value is wrong.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

from styleinv.export.comparison import compare
from styleinv.export.onnx_graph import graph_spec
from styleinv.export.references import sample_inputs
from styleinv.export.tolerances import TOLERANCES
from styleinv.export.verify import REFERENCE_ENGINE, Way
from styleinv.runtime.bundle import Bundle
from styleinv.runtime.errors import EngineError
from styleinv.runtime.sessions import SessionOptions, Sessions, open_graph

PIECE = "polygraphy_debug.onnx"  # what `debug reduce` calls each piece, in the folder that it runs in
TOLERABLE = 0  # the exit statuses of a check
OUT_OF_TOLERANCE = 1


def find_bad_node(bundle: Bundle, name: str, way: Way, folder: Path, allowed: float | None = None) -> str:
    """The first node of a graph whose value is out of tolerance on an engine, against ONNX Runtime on the same graph
    and inputs, in words. The piece of the graph up to it is left in `folder`.

    Args:
        allowed: the largest error over the largest value; None is what the precision is allowed.
    Raises: BundleError where the bundle has no such graph; EngineError where Polygraphy fails.
    """
    allowed = TOLERANCES[way.precision].relative if allowed is None else allowed
    graph = bundle.graph(name, precision=way.graphs)
    label = f"{bundle.path}: graphs.{name}: {way}"
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        with Sessions(bundle, engine=REFERENCE_ENGINE) as sessions:
            inputs = sample_inputs(sessions, 1)[None, name]
        np.savez(scratch / "inputs.npz", allow_pickle=False, **inputs)
        onnx.save_model(_of_batch_one(onnx.load(graph.file)), scratch / "graph.onnx")
        check = [sys.executable, "-m", "styleinv.export.bad_node", PIECE, "--engine", way.engine]
        check += ["--precision", way.precision, "--allowed", repr(allowed)]
        if _check(scratch / "graph.onnx", scratch / "inputs.npz", way.engine, way.precision, allowed) == TOLERABLE:
            return f"{label}: within tolerance, no node to find"
        reduce = [sys.executable, "-c", "import sys; from polygraphy.tools import main; sys.exit(main())"]
        reduce += ["debug", "reduce", "graph.onnx", "-o", "reduced.onnx", "--mode", "bisect", "--no-reduce-inputs"]
        finished = subprocess.run(
            [*reduce, "--check", *check], cwd=scratch, capture_output=True, text=True, check=False
        )
        if not (scratch / "reduced.onnx").exists():
            raise EngineError(f"{label}: found a failing `polygraphy debug reduce`: {finished.stdout[-2000:]}")
        reduced = onnx.load(scratch / "reduced.onnx").graph
        kept = shutil.copy(scratch / "reduced.onnx", folder / f"{name}-{way.engine}-{way.precision}-reduced.onnx")
        last = next(node for node in reduced.node if reduced.output[0].name in node.output)
        return (
            f"{label}: found {last.op_type} {last.name} ({len(reduced.node)} nodes from the inputs), the first that is "
            f"out of tolerance; the piece up to it is in {kept}"
        )


def _of_batch_one(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a fixed batch and every value's shape known, so that any of them can be an output."""
    del model.graph.value_info[:]
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _check(file: Path, inputs: Path, engine: str, precision: str, allowed: float) -> int:
    """Runs a model on both engines; `OUT_OF_TOLERANCE` where an output's error over its largest value is above
    `allowed`."""
    model = onnx.load(file, load_external_data=False)
    with np.load(inputs) as arrays:
        given = {value.name: arrays[value.name] for value in model.graph.input}
    spec = graph_spec(model, file, precision)
    with open_graph(REFERENCE_ENGINE, spec, SessionOptions("fp32")) as trusted:
        expected = trusted.run(given)
    with open_graph(engine, spec, SessionOptions(precision)) as session:
        found = session.run(given)
    errors = [compare(engine, name, precision, found[name], wanted).relative for name, wanted in expected.items()]
    return TOLERABLE if all(error <= allowed for error in errors) else OUT_OF_TOLERANCE


def main() -> int:
    """Says of one piece whether it is within tolerance, by its exit status."""
    parser = argparse.ArgumentParser(prog="python -m styleinv.export.bad_node", description=__doc__)
    parser.add_argument("piece", type=Path, help="an ONNX model with fixed shapes; inputs.npz lies beside it")
    parser.add_argument("--engine", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--allowed", type=float, required=True)
    arguments = parser.parse_args()
    inputs = arguments.piece.with_name("inputs.npz")
    return _check(arguments.piece, inputs, arguments.engine, arguments.precision, arguments.allowed)


if __name__ == "__main__":
    sys.exit(main())
