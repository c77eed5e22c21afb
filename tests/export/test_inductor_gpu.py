"""Packages of Inductor for a GPU: the fused kernels compiled in, played with PyTorch alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from styleinv.export import engines
from styleinv.runtime import Bundle
from styleinv.runtime.cli import main
from styleinv.runtime.sessions import open_session
from styleinv.training.checkpoint import save_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU"),
]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("fp16", 5e-2), ("bf16", 2e-1)])
def test_a_package_of_the_fused_kernels(small_model, small_config, tmp_path, monkeypatch, precision, tolerance):
    save_checkpoint(tmp_path / "model.safetensors", small_model.generator, small_config, kind="image")
    out = tmp_path / "pictures.bundle"
    monkeypatch.setattr(
        engines, "_graphs", lambda bundle, each: [(bundle.graph("synthesis", None, each.precision), None)]
    )
    command = ["export", str(tmp_path / "model.safetensors"), "--out", str(out), "--engine", "inductor"]
    assert main([*command, "--precision", precision]) == 0
    bundle = Bundle.open(out)
    w = np.random.default_rng(0).standard_normal((3, 12)).astype(np.float32)
    with (
        open_session("onnxruntime", bundle, "synthesis") as exact,
        open_session("inductor", bundle, "synthesis", precision=precision) as session,
    ):
        wanted, pending = exact.run({"w": w}), session.submit({"w": w})
        w_changed = w.copy()
        w[:] = 0.0  # it was copied
        found = pending.result()
        np.testing.assert_allclose(found["image"], wanted["image"], atol=tolerance)
        for name in ("image", "frame"):
            kept = torch.as_tensor(session.run_on_device({"w": w_changed}, [name])[name], device="cuda")
            np.testing.assert_array_equal(kept.cpu().numpy(), found[name])
