"""`styleinv inspect` and what it says of pickles, checkpoints and bundles."""

import json

import pytest
from official_files import official_file, write_pickle

from styleinv.export.inspect_command import main
from styleinv.runtime.errors import BundleError, CheckpointError
from styleinv.training.checkpoint import save_checkpoint
from styleinv.training.model import build_generator


@pytest.fixture
def inspect(capsys):
    def run(path):
        assert main([str(path), "--json"]) == 0
        described = json.loads(capsys.readouterr().out)
        assert main([str(path)]) == 0
        return described, capsys.readouterr().out

    return run


@pytest.fixture
def pickle_of_generator(small_config, tmp_path):
    model = build_generator(small_config.model.generator)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    path = tmp_path / "image.pkl"
    return write_pickle(path, lambda foreign: official_file("image", small_config, arrays, foreign)), model


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_a_checkpoint(inspect, small_checkpoint, small_model, small_config):
    described, shown = inspect(small_checkpoint)
    assert (described["format"], described["kind"]) == ("checkpoint", "styleinv")
    assert described["resolution"] == small_config.model.generator.resolution
    counts = described["parameters"]
    assert counts["encoder"] == count(small_model.encoder)
    assert counts["generator.synthesis"] == count(small_model.generator.synthesis)
    assert counts["total"] == count(small_model)
    assert described["configuration"]["motion"]["anchor_distance"] == small_config.model.motion.anchor_distance
    assert "styleinv" in shown and f"{count(small_model):,}" in shown


def test_a_checkpoint_that_begins_like_a_pickle(inspect, small_config, tmp_path):
    """The header's length comes first, a multiple of 8: one file in 32 has 0x80 there."""
    path, model = tmp_path / "m.safetensors", build_generator(small_config.model.generator)
    for extra in range(0, 256, 8):
        save_checkpoint(path, model, small_config, provenance={"note": "x" * extra})
        if path.read_bytes()[:1] == b"\x80":
            break
    else:
        pytest.fail("none of 32 lengths begins so")
    assert inspect(path)[0]["format"] == "checkpoint"


def test_a_pickle(inspect, pickle_of_generator, small_config):
    path, model = pickle_of_generator
    described, shown = inspect(path)
    assert (described["format"], described["kind"]) == ("pickle", "image")
    assert described["networks"]["G_ema"]["class"] == "Generator"
    assert described["parameters"]["total"] == count(model)
    assert list(described["configuration"]) == ["generator"]
    assert described["provenance"]["networks"] == "G_ema"
    assert len(described["provenance"]["sha256"]) == 64
    assert "G_ema" in shown


def test_a_pickle_that_cannot_be_imported_is_described_with_the_reason(inspect, small_config, tmp_path):
    model = build_generator(small_config.model.generator)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def build(foreign):
        file = official_file("image", small_config, arrays, foreign)
        file["G_ema"].entry["state"]["_init_kwargs"]["synthesis_kwargs"]["architecture"] = "resnet"
        return file

    described, shown = inspect(write_pickle(tmp_path / "m.pkl", build))
    assert described["networks"]["G_ema"]["class"] == "Generator"
    assert "architecture: found 'resnet'" in described["import"]
    assert "refused" in shown


def test_a_bundle(inspect, small_bundle, small_config, small_model):
    described, shown = inspect(small_bundle)
    assert (described["format"], described["kind"]) == ("bundle", "styleinv")
    assert described["resolution"] == small_config.model.generator.resolution
    assert described["graphs"]["latent"] == "fp32" and described["precisions"] == ["fp32"]
    assert described["parameters"]["total"] == count(small_model)
    assert "checkpoint_sha256" in described["provenance"]
    assert "2" in described["latent_strides"]["least_psnr_db"]
    assert "latent" in shown and "least_psnr_db" in shown


def test_a_transfer(inspect, small_config, tmp_path):
    path = tmp_path / "style.safetensors"
    save_checkpoint(path, build_generator(small_config.model.generator), small_config, kind="transfer")
    assert inspect(path)[0]["kind"] == "transfer"


def test_what_is_none_of_these_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="nothing: found No such file"):
        main([str(tmp_path / "nothing")])
    with pytest.raises(BundleError, match=r"found no manifest\.json"):
        main([str(tmp_path)])
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        main([str(tmp_path / "text")])
