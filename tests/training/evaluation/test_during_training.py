"""The numbers that a training run takes at its snapshots."""

from __future__ import annotations

import math

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from styleinv.runtime.errors import CheckpointError, ConfigError, DataError
from styleinv.training.data import ClipSet
from styleinv.training.evaluation import during_training
from styleinv.training.evaluation.during_training import measure_with
from styleinv.training.model import build_inversion


@pytest.fixture
def features(tmp_path):
    """A network of pictures, [N, 3, 16, 16] -> its colours in each quarter, [N, 12]."""
    return write_network(tmp_path / "quarters_features.onnx", ["n", 3, 16, 16])


def write_network(path, shape):
    pool = [*(4 for _ in shape[2:-2]), 8, 8]
    nodes = [
        helper.make_node("AveragePool", ["x"], ["pooled"], kernel_shape=pool, strides=pool),
        helper.make_node("Flatten", ["pooled"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "colours", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def test_each_kind_of_model_gives_its_numbers(features, small_config, small_model, small_clips, monkeypatch):
    opened = []
    real = during_training.measure_real
    monkeypatch.setattr(during_training, "measure_real", lambda *given: opened.append(given) or real(*given))
    measure = measure_with(features, small_clips, frames=8)
    state = torch.get_rng_state()
    pictures = measure(small_model.generator)
    assert list(pictures) == ["FD-quarters"] and 0 < pictures["FD-quarters"] < math.inf
    clips = measure(small_model)
    assert list(clips) == ["FD-quarters", "FD-quarters_1000", "first_frame_psnr", "motion_ratio"]
    assert torch.equal(torch.get_rng_state(), state)  # a run stays what it would be without
    assert measure(build_inversion(small_config.model)) == {}
    with torch.device("meta"):  # where a run trains on another device, which is the default one then
        assert measure(small_model.generator) == pictures
    assert len(opened) == 1  # the real frames are measured once


def test_what_cannot_be_measured_ends_before_the_training(features, small_clips, tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.onnx: no such file"):
        measure_with(tmp_path / "nowhere.onnx", small_clips)
    with pytest.raises(CheckpointError, match=r"clips\.onnx: found one of clips, expected a network of pictures"):
        measure_with(write_network(tmp_path / "clips.onnx", ["n", 3, 4, 16, 16]), small_clips)
    with pytest.raises(ConfigError, match="frames: found 7, expected at least 8"):
        measure_with(features, small_clips, frames=7)
    few = ClipSet(small_clips.names[:1], small_clips.lengths[:1] * 0 + 3, small_clips.offsets[:1], small_clips.frames)
    with pytest.raises(DataError, match="found 3 real frames"):
        measure_with(features, few)
