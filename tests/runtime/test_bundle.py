"""Every way in which a bundle can be wrong is found when it is opened, and named."""

import json
import os
from pathlib import Path

import pytest
from damage import engine_entry

from styleinv.runtime import Bundle, BundleError
from styleinv.runtime.bundle import canonical_json, file_sha256, manifest_digest, write_manifest


def test_open(tiny):
    bundle = Bundle.open(tiny.path)
    assert bundle.kind == "styleinv" and bundle.frame_rate == 25.0
    assert bundle.generator["resolution"] == 16 and bundle.motion["anchor_distance"] == 16
    synthesis = bundle.graph("synthesis")
    assert synthesis.file == tiny.path / "synthesis.onnx" and synthesis.precision == "fp32"
    assert synthesis.inputs["w"].shape == ("batch", 12) and synthesis.outputs["frame"].dtype == "uint8"
    assert bundle.motion_tensors().keys() == tiny.motion_tensors.keys()
    with pytest.raises(BundleError, match=r"graphs: found content, .*, expected mirror"):
        bundle.graph("mirror")


@pytest.mark.parametrize("kind", ["image", "inversion"])
def test_open_other_kinds(make_bundle, tmp_path, kind):
    assert Bundle.open(make_bundle(tmp_path / "b", kind).path).kind == kind


def test_digest_is_of_the_canonical_text(tiny):
    manifest = json.loads((tiny.path / "manifest.json").read_text())
    assert manifest["digest"] == manifest_digest(manifest)
    assert canonical_json({"b": [1.0, "é"], "a": None}) == '{"a":null,"b":[1.0,"\\u00e9"]}'
    with pytest.raises(ValueError):
        canonical_json({"a": float("nan")})


def test_write_manifest_is_read_back(tmp_path):
    write_manifest(tmp_path, {"b": 1, "a": {"c": [0.1, 1e-30]}, "digest": "stale"})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest.pop("digest") == manifest_digest(manifest)
    assert manifest == {"b": 1, "a": {"c": [0.1, 1e-30]}}


def refused(path: Path, message: str, **options: bool) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(path, **options)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value), caught.value


def test_no_bundle(tmp_path):
    refused(tmp_path / "nowhere", "found nothing, expected the folder of a bundle")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "found a file, expected the folder of a bundle")
    refused(tmp_path, "found no manifest.json, expected one")
    (tmp_path / "manifest.json").mkdir()
    refused(tmp_path, "manifest.json: found no file manifest.json, expected one")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected JSON"),
        ('{"format_version": 1', "expected JSON"),
        ('{"format_version": NaN}', "found the number NaN, expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ("[]", "manifest.json: found [], expected a JSON object"),
        ('{"format_version": 1, "frame_rate": 1e999}', "expected finite numbers"),
        ("{}", "format_version: found nothing, expected the number 1"),
        ('{"format_version": "1"}', 'format_version: found "1", expected the number 1'),
        ('{"format_version": true}', "format_version: found true, expected the number 1"),
        ('{"format_version": 1}', "digest: found nothing, expected "),
        ('{"format_version": 7}', "format_version: found 7, expected 1, which is what this styleinv reads"),
    ],
)
def test_manifest_text(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    refused(tmp_path, message)


def test_newer_format_says_to_upgrade(damaged):
    damaged.change_manifest(lambda manifest: manifest.update(format_version=2))
    refused(damaged.path, "pip install --upgrade styleinv")


def test_manifest_changed_by_hand(damaged):
    file = damaged.path / "manifest.json"
    file.write_text(file.read_text().replace("25.0", "30.0"))
    refused(damaged.path, "manifest.json was changed after it was written")


def set_field(manifest, field, value):
    *parents, last = field.split("/")
    for parent in parents:
        manifest = manifest[parent]
    if value is ...:
        del manifest[last]
    else:
        manifest[last] = value


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kind", "video", 'kind: found "video", expected one of styleinv, image, inversion'),
        ("kind", ["image"], "kind: found"),
        ("kind", ..., "kind: found nothing"),
        ("frame_rate", 0, "frame_rate: found 0, expected a number above 0"),
        ("frame_rate", True, "frame_rate: found true, expected a number above 0"),
        ("noise", "random", 'noise: found "random", expected one of const, none'),
        ("model", [], "model: found [], expected an object"),
        ("model/generator/z_dim", 2.0, "model.generator.z_dim: found 2.0, expected a whole number of at least 1"),
        ("model/generator/label_dim", -1, "model.generator.label_dim: found -1, expected a whole number of at least 0"),
        ("model/motion", ..., "model.motion: found nothing, expected an object"),
        ("model/motion/kernel_size", 0, "model.motion.kernel_size: found 0, expected a whole number of at least 1"),
        ("model/motion/first_frame_aware", 1, "model.motion.first_frame_aware: found 1, expected true or false"),
        ("model/skip_encoder", "yes", 'model.skip_encoder: found "yes", expected true or false'),
        ("model/skip_encoder", True, "graphs: found content, expected none of it where model.skip_encoder is true"),
        ("model/motion/max_period", "64", 'model.motion.max_period: found "64", expected a number above 0'),
        ("graphs/content", ..., "graphs: found frame, latent, mapping, synthesis, expected content, frame,"),
        ("graphs/latent/file", "", 'graphs.latent.file: found "", expected a text'),
        ("graphs/latent/file", "none.onnx", "graphs.latent.file: found no file none.onnx, expected one"),
        ("graphs/latent/sha256", "0" * 63, "graphs.latent.sha256: found"),
        ("graphs/latent/sha256", "0" * 64, "latent.onnx is damaged"),
        ("graphs/latent/inputs/v", ..., "graphs.latent.inputs: found features, prepared, w0, expected features,"),
        ("graphs/content/outputs/features", ..., "graphs.latent.inputs: found features, prepared, v, w0, expected p"),
        ("graphs/latent/inputs/v/dtype", "int7", 'graphs.latent.inputs.v.dtype: found "int7", expected one of float32'),
        ("graphs/latent/inputs/v/shape", [0], "graphs.latent.inputs.v.shape: found [0], expected a list"),
        ("graphs/synthesis/outputs/frame", ..., "graphs.synthesis.outputs: found image, expected frame, image"),
        ("files/motion.safetensors", ..., "files.motion.safetensors: found nothing, expected an object"),
        ("files/motion.safetensors/bytes", 3, "files.motion.safetensors: found"),
        ("engines", {}, "engines: found {}, expected a list"),
        ("transfers", [], "transfers: found [], expected an object"),
        ("provenance", ..., "provenance: found nothing, expected an object"),
        ("verification", 1, "verification: found 1, expected an object"),
        ("probes", "x" * 200, "probes: found"),
    ],
)
def test_manifest_fields(damaged, field, value, message):
    damaged.change_manifest(lambda manifest: set_field(manifest, field, value))
    refused(damaged.path, message)


@pytest.mark.parametrize("name", ["/etc/passwd", "../latent.onnx", "a/../../b", "C:\\x", "a\\..\\b", "a\0b", "x" * 300])
def test_file_names_stay_inside(damaged, name):
    damaged.change_manifest(lambda manifest: manifest["graphs"]["latent"].update(file=name))
    refused(damaged.path, "graphs.latent.file: found")


@pytest.mark.parametrize("verify_hashes", [True, False])
def test_links_do_not_leave(damaged, tmp_path, verify_hashes):
    (tmp_path / "outside").mkdir()
    (damaged.path / "latent.onnx").rename(tmp_path / "outside" / "latent.onnx")
    (damaged.path / "latent.onnx").symlink_to(tmp_path / "outside" / "latent.onnx")
    refused(damaged.path, "a link that leaves the bundle", verify_hashes=verify_hashes)
    (damaged.path / "latent.onnx").unlink()
    (damaged.path / "latent.onnx").symlink_to("latent.onnx")
    refused(damaged.path, "graphs.latent.file: found", verify_hashes=verify_hashes)


def test_links_inside_are_fine(damaged):
    (damaged.path / "latent.onnx").rename(damaged.path / "other.onnx")
    (damaged.path / "latent.onnx").symlink_to("other.onnx")
    Bundle.open(damaged.path)


def test_damaged_file(damaged):
    file = damaged.path / "motion.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    refused(damaged.path, "motion.safetensors is damaged")
    Bundle.open(damaged.path, verify_hashes=False)
    file.write_bytes(content[:-1])
    refused(damaged.path, f"found {len(content) - 1} bytes, expected {len(content)}", verify_hashes=False)


def put_engine(bundle, **changes: object) -> Path:
    """Puts an engine and its log into the bundle; returns its folder."""
    place = bundle.path / "engines" / "rtx-fp32-8.9"
    place.mkdir(parents=True)
    for name in ("latent.engine", "latent.log"):
        (place / name).write_bytes(b"abc")
    entry = engine_entry(f"engines/{place.name}/latent.engine", file_sha256(place / "latent.engine"), 3)
    entry["log"] = entry["log"] | {"file": f"engines/{place.name}/latent.log"}
    bundle.change_manifest(lambda manifest: manifest.update(engines=[entry | changes]))
    return place


def test_engines(damaged):
    place = put_engine(damaged, targets=["8.9", "12.0"])
    (engine,) = Bundle.open(damaged.path).engines
    assert engine.file.read_bytes() == b"abc" and engine.graph == Bundle.open(damaged.path).graph("latent")
    assert (engine.engine, engine.targets, engine.batch) == ("rtx", ("8.9", "12.0"), (1, 1, 4))
    (place / "latent.log").write_bytes(b"abd")
    refused(damaged.path, "latent.log is damaged")
    engine.file.unlink()
    refused(damaged.path, "engines.0.file: found no file engines/rtx-fp32-8.9/latent.engine")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "cuda"}, 'engine: found "cuda", expected one of rtx, tensorrt'),
        ({"targets": []}, "targets: found [], expected a list of compute capabilities, such as 8.9"),
        ({"targets": ["sm_89"]}, 'targets: found ["sm_89"], expected a list of compute capabilities'),
        ({"batch": [1, 8, 4]}, "batch: found [1, 8, 4], expected three whole numbers, each at least the one before"),
        ({"graph": "mirror"}, 'graph: found "mirror", expected one of content, frame, latent, mapping'),
        ({"precision": "fp16"}, 'precision: found "fp16", expected one of fp32'),
        ({"transfer": "ink"}, 'transfer: found "ink", expected one of'),
        ({"key": "0"}, 'key: found "0", expected 64'),
        ({"log": {}}, "log.file: found nothing, expected a text"),
        ({"file": "../x.engine"}, "file: found '../x.engine', expected a relative path inside the bundle"),
    ],
)
def test_fields_of_engines_are_checked(damaged, changes, message):
    put_engine(damaged, **changes)
    refused(damaged.path, f"engines.0.{message}")


def test_graphs_of_transfers(styled):
    bundle = Bundle.open(styled.path)
    assert bundle.transfers == ("ink", "oil-2")
    graph = bundle.graph("synthesis", "ink")
    assert graph.file == styled.path / "transfers" / "ink" / "synthesis.onnx"
    assert graph.inputs == bundle.graph("synthesis").inputs and graph.outputs == bundle.graph("synthesis").outputs
    with pytest.raises(BundleError, match="transfers: found ink, oil-2, expected anime"):
        bundle.graph("synthesis", "anime")
    with pytest.raises(BundleError, match=r"transfers\.ink: found synthesis, expected mapping"):
        bundle.graph("mapping", "ink")


def test_a_bundle_without_transfers_says_so(tiny):
    assert Bundle.open(tiny.path).transfers == ()
    with pytest.raises(BundleError, match="transfers: found none, expected ink"):
        Bundle.open(tiny.path).graph("synthesis", "ink")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("transfers/ink", [], "transfers.ink: found [], expected an object"),
        ("transfers/ink/synthesis", ..., "transfers.ink.synthesis: found nothing, expected an object"),
        ("transfers/ink/synthesis/file", ..., "transfers.ink.synthesis.file: found nothing, expected a text"),
        ("transfers/ink/synthesis/file", "../x.onnx", "transfers.ink.synthesis.file: found '../x.onnx', expected a re"),
        ("transfers/ink/synthesis/sha256", "0" * 64, "transfers/ink/synthesis.onnx is damaged"),
        ("transfers/ink/synthesis/inputs/w/shape", ["batch", 7], "transfers.ink.synthesis.inputs: found {"),
        ("transfers/ink/synthesis/outputs/image", ..., "expected those of graphs.synthesis, {"),
        ("transfers/ink/weights", ..., "transfers.ink.weights: found nothing, expected an object"),
        ("transfers/ink/weights/bytes", 3, "transfers.ink.weights.file: found"),
        ("transfers/ink/weights/sha256", "0" * 64, "transfers/ink/synthesis.bin is damaged"),
        ("graphs/inversion/outputs", {}, "graphs.inversion.outputs: found none, expected w0"),
        ("graphs/inversion/inputs", {}, "graphs.inversion.inputs: found none, expected image"),
    ],
)
def test_manifest_fields_of_additions(make_bundle, tmp_path, field, value, message):
    bundle = make_bundle(tmp_path / "b", "image", inversion=True, transfers=("ink",))
    bundle.change_manifest(lambda manifest: set_field(manifest, field, value))
    refused(bundle.path, message)


@pytest.mark.parametrize("name", ["", "a/b", "..", "ä", "two words", "x" * 101])
def test_names_of_transfers(make_bundle, tmp_path, name):
    bundle = make_bundle(tmp_path / "b", "image", transfers=("ink",))
    bundle.change_manifest(lambda manifest: manifest["transfers"].update({name: manifest["transfers"].pop("ink")}))
    refused(bundle.path, "expected a name of letters, digits, - and _")


def test_an_inversion_bundle_has_no_transfers(make_bundle, tmp_path):
    entry = json.loads((make_bundle(tmp_path / "a", "image", transfers=("ink",)).path / "manifest.json").read_text())
    bundle = make_bundle(tmp_path / "b", "inversion")
    bundle.change_manifest(lambda manifest: manifest.update(transfers=entry["transfers"]))
    refused(bundle.path, "transfers: found ink, expected none in a bundle of kind inversion")


def test_motion_file_that_is_none(damaged):
    file = damaged.path / "motion.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    bundle = Bundle.open(damaged.path, verify_hashes=False)
    with pytest.raises(BundleError, match=r"motion\.safetensors: found .*, expected a safetensors file"):
        bundle.motion_tensors()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(damaged):
    (damaged.path / "latent.onnx").chmod(0)
    refused(damaged.path, "expected a readable file")
