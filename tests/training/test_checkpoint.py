"""Checkpoints: what is written is read back, and what does not fit is named."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from styleinv.runtime.cli import main
from styleinv.runtime.errors import CheckpointError
from styleinv.training.checkpoint import load_checkpoint, save_checkpoint
from styleinv.training.checkpoint_file import WIDE_BUFFERS, halved, read_arrays, read_header, replacing
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
    tensors["style.layers.0.weight"] = tensors["style.layers.0.weight"].double()
    tensors["encoder.head.weight"][0, 0] = float("nan")
    counter = next(name for name in tensors if name.endswith("num_batches_tracked"))
    tensors[counter] = tensors[counter].half()
    save_file(tensors, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "bad.safetensors")
    for words in (
        "bad.safetensors",
        "missing encoder.head.bias",
        "missing generator.synthesis.const",
        "unexpected stranger [2, 3]",
        "style.layers.0.bias: found shape [5], expected [12]",
        "style.layers.0.weight: found torch.float64, expected torch.float32",
        f"{counter}: found torch.float16, expected torch.int64",
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


def test_half_the_bytes_and_eleven_bits(small_model, small_config, small_checkpoint, tmp_path):
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, small_model, small_config, half=True)
    arrays, header, whole = read_arrays(path), read_header(path), read_arrays(small_checkpoint)
    assert (header.kind, header.config, header.shapes) == (
        "styleinv",
        small_config,
        read_header(small_checkpoint).shapes,
    )

    model = load_checkpoint(path, kind="styleinv").model
    state, kept = model.state_dict(), set()
    for name, array in whole.items():
        found = arrays[name]
        assert found.dtype == array.dtype and np.array_equal(state[name].numpy(), found)  # export sees float32 alone
        error = np.abs(found.astype(np.float64) - array)
        assert (error <= np.maximum(np.abs(array) * 2.0**-11, 2.0**-25)).all(), f"{name}: {error.max()}"
        if np.array_equal(found, array):
            kept.add(name)
    wide = {name for name in whole if name.startswith("motion.") or name.endswith(WIDE_BUFFERS)}
    assert wide <= kept and "motion.frequencies" in wide and "generator.mapping.latent_average" in wide
    weights = {name for name in whole if name.endswith(".weight") and not name.startswith("motion.")}
    assert "generator.synthesis.blocks.1.convs.0.weight" in weights - kept

    with safe_open(path, framework="np") as file:
        stored = {name: file.get_slice(name).get_dtype() for name in whole}
    assert {name for name, kind in stored.items() if kind == "F32"} == wide
    narrow = sum(array.nbytes for name, array in whole.items() if stored[name] == "F16")
    assert small_checkpoint.stat().st_size - path.stat().st_size == pytest.approx(narrow / 2, abs=2_000)

    z, noise = torch.randn(1, 8), torch.randn(1, 4, 8)
    t = torch.tensor([[0.0, 9.5]], dtype=torch.float64)
    first, second = small_model(z, noise, t), model(z, noise, t)
    assert 0 < (first - second).abs().max() < 0.02


def test_what_float16_cannot_hold_is_refused_by_name(small_config, tmp_path):
    network = build_generator(small_config.model.generator).requires_grad_(False)
    network.mapping.layers[0].weight[0, 0] = -70000
    network.synthesis.const[0, 0, 0] = 1e30
    network.mapping.latent_average[0] = 1e6  # stays float32
    with pytest.raises(CheckpointError) as error:
        save_checkpoint(tmp_path / "x.safetensors", network, small_config, half=True)
    assert str(error.value).splitlines() == [
        f"{tmp_path / 'x.safetensors'}: weights do not fit float16:",
        "  mapping.layers.0.weight: found a value of 70000, expected at most 65504",
        "  synthesis.const: found a value of 1e+30, expected at most 65504",
    ]
    assert list(tmp_path.iterdir()) == []
    assert halved({"a": np.float32([65504, 1e-5])}, "x")["a"].tolist() == [65504, pytest.approx(1e-5, abs=2**-25)]


def test_pack_keeps_all_but_half_the_bytes(small_config, tmp_path, capsys):
    config = dataclasses.replace(small_config, frame_rate=12.0)
    network, whole, packed = (
        build_generator(config.model.generator),
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
    )
    save_checkpoint(whole, network, config, kind="transfer", provenance={"file": "arcane.pkl"})
    assert main(["pack", str(whole), "--out", str(packed)]) == 0
    printed = capsys.readouterr().err
    sizes = [path.stat().st_size for path in (whole, packed)]
    assert f"kind transfer, {sizes[0] / 1e6:.2f} MB -> {sizes[1] / 1e6:.2f} MB" in printed
    loaded = load_checkpoint(packed)
    assert (loaded.kind, loaded.config, loaded.provenance) == ("transfer", config, {"file": "arcane.pkl"})
    assert sum(array.nbytes for array in read_arrays(packed).values()) * 0.5 < sizes[1] < 0.75 * sizes[0]

    again = tmp_path / "c.safetensors"
    assert main(["pack", str(packed), "--out", str(again)]) == 0
    assert again.stat().st_size == packed.stat().st_size
    assert all(np.array_equal(array, read_arrays(packed)[name]) for name, array in read_arrays(again).items())


def test_pack_refuses(small_checkpoint, tmp_path, capsys):
    before = small_checkpoint.read_bytes()
    for source, out, words in (
        (small_checkpoint, small_checkpoint, "found MODEL itself"),
        (small_checkpoint, tmp_path / "x.pt", "found the suffix '.pt', expected .safetensors"),
        (tmp_path / "nowhere.safetensors", tmp_path / "x.safetensors", "no such file"),
    ):
        assert main(["pack", str(source), "--out", str(out)]) == 2
        assert words in capsys.readouterr().err
    assert small_checkpoint.read_bytes() == before and list(tmp_path.iterdir()) == []
