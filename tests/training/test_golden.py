"""The networks reproduce the values of the authors' model (tests/golden/README.md), tensor name for tensor name."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from styleinv.training.config import GeneratorConfig, ModelConfig
from styleinv.training.model import build_styleinv

SKY64 = Path(__file__).parents[1] / "golden" / "sky64"
TEMPORAL_BLOCKS = {"2": 0, "6": 1, "20": 2, "23": 3}  # ours are named after the bottleneck that they follow
COMPUTED = re.compile(r"(.*resample_filter|.*phase_scales)$")  # tensors that follow from the configuration
RENAMES = [
    (r"^generator\.mapping\.latent_average$", "G.mapping.w_avg"),
    (r"^generator\.mapping\.layers\.(\d+)\.", r"G.mapping.fc\1."),
    (r"^generator\.synthesis\.const$", "G.synthesis.b4.const"),
    (r"^encoder\.stem\.", "SI.encoder.input_layer."),
    (r"^encoder\.head\.", "SI.encoder.linear."),
    (r"^encoder\.bottlenecks\.(\d+)\.residual\.5\.squeeze\.", r"SI.encoder.body.\1.res_layer.5.fc1."),
    (r"^encoder\.bottlenecks\.(\d+)\.residual\.5\.excite\.", r"SI.encoder.body.\1.res_layer.5.fc2."),
    (r"^encoder\.bottlenecks\.(\d+)\.residual\.", r"SI.encoder.body.\1.res_layer."),
    (r"^encoder\.bottlenecks\.(\d+)\.shortcut\.", r"SI.encoder.body.\1.shortcut_layer."),
    (r"^motion\.first_code_noise$", "SI.mapping.motion_encoder.frame_0_const"),
    (r"^motion\.conv\.", "SI.mapping.motion_encoder.conv."),
    (r"^motion\.frequencies$", "SI.mapping.motion_encoder.time_encoder.freqs"),
    (r"^motion\.period\.", "SI.mapping.motion_encoder.time_encoder.periods_predictor."),
    (r"^motion\.phase\.", "SI.mapping.motion_encoder.time_encoder.phase_predictor."),
    (r"^motion\.aligner\.", "SI.mapping.motion_encoder.time_encoder.aligners_predictor."),
    (r"^style\.layers\.(\d)\.", r"SI.mapping.fcf\1."),
]


def foreign_name(name):
    if match := re.match(r"generator\.synthesis\.blocks\.(\d+)\.(?:convs\.(\d)|to_rgb)\.(.*)", name):
        resolution = 4 << int(match[1])
        layer = "torgb" if match[2] is None else f"conv{int(match[2]) + (resolution == 4)}"
        return f"G.synthesis.b{resolution}.{layer}.{'noise_const' if match[3] == 'noise' else match[3]}"
    if match := re.match(r"encoder\.temporal\.(\d+)\.(.*)", name):
        rest = match[2].replace("affine1", "norm1.fc").replace("affine2", "norm2.fc")
        return f"SI.encoder.adains.{TEMPORAL_BLOCKS[match[1]]}.{rest}"
    for pattern, replacement in RENAMES:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    raise KeyError(name)


@pytest.fixture(scope="module")
def golden():
    with np.load(SKY64 / "expected.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def model():
    layout = json.loads((SKY64 / "state_dict.json").read_text())
    entries = {f"{part}.{name}": entry for part, tensors in layout.items() for name, entry in tensors.items()}
    with np.load(SKY64 / "constants.npz") as constants:

        def value(name):
            entry = entries.pop(name)
            if entry.get("constant"):
                return constants[name]
            draws = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
            normal = draws.standard_normal(entry["shape"], dtype=np.float32)
            return np.float32(entry["mean"]) + np.float32(entry["std"]) * normal

        config = ModelConfig(generator=GeneratorConfig(resolution=64, conv_clamp=None, fp16_resolutions=0))
        with torch.device("meta"):
            network = build_styleinv(config)
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        state = {
            name: torch.as_tensor(np.asarray(value(foreign_name(name)))).reshape(shape)
            for name, shape in shapes.items()
        }
    assert [name for name in entries if not COMPUTED.match(name)] == [], "tensors of the authors' that we do not have"
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def found(model, golden):
    z, noise = torch.from_numpy(golden["z"]), torch.from_numpy(golden["motion_z"])
    t = torch.from_numpy(golden["t_frames"]).double()[None]
    w0 = model.generator.mapping(z)
    x0 = model.generator.synthesis(w0)
    v = model.motion(noise, t)
    style = model.style(w0.expand(v.shape[1], -1), v[0].float())
    w = model.latents(w0, x0, v)[0]
    frames = model.generator.synthesis(w)
    return {"w0": w0, "x0": x0, "motion_v": v[0], "style": style, "w_t": w, "frames": frames}


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("w0", 1e-4), ("x0", 1e-4), ("motion_v", 2e-3), ("style", 2e-3), ("w_t", 2e-3), ("frames", 2e-3)],
)
def test_equals_the_authors_model(found, golden, name, tolerance):
    difference = np.abs(found[name].numpy() - golden[name])
    place = np.unravel_index(difference.argmax(), difference.shape)
    assert difference.max() <= tolerance * np.abs(golden[name]).max(), f"worst at {place}: {difference.max()}"
