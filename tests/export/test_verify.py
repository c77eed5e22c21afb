"""`styleinv verify` on a bundle: what it measures and writes, and that a bundle which computes something else fails."""

import csv
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from styleinv.export.comparison import compare, peak_signal_to_noise
from styleinv.export.report import COLUMNS, write_reports
from styleinv.export.tolerances import TOLERANCES
from styleinv.export.verify import Drift, Way, frame_indices, verify, ways_of
from styleinv.export.writer import export_bundle
from styleinv.runtime import Bundle
from styleinv.runtime.bundle import file_sha256, write_manifest
from styleinv.runtime.cli import main
from styleinv.runtime.errors import BundleError
from styleinv.runtime.pictures import read_picture
from styleinv.runtime.sessions import ENGINES, obstacle
from styleinv.training.checkpoint import load_checkpoint, save_checkpoint
from styleinv.training.config import with_overrides
from styleinv.training.initialize import initialize
from styleinv.training.model import InversionModel

SHORT = ["--frames", "20", "--latents", "150"]
NO_BF16 = obstacle("openvino", "bf16")
needs_bf16 = pytest.mark.skipif(NO_BF16 is not None, reason=str(NO_BF16))


@pytest.fixture
def copy(every_precision, tmp_path):
    return shutil.copytree(every_precision, tmp_path / "copy.bundle")


def rows(folder):
    with (folder / "parity.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def tamper(bundle, file, what):
    """Scales a weight of a graph and makes all hashes right again: a bundle that is whole, and wrong."""
    graph = bundle / file
    model = onnx.load(graph, load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if what in tensor.name and tensor.external_data)
    place = {entry.key: entry.value for entry in tensor.external_data}
    weights = graph.with_name(place["location"])
    content = bytearray(weights.read_bytes())
    span = slice(int(place["offset"]), int(place["offset"]) + int(place["length"]))
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    content[span] = (np.frombuffer(content[span], dtype) * dtype.type(1.5)).tobytes()
    weights.write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    entry = {"sha256": file_sha256(weights), "bytes": weights.stat().st_size}
    if weights.parent == bundle:
        manifest["files"]["weights.bin"] = entry
    else:
        manifest["precisions"][weights.parent.name]["weights"] |= entry
    write_manifest(bundle, manifest)


def test_every_graph_in_every_session_against_the_model(copy, small_checkpoint, capsys):
    assert main(["verify", str(copy), "--against", str(small_checkpoint), *SHORT]) == 0
    table = rows(copy)
    assert list(table[0]) == list(COLUMNS) and all(row["passed"] == "yes" for row in table)
    ways = {row["way"] for row in table}
    expected = {"openvino fp32", "onnxruntime fp32", "onnxruntime fp16", "openvino bf16 (graph files)"}
    assert ways == expected | (set() if NO_BF16 else {"openvino bf16"})
    outputs = {"mapping.w0", "synthesis.image", "synthesis.frame", "content.features", "content.prepared", "latent.w",
               "frame.frame"}  # fmt: skip
    for way in ways:
        of_way = [row for row in table if row["way"] == way]
        found = {row["what"] for row in of_way}
        assert {f"{output}, batch {batch}" for output in outputs for batch in (1, 3, 8)} <= found
        assert sum(what.startswith("frame at t = ") for what in found) == 20
        assert ("latents of 150 frames" in found) == ("fp32" not in way)
        for row in of_way:
            picture = "frame" in row["what"].split(",")[0] or "image" in row["what"]
            if not row["what"].startswith("latents"):
                assert float(row["max_error"]) >= float(row["mean_error"]) >= 0 and float(row["cosine"]) > 0.99
                assert bool(row["psnr_db"]) == bool(row["ssim"]) == picture, row
    printed = capsys.readouterr().out
    assert re.search("onnxruntime int8 +not to be had: the bundle has no graphs in int8\n", printed)
    assert "openvino fp16" not in printed  # which nobody misses
    report = (copy / "report.md").read_text()
    assert "Verified against PyTorch" in report and "Not to be had here" in report and "parity.png" in report
    assert read_picture(copy / "parity.png").shape == (16 * len(ways), 3 * 16, 3)
    assert len(table) == len({(row["way"], row["what"]) for row in table})
    Bundle.open(copy)  # reports are none of its hashed files


def test_without_the_model_against_its_own_graphs(every_precision, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in every_precision.iterdir() if path.is_file()}
    arguments = [
        "verify",
        str(every_precision),
        "--precision",
        "fp32",
        "--batches",
        "2",
        "--frames",
        "4",
        "--out",
        str(tmp_path),
    ]
    assert main(arguments) == 0
    assert {path.name: path.read_bytes() for path in every_precision.iterdir() if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parity.csv", "parity.png", "report.md"]
    table = rows(tmp_path)
    assert {row["way"] for row in table} == {"openvino fp32", "onnxruntime fp32"}
    assert {float(row["max_error"]) for row in table if row["way"] == "onnxruntime fp32"} == {0.0}
    assert "Verified against onnxruntime fp32" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("file", "weight", "message"),
    [
        ("synthesis.onnx", "synthesis.convs.1", r"openvino fp32: synthesis\.image, batch 1: found an error of"),
        ("latent.onnx", "encoder.bottlenecks.2.first", r"openvino fp32: latent\.w, batch 1: found an error of"),
    ],
)
def test_a_bundle_that_computes_something_else_fails(copy, small_checkpoint, capsys, file, weight, message):
    tamper(copy, file, weight)
    assert main(["verify", str(copy), "--against", str(small_checkpoint), "--latents", "0", "--frames", "3"]) == 2
    captured = capsys.readouterr()
    assert "against PyTorch" in captured.err and "more)" in captured.err
    (line,) = (line for line in captured.err.splitlines() if line.startswith("styleinv: error"))
    assert __import__("re").search(message, line), line
    assert "FAIL" in captured.out
    assert "**out of tolerance**" in (copy / "report.md").read_text()
    assert any(row["passed"] == "no" for row in rows(copy))


@pytest.mark.parametrize(("precision", "way"), [("fp16", "onnxruntime fp16"), ("bf16", "openvino bf16 (graph files)")])
def test_graphs_of_other_precisions_are_verified_too(copy, capsys, precision, way):
    tamper(copy, f"{precision}/synthesis.onnx", "synthesis.convs.1")
    arguments = ["verify", str(copy), "--precision", precision, "--batches", "1", "--frames", "2", "--latents", "0"]
    assert main(arguments) == 2
    assert f"{way}: synthesis.frame, batch 1: found a PSNR of" in capsys.readouterr().err


def test_probes_of_the_manifest_are_reproduced(copy, capsys):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["probes"]["w"][0][0] += 0.1
    write_manifest(copy, manifest)
    assert main(["verify", str(copy), "--precision", "fp32", "--batches", "1", "--frames", "1"]) == 2
    assert "probes.w: found an error" in capsys.readouterr().err


def test_the_checkpoint_must_be_of_the_same_model(every_precision, small_config, small_checkpoint, tmp_path, capsys):
    config = with_overrides(small_config, ["model.generator.channel_max=8"])
    save_checkpoint(tmp_path / "other.safetensors", initialize(config), config)
    assert main(["verify", str(every_precision), "--against", str(tmp_path / "other.safetensors")]) == 2
    assert "config.model.generator: found" in capsys.readouterr().err
    checkpoint = load_checkpoint(small_checkpoint)
    save_checkpoint(tmp_path / "image.safetensors", checkpoint.model.generator, checkpoint.config)
    assert main(["verify", str(every_precision), "--against", str(tmp_path / "image.safetensors")]) == 2
    assert "kind: found image, expected styleinv" in capsys.readouterr().err


def test_pairs_that_cannot_be(every_precision, small_bundle, capsys):
    ways, absent = ways_of(Bundle.open(small_bundle))
    assert {str(way) for way in ways} | absent.keys() == {f"{e} {p}" for e in ENGINES for p in ENGINES[e].graphs}
    assert absent["onnxruntime fp16"] == "the bundle has no graphs in fp16"
    assert main(["verify", str(small_bundle), "--engine", "openvino", "--precision", "fp16"]) == 2
    assert "found no session to verify in (openvino fp16: this engine computes" in capsys.readouterr().err
    assert Way("openvino", "bf16", "bf16", as_files=True) in ways_of(Bundle.open(every_precision))[0]


def test_bundles_of_other_kinds(small_config, small_model, tmp_path, capsys):
    encoder = initialize(small_config, seed=6).encoder
    encoder.temporal = torch.nn.ModuleDict()
    models = {
        "image": small_model.generator,
        "inversion": InversionModel(encoder, small_model.generator.mapping.latent_average).eval(),
    }
    for kind, model in models.items():
        save_checkpoint(tmp_path / f"{kind}.safetensors", model, small_config)
        export_bundle(load_checkpoint(tmp_path / f"{kind}.safetensors"), tmp_path / f"{kind}.bundle", progress=False)
        for against in ([], ["--against", str(tmp_path / f"{kind}.safetensors")]):
            assert main(["verify", str(tmp_path / f"{kind}.bundle"), "--precision", "fp32", *against]) == 0
            assert "openvino fp32" in capsys.readouterr().out
        frames = sum(row["what"].startswith("frame at") for row in rows(tmp_path / f"{kind}.bundle"))
        assert frames == (2 if kind == "image" else 0)  # in two sessions


def test_nowhere_to_write(every_precision, tmp_path, capsys):
    arguments = ["verify", str(every_precision), "--precision", "fp32", "--batches", "1", "--frames", "1"]
    assert main([*arguments, "--out", str(tmp_path / "no" / "folder")]) == 2
    assert "expected a folder to write into" in capsys.readouterr().err


def test_which_path_takes_which_option(every_precision, small_checkpoint):
    for arguments in ([str(every_precision), "--golden", "x"], [str(small_checkpoint)]):
        with pytest.raises(SystemExit) as left:
            main(["verify", *arguments])
        assert left.value.code == 2


@needs_bf16
def test_find_the_node_at_which_an_engine_leaves_the_tolerance(every_precision, tmp_path, capsys):
    arguments = ["verify", str(every_precision), "--engine", "openvino", "--precision", "bf16", "--out", str(tmp_path)]
    assert main([*arguments, "--find-node", "latent"]) == 0
    assert "graphs.latent: openvino bf16: within tolerance, no node to find" in capsys.readouterr().out
    assert main([*arguments, "--find-node", "latent", "--allowed", "1e-3"]) == 0
    printed = capsys.readouterr().out
    (piece,) = tmp_path.iterdir()
    assert str(piece) in printed and "the first that is out of tolerance" in printed
    assert 0 < len(onnx.load(piece).graph.node) < len(onnx.load(every_precision / "latent.onnx").graph.node)
    assert main([*arguments, "--find-node", "mirror"]) == 2
    assert "expected mirror" in capsys.readouterr().err


def test_sixty_four_times_without_one_twice(every_precision):
    ts = frame_indices(Bundle.open(every_precision))
    assert len(ts) == len(set(ts)) == 64 and {0.0, 2.5, 1000.5, 100_000.0} <= set(ts)


def test_measures():
    a = np.zeros((1, 3, 16, 16), np.float32)
    b = a.copy()
    b[0, 0, 0, 0] = 0.02
    found = compare("way", "image", "fp32", b, a, picture=True)
    assert found.max_error == pytest.approx(0.02) and found.mean_error == pytest.approx(0.02 / 768)
    assert found.psnr == pytest.approx(10 * np.log10(4 / (0.02**2 / 768)))
    assert found.ssim < 1 and found.cosine == 0.0
    levels = np.full((1, 16, 16, 3), 100, np.uint8)
    assert peak_signal_to_noise(levels, levels + np.uint8(1), np.uint8) == pytest.approx(20 * np.log10(255))
    same = compare("way", "frame", "fp32", levels, levels, picture=True)
    assert same.failures == [] and np.isinf(same.psnr) and same.ssim == 1 and same.share == 0
    assert compare("way", "frame", "fp32", levels + np.uint8(2), levels).failures == [
        "an error of 2 levels, expected at most 1"
    ]
    with pytest.raises(BundleError, match=r"way: w: found shape \[1\], expected \[2\]"):
        compare("way", "w", "fp32", np.zeros(1), np.zeros(2))


@pytest.mark.parametrize("precision", TOLERANCES)
def test_what_is_not_a_number_is_out_of_tolerance(precision):
    expected = np.ones((1, 3, 16, 16), np.float32)
    broken = expected.copy()
    broken[0, 1, 2, 3] = np.nan
    assert len(compare("way", "image", precision, broken, expected, picture=True).failures) == 4
    assert Drift("way", precision, 9, float("nan"), 0.0, 0.0).failures


def test_each_measure_is_bounded():
    item = compare("way", "image", "bf16", np.ones((1, 3, 16, 16)), np.ones((1, 3, 16, 16)), picture=True)
    assert item.failures == []
    worse = {"relative": 0.2, "cosine": 0.9, "psnr": 41.9, "ssim": 0.9}
    for name, value in worse.items():
        assert len(replace(item, **{name: value}).failures) == 1


def test_drift_in_long_clips_is_an_error(every_precision, monkeypatch, tmp_path):
    from styleinv.export import verify as module

    real = module._latents

    def drifting(sessions, count, what, progress):
        latents = real(sessions, count, what, progress)
        growth = np.linspace(0, 0.1, count)[:, None] if sessions.precision == "fp16" else 0.0
        return (latents * (1 + growth)).astype(np.float32)

    monkeypatch.setattr(module, "_latents", drifting)
    opened = Bundle.open(every_precision)
    result = verify(opened, ways=ways_of(opened, "onnxruntime", "fp16")[0], batches=[1], frames=1, latents=150)
    (drift,) = result.drifts
    assert drift.last == pytest.approx(2 * drift.first, rel=0.02) and drift.largest > 0.09 and drift.failures
    with pytest.raises(BundleError, match=r"onnxruntime fp16: latents of 150 frames: found an error of"):
        result.check("x")
    write_reports(opened, result, tmp_path)
    assert "of the last 100" in (tmp_path / "report.md").read_text()
