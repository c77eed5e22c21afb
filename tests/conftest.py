"""What tests share: the smallest whole model, its checkpoint, its bundle, and clips to train on."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

# Ignored in jobs that a shell runs in the background, and inherited: `make test &` would find Ctrl-C without effect.
signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL = [
    "model.generator.resolution=16",
    "model.generator.z_dim=8",
    "model.generator.w_dim=12",
    "model.generator.channel_base=128",
    "model.generator.channel_max=16",
    "model.encoder.widths=[16,16]",
    "model.encoder.depths=[1,2]",
    "model.motion.noise_dim=8",
    "model.motion.code_dim=10",
    "model.motion.anchor_distance=8",
    "model.motion.frequencies=6",
    "discriminator.channel_base=128",
    "discriminator.channel_max=16",
    "discriminator.clip_channel_base=128",
    "discriminator.time_dim=8",
    "image.batch=4",
    "image.r1_interval=4",
    "image.path_length_interval=2",
    "inversion.batch=4",
    "motion.batch=2",
    "motion.clip_length=8",
    "motion.max_span=8",
    "motion.head_start=2",
    "augment.interval=1",
    "augment.speed_images=100",
    "snapshot_images=4",
]


@pytest.fixture(scope="session")
def small_config():
    from styleinv.training.config import with_overrides
    from styleinv.training.presets import preset

    return with_overrides(preset("tiny64"), SMALL)


@pytest.fixture(scope="session")
def small_model(small_config):
    from styleinv.training.initialize import initialize

    return initialize(small_config, seed=5)


@pytest.fixture(scope="session")
def small_checkpoint(small_config, small_model, tmp_path_factory) -> Path:
    from styleinv.training.checkpoint import save_checkpoint

    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_checkpoint(path, small_model, small_config)
    return path


@pytest.fixture(scope="session")
def small_bundle(small_checkpoint, tmp_path_factory) -> Path:
    from styleinv.export.writer import export_bundle
    from styleinv.training.checkpoint import load_checkpoint

    path = tmp_path_factory.mktemp("export") / "small.bundle"
    export_bundle(load_checkpoint(small_checkpoint), path, progress=False)
    return path


@pytest.fixture(scope="session")
def small_clips():
    """Two clips of twelve 16x16 frames, of smooth moving colours."""
    from styleinv.training.data import ClipSet

    t, y, x = np.mgrid[0:24, 0:16, 0:16].astype(np.float64)
    waves = [np.sin(0.4 * x + 0.2 * t), np.sin(0.3 * y - 0.3 * t), np.cos(0.2 * (x + y) + 0.1 * t)]
    frames = (np.stack(waves, axis=-1) * 100 + 128).astype(np.uint8)
    return ClipSet(("a", "b"), np.array([12, 12]), np.array([0, 12]), frames)
