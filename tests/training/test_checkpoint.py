"""Checkpoints: what is written is read back, and what does not fit is named."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from styleinv.runtime.errors import CheckpointError
from styleinv.training.checkpoint import load_checkpoint, save_checkpoint
from styleinv.training.checkpoint_file import replacing
from styleinv.training.config import to_json
from styleinv.training.model import build_generator, build_inversion


@pytest.fixture
def parts(small_checkpoint):
    """Metadata and tensors of a good checkpoint, to be spoiled."""
    with safe_open(small_checkpoint, framework="pt") as file:
        return dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_round_trip_is_bit_for_bit(small_checkpoint, small_model, small_config):
    loaded = load_checkpoint(small_checkpoint, kind="styleinv")
    assert (loaded.kind, loaded.config) == ("styleinv", small_config)
    state = loaded.model.state_dict()
    assert state.keys() == small_model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in small_model.state_dict().items())
    assert not loaded.model.training


@pytest.mark.parametrize("kind", ["image", "inversion"])
def test_other_kinds(kind, small_config, tmp_path):
    model = small_config.model
    network = build_generator(model.generator) if kind == "image" else build_inversion(model)
    save_checkpoint(tmp_path / "x.safetensors", network, small_config)
    assert load_checkpoint(tmp_path / "x.safetensors").kind == kind
    with pytest.raises(CheckpointError, match=rf"x\.safetensors: kind: found '{kind}', expected 'styleinv'"):
        load_checkpoint(tmp_path / "x.safetensors", kind="styleinv")


def test_a_transfer_is_a_generator_of_another_kind(small_config, tmp_path):
    network = build_generator(small_config.model.generator)
    save_checkpoint(tmp_path / "x.safetensors", network, small_config, kind="transfer")
    loaded = load_checkpoint(tmp_path / "x.safetensors", kind="transfer")
    assert type(loaded.model) is type(network) and loaded.kind == "transfer"
    with pytest.raises(CheckpointError, match=r"x\.safetensors: kind: found 'transfer', expected 'image'"):
        load_checkpoint(tmp_path / "x.safetensors", kind="image")


def test_a_kind_that_does_not_fit_the_model(small_model, small_config, tmp_path):
    for kind in ("transfer", "image"):
        with pytest.raises(CheckpointError, match=rf"x: kind: found '{kind}', expected 'styleinv' for a StyleInV"):
            save_checkpoint(tmp_path / "x", small_model, small_config, kind=kind)
    with pytest.raises(CheckpointError, match="kind: found 'inversion', expected 'image' or 'transfer' for"):
        save_checkpoint(tmp_path / "x", small_model.generator, small_config, kind="inversion")
    assert list(tmp_path.iterdir()) == []


def test_missing_and_unexpected_tensors_are_listed_together(parts, tmp_path):
    metadata, tensors = parts
    del tensors["encoder.head.bias"], tensors["generator.synthesis.const"]
    tensors["stranger"] = torch.zeros(2, 3)
    tensors["style.layers.0.bias"] = torch.zeros(5)
    tensors["style.layers.0.weight"] = tensors["style.layers.0.weight"].half()
    tensors["encoder.head.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "bad.safetensors")
    for words in (
        "bad.safetensors",
        "missing encoder.head.bias",
        "missing generator.synthesis.const",
        "unexpected stranger [2, 3]",
        "style.layers.0.bias: found shape [5], expected [12]",
        "style.layers.0.weight: found torch.float16, expected torch.float32",
        "encoder.head.weight: holds values that are not finite",
    ):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": "2"}, ["format_version", "'2'", "1"]),
        ({"kind": "sonnet"}, ["kind", "sonnet", "styleinv"]),
        ({"config": "{"}, ["config", "JSON"]),
        ({"config": json.dumps({"model": {"generator": {"resolution": 48}}})}, ["generator.resolution", "48"]),
        ({"kind": None}, ["kind missing"]),
        ({"kind": None, "config": None, "format_version": None}, ["format_version, kind, config missing"]),
    ],
)
def test_bad_metadata_is_named(parts, tmp_path, change, words):
    metadata, tensors = parts
    metadata = {name: value for name, value in (metadata | change).items() if value is not None}
    save_file(tensors, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "bad.safetensors")
    for word in ["bad.safetensors", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 64])
def test_unreadable_files(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.safetensors"):
        load_checkpoint(path)


def test_truncated_and_absent_files(small_checkpoint, tmp_path):
    path = tmp_path / "short.safetensors"
    path.write_bytes(small_checkpoint.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"short\.safetensors"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "nowhere.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "kept"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_metadata_holds_the_whole_configuration(parts, small_config):
    assert parts[0]["config"] == to_json(small_config)


def test_a_checkpoint_is_as_readable_as_any_new_file(small_model, small_config, tmp_path):
    save_checkpoint(tmp_path / "model.safetensors", small_model, small_config)
    (tmp_path / "new").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode
