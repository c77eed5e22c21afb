"""`styleinv train` and `styleinv init`, as a user calls them."""

import av
import numpy as np
import pytest
import torch

from styleinv.runtime.cli import main
from styleinv.training.checkpoint import load_checkpoint

SMALL = [
    "model.generator.resolution=16",
    "model.generator.channel_base=128",
    "model.generator.channel_max=16",
    "model.encoder.widths=[16,16]",
    "model.encoder.depths=[1,1]",
    "discriminator.channel_base=128",
    "discriminator.channel_max=16",
    "discriminator.clip_channel_base=128",
    "image.batch=2",
    "inversion.batch=2",
    "motion.batch=2",
    "motion.clip_length=6",
    "motion.max_span=6",
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for index in range(10):
            picture = np.full((32, 32, 3), 20 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def failure(capsys, *arguments):
    assert main(list(arguments)) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert "styleinv: error:" in message
    return message


def test_the_three_stages_in_order(video, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["train", "image", "--data", str(video), "--out", out, "--images", "2", "--set", *SMALL]) == 0
    assert main(["train", "image", "--data", str(video), "--out", out, "--images", "4", "--resume"]) == 0
    assert main(["train", "inversion", "--data", str(video), "--out", out, "--images", "2"]) == 0
    assert main(["train", "motion", "--data", str(video), "--out", out, "--images", "2", "--seed", "3"]) == 0
    whole = load_checkpoint(tmp_path / "run" / "motion.safetensors", kind="styleinv")
    assert whole.config.model.generator.resolution == 16
    assert "images/s" in capsys.readouterr().err


def test_an_earlier_run_is_not_overwritten(video, tmp_path, capsys):
    command = ["train", "image", "--data", str(video), "--out", str(tmp_path / "run"), "--images", "2", "--set", *SMALL]
    assert main(command) == 0
    before = (tmp_path / "run" / "image.safetensors").read_bytes()
    assert "image.state.pt: found an earlier run" in failure(capsys, *command)
    assert (tmp_path / "run" / "image.safetensors").read_bytes() == before


def test_stages_out_of_order_say_what_is_missing(video, tmp_path, capsys):
    out = str(tmp_path / "run")
    message = failure(capsys, "train", "inversion", "--data", str(video), "--out", out)
    assert "image.safetensors: no such file" in message
    main(["train", "image", "--data", str(video), "--out", out, "--images", "2", "--set", *SMALL])
    assert "inversion.safetensors: no such file" in failure(
        capsys, "train", "motion", "--data", str(video), "--out", out
    )
    message = failure(
        capsys, "train", "inversion", "--data", str(video), "--out", out, "--set", "model.generator.w_dim=64"
    )
    assert "w_dim=128" in message and "w_dim=64" in message


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--set", "model.generator.resolution=17"], "generator.resolution: found 17"),
        (["--preset", "giant"], "preset: found 'giant'"),
        (["--images", "0"], "--images: found 0"),
        (["--seed", "-1"], "--seed: found -1"),
        (["--resume"], "image.state.pt: no such file"),
        (["--resume", "--preset", "tiny64"], "do not go with --resume"),
        (["--set", "model.generator.label_dim=3"], "label_dim"),
    ],
)
def test_bad_arguments(video, tmp_path, capsys, extra, words):
    assert words in failure(capsys, "train", "image", "--data", str(video), "--out", str(tmp_path / "run"), *extra)


def test_clips_too_short_to_learn_motion_from(video, tmp_path, capsys):
    out = str(tmp_path / "run")
    main(["train", "image", "--data", str(video), "--out", out, "--images", "2", "--set", *SMALL])
    main(["train", "inversion", "--data", str(video), "--out", out, "--images", "2"])
    message = failure(capsys, "train", "motion", "--data", str(video), "--out", out, "--set", "motion.clip_length=64")
    assert "clip.mp4" in message and "64" in message and "10" in message


@pytest.mark.parametrize("content", [None, b"", b"this is no video"])
def test_data_that_cannot_be_used(tmp_path, capsys, content):
    path = tmp_path / "broken.mp4"
    if content is not None:
        path.write_bytes(content)
    assert "broken.mp4" in failure(capsys, "train", "image", "--data", str(path), "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_init_writes_a_whole_model(tmp_path, capsys):
    path = tmp_path / "untrained.safetensors"
    assert main(["init", "--preset", "tiny64", "--set", *SMALL, "--seed", "1", "--out", str(path)]) == 0
    assert load_checkpoint(path).kind == "styleinv"
    assert "parameters" in capsys.readouterr().err


def test_every_stage_fine_tunes_a_checkpoint(video, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    common = ["--data", str(video), "--images", "2"]
    assert main(["train", "image", *common, "--out", str(first), "--set", *SMALL]) == 0
    assert main(["train", "inversion", *common, "--out", str(first)]) == 0
    assert main(["train", "motion", *common, "--out", str(first)]) == 0
    still = ["--set", "image.learning_rate=1e-12", "inversion.learning_rate=1e-12", "motion.learning_rate=1e-12"]
    generator = ["--generator", str(first / "image.safetensors")]
    for stage, extra in (("image", []), ("inversion", generator), ("motion", [])):
        start = first / f"{stage}.safetensors"
        assert main(["train", stage, *common, "--out", str(second), "--from", str(start), *extra, *still]) == 0
        before = load_checkpoint(start).model.state_dict()
        after = load_checkpoint(second / f"{stage}.safetensors").model.state_dict()
        parameters = dict(load_checkpoint(start).model.named_parameters())
        for name in parameters:  # a step that moves nothing leaves the weights that training started from
            torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-5, msg=name)
    assert "belongs" not in capsys.readouterr().err


def test_fine_tuning_keeps_the_model_and_takes_settings_from_a_preset(video, tmp_path, capsys):
    common = ["--data", str(video), "--images", "2", "--out"]
    assert main(["train", "image", *common, str(tmp_path / "a"), "--set", *SMALL]) == 0
    start = ["--from", str(tmp_path / "a" / "image.safetensors")]
    small_batch = ["--set", "image.batch=2", "discriminator.channel_base=128"]
    assert main(["train", "image", *common, str(tmp_path / "b"), *start, "--preset", "tiny64", *small_batch]) == 0
    found = load_checkpoint(tmp_path / "b" / "image.safetensors").config
    assert found.model == load_checkpoint(tmp_path / "a" / "image.safetensors").config.model
    assert found.discriminator.channel_max == 128  # the preset's, not the first run's
    wrong = [*common, str(tmp_path / "c"), *start]
    assert "does not go with --from" in failure(capsys, "train", "image", *wrong, "--set", "model.generator.z_dim=5")
    assert "found 'image', expected 'styleinv'" in failure(capsys, "train", "motion", *wrong)
    assert "do not go with --resume" in failure(capsys, "train", "image", *wrong, "--resume")


def every_stage(video, out, *extra):
    few = ["image.images=4", "inversion.images=4", "motion.images=4"]
    data = ["--data", str(video), "--out", str(out)]
    return ["train", "all", *data, "--preset", "tiny64", "--set", *SMALL, *few, *extra]


def test_all_stages_by_one_command_that_can_be_repeated(video, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(every_stage(video, out)) == 0
    assert load_checkpoint(out / "motion.safetensors").kind == "styleinv"
    kept = {name: (out / name).read_bytes() for name in ("image.safetensors", "inversion.safetensors")}
    before = load_checkpoint(out / "motion.safetensors").model.state_dict()
    (out / "motion.state.pt").unlink()  # as if it had been killed before motion's first snapshot
    (out / "motion.safetensors").unlink()
    assert main(every_stage(video, out)) == 0
    after = load_checkpoint(out / "motion.safetensors").model.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert {name: (out / name).read_bytes() for name in kept} == kept
    assert "config.preset: found 'tiny64', expected 'sky64'" in failure(
        capsys, "train", "all", "--data", str(video), "--out", str(out), "--preset", "sky64"
    )


def test_hours_end_every_stage_after_a_step_at_least(video, tmp_path):
    assert main([*every_stage(video, tmp_path / "run"), "image.images=1000000", "--hours", "1e-9"]) == 0
    for name in ("image", "inversion", "motion"):
        assert torch.load(tmp_path / "run" / f"{name}.state.pt", weights_only=True)["images"] == 2


def test_settings_of_training_may_change_when_a_run_goes_on(video, tmp_path, capsys):
    out = ["--data", str(video), "--out", str(tmp_path / "run")]
    assert main(["train", "image", *out, "--images", "2", "--set", *SMALL]) == 0
    more = ["--images", "8", "--resume", "--set", "image.batch=4", "image.learning_rate=0.001"]
    assert main(["train", "image", *out, *more]) == 0
    state = torch.load(tmp_path / "run" / "image.state.pt", weights_only=True)
    assert state["images"] == 8
    assert state["optimizers"]["generator"]["param_groups"][0]["lr"] == 0.001
    assert "the run keeps its model" in failure(
        capsys, "train", "image", *out, "--resume", "--set", "model.generator.z_dim=4"
    )


def test_another_style(video, tmp_path, capsys):
    out = ["--data", str(video), "--out", str(tmp_path / "run")]
    assert main(["train", "image", *out, "--images", "2", "--set", *SMALL, "transfer.batch=2"]) == 0
    assert main(["train", "transfer", *out, "--images", "2"]) == 0
    assert main(["train", "transfer", *out, "--images", "4", "--resume"]) == 0
    assert load_checkpoint(tmp_path / "run" / "transfer.safetensors").kind == "transfer"
    assert "--from: found with 'transfer'" in failure(capsys, "train", "transfer", *out, "--from", "x.safetensors")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--images", "4"], "--images: found with 'all'"),
        (["--resume"], "--resume: found with 'all'"),
        (["--hours", "0"], "--hours: found 0.0"),
        (["--device", "tpu"], "--device: found 'tpu'"),
        (["--features", "none.onnx"], "none.onnx: no such file"),
        (["--weights", "none.csv"], "none.csv"),
    ],
)
def test_bad_arguments_of_all(video, tmp_path, capsys, extra, words):
    assert words in failure(capsys, *every_stage(video, tmp_path / "run"), *extra)
