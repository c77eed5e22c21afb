"""Refitting: one engine of the synthesis network that draws in several styles, by exchanging its weights.

A transfer is the same network with other weights, so an engine that was built refittable can take them over, where the
two graphs differ in nothing else. That saves an engine for each style, and costs a GPU at the time of the build.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from styleinv.export.comparison import compare
from styleinv.export.references import sample_inputs
from styleinv.export.verify import REFERENCE_ENGINE
from styleinv.runtime.bundle import Bundle
from styleinv.runtime.errors import EngineError
from styleinv.runtime.sessions import Sessions

SAMPLES = 2  # latents that are drawn


def can_refit(graph: Path, other: Path) -> bool:
    """Whether an engine of the first graph can take over the weights of the other: they are the same but for those."""
    return _without_weights(graph) == _without_weights(other)


def check_refits(bundle: Bundle, engine: str, precision: str) -> None:
    """`check_refit` of every transfer that has no engine of its own."""
    with_own = {each.transfer for each in bundle.engines if (each.engine, each.precision) == (engine, precision)}
    for transfer in bundle.transfers:
        if transfer not in with_own:
            check_refit(bundle, transfer, engine, precision)


def check_refit(bundle: Bundle, transfer: str, engine: str, precision: str) -> None:
    """Refits an engine with a transfer's weights, on this machine's GPU, and looks at what it draws then.

    Raises: EngineError where that is out of the precision's tolerance against the transfer's graph on the CPU, or is
    still the bundle's own style.
    """
    label = f"{bundle.path}: transfers.{transfer}: {engine} {precision}, refitted"
    with Sessions(bundle, engine=REFERENCE_ENGINE) as trusted:
        inputs = sample_inputs(trusted, SAMPLES)[transfer, "synthesis"]
        expected = trusted.session("synthesis", transfer).run(inputs, ["image"])["image"]
    with Sessions(bundle, engine=engine, precision=precision) as sessions:
        own = sessions.session("synthesis").run(inputs, ["image"])["image"]
        found = sessions.session("synthesis", transfer).run(inputs, ["image"])["image"]
    comparison = compare(label, "image", precision, found, expected, picture=True)
    if comparison.failures:
        raise EngineError(f"{label}: found {comparison.failures[0]} against its graph")
    if np.array_equal(found, own):
        raise EngineError(f"{label}: found the very pictures of the bundle's own style, expected others")


def _without_weights(file: Path) -> bytes:
    model = onnx.load(file, load_external_data=False)
    del model.graph.value_info[:]  # what follows from the rest
    for tensor in model.graph.initializer:
        for field in ("raw_data", "external_data", "data_location", "float_data", "int32_data", "int64_data"):
            tensor.ClearField(field)
    return model.SerializeToString(deterministic=True)
