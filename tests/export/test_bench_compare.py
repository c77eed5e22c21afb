"""`styleinv bench --compare`: which ways there are, how they take turns, what is told of them."""

import csv
import functools
import itertools
import json
import os
import subprocess
import types
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from styleinv.export import bench_command, bench_compare, bench_torch
from styleinv.export.bench import ON_CPU
from styleinv.export.bench_compare import Comparison, Timed, Way, opened, take_turns, ways_of
from styleinv.export.bench_compare_report import COLUMNS, as_rows, as_table
from styleinv.export.bench_csv import COLUMNS as BENCH_COLUMNS
from styleinv.export.bench_csv import check_header
from styleinv.export.bench_start import Settings
from styleinv.runtime.bundle import Bundle
from styleinv.runtime.errors import CheckpointError, EngineError, StyleInVError
from styleinv.runtime.machine import describe_machine
from styleinv.runtime.sessions import ENGINES

ROOT = Path(__file__).parents[2]
CLIP = types.SimpleNamespace(kind="styleinv")


@pytest.fixture
def uncompiled(monkeypatch):
    """torch.compile captures the graph, and does not spend half a minute on compiling it."""
    compile_ = torch.compile
    monkeypatch.setattr(
        bench_torch.torch, "compile", lambda draw, mode, **options: compile_(draw, backend="eager", **options)
    )


def psnr(found, wanted):
    return 10 * np.log10(255**2 / np.maximum(np.square(found.astype(float) - wanted).mean(), 1e-9))


def test_every_way_of_a_cpu_in_one_table(small_bundle, small_checkpoint, tmp_path, uncompiled, capsys):
    file, rows = tmp_path / "compare.csv", tmp_path / "compare.json"
    command = [str(small_bundle), "--baseline", str(small_checkpoint), "--compare", "--device", "cpu"]
    options = ["--frames", "12", "--batch", "2", "--precision", "fp32", "--precision", "fp16"]
    assert bench_command.main([*command, *options, "--csv", str(file), "--json", str(rows)]) == 0
    told = capsys.readouterr().out
    with file.open(newline="") as stream:
        header, *lines = csv.reader(stream)
    assert header == list(COLUMNS)
    found = {(row["way"], row["precision"]): row for row in (dict(zip(header, line, strict=True)) for line in lines)}
    wanted = set(itertools.product([*bench_torch.WAYS, *ENGINES], ["fp32", "fp16"]))
    assert found.keys() == wanted and len(lines) == len(wanted)  # each is a row, whatever came of it
    assert next(iter(found)) == ("PyTorch eager", "fp32")
    played = {way for way, row in found.items() if row["outcome"] == "played"}
    assert played == set(itertools.product([*bench_torch.WAYS, "openvino", "onnxruntime"], ["fp32"]))
    for name, precision in played:
        row = found[name, precision]
        times = [float(row[f"frame_ms_p{percent}"]) for percent in (20, 50, 80, 95)]
        assert 0 < times[0] <= times[1] <= times[2] <= times[3] and row["timed_frames"] == "10"
        assert row["psnr_db"] == "identical" or float(row["psnr_db"]) > 50
        assert float(row["times_eager"]) > 0 and float(row["first_frame_s"]) > 0
        assert row["torch"] == torch.__version__ and row["processor"] and row["by"] in told
    assert found["PyTorch eager", "fp32"]["times_eager"] == "1"
    assert "precisions: found fp32, expected fp16: export again" in found["onnxruntime", "fp16"]["outcome"]
    assert "PyTorch on cpu is compared in fp32 and bf16" in found["torch.compile", "fp16"]["outcome"]
    for name, precision in wanted - played:
        assert found[name, precision]["outcome"].startswith("not compared: ")
        assert f"  {name}, {precision}: " in told.partition("not compared")[2]
    assert [row["way"] for row in json.loads(rows.read_text())["ways"]] == [line[header.index("way")] for line in lines]


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 60), ("bf16", 30)])
def test_all_forms_in_pytorch_draw_the_same_frames(small_bundle, small_checkpoint, uncompiled, precision, bound):
    bundle, ts = Bundle.open(small_bundle), [0, 3, 1000]
    wanted = bench_torch.TorchPlayer("PyTorch eager", "fp32", small_checkpoint, bundle, 5).frames(ts)
    for way in bench_torch.WAYS:
        player = bench_torch.TorchPlayer(way, precision, small_checkpoint, bundle, 5)
        found = player.frames(ts)
        assert found.shape == wanted.shape and found.dtype == np.uint8
        assert psnr(found, wanted) > bound, way
        assert precision in player.name and bench_torch.WAYS[way] in player.name
        assert ("mode default" in player.name) == ("torch.compile" in way)


@pytest.mark.soak
def test_torch_compile_draws_the_same_frames(small_bundle, small_checkpoint):
    bundle = Bundle.open(small_bundle)
    for way in (bench_torch.COMPILED, bench_torch.COMPILED_EXPORTED):
        found = bench_torch.TorchPlayer(way, "fp32", small_checkpoint, bundle, 5).frames([0, 3])
        assert (
            psnr(found, bench_torch.TorchPlayer("PyTorch eager", "fp32", small_checkpoint, bundle, 5).frames([0, 3]))
            > 60
        )


class Turns:
    """A clock, and ways of playing that let it go on by so many seconds for a batch."""

    def __init__(self):
        self.seconds, self.drawn = 0.0, []

    def way(self, name, seconds, level=0, fails_at=None):
        def play(ts):
            for t in ts:
                if t == fails_at:
                    raise RuntimeError("out of\nmemory")
                self.drawn.append((name, t))
                self.seconds += seconds
                yield [np.full((2, 2, 3), level, np.uint8)]

        return Timed(name, "fp32", f"{name} 1.0", play, 0.5)


def test_ways_take_turns_behind_a_warm_up():
    turns = Turns()
    ways = [turns.way("PyTorch eager", 2.0), turns.way("fast", 0.5, level=1)]
    take_turns(ways, CLIP, rounds=2, batch=1, clock=lambda: turns.seconds)
    rounds = [range(6), range(6, 12), range(12, 18)]  # the first of them is the warm-up
    assert turns.drawn == [(name, t) for ts in rounds for name in ("PyTorch eager", "fast") for t in ts]
    assert [way.times for way in ways] == [[2000.0] * 10, [500.0] * 10]
    assert ways[1].error.psnr() == pytest.approx(20 * np.log10(255)) and ways[0].error.psnr() == np.inf


def test_a_way_that_fails_does_not_stop_the_others(small_bundle):
    turns = Turns()
    ways = [
        turns.way("PyTorch eager", 2.0),
        turns.way("late", 1.0, fails_at=13),
        turns.way("early", 1.0, fails_at=1),
        turns.way("fast", 0.5),
    ]
    take_turns(ways, CLIP, rounds=2, batch=1, clock=lambda: turns.seconds)
    assert [len(way.times) for way in ways] == [10, 5, 0, 10]
    assert [way.failure for way in ways] == [None, *["RuntimeError: out of memory"] * 2, None]
    missing = {("rtx", "fp32"): "no GPU"}
    comparison = Comparison(Settings(str(small_bundle)), Bundle.open(small_bundle), "cpu", ways, missing)
    table = as_table(comparison, describe_machine())
    lines = [line.split() for line in table.splitlines()]
    assert ["late", "fp32", *["1000.00"] * 4, "1.0,", "then", "failed", "2.00", "identical", "0.50"] in lines
    assert ["early", "fp32", *["failed"] * 4, "0.50"] in lines
    assert "early, fp32: failed: RuntimeError: out of memory" in table and "rtx, fp32: no GPU" in table
    rows = {row["way"]: row for row in as_rows(comparison, describe_machine())}
    assert rows["late"]["outcome"] == rows["early"]["outcome"] == "failed: RuntimeError: out of memory"
    assert rows["late"]["frame_ms_p50"] == 1000.0 and rows["early"]["frame_ms_p50"] is None
    assert rows["early"]["psnr_db"] is None and rows["early"]["times_eager"] is None
    assert rows["fast"]["times_eager"] == 4.0 and rows["rtx"]["outcome"] == "not compared: no GPU"


def test_nothing_is_faster_than_an_eager_that_failed(small_bundle):
    turns = Turns()
    ways = [turns.way("PyTorch eager", 2.0, fails_at=0), turns.way("fast", 0.5)]
    take_turns(ways, CLIP, rounds=1, batch=1, clock=lambda: turns.seconds)
    comparison = Comparison(Settings(str(small_bundle)), Bundle.open(small_bundle), "cpu", ways, {})
    assert len(ways[1].times) == 5 and comparison.times_eager(ways[1]) is None
    assert as_rows(comparison, describe_machine())[1]["psnr_db"] is None


def test_opening_counts_up_to_the_first_frame():
    turns = Turns()

    def open_(stack):
        turns.seconds += 3.0
        return "fast 1.0", turns.way("fast", 0.5).play

    timed = opened(Way("fast", "fp32", open_), CLIP, ExitStack(), lambda: turns.seconds)
    assert (timed.by, timed.first_frame_s, timed.times) == ("fast 1.0", 3.5, [])


def test_a_way_that_does_not_open_is_told(small_bundle, small_checkpoint, monkeypatch):
    def refuse(stack):
        raise RuntimeError("no such kernel")

    turns = Turns()
    ways = [Way("broken", "fp32", refuse), Way("fast", "fp32", lambda stack: ("fast 1.0", turns.way("fast", 0.5).play))]
    monkeypatch.setattr(bench_compare, "ways_of", lambda *arguments: ways)
    comparison = bench_compare.compare_ways(
        Settings(str(small_bundle), frames=5), ["fp32"], "cpu", small_checkpoint, lambda text: None
    )
    assert [way.name for way in comparison.timed] == ["fast"] and len(comparison.timed[0].times) == 5
    assert comparison.missing == {("broken", "fp32"): "RuntimeError: no such kernel"}


def test_ways_of_a_gpu(small_bundle, monkeypatch):
    monkeypatch.setattr(bench_compare, "obstacle", lambda engine, _: "not installed" if engine == "tensorrt" else None)
    monkeypatch.setattr(bench_compare, "plays_on_cpu", ON_CPU.__contains__)
    missing = {}
    engines = "rtx", "onnxruntime-cuda", "inductor", "onnxruntime-tensorrt", "onnxruntime-rtx"
    ways = ways_of(Settings("fake"), Bundle.open(small_bundle), ["fp16"], "cuda", Path("fake"), missing)
    assert [(way.name, way.precision) for way in ways] == [
        ("PyTorch eager", "fp32"),  # the yardstick, whatever is asked for
        *((name, "fp16") for name in bench_torch.WAYS),
        *((name, "fp16") for name in engines),
    ]
    elsewhere = "it does not play on cuda, where this comparison is"
    assert missing == {
        ("tensorrt", "fp16"): "not installed",
        ("openvino", "fp16"): elsewhere,
        ("onnxruntime", "fp16"): elsewhere,
    }


def test_a_gpu_that_is_not_there_is_refused(small_bundle, small_checkpoint, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_compare.checked_device(None) == "cpu"
    command = [str(small_bundle), "--baseline", str(small_checkpoint), "--compare", "--device", "cuda"]
    with pytest.raises(EngineError, match=r"--device cuda: found torch .* without a GPU that it can use, expected one"):
        bench_command.main(command)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert bench_compare.checked_device(None) == "cuda" and bench_compare.checked_device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--compare"], "--compare takes --baseline"),
        (["--device", "cpu"], "--device goes with --compare"),
        (["--precision", "fp32", "--precision", "bf16"], "--precision: give one, or --compare"),
        (
            ["--compare", "--baseline", "x", "--engine", "openvino", "--plot", "x.png"],
            "--engine, --plot: --compare plays",
        ),
        (["--compare", "--baseline", "x", "--latent-stride", "2"], "--latent-stride: --compare plays exact latents"),
    ],
)
def test_options_that_do_not_go_together(options, complaint, capsys):
    with pytest.raises(SystemExit):
        bench_command.main(["sky.bundle", *options])
    assert complaint in capsys.readouterr().err


def test_what_is_bad_is_told_before_anything_is_compared(small_bundle, small_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_compare, "opened", lambda *arguments: pytest.fail("it played"))
    command = [str(small_bundle), "--compare", "--device", "cpu", "--baseline"]
    other = tmp_path / "bench.csv"
    other.write_text(",".join(BENCH_COLUMNS) + "\n")
    with pytest.raises(StyleInVError, match=r"bench\.csv: header: found other columns than expected"):
        bench_command.main([*command, str(small_checkpoint), "--csv", str(other)])
    with pytest.raises(CheckpointError, match="no such file"):
        bench_command.main([*command, str(tmp_path / "missing.safetensors")])


def test_rows_of_earlier_versions_stay_valid():
    check_header(ROOT / "benchmarks/results/bench.csv")


@pytest.mark.parametrize("target", ["test-gpu", "bench-gpu", "tune-gpu"])
def test_make_needs_a_gpu_before_it_installs_anything(target, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["make", target, f"GPU_VENV={tmp_path / 'venv'}"]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode != 0 and not (tmp_path / "venv").exists()
    assert f"{target}: found no GPU (nvidia-smi does not list one), expected an NVIDIA GPU" in finished.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU")
def test_every_way_of_a_gpu(small_bundle, small_checkpoint):
    report = functools.partial(print, flush=True)
    settings = Settings(str(small_bundle), frames=10)
    comparison = bench_compare.compare_ways(settings, ["fp32", "fp16"], "cuda", small_checkpoint, report)
    print(as_table(comparison, describe_machine()))
    played = {(way.name, way.precision): way for way in comparison.timed if way.failure is None}
    assert set(itertools.product(bench_torch.WAYS, ["fp32", "fp16"])) <= played.keys(), comparison.missing
    for (_, precision), way in played.items():
        assert way.error.psnr() > (50 if precision == "fp32" else 30), way.by
    assert all(row["gpu"] and row["cuda_torch"] for row in as_rows(comparison, describe_machine()))
