"""Refitting an engine with a transfer's weights: which graphs can be, and the check of what it draws then."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pytest

from styleinv.export import engine_build, engines, refit
from styleinv.export.additions import Additions
from styleinv.export.engine_options import EngineOptions
from styleinv.export.engines import add_engines
from styleinv.export.refit import can_refit, check_refit
from styleinv.export.writer import write_bundle
from styleinv.runtime import Bundle, Sessions
from styleinv.runtime.errors import EngineError
from styleinv.training.checkpoint import load_checkpoint, save_checkpoint
from styleinv.training.config import with_overrides
from styleinv.training.initialize import initialize


def bundle_with(folder, checkpoint, **transfers):
    """A bundle with these transfers: generators and their configurations by name."""
    for name, (generator, config) in transfers.items():
        save_checkpoint(folder / f"{name}.safetensors", generator, config, kind="transfer")
    out = folder / "styled.bundle"
    out.mkdir()
    files = {name: load_checkpoint(folder / f"{name}.safetensors") for name in transfers}
    write_bundle(load_checkpoint(checkpoint), out, Additions(None, files), noise="const")
    return out


@pytest.fixture(scope="module")
def styled(small_checkpoint, small_config, tmp_path_factory):
    """A bundle with a transfer of the same shape, `ink`, and one of fewer channels, `thin`."""
    thin = with_overrides(small_config, ["model.generator.channel_max=8"])
    styles = {
        name: (initialize(config, seed=9).generator, config)
        for name, config in {"ink": small_config, "thin": thin}.items()
    }
    return bundle_with(tmp_path_factory.mktemp("styled"), small_checkpoint, **styles)


def test_only_graphs_that_differ_in_weights_alone(styled):
    bundle = Bundle.open(styled)
    own = bundle.graph("synthesis").file
    assert can_refit(own, bundle.graph("synthesis", "ink").file)
    assert not can_refit(own, bundle.graph("synthesis", "thin").file)
    assert not can_refit(own, bundle.graph("latent").file)


def test_such_transfers_get_no_engine_of_their_own(styled):
    bundle = Bundle.open(styled)

    def syntheses(**options) -> list[str]:
        found = engines._graphs(bundle, EngineOptions("rtx", "fp32", ("8.9",), **options))
        return [str(transfer) for graph, transfer in found if graph.name == "synthesis"]

    assert syntheses() == ["None", "ink", "thin"] and syntheses(refittable=True) == ["None", "thin"]


class OnGpu(Sessions):
    """Stands in for sessions on a GPU: draws on the CPU, and a transfer as `drawn` says, which is given what its graph
    draws and what the bundle's own one does."""

    def __init__(self, drawn, bundle, *, engine, precision="fp32"):
        self._drawn = drawn if engine == "rtx" else None
        super().__init__(bundle, engine="onnxruntime")

    def load(self, graph, transfer):
        session = super().load(graph, transfer)
        if transfer is not None and self._drawn is not None:
            own, right = super().load(graph, None), session.run
            session.run = lambda inputs, outputs=None: self._drawn(right(inputs, outputs), own.run(inputs, outputs))
        return session


def on_gpu(drawn):
    return lambda bundle, **options: OnGpu(drawn, bundle, **options)


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (lambda right, own: right, None),
        (lambda right, own: own, r"transfers\.ink: rtx fp32, refitted: found an error of .* against its graph"),
        (lambda right, own: {name: array + 0.01 for name, array in right.items()}, "found an error of"),
        (lambda right, own: {name: array * np.nan for name, array in right.items()}, "found an error of nan"),
    ],
)
def test_what_a_refitted_engine_draws_is_looked_at(styled, monkeypatch, drawn, message):
    monkeypatch.setattr(refit, "Sessions", on_gpu(drawn))
    with contextlib.nullcontext() if message is None else pytest.raises(EngineError, match=message):
        check_refit(Bundle.open(styled), "ink", "rtx", "fp32")


def test_a_transfer_that_draws_as_the_own_style_is_told(
    small_checkpoint, small_model, small_config, tmp_path, monkeypatch
):
    same = bundle_with(tmp_path, small_checkpoint, same=(small_model.generator, small_config))
    monkeypatch.setattr(refit, "Sessions", on_gpu(lambda right, own: right))
    with pytest.raises(EngineError, match="found the very pictures of the bundle's own style, expected others"):
        check_refit(Bundle.open(same), "same", "rtx", "fp32")


def test_a_refit_that_fails_leaves_the_bundle_as_it_was(styled, monkeypatch, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    monkeypatch.setenv("STYLEINV_CACHE", str(tmp_path / "cache"))
    before = (styled / "manifest.json").read_bytes()

    def fail(bundle: Bundle, engine: str, precision: str) -> None:
        assert len(bundle.engines) == 6  # they were there; `ink` has none of its own
        raise EngineError("it draws something else")

    def build(job: engine_build.Job, on_phase: object) -> None:  # refittable ones take a GPU
        engine_build.build_engine(dataclasses.replace(job, refittable=False))

    monkeypatch.setattr(engines, "check_refits", fail)
    monkeypatch.setattr(engines, "build_engine", build)
    with pytest.raises(EngineError, match="it draws something else"):
        add_engines(styled, [EngineOptions("rtx", "fp32", ("8.9",), refittable=True)], progress=False)
    assert (styled / "manifest.json").read_bytes() == before
    assert not [file for file in (styled / "engines").rglob("*") if file.is_file()]
