"""Run in an environment that holds the wheel, numpy, safetensors, onnxruntime and av only (see `.ci/run`)."""

import importlib.util
import os
import subprocess
import sys

import pytest

BUNDLE = os.environ.get("STYLEINV_TEST_BUNDLE")
pytestmark = pytest.mark.skipif(BUNDLE is None, reason="STYLEINV_TEST_BUNDLE names no bundle; .ci/run sets it")


@pytest.mark.parametrize("module", ["torch", "onnx", "onnxscript", "tqdm", "PIL", "dacite", "openvino"])
def test_the_environment_is_bare(module):
    assert importlib.util.find_spec(module) is None


@pytest.mark.parametrize("module", ["training", "export", "runtime", "kernels", "tests", "setup"])
def test_nothing_else_becomes_importable(module, tmp_path):
    program = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is not None)"
    assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False).returncode == 0


def test_a_rollout_plays():
    from styleinv.runtime import Rollout

    with Rollout.open(BUNDLE, seed=3) as rollout:
        frame = rollout[1000.5]
        assert frame.shape == (*rollout.size, 3)
        assert frame.tobytes() == rollout[1000.5].tobytes()
    assert "torch" not in sys.modules


def test_the_command_streams_raw_frames(tmp_path):
    command = [sys.executable, "-m", "styleinv.runtime.cli", "stream", BUNDLE, "--frames", "3", "--out", "-"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert len(finished.stdout) % (3 * 3) == 0
    assert len(finished.stdout) > 0


def test_the_command_streams_a_video(tmp_path):
    command = [sys.executable, "-m", "styleinv.runtime.cli", "stream", BUNDLE, "--frames", "3", "--out", "clip.mp4"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    import av

    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert len(list(container.decode(video=0))) == 3


def test_commands_that_need_more_say_what_to_install(tmp_path):
    command = [sys.executable, "-m", "styleinv.runtime.cli", "export", "x.safetensors", "--out", "x.bundle"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert "pip install 'styleinv[export,runtime-cpu]'" in finished.stderr
    assert "Traceback" not in finished.stderr
