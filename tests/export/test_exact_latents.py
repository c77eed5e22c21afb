"""Latents far inside a clip are as exact as at its beginning: the runtime's against the whole path in float64."""

import copy

import numpy as np
import pytest
import torch
from motion_reference import reference_time_code

from styleinv.export.writer import motion_tensors
from styleinv.runtime import Rollout
from styleinv.runtime.noise import Z_DOMAIN, standard_normal

TIMES = [0, 10, 10**3, 10**6, 10**9, 1e9 + 0.5]
SEED = 4


@pytest.fixture(scope="module")
def reference(small_bundle, small_model, small_config):
    """Latents [T, W] from z, the anchors' noise and t, every step in float64 (time codes in extended precision)."""
    model = copy.deepcopy(small_model).double()
    with Rollout.open(small_bundle) as rollout:
        config = rollout.bundle.motion
    tensors = motion_tensors(small_model)
    with torch.no_grad():
        z = torch.from_numpy(standard_normal(SEED, Z_DOMAIN, 0, small_config.model.generator.z_dim))[None]
        w0 = model.generator.mapping(z)
        x0 = model.generator.synthesis(w0, "const")
        v = np.stack([reference_time_code(t, tensors, config, SEED).astype(np.float64) for t in TIMES])
        return model.latents(w0, x0, torch.from_numpy(v)[None])[0].numpy()


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_latents_are_the_float64_reference(small_bundle, reference, engine):
    pytest.importorskip(engine)
    with Rollout.open(small_bundle, SEED, engine=engine) as rollout:
        found = rollout.latents(TIMES)
        moved = np.linalg.norm(found - rollout.first_latent, axis=1)
    errors = np.linalg.norm(found - reference, axis=1) / np.linalg.norm(reference, axis=1)
    of_motion = np.linalg.norm(found - reference, axis=1)[1:] / moved[1:]
    print(f"{engine}: relative errors at {TIMES}: {errors}; of what moved: {of_motion}")
    assert errors.max() < 1e-4
    assert of_motion.max() < 1e-4  # as exact in what changes, of which w0 has no part
    assert len({row.tobytes() for row in found}) == len(TIMES)
