"""An inversion encoder and a transfer beside a conditional model, from the command line to the pixels."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
import torch

from styleinv.export import writer
from styleinv.export.writer import export_bundle
from styleinv.kernels.reference import to_uint8
from styleinv.runtime import Bundle, Rollout, Sessions
from styleinv.runtime.cli import main
from styleinv.runtime.errors import BundleError
from styleinv.runtime.noise import MOTION_DOMAIN, Z_DOMAIN, standard_normal
from styleinv.runtime.pictures import as_image, fit_picture, read_picture
from styleinv.runtime.sinks import encode_png
from styleinv.training.checkpoint import load_checkpoint, save_checkpoint
from styleinv.training.config import with_overrides
from styleinv.training.initialize import initialize
from styleinv.training.model import InversionModel, build_generator, build_inversion

R = 16
LABEL = ["--label", "2"]


@pytest.fixture(scope="module")
def conditional(small_config):
    """A whole model that was trained with three classes."""
    config = with_overrides(small_config, ["model.generator.label_dim=3"])
    return initialize(config, seed=2), config


@pytest.fixture(scope="module")
def style_model(small_config):
    """A generator of fewer channels, without noise or classes, for the same latents."""
    config = with_overrides(small_config, ["model.generator.channel_max=8", "model.generator.use_noise=false"])
    return initialize(config, seed=8).generator, config


@pytest.fixture(scope="module")
def inversion_model(small_config):
    """An encoder whose own generator has another resolution."""
    config = with_overrides(small_config, ["model.generator.resolution=32"])
    settled = initialize(config, seed=9)
    assert settled.encoder is not None
    settled.encoder.temporal = torch.nn.ModuleDict()
    return InversionModel(settled.encoder, settled.generator.mapping.latent_average).eval(), config


@pytest.fixture(scope="module")
def files(tmp_path_factory, conditional, style_model, inversion_model):
    folder = tmp_path_factory.mktemp("files")
    save_checkpoint(folder / "model.safetensors", *conditional)
    save_checkpoint(folder / "style.safetensors", *style_model, kind="transfer")
    save_checkpoint(folder / "psp.safetensors", *inversion_model)
    y, x = np.mgrid[0:40, 0:64]
    photo = np.stack([4 * x, 6 * y, 128 + 100 * np.sin((x + y) / 9)], axis=-1).astype(np.uint8)
    (folder / "photo.png").write_bytes(encode_png(photo))
    return folder


@pytest.fixture(scope="module")
def bundle(files):
    """What `styleinv export` makes of the model, the encoder and the transfer."""
    out = files / "small.bundle"
    arguments = ["--inversion", f"{files}/psp.safetensors", "--transfer", f"ink={files}/style.safetensors"]
    arguments += ["--precision", "fp16"]
    assert main(["export", f"{files}/model.safetensors", *arguments, "--out", str(out)]) == 0
    return out


@pytest.fixture
def exported_before(bundle, monkeypatch):
    """Lets exports of the model's generator with the transfer take the graphs of `bundle`, which saves half a minute;
    gives their list, in the order of the export."""
    paths = [bundle / "mapping.onnx", bundle / "synthesis.onnx", bundle / "transfers" / "ink" / "synthesis.onnx"]
    models = [onnx.load(path) for path in paths]
    remaining = iter(models)
    monkeypatch.setattr(writer, "export_onnx", lambda graph, opset: next(remaining))
    return models


def pictures(folder):
    return [read_picture(path) for path in sorted(folder.iterdir())]


def largest_difference(found, expected):
    assert found.dtype == np.uint8 and found.shape == expected.shape
    return int(np.abs(found.astype(int) - expected.astype(int)).max())


@torch.no_grad()
def picture_of(generator, w):
    return to_uint8(generator.synthesis(w)).numpy()


@torch.no_grad()
def reference_latents(model, w0, motion_seed, ts):
    """Latents [T, W] that PyTorch computes of the clip that begins at w0 [1, W]."""
    noise = np.stack(
        [
            standard_normal(motion_seed, MOTION_DOMAIN, anchor, model.motion.noise_dim)
            for anchor in range(model.motion.anchors_needed(max(ts)))
        ]
    )
    v = model.motion(torch.from_numpy(noise)[None], torch.tensor([ts], dtype=torch.float64))
    return model.latents(w0, model.generator.synthesis(w0), v)[0]


def test_everything_is_declared_and_verified(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert {"mapping", "synthesis", "content", "latent", "frame", "inversion"} == manifest["graphs"].keys()
    entry = manifest["transfers"]["ink"]
    assert entry["synthesis"]["file"] == "transfers/ink/synthesis.onnx"
    assert entry["weights"]["file"] == "transfers/ink/weights.bin" and entry["weights"]["bytes"] > 1000
    assert manifest["graphs"]["inversion"]["inputs"]["image"]["shape"] == ["batch", 3, R, R]
    report = (bundle / "report.md").read_text()
    for batch in (1, 3):
        for output in ("inversion.w0", "transfers.ink.synthesis.image", "transfers.ink.synthesis.frame"):
            for engine in ("openvino", "onnxruntime"):
                assert f"{engine} fp32: {output}, batch {batch}" in manifest["verification"]
                assert f"| {engine} fp32 | {output} |" in report
    half = manifest["precisions"]["fp16"]
    assert half["graphs"].keys() == manifest["graphs"].keys()
    assert (
        half["graphs"]["inversion"]["file"] == "fp16/inversion.onnx" and half["weights"]["file"] == "fp16/weights.bin"
    )
    assert half["graphs"]["mapping"]["file"] == "mapping.onnx"  # styles are computed in fp32 in every precision
    assert half["transfers"]["ink"]["synthesis"]["file"] == "fp16/transfers/ink/synthesis.onnx"
    assert "onnxruntime fp16: transfers.ink.synthesis.image, batch 3" in manifest["verification"]
    assert "With it: inversion, from psp.safetensors" in report and "transfer ink, from style.safetensors" in report
    assert manifest["provenance"]["additions"].keys() == {"inversion", "transfer ink"}
    assert read_picture(bundle / "preview.png").shape == (2 * R, 8 * R, 3)


def test_damage_in_a_transfer_is_found(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "copy.bundle")
    weights = tmp_path / "copy.bundle" / "transfers" / "ink" / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"transfers\.ink\.weights\.file: .*weights\.bin is damaged"):
        Bundle.open(tmp_path / "copy.bundle")


def test_stream_in_another_style(bundle, conditional, style_model, tmp_path):
    play = ["stream", str(bundle), *LABEL, "--seed", "3", "--start", "6.5", "--frames", "3", "--out"]
    assert main([*play, f"{tmp_path}/plain/"]) == 0
    assert main([*play, f"{tmp_path}/alone/", "--transfer", "ink"]) == 0
    assert main([*play, f"{tmp_path}/both/", "--transfer", "ink", "--side-by-side"]) == 0
    plain, alone, both = (pictures(tmp_path / name) for name in ("plain", "alone", "both"))
    model = conditional[0]
    z = torch.from_numpy(standard_normal(3, Z_DOMAIN, 0, 8)).float()[None]
    with torch.no_grad():
        w0 = model.generator.mapping(z, label=torch.eye(3)[2:])
    latents = reference_latents(model, w0, 3, [6.5, 7.5, 8.5])
    original, style = picture_of(model.generator, latents), picture_of(style_model[0], latents)
    assert len(plain) == len(alone) == len(both) == 3
    for n in range(3):
        assert largest_difference(plain[n], original[n]) <= 1
        assert largest_difference(alone[n], style[n]) <= 1
        np.testing.assert_array_equal(both[n], np.hstack([plain[n], alone[n]]))
    assert largest_difference(original, style) > 20


def test_stream_decomposed(bundle, tmp_path):
    play = ["stream", str(bundle), *LABEL, "--seed", "5", "--decompose", "--grid", "2x3", "--frames", "1", "--out"]
    assert main([*play, f"{tmp_path}/first/"]) == 0
    assert main([*play, f"{tmp_path}/later/", "--start", "21"]) == 0
    (first,), (later,) = (pictures(tmp_path / name) for name in ("first", "later"))
    assert first.shape == later.shape == (2 * R, 3 * R, 3)
    np.testing.assert_array_equal(first[:R], first[R:])  # frame 0 does not depend on the motion
    assert not np.array_equal(later[:R], later[R:])
    with Sessions(Bundle.open(bundle)) as sessions:
        for row in range(2):
            for column in range(3):
                tile = later[R * row : R * row + R, R * column : R * column + R]
                rollout = Rollout(sessions, seed=5 + column, motion_seed=5 + row, label=2)
                np.testing.assert_array_equal(tile, rollout[21])


def test_stream_without_a_label(bundle, tmp_path, capsys):
    assert main(["stream", str(bundle), "--frames", "1", "--out", f"{tmp_path}/clip/"]) == 2
    assert "label: found None, expected a class from 0 to 2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_animate_a_photo(bundle, files, conditional, style_model, inversion_model, tmp_path):
    """No label is asked for, as the encoder's latent stands in for what a class leads to."""
    arguments = ["animate", str(bundle), f"{files}/photo.png", "--seed", "4", "--frames", "3", "--speed", "5"]
    assert main([*arguments, "--transfer", "ink", "--out", f"{tmp_path}/clip/"]) == 0
    picture = fit_picture(read_picture(files / "photo.png"), R)
    with torch.no_grad():
        w0 = inversion_model[0](torch.from_numpy(as_image(picture))[None])
    generator, style = conditional[0].generator, style_model[0]
    latents = reference_latents(conditional[0], w0, 4, [0.0, 5.0, 10.0])
    inverted, moving, styled = picture_of(generator, w0)[0], picture_of(generator, latents), picture_of(style, latents)
    frames = pictures(tmp_path / "clip")
    assert len(frames) == 3
    for n, frame in enumerate(frames):
        found = np.hsplit(frame, 4)
        np.testing.assert_array_equal(found[0], picture)
        for column, expected in zip(found[1:], (inverted, moving[n], styled[n]), strict=True):
            assert largest_difference(column, expected) <= 1
    assert largest_difference(moving[0], moving[2]) > 5


def refused(arguments, capsys):
    capsys.readouterr()
    try:
        assert main(["export", *map(str, arguments)]) == 2
    except SystemExit as left:  # argparse
        assert left.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def misfits(files, small_config):
    """The folder of `files`, and in it checkpoints that do not go with the model."""
    large = with_overrides(small_config, ["model.generator.resolution=32"])
    wide = with_overrides(small_config, ["model.generator.w_dim=20"])
    save_checkpoint(files / "large.safetensors", build_generator(large.model.generator), large)
    save_checkpoint(files / "wide.safetensors", build_generator(wide.model.generator), wide, kind="transfer")
    save_checkpoint(files / "wide-psp.safetensors", build_inversion(wide.model), wide)
    return files


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--inversion", "style.safetensors"], "style.safetensors: kind: found 'transfer', expected 'inversion'"),
        (["--inversion", "no.safetensors"], "no.safetensors: no such file"),
        (
            ["--inversion", "wide-psp.safetensors"],
            "config.model.generator.w_dim: found 20, expected 12, as in model",
        ),
        (
            ["--transfer", "a=psp.safetensors"],
            "kind: found 'inversion', expected 'transfer' or 'image'",
        ),
        (
            ["--transfer", "a=wide.safetensors"],
            "wide.safetensors: config.model.generator.w_dim: found 20, expected 1",
        ),
        (
            ["--transfer", "a=large.safetensors"],
            "config.model.generator.resolution: found 32, expected 16, as in",
        ),
        (["--transfer", "a=x", "--transfer", "a=y"], "--transfer a: found 2 files, expected one for each name"),
        (["--transfer", "../a=x"], "expected NAME=FILE, such as arcane=style.safetensors, with a name of letters"),
        (["--transfer", "style.safetensors"], "argument --transfer: found 'style.safetensors'"),
        (["--transfer", "a="], "argument --transfer: found 'a='"),
    ],
)
def test_files_that_do_not_go_with_the_model(misfits, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(misfits)
    assert message in refused(["model.safetensors", *options, "--out", tmp_path / "x.bundle"], capsys)
    assert list(tmp_path.iterdir()) == []


def test_models_that_nothing_goes_with(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(files)
    out = ["--out", tmp_path / "x.bundle"]
    alone = refused(["style.safetensors", *out], capsys)
    assert "style.safetensors: kind: found 'transfer', expected 'styleinv', 'image' or 'inversion': a tra" in alone
    assert "exported beside its model, by `styleinv export MODEL --transfer NAME=FILE`" in alone
    twice = refused(["psp.safetensors", "--inversion", "psp.safetensors", *out], capsys)
    assert "psp.safetensors: kind: found 'inversion', expected 'styleinv' or 'image' with --inversion or" in twice
    with pytest.raises(BundleError, match="transfers: found 'a b', expected a name of letters, digits, - and _"):
        transfers = {"a b": load_checkpoint("style.safetensors")}
        export_bundle(load_checkpoint("model.safetensors"), tmp_path / "x.bundle", transfers=transfers)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def image_and_style(conditional, style_model, tmp_path):
    """Checkpoints of two generators, both of kind image, which goes as a transfer, too."""
    save_checkpoint(tmp_path / "image.safetensors", conditional[0].generator, conditional[1])
    save_checkpoint(tmp_path / "style.safetensors", *style_model)
    return [f"{tmp_path}/image.safetensors", "--transfer", f"ink={tmp_path}/style.safetensors"]


def test_a_transfer_that_computes_something_else_fails_the_export(image_and_style, exported_before, tmp_path, capsys):
    weight = max(exported_before[2].graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = bytes(len(weight.raw_data))
    message = refused([*image_and_style, "--out", tmp_path / "x.bundle"], capsys)
    assert "transfers.ink.synthesis.image, batch 1: found an error of" in message
    assert not list(tmp_path.glob("*x.bundle*"))


def test_an_image_model_with_a_transfer_plays_pictures(image_and_style, exported_before, style_model, tmp_path):
    assert main(["export", *image_and_style, "--out", f"{tmp_path}/x.bundle"]) == 0
    with Rollout.open(tmp_path / "x.bundle", seed=3, label=1, transfer="ink") as rollout:
        expected = picture_of(style_model[0], torch.from_numpy(rollout.latents([0])))[0]
        assert largest_difference(rollout[0], expected) <= 1
