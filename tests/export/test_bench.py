"""`styleinv bench`: what it counts, divides and writes. Nothing here depends on how fast anything is."""

import csv
import dataclasses
import itertools
import json
import math
import subprocess
import sys
import types
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from styleinv.export import bench, bench_command, bench_machine
from styleinv.export.bench_csv import COLUMNS, append_rows
from styleinv.export.bench_machine import Convolutions
from styleinv.export.bench_playing import Played, TimedSession, TimedSessions, jitter, play
from styleinv.export.bench_report import as_json, as_table
from styleinv.export.bench_start import Settings
from styleinv.runtime.bundle import Bundle
from styleinv.runtime.errors import BundleError, CheckpointError, StyleInVError
from styleinv.runtime.machine import describe_machine
from styleinv.runtime.rollout import Rollout

PROMISED = {"fps", "latency_ms", "cold_start_s", "peak_rss_mib", "session", "precision"}
MORE = {"jitter_ms", "graph_ms", "share_of_peak", "latent_stride", "row"}
WITH_BASELINE = {"speedup_vs_eager", "speedup_vs_eager_cached", "psnr_db"}
SHORT = ["--frames", "12", "--warmup", "2"]


@pytest.fixture
def quick(monkeypatch):
    """No processes, and one short run of the convolutions."""
    monkeypatch.setattr(bench, "measure_start", lambda settings: bench.Start((0.5, 0.25, 1.0), 100.0, 60))
    monkeypatch.setattr(bench_machine, "RUNS", 1)


class FakeClock:
    """Seconds that pass only when something says so."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def result_of(bundle, milliseconds, macs=None, convolutions="openvino is not installed", baseline=None):
    """A result with these frame times, of a bundle that counts its multiplications or does not."""
    opened = Bundle.open(bundle)
    graphs = {name: {**entry, "macs": macs} for name, entry in opened.manifest["graphs"].items()}
    graph_milliseconds = {"latent": 2.0, "synthesis": 1.0}
    played = Played(
        np.array(milliseconds), graph_milliseconds, len(milliseconds), 10, "fake", "fake 1", latent_stride=1
    )
    return bench.Result(
        Settings(str(bundle), frames=len(milliseconds)),
        dataclasses.replace(opened, manifest={**opened.manifest, "graphs": graphs}),
        bench.Start((3.0, 1.0, 2.0), 123.0, 60),
        played,
        convolutions,
        baseline,
    )


def test_everything_from_the_command_line_without_torch(small_bundle, tmp_path):
    command = ["bench", str(small_bundle), *SHORT, "--seed", "3"]
    outputs = ["--csv", "bench.csv", "--json", "bench.json", "--plot", "bench.png"]
    program = (
        "import sys; from styleinv.runtime.cli import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "assert not {'torch', 'onnx', 'styleinv.training'} & sys.modules.keys()"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, *command, *outputs], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == "12 frames timed after 2 of warm-up, batch 1, seed 3"
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found.keys() == PROMISED | MORE
    assert found["row"].keys() == COLUMNS.keys()
    latency = found["latency_ms"]
    assert list(latency) == ["p50", "p95", "p99", "max"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]
    assert 1000 / latency["max"] <= found["fps"]
    assert sum(found["graph_ms"].values()) == pytest.approx(1000 / found["fps"])
    assert all(part > 0 for part in found["graph_ms"].values())
    assert found["cold_start_s"] > 0 and found["jitter_ms"] >= 0 and found["peak_rss_mib"] > 10
    assert found["precision"] == "fp32" and "fp32" in found["session"]
    image = Image.open(tmp_path / "bench.png")
    image.verify()
    assert (image.format, image.size) == ("PNG", (1200, 480))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.csv", "bench.json", "bench.png"]


def test_the_process_of_the_cold_start_imports_no_torch(small_bundle):
    options = json.dumps(dataclasses.asdict(Settings(str(small_bundle), frames=2)))
    program = (
        "import sys; from styleinv.export.bench_start import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "heavy = {'torch', 'onnx', 'matplotlib', 'PIL', 'styleinv.training', 'argparse'}\n"
        "print(*sorted(heavy & sys.modules.keys()))"
    )
    finished = subprocess.run([sys.executable, "-c", program, options], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    first, memory, heavy = finished.stdout.splitlines()
    assert first == "first frame" and float(memory) > 10
    assert "torch" not in heavy.split() and "styleinv.training" not in heavy.split()


def test_what_the_process_of_the_cold_start_says_is_passed_on(small_bundle, tmp_path):
    with pytest.raises(StyleInVError, match=r"nothing\.bundle: found nothing, expected the folder of a bundle"):
        bench.measure_start(Settings(str(tmp_path / "nothing.bundle")))


def test_baseline(small_bundle, small_checkpoint, tmp_path, quick, capsys):
    file = tmp_path / "bench.json"
    arguments = [str(small_bundle), *SHORT, "--baseline", str(small_checkpoint), "--json", str(file)]
    assert bench_command.main(arguments) == 0
    found = json.loads(file.read_text())
    assert found.keys() == PROMISED | MORE | WITH_BASELINE
    assert found["speedup_vs_eager"] > 0 and found["speedup_vs_eager_cached"] > 0
    assert found["psnr_db"] is None or found["psnr_db"] >= 40
    row = found["row"]
    assert row["speedup_vs_eager"] == pytest.approx(row["eager_frame_ms_p50"] / row["alternated_frame_ms_p50"])
    assert row["alternated_frames"] == 10  # two turns of five
    assert row["torch"] and row["eager_threads"] >= 1
    assert "speedup_vs_eager " in capsys.readouterr().out


def test_baseline_with_strided_latents(small_bundle, small_checkpoint, tmp_path, quick, capsys):
    file = tmp_path / "bench.json"
    arguments = [str(small_bundle), *SHORT, "--baseline", str(small_checkpoint), "--json", str(file)]
    assert bench_command.main([*arguments, "--latent-stride", "4"]) == 0
    found = json.loads(file.read_text())
    assert found["latent_stride"] == found["row"]["latent_stride"] == 4
    assert found["speedup_vs_eager"] > 0 and 20 <= found["psnr_db"] < 80  # close, and not the same
    assert "the encoder every 4 frames" in capsys.readouterr().out


def test_strided_frames_are_timed_in_whole_strides(small_bundle):
    """PyTorch draws one batch where the bundle plays as many as share a keyframe, and each has its turn."""
    from styleinv.export.bench_baseline import BLOCK, _batches, _stride_of_frames

    with Rollout.open(small_bundle, 3, latent_stride=3) as rollout:
        rounds = _batches(rollout.bundle, rounds=2, batch=2, stride=3)
        drawn = list(itertools.chain.from_iterable(rounds))
        assert [len(batches) for batches in rounds] == [BLOCK + 1] * 3
        assert drawn[:4] == [[0, 1], [8, 9], [16, 17], [18, 19]]  # of 0 .. 5, 6 .. 11, 12 .. 17, 18 .. 23
        asked = []
        frames = rollout.frames
        spied = types.SimpleNamespace(
            latent_stride=3, frames=lambda ts, batch: asked.extend(ts := list(ts)) or frames(ts, batch)
        )
        for ts in drawn[:3]:
            asked.clear()
            found = _stride_of_frames(spied, ts)
            assert asked == list(range(ts[0] // 6 * 6, ts[0] // 6 * 6 + 6))
            np.testing.assert_array_equal(found, np.stack(list(frames(ts, 2))))


def test_another_checkpoint_is_refused(small_bundle, small_checkpoint, tmp_path, quick):
    other = tmp_path / "other.safetensors"
    other.write_bytes(small_checkpoint.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match=rf"{other}: found SHA-256 .* expected .* which {small_bundle} says"):
        bench_command.main([str(small_bundle), "--baseline", str(other)])
    with pytest.raises(CheckpointError, match="no such file"):
        bench_command.main([str(small_bundle), "--baseline", str(tmp_path / "missing.safetensors")])


def test_an_inversion_bundle_is_refused(small_bundle, monkeypatch):
    opened = Bundle.open(small_bundle)
    inversion = dataclasses.replace(opened, manifest={**opened.manifest, "kind": "inversion"})
    monkeypatch.setattr(bench.Bundle, "open", lambda path, verify_hashes: inversion)
    with pytest.raises(BundleError, match=r"kind: found inversion, expected styleinv or image: .* no frames to time"):
        bench_command.main([str(small_bundle)])


@pytest.mark.parametrize("option", ["csv", "json", "plot"])
def test_outputs_are_checked_before_anything_is_measured(option, small_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_command, "measure", lambda *arguments: pytest.fail("it measured"))
    missing = tmp_path / "missing" / "out.png"
    with pytest.raises(StyleInVError, match=f"--{option} {missing}: found no folder {missing.parent}"):
        bench_command.main([str(small_bundle), f"--{option}", str(missing)])
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(StyleInVError, match="found a folder, expected the name of a file"):
        bench_command.main([str(small_bundle), f"--{option}", str(tmp_path / "folder.png")])


@pytest.mark.parametrize(
    ("option", "package", "extra"), [("plot", "matplotlib", "bench"), ("baseline", "torch", "train")]
)
def test_missing_packages_are_named_before_anything_is_measured(
    option, package, extra, small_bundle, tmp_path, monkeypatch
):
    monkeypatch.setattr(bench_command, "measure", lambda *arguments: pytest.fail("it measured"))
    monkeypatch.setattr(bench_command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StyleInVError, match=rf"--{option} needs {package}, .*`pip install 'styleinv\[{extra}\]'`"):
        bench_command.main([str(small_bundle), f"--{option}", str(tmp_path / "x.png")])


def test_a_plot_is_a_png(small_bundle, capsys):
    with pytest.raises(SystemExit):
        bench_command.main([str(small_bundle), "--plot", "bench.pdf"])
    assert "found 'bench.pdf', expected a file name that ends in .png" in capsys.readouterr().err


def test_rows_go_below_each_other(small_bundle, tmp_path, quick, capsys):
    file = tmp_path / "bench.csv"
    for batch in ("1", "3"):
        assert bench_command.main([str(small_bundle), *SHORT, "--batch", batch, "--csv", str(file)]) == 0
    with file.open(newline="") as stream:
        header, first, second = csv.reader(stream)
    assert header == list(COLUMNS) and len(first) == len(second) == len(header)
    found = dict(zip(header, second, strict=True))
    # whole batches: 2 and 12 frames become 3 and 12
    assert (found["batch"], found["warmup_frames"], found["timed_frames"]) == ("3", "3", "12")
    assert found["cold_start_s"] == "0.5" and found["peak_memory_mib"] == "100"  # the median of the three starts
    assert found["preset"] == "tiny64" and found["resolution_pixels"] == "16" and found["torch"] == ""
    assert "a frame's time is its batch's divided by 3" in capsys.readouterr().out


def test_a_row_starts_a_line_of_its_own(tmp_path):
    file = tmp_path / "bench.csv"
    file.write_text(",".join(COLUMNS))  # an editor took the last line's end away
    append_rows(file, [dict.fromkeys(COLUMNS, 0.123456789)])
    assert file.read_text() == ",".join(COLUMNS) + "\n" + ",".join(["0.12346"] * len(COLUMNS)) + "\n"


def test_a_file_with_other_columns_is_left_alone(small_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_command, "measure", lambda *arguments: pytest.fail("it measured"))
    file = tmp_path / "demo.csv"
    file.write_text("date,machine\n2026-11-23,mine\n")
    with pytest.raises(StyleInVError, match=r"demo\.csv: header: found other columns than expected.*machine"):
        bench_command.main([str(small_bundle), "--csv", str(file)])
    assert file.read_text() == "date,machine\n2026-11-23,mine\n"


@pytest.mark.parametrize(("batch", "warmup", "timed"), [(1, 4, 6), (4, 4, 8)])
def test_frames_of_the_warm_up_do_not_count(batch, warmup, timed):
    """4 and 6 frames are asked for. Every frame of the warm-up takes a second, those behind it 1, 2, 3, ... ms."""
    clock, asked = FakeClock(), []
    sessions = types.SimpleNamespace(seconds=dict.fromkeys(["latent", "synthesis"], 0.0), engine="fake")

    def frames(ts, batch):
        for number, t in enumerate(ts):
            asked.append(t)
            for graph in sessions.seconds or ("latent", "synthesis"):
                passed = 0.5 if number < warmup else 0.0005 * (number - warmup + 1)
                sessions.seconds[graph] = sessions.seconds.get(graph, 0.0) + 0.9 * passed
                clock.seconds += passed
            yield None

    bundle = types.SimpleNamespace(kind="styleinv")
    rollout = types.SimpleNamespace(bundle=bundle, frames=frames, engine="fake 1", latent_stride=1)
    played = play(rollout, sessions, Settings("fake", batch=batch, warmup=4, frames=6), clock)
    assert asked == list(range(warmup + timed))
    assert (played.warmup, played.frames, len(played.milliseconds)) == (warmup, timed, timed // batch)
    mean = np.arange(1, timed + 1).reshape(-1, batch).mean(axis=1)
    np.testing.assert_allclose(played.milliseconds, mean)
    assert played.graph_milliseconds == pytest.approx(dict.fromkeys(["latent", "synthesis"], 0.45 * mean.mean()))
    assert played.shares() == pytest.approx({"latent": 0.45, "synthesis": 0.45, "host": 0.1})


def test_graphs_are_timed_and_their_shares_add_up(small_bundle):
    settings = Settings(str(small_bundle), warmup=1, frames=5)
    ticks = itertools.count()
    with TimedSessions(Bundle.open(small_bundle), settings, lambda: float(next(ticks))) as sessions:
        rollout = Rollout(sessions, 3)
        expected = Rollout.open(small_bundle, 3)[4.0]
        assert rollout[4.0].tobytes() == expected.tobytes()
        # The encoder's run is between two ticks. The synthesis is submitted between two, and waited for between two.
        played = play(rollout, sessions, settings, lambda: float(next(ticks)))
    assert played.graph_milliseconds == {"latent": 1000.0, "synthesis": 2000.0}
    assert played.milliseconds.tolist() == [7000.0] * 5
    assert played.shares() == pytest.approx({"latent": 1 / 7, "synthesis": 2 / 7, "host": 4 / 7})
    assert sum(played.shares().values()) == pytest.approx(1.0)


def test_asking_for_a_run_and_waiting_for_it_are_timed():
    """The session takes a second to submit, the program another ten until it asks for the result, two to wait."""
    clock, seconds, arrays = FakeClock(), defaultdict(float), {"w": np.zeros(1)}

    def passes(duration, found):
        clock.seconds += duration
        return found

    pending = types.SimpleNamespace(result=lambda: passes(2.0, arrays))
    session = types.SimpleNamespace(overlaps=True, submit=lambda inputs, outputs: passes(1.0, pending))
    timed = TimedSession(session, "latent", seconds, clock)
    assert timed.overlaps
    submitted = timed.submit({}, ["w"])
    clock.seconds += 10.0
    assert seconds == {"latent": 1.0}
    assert submitted.result() is arrays and seconds == {"latent": 3.0}


def test_only_those_that_play_on_a_cpu_are_held_to_its_convolutions(small_bundle, quick, monkeypatch):
    monkeypatch.setattr(bench, "ON_CPU", ())
    result = bench.measure(Settings(str(small_bundle), engine="onnxruntime", frames=2), None, lambda text: None)
    assert result.convolutions == "onnxruntime plays on a GPU, and only those of CPUs are measured"
    assert result.share_of_peak is None


def test_jitter():
    assert jitter(np.array([10.0, 12.0, 11.0, 11.0])) == pytest.approx((2 + 1 + 0) / 3)
    assert jitter(np.array([10.0])) == 0.0


def test_share_of_the_fastest_convolutions(small_bundle):
    machine = describe_machine()
    result = result_of(small_bundle, [4.0, 5.0, 6.0], macs=10**9, convolutions=Convolutions(800.0, "openvino in fp32"))
    assert bench.macs_per_frame(result.bundle.manifest) == 2 * 10**9  # latent and synthesis
    assert bench.macs_per_frame(result.bundle.manifest, latent_stride=4) == 1.25 * 10**9
    assert result.gmac_per_s == pytest.approx(400.0)  # 2 GMAC in 5 ms
    assert result.share_of_peak == pytest.approx(0.5)
    text = as_table(result, machine)
    assert "2 GMAC per frame, 400.0 GMAC/s" in text and "800 GMAC/s measured here, openvino in fp32" in text
    assert "share of that peak           50.0%" in text


def test_what_is_not_known_is_said_and_null(small_bundle):
    machine = describe_machine()
    uncounted = result_of(small_bundle, [4.0, 5.0, 6.0], convolutions=Convolutions(800.0, "openvino in fp32"))
    assert "the bundle does not count its multiplications" in as_table(uncounted, machine)
    unmeasured = result_of(small_bundle, [4.0, 5.0, 6.0], macs=10**9)
    assert "not measured: openvino is not installed" in as_table(unmeasured, machine)
    for result in (uncounted, unmeasured):
        assert json.loads(as_json(result, machine))["share_of_peak"] is None
        assert "share of that peak           not known" in as_table(result, machine)


def test_turns_are_timed_behind_the_warm_up():
    from styleinv.export.bench_baseline import SquaredError, alternate

    clock, calls, error = FakeClock(), [], SquaredError()

    def form(name, seconds, level):
        def draw(ts):
            calls.append((name, tuple(ts)))
            clock.seconds += seconds if len(calls) > 6 else 100.0  # the first round is slow
            return np.full((len(ts), 2, 2, 3), level, np.uint8)

        return draw

    rounds = [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]
    times = alternate({"ours": form("ours", 0.5, 7), "eager": form("eager", 2.0, 9)}, rounds, error.add, clock)
    assert calls == [(name, tuple(ts)) for batches in rounds for name in ("ours", "eager") for ts in batches]
    assert {name: milliseconds.tolist() for name, milliseconds in times.items()} == {
        "ours": [250.0, 250.0],
        "eager": [1000.0, 1000.0],
    }
    assert error.psnr() == pytest.approx(20 * math.log10(255 / 2))
    assert SquaredError().psnr() == math.inf


def test_eager_draws_what_the_model_draws(small_bundle, small_checkpoint):
    from styleinv.export.bench_baseline import Eager
    from styleinv.runtime.sessions import Sessions

    with Sessions(Bundle.open(small_bundle), engine="onnxruntime") as sessions:
        eager = Eager(small_checkpoint, sessions.bundle, seed=5)
        ts = [0, 3, 1000]
        found = np.stack(list(Rollout(sessions, 5).frames(ts)))
    whole, kept = eager.frames(ts), eager.frames(ts, keep_content=True)
    assert whole.tobytes() == kept.tobytes()
    assert found.shape == whole.shape and np.abs(found.astype(int) - whole).max() <= 1


def test_pictures_are_timed_too(small_config, small_model, tmp_path, quick):
    from styleinv.export.writer import export_bundle
    from styleinv.training.checkpoint import load_checkpoint, save_checkpoint

    checkpoint, bundle, file = tmp_path / "image.safetensors", tmp_path / "image.bundle", tmp_path / "bench.json"
    save_checkpoint(checkpoint, small_model.generator, small_config)
    export_bundle(load_checkpoint(checkpoint), bundle, progress=False)
    arguments = [str(bundle), *SHORT, "--batch", "2", "--baseline", str(checkpoint), "--json", str(file)]
    assert bench_command.main(arguments) == 0
    found = json.loads(file.read_text())
    assert found["graph_ms"].keys() == {"synthesis", "host"}
    assert found["speedup_vs_eager"] > 0 and found["speedup_vs_eager_cached"] is None
    assert found["psnr_db"] is None or found["psnr_db"] >= 40
    assert found["row"]["latent_ms"] is None
