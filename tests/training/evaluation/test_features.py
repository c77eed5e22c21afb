"""Feature networks: which files are taken, what they are called and what they see."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from styleinv.runtime.errors import CheckpointError, ConfigError
from styleinv.training.evaluation.features import CONVERSION, FeatureNetwork


def write_network(path, shape, nodes=None, kind=TensorProto.FLOAT):
    """A network of the channels' means, [N, 3]."""
    nodes = nodes or [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)]
    axes = helper.make_tensor("axes", TensorProto.INT64, [len(shape) - 2], range(2, len(shape)))
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [axes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, path)
    return path


PICTURES, CLIPS = ["n", 3, 8, 8], ["n", 3, 4, 8, 8]


@pytest.mark.parametrize(
    ("file", "name", "shape", "distance"),
    [
        ("mobilenetv2_features.onnx", None, PICTURES, "FD-MobileNetV2"),
        ("other.onnx", None, PICTURES, "FD-other"),
        ("inception.onnx", None, PICTURES, "FID"),
        ("other.onnx", "Inception", PICTURES, "FID"),
        ("i3d_features.onnx", None, CLIPS, "FVD"),
        ("other.onnx", "mine", CLIPS, "FD-mine"),
    ],
)
def test_names_are_honest(tmp_path, file, name, shape, distance):
    network = FeatureNetwork.open(write_network(tmp_path / file, shape), name)
    assert network.distance == distance
    assert network.takes_clips == (len(shape) == 5)
    assert network.scaling == ("bytes" if distance in ("FID", "FVD") else "imagenet")


@pytest.mark.parametrize(("scaling", "wanted"), [("unit", 0.2), ("symmetric", -0.6), ("bytes", 51.0)])
def test_scaling(tmp_path, scaling, wanted):
    network = FeatureNetwork.open(write_network(tmp_path / "a.onnx", PICTURES), scaling=scaling)
    features = network(np.full((35, 4, 4, 3), 51, np.uint8))
    assert features.shape == (35, 3) and features.dtype == np.float32
    assert features == pytest.approx(wanted, abs=1e-4)


def test_pictures_are_resized_by_bicubic_interpolation_that_overshoots(tmp_path):
    network = FeatureNetwork.open(write_network(tmp_path / "a.onnx", PICTURES), scaling="unit")
    frame = np.zeros((1, 4, 4, 3), np.uint8)
    frame[:, :, 2:] = 255
    row = network.prepare(frame)[0, 0, 3]
    # By hand, with the cubic of a = -0.75 at distances of a quarter and three quarters of a pixel.
    wanted = [0, -0.03515625, -0.10546875, 0.2265625, 0.7734375, 1.10546875, 1.03515625, 1]
    assert row == pytest.approx(wanted, abs=1e-6)
    shrunk = network.prepare(np.tile(np.array([0, 255], np.uint8)[:, None], (1, 32, 16, 3)))
    assert shrunk.shape == (1, 3, 8, 8) and abs(shrunk[..., 2:6, 2:6] - 0.5).max() < 0.05, "aliasing"


def test_clips_keep_their_frames_in_order(tmp_path):
    network = FeatureNetwork.open(write_network(tmp_path / "a.onnx", CLIPS), scaling="bytes")
    clips = np.zeros((2, 4, 8, 8, 3), np.uint8)
    clips[1] += (np.arange(4, dtype=np.uint8) * 10)[:, None, None, None]
    clips[..., 2] += 5
    prepared = network.prepare(clips)
    assert prepared.shape == (2, 3, 4, 8, 8)
    assert prepared[1, 0, :, 0, 0] == pytest.approx([0, 10, 20, 30], abs=1e-4)
    assert network(clips) == pytest.approx(np.array([[0, 0, 5], [15, 15, 20]]), abs=1e-4)


def test_files_that_are_no_feature_networks(tmp_path):
    def failure(path, error=CheckpointError, **arguments):
        with pytest.raises(error) as caught:
            FeatureNetwork.open(path, **arguments)
        return str(caught.value)

    assert "no such file" in failure(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a network")
    assert "bad.onnx: not a readable ONNX network" in failure(tmp_path / "bad.onnx")
    assert "inputs: found" in failure(write_network(tmp_path / "a.onnx", ["n", 4, 8, 8]))
    assert "inputs: found" in failure(write_network(tmp_path / "a.onnx", ["n", 3, 8]))
    assert "batches of 1 alone" in failure(write_network(tmp_path / "a.onnx", [1, 3, 8, 8]))
    good = write_network(tmp_path / "a.onnx", PICTURES)
    assert "found 'i3d' for a network of pictures" in failure(good, name="i3d")
    assert "expected one of imagenet" in failure(good, ConfigError, scaling="x")
    root = write_network(tmp_path / "root.onnx", PICTURES, [helper.make_node("Sqrt", ["x"], ["y"])])
    with pytest.raises(CheckpointError, match="not finite"):
        FeatureNetwork.open(root)(np.zeros((1, 8, 8, 3), np.uint8))


class Original(torch.nn.Module):
    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        if resize or x.dim() == 4:
            x = torch.nn.functional.interpolate(x, scale_factor=0.5)
        if rescale:
            x = 2 * x / 255 - 1
        return x.flatten(2).mean(2) if return_features else x


@pytest.mark.filterwarnings("ignore")
def test_the_documented_conversion_of_torchscript_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    programs = [part.split('"')[0] for part in CONVERSION.split('python -c "')[1:]]
    original = torch.jit.script(Original())
    frames = np.random.default_rng(0).integers(0, 256, (3, 16, 8, 8, 3), dtype=np.uint8)
    for program, file, takes in zip(programs, ("inception", "i3d"), (frames[:, 0], frames), strict=True):
        original.save("inception-2015-12-05.pt" if file == "inception" else "i3d_torchscript.pt")
        exec(program.replace("R, R", "8, 8"), {"__name__": "__main__"})
        network = FeatureNetwork.open(f"{file}.onnx")
        seen = torch.from_numpy(network.prepare(takes))
        if file == "i3d":
            wanted = original(seen, rescale=True, resize=True, return_features=True)
        else:
            wanted = original(seen, return_features=True)
        assert network(takes) == pytest.approx(wanted.numpy(), abs=1e-3)
