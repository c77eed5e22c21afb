"""The configuration: round trips, overrides, and clear errors."""

import json
import subprocess
import sys

import pytest

from styleinv.runtime.errors import ConfigError
from styleinv.training import config as configuration
from styleinv.training.config import from_dict, from_json, to_json, with_overrides
from styleinv.training.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name):
    assert from_json(to_json(preset(name))) == preset(name)


def test_overrides_reach_any_field():
    changed = with_overrides(
        preset("tiny64"),
        ["model.generator.channel_base=2048", "model.encoder.widths=[16,32]", "model.encoder.depths=[1,1]",
         "model.encoder.temporal_blocks=bottleneck", "model.generator.conv_clamp=null", "image.r1_gamma=2"],
    )  # fmt: skip
    assert changed.model.generator.channel_base == 2048
    assert changed.model.encoder.widths == (16, 32)
    assert changed.model.encoder.temporal_blocks == "bottleneck"
    assert changed.model.generator.conv_clamp is None
    assert changed.image.r1_gamma == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.generator.chanel_base=1", ["model.generator.chanel_base", "chanel_base", "channel_base"]),
        ("nothing=1", ["nothing", "model"]),
        ("model.generator=3", ["model.generator", "resolution"]),
        ("model.generator.resolution", ["FIELD=VALUE"]),
        ("model.generator.resolution=sixty", ["model.generator.resolution", "int", "sixty"]),
        ("model.generator.resolution=48", ["generator.resolution", "48", "power of two"]),
        ("model.generator.resolution.x=1", ["model.generator.resolution.x"]),
        ("model.generator.channel_base=16", ["generator.channel_base", "16", "64"]),
        ("model.encoder.depths=[1]", ["encoder.depths", "1", "4"]),
        ("model.encoder.widths=[8,16,32,64]", ["encoder.widths", "8", "16"]),
        ("model.encoder.temporal_blocks=never", ["temporal_blocks", "never"]),
        ("model.motion.kernel_size=0", ["motion.kernel_size", "0", "at least 1"]),
        ("model.motion.min_period=0", ["motion.min_period", "0", "positive"]),
        ("image.batch=0", ["image.batch", "0", "1"]),
        ("image.learning_rate=-1", ["image.learning_rate", "-1"]),
        ("motion.max_span=64", ["motion.max_span", "64", "32"]),
        ("discriminator.join_resolution=128", ["discriminator.join_resolution", "128", "64"]),
        ("frame_rate=0", ["frame_rate", "0"]),
        ("frame_rate=NaN", ["frame_rate", "nan"]),
    ],
)
def test_bad_overrides_are_named(override, words):
    with pytest.raises(ConfigError) as error:
        with_overrides(preset("tiny64"), [override])
    for word in words:
        assert word in str(error.value)


def test_unknown_fields_and_types_of_stored_configs():
    with pytest.raises(ConfigError, match="surprise"):
        from_dict({"model": {"surprise": 1}})
    with pytest.raises(ConfigError, match="not JSON"):
        from_json("{")
    with pytest.raises(ConfigError, match="list"):
        from_json("[]")


def test_missing_fields_take_defaults():
    tree = json.loads(to_json(preset("paper256")))
    del tree["model"]["motion"]["kernel_size"]
    assert from_dict(tree).model.motion.kernel_size == 11


def test_unknown_preset_names_those_there_are():
    with pytest.raises(ConfigError, match=r"tiny64.*paper256"):
        preset("huge")


def test_reading_a_configuration_needs_no_torch():
    program = "import sys, styleinv.training.config, styleinv.training.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    assert configuration.__name__ == "styleinv.training.config"
