"""The demo of the sample model: what it leaves, what it says, and when it keeps a bundle. And the sample itself."""

import importlib.metadata
import shutil

import av
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from styleinv.export import demo
from styleinv.runtime.cli import main
from styleinv.runtime.errors import DataError
from styleinv.runtime.rollout import Rollout
from styleinv.training.checkpoint import load_checkpoint
from styleinv.training.checkpoint_file import read_header

SIZE = 16  # of the small model's frames


@pytest.fixture
def exports(small_bundle, monkeypatch):
    """Paths that bundles were written to; of the small checkpoint, which tests/export/test_export.py really exports."""
    paths = []

    def export(checkpoint, out):
        paths.append(out)
        shutil.copytree(small_bundle, out)

    monkeypatch.setattr(demo, "export_bundle", export)
    return paths


def test_leaves_everything_it_promises(small_checkpoint, small_bundle, exports, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "FRAMES", 3)
    out = tmp_path / "new" / "demo"
    arguments = ["demo", "--model", str(small_checkpoint), "--out", str(out)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for path in (small_checkpoint, out / "small.bundle", out / "rollout.mp4", out / "contact.png"):
        assert path.exists() and str(path) in shown
    for words in ("verified against PyTorch", "openvino", "cold start", "p50", "p95", "p99", "frames per second"):
        assert words in shown
    with av.open(str(out / "rollout.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.stack(frames).shape == (3, 2 * SIZE, 2 * SIZE, 3)

    sheet = np.asarray(Image.open(out / "contact.png"))[::2, ::2]
    assert sheet.shape == (4 * SIZE, len(demo.CONTACT_TIMES) * SIZE, 3)
    with Rollout.open(small_bundle, seed=2) as rollout:
        assert (sheet[2 * SIZE : 3 * SIZE, -SIZE:] == rollout[1000]).all()

    assert main(arguments) == 0
    assert "kept" in capsys.readouterr().out and exports == [out / "small.bundle"]


def test_clips_are_played_side_by_side(small_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "FRAMES", 2)
    played = demo.play(small_bundle, tmp_path / "grid.mp4", (0, 1, 2, 3))
    assert len(played.milliseconds) == 2 * 4 and (played.milliseconds > 0).all() and played.cold_start > 0
    with Rollout.open(small_bundle, seed=2) as rollout:
        assert (played.frames[1][SIZE:, :SIZE] == rollout[1]).all()
    assert demo.play(small_bundle, tmp_path / "one.mp4", [2]).frames.shape == (2, SIZE, SIZE, 3)


def test_keeps_a_bundle_of_the_same_file_and_release_alone(small_checkpoint, small_bundle, tmp_path, monkeypatch):
    checkpoint = load_checkpoint(small_checkpoint)
    bundle = shutil.copytree(small_bundle, tmp_path / "small.bundle")
    assert demo.is_export_of(bundle, checkpoint)
    assert not demo.is_export_of(tmp_path / "none.bundle", checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda name: "0.0.0")
        assert not demo.is_export_of(bundle, checkpoint)
    changed = bytearray(small_checkpoint.read_bytes())
    changed[-1] ^= 1
    (tmp_path / "changed.safetensors").write_bytes(changed)
    assert not demo.is_export_of(bundle, load_checkpoint(tmp_path / "changed.safetensors"))
    with (bundle / "weights.bin").open("ab") as file:
        file.write(b"\0")
    assert not demo.is_export_of(bundle, checkpoint)


def test_without_the_sample_says_where_to_find_a_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "SAMPLE_MODEL", tmp_path / "samples" / "sky64.safetensors")
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 2
    said = capsys.readouterr().err
    assert "samples/sky64.safetensors: found no file" in said and "`make demo`" in said and "--model FILE" in said
    assert not (tmp_path / "demo").exists()


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "demo").write_text("a file")
    with pytest.raises(DataError, match="demo: found File exists"):
        demo.make_folder(tmp_path / "demo")


@pytest.mark.skipif(not demo.SAMPLE_MODEL.is_file(), reason=f"{demo.SAMPLE_MODEL} is missing")
def test_the_sample_is_what_its_note_says():
    header = read_header(demo.SAMPLE_MODEL)
    assert (header.kind, header.config.preset) == ("styleinv", "sky64")
    assert header.config.model.generator.resolution == 64
    assert demo.SAMPLE_MODEL.stat().st_size <= 16e6
    with safe_open(demo.SAMPLE_MODEL, framework="np") as file:
        types = [file.get_slice(name).get_dtype() for name in file.keys()]  # noqa: SIM118 (not a dict)
    assert types.count("F16") > len(types) / 2
    note = (demo.SAMPLE_MODEL.parent / "README.md").read_text()
    assert "research" in note and "sky64.safetensors" in note
