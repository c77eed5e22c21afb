"""Settings of the authors' networks: defaults of what older files lack, and refusals by name."""

import copy

import numpy as np
import pytest

from styleinv.export.official_config import generator_config, image_config, inversion_config, styleinv_config
from styleinv.export.official_settings import Network
from styleinv.export.pickle_values import Global, Instance
from styleinv.runtime.errors import CheckpointError
from styleinv.training.config import EncoderConfig, GeneratorConfig, ModelConfig, MotionConfig

GENERATOR = {"z_dim": 512, "c_dim": 0, "w_dim": 512, "img_resolution": 256, "img_channels": 3}
MAPPING = {
    "content_dim": 512, "w_dim": 512, "layers_after_fuse": 2, "concat_content": True, "lr_multiplier": 0.01,
    "motion": {
        "type": "acyclic_pe", "z_dim": 512, "v_dim": 512, "motion_z_distance": 16, "gen_strategy": "conv",
        "kernel_size": 11, "fourier": True, "time_enc": {"dim": 256, "min_period_len": 16, "max_period_len": 128},
    },
}  # fmt: skip
OLD_ENCODER = {"adain_mode": "block", "normalize_adain": True}  # without lr_multiplier, use_modulation and pca


def made(class_name, positional=(), keywords=None, children=(), tensors=()):
    """A network as it is read from a file."""
    return Network(class_name, positional, keywords or {}, dict(children), dict.fromkeys(tensors, np.zeros(1)))


def generator(**keywords):
    return made("Generator", (), GENERATOR | keywords)


def encoder_module(positional=(), **keywords):
    state = {"_init_args": list(positional), "_init_kwargs": keywords, "_modules": {}}
    entry = {"class_name": "StyleEncoderIntoW", "state": state}
    return Instance(Global("torch_utils.persistence", "_reconstruct_persistent_obj"), (entry,))


def styleinv(mapping=None, encoder=None, tensors=(), encoder_keywords=None, **keywords):
    module = encoder_module(**(encoder_keywords or {"num_layers": 50, "mode": "ir_se"}))
    arguments = ("none", MAPPING if mapping is None else mapping, OLD_ENCODER if encoder is None else encoder)
    return made("StyleInV", arguments, {"input_residual": True} | keywords, {"encoder": module}, tensors)


def changed(path, value, base=MAPPING):
    tree = copy.deepcopy(base)
    *groups, last = path.split(".")
    node = tree
    for group in groups:
        node = node[group]
    node[last] = value
    return tree


def model(network):
    return styleinv_config(network, generator_config(generator(), "G"), "SI").model


def test_a_generator_takes_the_authors_defaults():
    assert generator_config(generator(), "G") == GeneratorConfig(
        resolution=256, z_dim=512, w_dim=512, label_dim=0, mapping_layers=8, mapping_lr_multiplier=0.01,
        channel_base=32768, channel_max=512, use_noise=True, conv_clamp=None, fp16_resolutions=0,
    )  # fmt: skip


def test_arguments_by_position_are_read():
    network = made("Generator", (64, 3, 32, 128, 3, {"num_layers": 2}, {"channel_base": 4096, "use_noise": False}))
    config = generator_config(network, "G")
    assert (config.z_dim, config.label_dim, config.w_dim, config.resolution) == (64, 3, 32, 128)
    assert (config.mapping_layers, config.channel_base, config.use_noise) == (2, 4096, False)


def test_an_older_whole_model_takes_the_authors_defaults():
    assert model(styleinv()) == ModelConfig(
        generator_config(generator(), "G"),
        EncoderConfig(normalize_residual=True, lr_multiplier=1.0),
        MotionConfig(anchor_distance=16, min_period=16, max_period=128),
        input_residual=True,
    )
    config = styleinv_config(styleinv(), generator_config(generator(), "G"), "SI")
    assert (config.frame_rate, config.motion.clip_length, config.motion.max_span) == (30.0, 128, 128)


def test_spans_of_training_never_keep_a_model_out():
    short = styleinv(changed("sampling", {"max_dist": 1}), clip_len=2)
    config = styleinv_config(short, generator_config(generator(), "G"), "SI")
    assert (config.motion.clip_length, config.motion.max_span) == (4, 4)


def test_absent_keywords_are_those_of_the_constructors():
    network = made("StyleInV", ("none", MAPPING, {}), {}, {"encoder": encoder_module(num_layers=50, mode="ir_se")})
    found = model(network)
    assert (found.input_residual, found.skip_encoder, found.recovered_motion_dim) == (False, False, 0)
    assert (found.encoder.temporal_blocks, found.encoder.normalize_residual) == ("stage", False)


def test_what_the_encoder_was_made_with_goes_before_the_options():
    keywords = {"num_layers": 100, "mode": "ir_se", "adain_mode": "bottleneck", "normalize_adain": False}
    encoder = model(styleinv(encoder_keywords=keywords)).encoder
    assert (encoder.temporal_blocks, encoder.normalize_residual, encoder.depths) == (
        "bottleneck",
        False,
        (3, 13, 30, 3),
    )


def test_the_average_is_kept_where_the_file_has_it():
    assert model(styleinv(tensors=["latent_avg"])).stores_latent_average
    assert not model(styleinv()).stores_latent_average
    assert not model(styleinv(tensors=["latent_avg"], input_residual=False)).stores_latent_average


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"synthesis_kwargs": {"architecture": "resnet"}}, ["architecture", "'resnet'", "'skip'"]),
        ({"synthesis_kwargs": {"architecture": "orig"}}, ["architecture", "'orig'"]),
        ({"synthesis_kwargs": {"kernel_size": 5}}, ["kernel_size", "5"]),
        ({"synthesis_kwargs": {"activation": "relu"}}, ["activation", "'relu'"]),
        ({"synthesis_kwargs": {"conv_clamp": -1}}, ["conv_clamp", "-1"]),
        ({"synthesis_kwargs": {"conv_clamp": "256"}}, ["conv_clamp", "'256'"]),
        ({"mapping_kwargs": {"activation": "linear"}}, ["activation", "'linear'"]),
        ({"mapping_kwargs": [1]}, ["mapping_kwargs", "group of settings"]),
        ({"img_channels": 4}, ["img_channels", "4"]),
        ({"img_resolution": 100}, ["img_resolution", "100", "power of two"]),
        ({"w_dim": None}, ["w_dim", "nothing"]),
        ({"w_dim": True}, ["w_dim", "True"]),
        ({"surprise": 1}, ["'surprise'"]),
    ],
)
def test_generators_that_we_cannot_compute_are_refused_by_name(keywords, words):
    with pytest.raises(CheckpointError) as caught:
        image_config(generator(**keywords), "G_ema")
    assert all(word in str(caught.value) for word in ["G_ema", *words]), caught.value


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (styleinv(changed("motion.gen_strategy", "autoregressive")), ["gen_strategy", "'autoregressive'", "'conv'"]),
        (styleinv(changed("motion.fourier", False)), ["fourier", "False", "True"]),
        (styleinv(changed("motion.type", "motion_and_pe")), ["motion.type", "'motion_and_pe'"]),
        (styleinv(changed("motion.kernel_size", None)), ["kernel_size", "nothing"]),
        (styleinv(changed("motion.motion_z_distance", 16.5)), ["motion_z_distance", "16.5"]),
        (styleinv(changed("motion.motion_z_distance", "${dataset.nframes}")), ["motion_z_distance", "'${dataset"]),
        (styleinv(changed("c_dim", 3)), ["mapping_opts.c_dim", "3"]),
        (styleinv(changed("content_dim", 64)), ["content_dim", "64", "512"]),
        (styleinv(encoder_keywords={"num_layers": 50, "mode": "ir"}), ["encoder.mode", "'ir'", "'ir_se'"]),
        (styleinv(encoder_keywords={"num_layers": 34, "mode": "ir_se"}), ["num_layers", "34"]),
        (styleinv(encoder={"adain_mode": "layer"}), ["adain_mode", "'layer'"]),
        (styleinv(mutual_recon=True), ["motion_dim", "nothing"]),
        (styleinv(skip_encoder=True, encoder={"pca": {"use_pca": True, "n_pca": 3}}), ["use_pca", "skip_encoder"]),
        (styleinv(surprise=True), ["'surprise'"]),
        (made("StyleInV", (1, 2, 3, 4, 5, 6, 7, 8, 9)), ["9 arguments", "at most 8"]),
    ],
)
def test_whole_models_that_we_cannot_compute_are_refused_by_name(network, words):
    with pytest.raises(CheckpointError) as caught:
        model(network)
    assert all(word in str(caught.value) for word in ["SI", *words]), caught.value


def test_whole_numbers_may_be_written_as_floats():
    assert model(styleinv(changed("motion.motion_z_distance", 16.0))).motion.anchor_distance == 16


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder_type": "GradualStyleEncoder"}, ["encoder_type", "'GradualStyleEncoder'"]),
        ({"start_from_latent_avg": False}, ["start_from_latent_avg", "False"]),
        ({"learn_in_w": False}, ["learn_in_w"]),
        ({"input_nc": 4}, ["input_nc", "4"]),
    ],
)
def test_inversion_models_that_we_cannot_compute_are_refused_by_name(options, words):
    network = made("pSp", (options, 0), {}, {"encoder": encoder_module((50, "ir_se"))})
    with pytest.raises(CheckpointError) as caught:
        inversion_config(network, None, "pSp")
    assert all(word in str(caught.value) for word in ["pSp", *words]), caught.value


def test_an_inversion_model_takes_the_generator_of_its_file():
    network = made("pSp", ({"output_size": 256}, 0), {}, {"encoder": encoder_module((50, "ir_se"))})
    assert inversion_config(network, None, "pSp").model.generator.resolution == 256
    known = generator_config(generator(img_resolution=64), "G")
    assert inversion_config(network, known, "pSp").model.generator == known
