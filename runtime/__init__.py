"""Plays bundles: `Rollout.open("sky.bundle", seed=7)[1000.5]` is a picture. Needs numpy and one engine, no torch."""

from styleinv.runtime.bundle import Bundle
from styleinv.runtime.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    DataError,
    EngineError,
    StyleInVError,
    TrainingError,
)
from styleinv.runtime.player import Player
from styleinv.runtime.rollout import Rollout
from styleinv.runtime.rollout_batch import RolloutBatch
from styleinv.runtime.sessions import Sessions

__all__ = [
    "Bundle",
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EngineError",
    "Player",
    "Rollout",
    "RolloutBatch",
    "Sessions",
    "StyleInVError",
    "TrainingError",
]
