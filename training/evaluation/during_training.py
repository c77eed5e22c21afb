"""The curves of quality of a training run: a few distances to the real clips, at every snapshot."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from styleinv.training.data import ClipSet
from styleinv.training.evaluation.evaluate import quick_evaluation, require_comparable
from styleinv.training.evaluation.features import FeatureNetwork
from styleinv.training.evaluation.reference import measure_real
from styleinv.training.generator import Generator
from styleinv.training.model import StyleInV


def measure_with(features: Path, clips: ClipSet, frames: int = 200) -> Callable[[nn.Module], dict[str, float]]:
    """What `loop.train` takes as `measure`: a stage's result -> numbers by name, as `quick_evaluation` has them.

    The network is opened and the real frames are measured once, here, so that a wrong file ends a training before it
    begins. Models are measured on the CPU, and take no random numbers. Those that draw nothing (inversion) give {}.

    features: a feature network of pictures (.onnx).
    clips: the real ones, at the model's resolution.
    frames: how many seeds are drawn; only distances of as many compare.
    Raises: CheckpointError where the file is no such network, ConfigError for fewer than 8 frames, DataError for fewer
        than 8 real ones, EngineError where ONNX Runtime is not installed.
    """
    with torch.device("cpu"):
        network = FeatureNetwork.open(features)
        require_comparable(frames, clips, network)
        real = measure_real(clips, network)

    def measure(model: nn.Module) -> dict[str, float]:
        if not isinstance(model, Generator | StyleInV):
            return {}
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        with torch.device("cpu"):
            return quick_evaluation(model if on_cpu else copy.deepcopy(model).cpu(), real, network, frames)

    return measure
