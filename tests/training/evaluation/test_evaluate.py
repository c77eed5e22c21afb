"""What a model draws, and everything that is measured of it, on the smallest models."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from styleinv.runtime import noise
from styleinv.runtime.cli import main
from styleinv.runtime.errors import CheckpointError, ConfigError, DataError
from styleinv.training.checkpoint import Checkpoint, save_checkpoint
from styleinv.training.data import ClipSet
from styleinv.training.evaluation import cli
from styleinv.training.evaluation.curves import as_csv, read_curves
from styleinv.training.evaluation.evaluate import LATE, evaluate, quick_evaluation
from styleinv.training.evaluation.features import FeatureNetwork
from styleinv.training.evaluation.generated import anchors_seen, draw_clips, draw_pictures
from styleinv.training.evaluation.movement import absolute_difference, mean_pairwise, mean_step
from styleinv.training.evaluation.reference import measure_real, moving_parts, real_spread, windows
from styleinv.training.evaluation.seeds import standard_normal
from styleinv.training.evaluation.targets import check_comparable, judge
from styleinv.training.model import build_inversion

pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def network_file(tmp_path_factory):
    """Averages of quarters of a picture, and of their squares: [N, 24]."""

    def write(name, size, frames=()):
        pool = [*(4 for _ in frames), size // 2, size // 2]
        nodes = [
            helper.make_node("Mul", ["x", "x"], ["squared"]),
            helper.make_node("Concat", ["x", "squared"], ["both"], axis=1),
            helper.make_node("AveragePool", ["both"], ["pooled"], kernel_shape=pool, strides=pool),
            helper.make_node("Flatten", ["pooled"], ["y"]),
        ]
        shape = ["n", 3, *frames, size, size]
        graph = helper.make_graph(
            nodes,
            "quarters",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        )
        path = tmp_path_factory.getbasetemp() / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
        return path

    return write


@pytest.fixture(scope="module")
def network(network_file):
    return FeatureNetwork.open(network_file("quarters", 16))


def test_random_numbers_are_those_of_the_runtime():
    for seed, domain, index, count in ((0, 0, 0, 8), (7, 1, 627, 5), (2**64 - 1, 1, 3, 64)):
        assert np.array_equal(standard_normal(seed, domain, index, count),
                              noise.standard_normal(seed, domain, index, count))  # fmt: skip


@pytest.mark.parametrize("aware", ["true", "false"])
def test_clips_are_those_of_all_the_noise(small_config, aware):
    from styleinv.training.config import with_overrides
    from styleinv.training.initialize import initialize

    model = initialize(with_overrides(small_config, [f"model.motion.first_frame_aware={aware}"]), seed=2)
    times, seeds, motions = [0, 3.5, 130, 1000.25], [4, 2**40], [9, 1]
    frames, x0 = draw_clips(model, seeds, times, motions)
    assert frames.shape == (2, 4, 16, 16, 3) and frames.dtype == np.uint8 and x0.shape == (2, 16, 16, 3)
    total = model.motion.anchors_needed(1000.25)
    assert len(anchors_seen(model.motion, times)) < total / 2
    for seed, motion, clip, picture in zip(seeds, motions, frames, x0, strict=True):
        z = torch.from_numpy(noise.standard_normal(seed, noise.Z_DOMAIN, 0, 8)).float()[None]
        anchors = np.stack([noise.standard_normal(motion, noise.MOTION_DOMAIN, k, 8) for k in range(total)])
        wanted = model(z, torch.from_numpy(anchors)[None], torch.tensor([times], dtype=torch.float64))[0]
        wanted = (wanted.permute(0, 2, 3, 1) * 127.5 + 128).clamp(0, 255).to(torch.uint8).numpy()
        assert abs(wanted.astype(int) - clip).max() <= 1
        assert (wanted == clip).mean() > 0.99
        assert np.array_equal(picture, draw_pictures(model.generator, [seed])[0])


def test_more_frames_than_one_batch(small_model):
    times = list(range(40))
    frames, _ = draw_clips(small_model, [1, 2], times)
    backwards, _ = draw_clips(small_model, [2], times[::-1])
    assert abs(frames[1].astype(int) - backwards[0, ::-1]).max() <= 1
    assert absolute_difference(frames[0], frames[1]) > 5


def test_real_clips_are_measured(small_clips, network):
    real = measure_real(small_clips, network)
    assert real.features.shape == (24, 24)
    assert np.array_equal(real.features, network(small_clips.frames))
    steps = [mean_step(small_clips.clip(index)) for index in range(2)]
    assert real.step == pytest.approx(np.mean(steps))
    pairs = [absolute_difference(a, b) for a in small_clips.clip(0) for b in small_clips.clip(1)]
    assert real_spread(small_clips) == pytest.approx(np.mean(pairs))
    single = ClipSet(("a",) * 9, np.ones(9, np.int64), np.arange(9), small_clips.frames)
    assert measure_real(single, network).step is None and moving_parts(single) == []
    shifted = ClipSet(("b",), np.array([10]), np.array([12]), small_clips.frames)  # the other clip was left out
    assert np.array_equal(measure_real(shifted, network).features, network(small_clips.frames[12:22]))
    assert real_spread(shifted) is None


def test_windows_of_clips(small_clips):
    found = list(windows(small_clips, 3, 2, 99))  # of 5 frames each
    assert [window.shape[0] for window in found] == [3] * 4
    assert np.array_equal(found[3], small_clips.frames[[17, 19, 21]])
    assert len(list(windows(small_clips, 3, 2, 3))) == 3
    assert list(windows(small_clips, 13, 1, 3)) == []


def test_evaluation_of_clips(small_config, small_model, small_clips, network, network_file, tmp_path):
    checkpoint = Checkpoint(tmp_path / "m.safetensors", "styleinv", small_config, small_model)
    clip_network = FeatureNetwork.open(network_file("clips", 16, (16,)), "i3d")
    long = ClipSet(tuple("abcdefgh"), np.full(8, 16), np.arange(8), np.concatenate([small_clips.frames] * 2))
    found = evaluate(
        checkpoint, long, network, frames=20, clip_network=clip_network, clip_count=9, data="waves", progress=False
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    frames, x0 = draw_clips(small_model, range(20), [0, LATE])
    assert found["features"] == "FD-quarters" and found["frames"] == 20 and found["data"] == "waves"
    assert found["drift"].keys() == {"0", "128", "1000", "1024", "10000"}
    assert found["drift_ratio_1000"] == found["drift"]["1000"] / found["drift"]["0"]
    squared = np.square(frames[:, 0].astype(float) - x0).mean()
    assert found["first_frame_psnr"] == pytest.approx(10 * math.log10(255**2 / squared), abs=0.01)
    clip, _ = draw_clips(small_model, range(4), range(32))
    assert found["motion"]["generated_step"] == pytest.approx(np.mean([mean_step(each) for each in clip]), rel=0.01)
    real_step = np.mean([mean_step(long.clip(index)) for index in range(8)])
    assert found["motion"]["ratio"] == pytest.approx(found["motion"]["generated_step"] / real_step)
    diversity = found["diversity"]
    assert diversity["generated"] == pytest.approx(mean_pairwise(frames[:, 0]), rel=0.01)
    assert diversity["generated_1000"] == pytest.approx(mean_pairwise(frames[:, 1]), rel=0.01)
    smaller = min(diversity["generated"], diversity["generated_1000"])
    assert diversity["ratio"] == pytest.approx(smaller / diversity["real"])
    first, _ = draw_clips(small_model, range(16), [60])
    second, _ = draw_clips(small_model, range(16), [60], [2**32 + seed for seed in range(16)])
    assert found["motion_seeds"]["distance"] == pytest.approx(absolute_difference(first, second), rel=0.01)
    assert found["clips"]["distance"] == "FVD" and found["clips"]["16"] > 0 and found["clips"]["16_real_clips"] == 8
    assert found["clips"]["128"] is None and "clips of 16 frames" in found["clips"]["128_skipped"]
    assert "found 0 real clips of 121 frames" in found["clips"]["16_of_every_8th_skipped"]

    quick = quick_evaluation(small_model, measure_real(long, network), network, frames=20)
    assert quick["FD-quarters"] == pytest.approx(found["drift"]["0"], rel=1e-3)
    assert quick["FD-quarters_1000"] == pytest.approx(found["drift"]["1000"], rel=1e-3)
    assert quick["motion_ratio"] == pytest.approx(found["motion"]["ratio"], rel=1e-3)


def test_evaluation_of_pictures(small_config, small_model, small_clips, network, tmp_path):
    checkpoint = Checkpoint(tmp_path / "m.safetensors", "image", small_config, small_model.generator)
    found = evaluate(checkpoint, small_clips, network, frames=40, progress=False)
    assert "drift" not in found and "motion" not in found
    before = torch.get_rng_state()
    quick = quick_evaluation(small_model.generator, measure_real(small_clips, network), network, frames=40)
    assert quick == {"FD-quarters": found["pictures"]["fd"]}
    assert torch.equal(torch.get_rng_state(), before)
    # Real frames in place of drawn ones are at no distance.
    real = dataclasses.replace(measure_real(small_clips, network), features=network(draw_pictures(small_model.generator,
                               range(40))))  # fmt: skip
    assert abs(quick_evaluation(small_model.generator, real, network, frames=40)["FD-quarters"]) < 1e-6


def test_what_cannot_be_evaluated(small_config, small_model, small_clips, network, network_file, tmp_path):
    inversion = Checkpoint(tmp_path / "i.safetensors", "inversion", small_config, build_inversion(small_config.model))
    with pytest.raises(CheckpointError, match=r"i.safetensors: kind: found 'inversion', expected 'image'"):
        evaluate(inversion, small_clips, network)
    checkpoint = Checkpoint(tmp_path / "m.safetensors", "styleinv", small_config, small_model)
    clip_network = FeatureNetwork.open(network_file("clips", 16, (16,)))
    with pytest.raises(CheckpointError, match="found one of clips"):
        evaluate(checkpoint, small_clips, clip_network)
    with pytest.raises(CheckpointError, match="found a network of pictures, expected one of clips"):
        evaluate(checkpoint, small_clips, network, clip_network=network)
    with pytest.raises(ConfigError, match="frames: found 3"):
        evaluate(checkpoint, small_clips, network, frames=3)
    few = ClipSet(("a",), np.array([3]), np.array([0]), small_clips.frames)
    with pytest.raises(DataError, match="found 3 real frames"):
        evaluate(checkpoint, few, network)


GOOD = {
    "kind": "styleinv", "features": "FD-MobileNetV2", "pictures": {"fd": 90.0}, "drift_ratio_1000": 1.25,
    "first_frame_psnr": 25.0, "motion": {"ratio": 0.5}, "diversity": {"ratio": 0.7}, "motion_seeds": {"steps": 3.0},
}  # fmt: skip


def test_targets():
    assert len(judge(GOOD)) == 6 and all(target["met"] for target in judge(GOOD))
    bad = GOOD | {
        "pictures": {"fd": 90.1}, "drift_ratio_1000": 1.26, "first_frame_psnr": 24.9, "motion": {"ratio": 2.01},
        "diversity": {"ratio": None}, "motion_seeds": {"steps": 2.9},
    }  # fmt: skip
    assert not any(target["met"] for target in judge(bad))
    for ratio in (None, 0.0, 0.49):
        assert not judge(GOOD | {"motion": {"ratio": ratio}})[3]["met"]
    assert len(judge({"kind": "image", "features": "FD-MobileNetV2", "pictures": {"fd": 20.0}})) == 1
    with pytest.raises(ConfigError, match="found features of FID"):
        check_comparable("FID", 2000)
    with pytest.raises(ConfigError, match="found 1999 frames"):
        check_comparable("FD-MobileNetV2", 1999)


@pytest.fixture
def command(small_clips, network_file, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in small_clips.names:
        (tmp_path / "data" / name).mkdir(parents=True)
    for index, frame in enumerate(small_clips.frames):
        Image.fromarray(frame).save(tmp_path / "data" / "ab"[index // 12] / f"{index}.png")

    def run(model, *more):
        network = network_file("mobilenetv2_features", 16)
        return main(["evaluate", str(model), "--data", str(tmp_path / "data"), "--features", str(network),
                     "--out", str(tmp_path / "out"), *more])  # fmt: skip

    return run


def test_the_command(command, small_checkpoint, tmp_path, capsys, monkeypatch):
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "run" / "logs" / "motion")) as writer:
        for images in (8, 16):
            writer.add_scalar("discriminator", images / 2, images)
    curves = read_curves(tmp_path / "run")
    assert curves == {"motion": {"discriminator": [(8.0, 4.0), (16.0, 8.0)]}}
    assert as_csv(curves).decode().splitlines() == [
        "stage,name,images,value", "motion,discriminator,8,4", "motion,discriminator,16,8"
    ]  # fmt: skip

    assert command(small_checkpoint, "--frames", "8", "--log", str(tmp_path / "run")) == 0
    out = tmp_path / "out"
    clips = [f"clip_{index}.webp" for index in range(4)]
    assert {path.name for path in out.iterdir()} == {
        "evaluation.json", "results.html", "samples.png", "contact.png", "curves.csv", *clips,
    }  # fmt: skip
    found = json.loads((out / "evaluation.json").read_text())
    assert found["features"] == "FD-MobileNetV2" and found["data"] == "data" and "targets" not in found
    printed = capsys.readouterr().out
    assert f"drift.1000                        {found['drift']['1000']:.4g}" in printed and "FD-MobileNetV2" in printed
    with Image.open(out / "clip_1.webp") as clip:
        assert clip.n_frames == 64 and clip.size == (16, 16)
    with Image.open(out / "samples.png") as samples, Image.open(out / "contact.png") as contact:
        assert samples.size == (8 * 16, 8 * 16 + 4) and contact.size == (10 * 16, 8 * 16 + 14)
    page = (out / "results.html").read_text()
    assert "discriminator" in page and page.count("data:image/webp") == 4

    monkeypatch.setattr(cli, "evaluate", lambda *_, **options: found | {"frames": options["frames"]})
    assert command(small_checkpoint, "--frames", "2000", "--targets") == 1
    assert "MISSED  " in capsys.readouterr().out
    monkeypatch.setattr(cli, "evaluate", lambda *_, **__: found | GOOD)
    assert command(small_checkpoint, "--frames", "2000", "--targets") == 0
    assert all(target["met"] for target in json.loads((out / "evaluation.json").read_text())["targets"])


def test_the_command_says_what_is_wrong(command, small_config, small_checkpoint, tmp_path, capsys):
    def failure(*arguments):
        assert command(*arguments) == 2
        assert not (tmp_path / "out").exists()
        message = capsys.readouterr().err
        assert "Traceback" not in message
        return message

    save_checkpoint(tmp_path / "i.safetensors", build_inversion(small_config.model), small_config)
    assert "kind: found 'inversion'" in failure(tmp_path / "i.safetensors")
    assert "none.safetensors: no such file" in failure(tmp_path / "none.safetensors")
    assert "expected at least 8" in failure(small_checkpoint, "--frames", "7")
    assert "found 100 frames, expected at least 2000" in failure(small_checkpoint, "--frames", "100", "--targets")
    assert "found features of FD-x" in failure(small_checkpoint, "--name", "x", "--targets")
    (tmp_path / "empty").mkdir()
    assert "found no TensorBoard logs" in failure(small_checkpoint, "--log", str(tmp_path / "empty"))
