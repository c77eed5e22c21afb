"""The import of the authors' checkpoints: every configuration, every tensor, both ways."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hostile_files import legacy_storage, text, with_storage
from official_files import SMALL_GENERATOR, SMALL_MOTION, network, official_file, write_pickle

from styleinv.export.import_command import main as import_command
from styleinv.export.official import describe_networks, official_tensors, read_model, write_checkpoint
from styleinv.export.official_names import computed_tensors, tensor_table
from styleinv.export.official_pickle import read_official
from styleinv.runtime.errors import CheckpointError
from styleinv.training.checkpoint import BUILDERS, load_checkpoint
from styleinv.training.checkpoint_file import parameters_by_part, read_header
from styleinv.training.config import (
    Config,
    DiscriminatorConfig,
    EncoderConfig,
    GeneratorConfig,
    ModelConfig,
    MotionStageConfig,
)

DEEP = EncoderConfig(temporal_blocks="bottleneck", modulation="convolution", lr_multiplier=0.5)

GENERATORS = {
    "usual": {},
    "two resolutions more": {"resolution": 128, "channel_base": 1024},
    "1024": {"resolution": 1024, "channel_base": 1024},
    "channel base of 100": {"channel_base": 100},
    "w of 40": {"w_dim": 40},
    "eight layers": {"mapping_layers": 8, "mapping_lr_multiplier": 0.1},
    "wide layers": {"mapping_dim": 31},
    "labels": {"label_dim": 5},
    "labels, embedded small": {"label_dim": 5, "label_embedding_dim": 7},
    "no noise": {"use_noise": False},
    "half precision": {"conv_clamp": 256.0, "fp16_resolutions": 4},
}
MODELS = {
    "usual": ModelConfig(SMALL_GENERATOR, EncoderConfig(), SMALL_MOTION),
    "average kept": ModelConfig(SMALL_GENERATOR, EncoderConfig(), SMALL_MOTION, stores_latent_average=True),
    "offsets from the average": ModelConfig(
        SMALL_GENERATOR, EncoderConfig(normalize_residual=False), SMALL_MOTION, False
    ),
    "bottlenecks, convolutions": ModelConfig(SMALL_GENERATOR, DEEP, SMALL_MOTION),
    "bottlenecks": ModelConfig(SMALL_GENERATOR, EncoderConfig(temporal_blocks="bottleneck"), SMALL_MOTION),
    "convolutions": ModelConfig(SMALL_GENERATOR, EncoderConfig(modulation="convolution"), SMALL_MOTION),
    "principal components": ModelConfig(SMALL_GENERATOR, EncoderConfig(pca_components=9, pca_scale=0.3), SMALL_MOTION),
    "principal components, w of 40": ModelConfig(
        dataclasses.replace(SMALL_GENERATOR, w_dim=40), EncoderConfig(pca_components=9), SMALL_MOTION
    ),
    "an even kernel": ModelConfig(SMALL_GENERATOR, EncoderConfig(), dataclasses.replace(SMALL_MOTION, kernel_size=4)),
    "no content in the style": ModelConfig(
        SMALL_GENERATOR, EncoderConfig(), dataclasses.replace(SMALL_MOTION, style_sees_content=False, style_layers=3)
    ),
    "not first frame aware": ModelConfig(
        SMALL_GENERATOR, EncoderConfig(), dataclasses.replace(SMALL_MOTION, first_frame_aware=False)
    ),
    "a small style": ModelConfig(SMALL_GENERATOR, EncoderConfig(), dataclasses.replace(SMALL_MOTION, style_dim=20)),
    "longest period first": ModelConfig(
        SMALL_GENERATOR, EncoderConfig(), dataclasses.replace(SMALL_MOTION, min_period=256, max_period=128)
    ),
    "motion recovered": ModelConfig(SMALL_GENERATOR, EncoderConfig(), SMALL_MOTION, recovered_motion_dim=11),
    "no encoder": ModelConfig(
        dataclasses.replace(SMALL_GENERATOR, w_dim=40), EncoderConfig(), SMALL_MOTION, skip_encoder=True
    ),
}
LARGE_FILES = (
    "bottlenecks, convolutions",
    "principal components, w of 40",
    "not first frame aware",
    "motion recovered",
)


def whole_config(model):
    stage = MotionStageConfig(clip_length=96, max_span=32)
    return Config("imported", 30.0, model, DiscriminatorConfig(join_resolution=16), motion=stage)


def meta_model(kind, config):
    with torch.device("meta"):
        return BUILDERS[kind](config)


def random_arrays(kind, config, seed=0):
    """A model's tensors by our names; the frequencies are those that the authors' code computes."""
    draws = np.random.default_rng(seed)
    arrays = {}
    for name, tensor in meta_model(kind, config).state_dict().items():
        arrays[name] = draws.standard_normal(tuple(tensor.shape), np.float32)
        if tensor.dtype == torch.int64:
            arrays[name] = np.array(1234)
    if kind == "styleinv":
        motion = config.model.motion
        periods = 2 ** np.linspace(np.log2(motion.min_period), np.log2(motion.max_period), motion.frequencies)
        arrays["motion.frequencies"] = (2 * np.pi / periods)[::-1].astype(np.float32)
    return arrays


def assert_round_trip(path, kind, config, tmp_path):
    """File -> our checkpoint -> the authors' names: the same configuration and the same bits."""
    arrays = random_arrays(kind, config)
    write_pickle(path, lambda foreign: official_file(kind, config, arrays, foreign))
    model = read_model(path)
    assert (model.kind, model.config.model) == (kind, config.model)
    out = tmp_path / "model.safetensors"
    write_checkpoint(out, model)
    checkpoint = load_checkpoint(out)
    state = {name: tensor.numpy() for name, tensor in checkpoint.model.state_dict().items()}
    assert state.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(state[name], array, strict=True)
    back, original = official_tensors(kind, checkpoint.config, state), official_tensors(kind, config, arrays)
    assert back.keys() == original.keys()
    for place, array in original.items():
        assert back[place].tobytes() == array.tobytes(), place
    return checkpoint


@pytest.fixture
def read(tmp_path):
    """Gives the value of {'G': value} in a pickle's bytes."""

    def value(data):
        path = tmp_path / "value.pkl"
        path.write_bytes(data)
        return read_official(path)["G"]

    return value


@pytest.mark.parametrize("name", MODELS)
def test_the_table_holds_every_tensor_of_ours_once(name):
    config = whole_config(MODELS[name])
    for kind in ("image", "styleinv", "transfer"):
        assert_table_fits(kind, config)


def test_the_table_of_an_inversion_model_holds_every_tensor_once():
    assert_table_fits("inversion", whole_config(MODELS["usual"]))


def assert_table_fits(kind, config):
    model, table = meta_model(kind, config), tensor_table(kind, config.model)
    ours = {entry.ours: entry.shape for entry in table.values()}
    assert len(ours) == len(table)
    assert ours == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert sum(parameters_by_part(ours).values()) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", GENERATORS)
def test_image_models_come_in_and_go_back_bit_for_bit(name, tmp_path):
    config = whole_config(ModelConfig(generator=dataclasses.replace(SMALL_GENERATOR, **GENERATORS[name])))
    assert_round_trip(tmp_path / "image.pkl", "image", config, tmp_path)


def test_the_small_whole_model_comes_in_and_goes_back(tmp_path):
    checkpoint = assert_round_trip(tmp_path / "m.pkl", "styleinv", whole_config(MODELS["no encoder"]), tmp_path)
    assert (checkpoint.config.frame_rate, checkpoint.config.motion.clip_length) == (30.0, 96)
    assert checkpoint.provenance["imported_from"] == "m.pkl"
    assert checkpoint.provenance["networks"] == "G, SI_ema"


@pytest.mark.parametrize("name", LARGE_FILES)
def test_whole_models_come_in_and_go_back_bit_for_bit(name, tmp_path):
    assert_round_trip(tmp_path / "model.pkl", "styleinv", whole_config(MODELS[name]), tmp_path)


def test_an_inversion_model_comes_in_and_goes_back(tmp_path):
    config = whole_config(ModelConfig(generator=GeneratorConfig(resolution=256)))
    assert_round_trip(tmp_path / "psp.pkl", "inversion", config, tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_the_settings_of_a_whole_model_are_read(name, monkeypatch, tmp_path):
    """Every variant's settings, without the weight of its tensors."""
    config = whole_config(MODELS[name])
    monkeypatch.setattr("official_files.official_tensors", lambda *_: _place_of_average(config.model))
    monkeypatch.setattr("styleinv.export.official._renamed", lambda *_: {})
    path = write_pickle(tmp_path / "m.pkl", lambda foreign: official_file("styleinv", config, {}, foreign))
    assert read_model(path).config.model == config.model


def _place_of_average(model):
    """Enough of a file's tensors that its networks are there, and that it says whether it keeps the average."""
    places = {("G", "mapping.w_avg"): np.zeros(1, np.float32), ("SI", "mapping.fcf0.bias"): np.zeros(1, np.float32)}
    if not model.skip_encoder:
        places[("SI", "encoder.linear.bias")] = np.zeros(1, np.float32)
    if model.stores_latent_average:
        places[("SI", "latent_avg")] = np.zeros(1, np.float32)
    return places


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(protocol, tmp_path):
    config = whole_config(MODELS["no encoder"])
    arrays = random_arrays("styleinv", config)
    path = tmp_path / "m.pkl"
    write_pickle(path, lambda foreign: official_file("styleinv", config, arrays, foreign), protocol)
    model = read_model(path)
    assert model.config.model == config.model
    for name, array in model.tensors.items():
        np.testing.assert_array_equal(array, arrays[name], strict=True)


def test_the_moving_average_is_taken_unless_another_network_is_named(tmp_path):
    config = whole_config(ModelConfig(generator=SMALL_GENERATOR))
    first, second = random_arrays("image", config, 1), random_arrays("image", config, 2)

    def build(foreign):
        other = official_file("image", config, second, foreign)["G"]
        return {"G": other, "D": None, "G_ema": official_file("image", config, first, foreign)["G_ema"]}

    path = write_pickle(tmp_path / "m.pkl", build)
    name = "synthesis.const"
    np.testing.assert_array_equal(read_model(path).tensors[name], first[name])
    np.testing.assert_array_equal(read_model(path, network="G").tensors[name], second[name])
    with pytest.raises(CheckpointError, match="found the networks G, G_ema, expected SI"):
        read_model(path, network="SI")


def test_what_training_left_in_a_file_is_read_and_left_out(tmp_path):
    config = whole_config(ModelConfig(generator=SMALL_GENERATOR))
    arrays = random_arrays("image", config)

    def build(foreign):
        discriminator = network(
            "DiscriminatorFFC", {"b4.fc.weight": torch.zeros(2, 2)}, keywords={"cfg": foreign.omega({})}
        )
        discriminator.entry["state"]["_modules"]["const_embed"] = torch.nn.Embedding(5, 3)
        pipe = network("AugmentPipe", {"p": torch.ones(())}, keywords=foreign.EasyDict(xflip=1))
        leftovers = {"training_set_kwargs": foreign.EasyDict(path="sky", size=[64, 64]), "D": discriminator}
        return {**leftovers, "augment_pipe": pipe, **official_file("image", config, arrays, foreign)}

    path = write_pickle(tmp_path / "m.pkl", build)
    assert read_model(path).tensors.keys() == arrays.keys()
    assert describe_networks(path)["D"] == {"class": "DiscriminatorFFC", "numbers": 19}
    with pytest.raises(CheckpointError, match="found the class DiscriminatorFFC, expected Generator, StyleInV or pSp"):
        read_model(path, network="D")


def test_parts_that_share_a_storage_are_read(tmp_path):
    config = whole_config(ModelConfig(generator=SMALL_GENERATOR))
    arrays = random_arrays("image", config)

    def build(foreign):
        file = official_file("image", config, arrays, foreign)
        return {"G": file["G"], "G_ema": file["G"]}

    path = write_pickle(tmp_path / "m.pkl", build)
    name = "mapping.layers.0.weight"
    np.testing.assert_array_equal(read_model(path).tensors[name], arrays[name])


def test_tensors_of_another_memory_layout_are_read(read):
    numbers = torch.arange(4.0)
    transposed = with_storage(legacy_storage(numbers), size=b"K\x02K\x02\x86", stride=b"K\x01K\x02\x86")
    assert read(transposed).tolist() == [[0, 2], [1, 3]]
    shifted = with_storage(legacy_storage(numbers), size=b"K\x02\x85", stride=b"K\x01\x85", offset=b"K\x02")
    assert read(shifted).tolist() == [2, 3]
    assert read(with_storage(legacy_storage(numbers), size=b")", stride=b")", offset=b"K\x03")).tolist() == 3


def test_storages_of_a_gpu_are_read(read):
    there = legacy_storage(torch.arange(4.0)).replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:1")
    assert b"cuda:1" in there
    assert read(with_storage(there)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_old_and_new_spellings_of_numpy_are_read(module, read):
    kind = (
        text("numpy")
        + text("dtype")
        + b"\x93"
        + text("f8")
        + b"\x89\x88\x87R(K\x03"
        + text("<")
        + b"NNNJ\xff\xff\xff\xff"
    )
    kind += b"J\xff\xff\xff\xffK\x00tb"
    scalar = text(module) + text("scalar") + b"\x93" + kind + b"C\x08" + np.float64(0.25).tobytes() + b"\x86R"
    assert read(b"\x80\x04}" + text("G") + scalar + b"s.") == 0.25


def test_values_are_what_ordinary_pickle_gives(tmp_path):
    value = {
        "text": "ü", "numbers": [1, -5, 2**40, -(2**70), 0.5, True, False, None],
        "tuples": ((), (1,), (1, 2), (1, 2, 3, 4)), "bytes": b"abc", "nested": {"a": {"b": [{}]}}, 3: {1, 2},
        "long": "x" * 70_000,
    }  # fmt: skip
    for protocol in (2, 3, 4, 5):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps(value, protocol))
        assert read_official(path) == value


def test_an_import_replaces_an_earlier_checkpoint_and_says_what_it_wrote(tmp_path, capsys):
    config = whole_config(ModelConfig(generator=SMALL_GENERATOR))
    arrays = random_arrays("image", config)
    path = write_pickle(tmp_path / "m.pkl", lambda foreign: official_file("image", config, arrays, foreign))
    out = tmp_path / "new" / "m.safetensors"
    for _ in range(2):
        assert import_command([str(path), "--out", str(out), "--transfer"]) == 0
        assert "kind transfer, 32x32" in capsys.readouterr().err
    header = read_header(out)
    assert (header.kind, header.config.model.generator) == ("transfer", SMALL_GENERATOR)
    assert [file.name for file in out.parent.iterdir()] == ["m.safetensors"]
    with pytest.raises(CheckpointError, match=r"found the suffix '.pt', expected \.safetensors"):
        import_command([str(path), "--out", str(tmp_path / "m.pt")])


def test_left_over_and_missing_tensors_are_listed_together(tmp_path):
    config = whole_config(ModelConfig(generator=SMALL_GENERATOR))
    arrays = random_arrays("image", config)

    def build(foreign):
        state = official_file("image", config, arrays, foreign)["G"]
        mapping = state.entry["state"]["_modules"]["mapping"].entry["state"]
        mapping["_buffers"]["surprise"] = mapping["_buffers"].pop("w_avg")
        return {"G_ema": state}

    with pytest.raises(CheckpointError) as caught:
        read_model(write_pickle(tmp_path / "m.pkl", build))
    assert "missing G.mapping.w_avg [512]" in str(caught.value)
    assert "unexpected G.mapping.surprise [512]" in str(caught.value)


def test_scales_of_phases_are_computed_bit_for_bit():
    config = whole_config(MODELS["usual"]).model
    frequencies = random_arrays("styleinv", whole_config(config))["motion.frequencies"]
    scales = computed_tensors("styleinv", config, frequencies)[
        ("SI", "mapping.motion_encoder.time_encoder.phase_scales")
    ]
    periods = 2 * np.pi / torch.from_numpy(frequencies)[None]
    assert scales.tobytes() == (config.motion.max_period / periods).numpy().tobytes()
