"""Export: a bundle computes what its model computes, and appears whole or not at all."""

import hashlib
import itertools
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

from styleinv.export import writer
from styleinv.export.graphs import Graph
from styleinv.export.onnx_graph import WEIGHTS_FILE, export_onnx
from styleinv.export.references import reference_frames
from styleinv.export.writer import export_bundle
from styleinv.runtime import Bundle, Rollout
from styleinv.runtime.cli import main
from styleinv.runtime.errors import BundleError, StyleInVError
from styleinv.training.checkpoint import load_checkpoint, save_checkpoint
from styleinv.training.config import with_overrides
from styleinv.training.initialize import initialize
from styleinv.training.model import InversionModel

GRAPHS = ["mapping", "synthesis", "content", "latent", "frame"]
TIMES = [0.0, 1.0, 2.5, 7.999, 8.0, 8.001, 100_000.0]  # an anchor stands at every eighth frame


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports a model under a configuration; gives the bundle's path."""
    folder = tmp_path_factory.mktemp("variants")
    names = itertools.count()

    def export(model, config, noise="const"):
        name = f"model{next(names)}"
        save_checkpoint(folder / f"{name}.safetensors", model, config)
        export_bundle(
            load_checkpoint(folder / f"{name}.safetensors"), folder / f"{name}.bundle", noise=noise, progress=False
        )
        return folder / f"{name}.bundle"

    return export


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_rollouts_equal_pytorch(small_bundle, small_model, seed):
    expected = np.stack([*reference_frames(small_model, "const", seed, TIMES)])
    with Rollout.open(small_bundle, seed=seed) as rollout:
        found = np.stack([rollout[t] for t in TIMES])
    assert np.abs(found.astype(int) - expected.astype(int)).max(axis=(1, 2, 3)).max() <= 1


def test_any_order_any_process_same_bytes(small_bundle):
    with Rollout.open(small_bundle, seed=3) as rollout:
        forward = [rollout[t].tobytes() for t in TIMES]
        for _ in zip(range(5), rollout.play(start=50), strict=False):
            pass
        backward = [rollout[t].tobytes() for t in reversed(TIMES)][::-1]
    assert forward == backward
    program = (
        "import hashlib, sys; from styleinv.runtime import Rollout\n"
        f"r = Rollout.open({str(small_bundle)!r}, seed=3)\n"
        f"print(*[hashlib.sha256(r[t].tobytes()).hexdigest() for t in {TIMES!r}])"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == [hashlib.sha256(frame).hexdigest() for frame in forward]


def test_graphs_pass_the_checker_with_a_dynamic_batch(small_bundle):
    for name in GRAPHS:
        path = small_bundle / f"{name}.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path), load_external_data=False)
        assert max(item.version for item in model.opset_import if item.domain == "") >= 20
        for value in [*model.graph.input, *model.graph.output]:
            assert value.type.tensor_type.shape.dim[0].dim_param == "batch", f"{name}: {value.name}"


def test_weights_lie_in_one_file_and_equal_ones_once(small_bundle):
    places = {}
    for name in GRAPHS:
        model = onnx.load(str(small_bundle / f"{name}.onnx"), load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    assert entry.value == WEIGHTS_FILE
                if entry.key == "offset":
                    places.setdefault(int(entry.value), set()).add(name)
    assert any({"latent", "frame"} <= graphs for graphs in places.values())
    assert any({"synthesis", "frame"} <= graphs for graphs in places.values())
    assert not any(graphs == {"frame"} for graphs in places.values()), "the joined graph has no weights of its own"


def test_nothing_in_a_bundle_tells_where_it_was_made(small_bundle):
    here = str(writer.__file__).rsplit("/", 2)[0].encode()
    for path in small_bundle.iterdir():
        content = path.read_bytes()
        assert here not in content, path.name
        assert b".py" not in content, path.name


def test_manifest_and_report_tell_what_was_measured(small_bundle):
    manifest = json.loads((small_bundle / "manifest.json").read_text())
    report, table = (small_bundle / "report.md").read_text(), (small_bundle / "parity.csv").read_text()
    assert {
        "openvino fp32: mapping.w0, batch 1",
        "onnxruntime fp32: latent.w, batch 3",
        "openvino fp32: frame at t = 100000",
    } <= manifest["verification"].keys()
    assert sum("frame at" in what for what in manifest["verification"]) == 2 * 16
    for what in manifest["verification"]:
        way, output = what.split(": ")
        assert f'{way},fp32,"{output}",' in table or f"{way},fp32,{output}," in table
    assert "Verified against PyTorch" in report and "Everything is within tolerance." in report
    with Rollout.open(small_bundle, seed=manifest["probes"]["seed"]) as rollout:
        latents = rollout.latents(manifest["probes"]["t"])
    assert np.allclose(latents[:, :8], manifest["probes"]["w"], atol=1e-6)


def test_another_configuration_exports_and_verifies(small_config, exported):
    overrides = [
        "model.input_residual=false",
        "model.encoder.temporal_blocks=bottleneck",
        "model.encoder.normalize_residual=false",
        "model.generator.use_noise=false",
        "model.generator.conv_clamp=2",
        "model.generator.resolution=32",
        "model.motion.style_sees_content=false",
        "model.motion.anchor_distance=3",
    ]
    config = with_overrides(small_config, overrides)
    model = initialize(config, seed=2)
    with Rollout.open(exported(model, config), seed=4) as rollout:
        expected = next(reference_frames(model, "const", 4, [5.5]))
        assert np.abs(rollout[5.5].astype(int) - expected.astype(int)).max() <= 1


def test_without_noise_is_another_bundle(small_config, small_model, small_bundle, exported):
    plain = exported(small_model, small_config, noise="none")
    with Rollout.open(plain, seed=1) as without, Rollout.open(small_bundle, seed=1) as with_noise:
        assert np.abs(without[0].astype(int) - next(reference_frames(small_model, "none", 1, [0.0]))).max() <= 1
        assert not np.array_equal(without[0], with_noise[0])


def test_an_image_model_plays_single_pictures(small_config, small_model, exported):
    bundle = exported(small_model.generator, small_config)
    with Rollout.open(bundle, seed=6) as rollout:
        expected = next(reference_frames(small_model.generator, "const", 6, [0.0]))
        assert np.abs(rollout[0].astype(int) - expected).max() <= 1
        with pytest.raises(BundleError, match="single pictures"):
            rollout[1]


def test_a_conditional_generator_takes_a_label(small_config, exported):
    from styleinv.training.model import build_generator

    config = with_overrides(small_config, ["model.generator.label_dim=3"])
    torch.manual_seed(0)
    bundle = exported(build_generator(config.model.generator).eval(), config)
    with Rollout.open(bundle, label=0) as first, Rollout.open(bundle, label=2) as second:
        assert not np.array_equal(first[0], second[0])


def test_an_inversion_model_exports_but_plays_nothing(small_config, small_model, exported):
    encoder = initialize(small_config).encoder
    encoder.temporal = torch.nn.ModuleDict()
    bundle = exported(InversionModel(encoder, small_model.generator.mapping.latent_average), small_config)
    assert Bundle.open(bundle).kind == "inversion"
    with pytest.raises(BundleError, match="inversion"):
        Rollout.open(bundle)


def test_a_graph_that_computes_something_else_fails_the_export(small_checkpoint, tmp_path, monkeypatch, capsys):
    def tampered(graph, opset):
        model = export_onnx(graph, opset)
        if graph.name == "latent":
            weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
            weight.raw_data = bytes(len(weight.raw_data))
        return model

    monkeypatch.setattr(writer, "export_onnx", tampered)
    assert main(["export", str(small_checkpoint), "--out", str(tmp_path / "x.bundle")]) == 2
    message = capsys.readouterr().err
    assert "latent.w, batch 1: found an error of" in message and "expected at most 0.0001" in message
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_batch_is_refused():
    class Frozen(torch.nn.Module):
        def forward(self, x):
            return x.reshape(2, -1) * 2

    graph = Graph("frozen", Frozen(), Frozen, {"x": torch.zeros(2, 4)}, ("y",))
    with pytest.raises((StyleInVError, torch.onnx.OnnxExporterError)):
        export_onnx(graph)


def test_an_earlier_bundle_is_replaced_and_nothing_else_is(small_checkpoint, small_bundle, tmp_path):
    checkpoint = load_checkpoint(small_checkpoint)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("keep me")
    with pytest.raises(BundleError, match=r"notes.*not a bundle"):
        export_bundle(checkpoint, tmp_path / "notes", progress=False)
    assert (tmp_path / "notes" / "diary.txt").read_text() == "keep me"
    with pytest.raises(BundleError, match="found no folder"):
        export_bundle(checkpoint, tmp_path / "no" / "such" / "x.bundle", progress=False)
    with pytest.raises(BundleError, match="noise: found 'random'"):
        export_bundle(checkpoint, tmp_path / "x.bundle", noise="random", progress=False)
    (tmp_path / "old.bundle").mkdir()
    (tmp_path / "old.bundle" / "manifest.json").write_text("{}")
    (tmp_path / "old.bundle" / "leftover").write_text("")
    export_bundle(checkpoint, tmp_path / "old.bundle", progress=False)
    assert {path.name for path in (tmp_path / "old.bundle").iterdir()} == {path.name for path in small_bundle.iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "old.bundle"]
