"""The benchmark of training: its loops do the same work, its rows, its status, what it refuses."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
import torch

from styleinv.training import bench, bench_loops
from styleinv.training.bench import COLUMNS, Turns, as_rows, as_table, main, take_turns
from styleinv.training.bench_loops import Changes, PlainLoop, ladder
from styleinv.training.config import with_overrides
from styleinv.training.stages import adversary, image

TINIEST = [
    "model.generator.resolution=16", "model.generator.z_dim=4", "model.generator.w_dim=4",
    "model.generator.channel_base=64", "model.generator.channel_max=4", "discriminator.channel_base=64",
    "discriminator.channel_max=4", "image.r1_interval=2",
]  # fmt: skip


@pytest.fixture
def options() -> list[str]:
    return ["--set", *TINIEST, "--seconds", "0", "--steps", "2", "--batch", "2"]


def weights(loop):
    networks = (loop.generator, loop.average, loop.discriminator)
    return torch.cat([part.detach().flatten() for network in networks for part in network.parameters()])


def test_layout_and_fusing_change_no_number(small_config, small_clips):
    moved = []
    for changes in (Changes(), Changes(channels_last=True, fused=True)):
        loop = PlainLoop(small_config, small_clips, 3, 0.5, changes)
        before = weights(loop)
        losses = [loop.step(index) for index in range(2)]
        moved.append((weights(loop) - before, losses))
    (plain, plain_losses), (changed, changed_losses) = moved
    assert (plain - changed).norm() < 0.05 * plain.norm()  # Adam turns the noise of rounding into whole steps
    assert all(found == pytest.approx(wanted, rel=0.01) for found, wanted in
               zip(changed_losses, plain_losses, strict=True))  # fmt: skip


def test_every_way_regularizes_at_the_same_steps(small_config, small_clips, monkeypatch):
    calls: Counter[str] = Counter()

    def counted(module, name):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: (calls.update([name]), function(*given))[1])

    for module in (bench_loops, adversary):
        counted(module, "r1_penalty")
    for module in (bench_loops, image):
        counted(module, "path_lengths")
    ways = ladder(small_config, small_clips, 3, 0.5, compiled=False)
    assert list(ways)[:4] == ["plain loop", "+ fakes shared", "+ channels last", "+ fused Adam and average"]
    assert list(ways)[-1] == "package"
    for step in ways.values():
        calls.clear()
        for index in range(small_config.image.r1_interval):
            step(index)
        assert calls == {"r1_penalty": 1, "path_lengths": small_config.image.r1_interval // 2}


def test_ways_take_turns_and_the_first_round_does_not_count():
    order: list[tuple[str, int]] = []
    ways = {name: lambda index, name=name: order.append((name, index)) for name in "ab"}
    turns = take_turns(ways, batch=4, steps=2, seconds=0)
    rounds = [[("a", i), ("a", i + 1), ("b", i), ("b", i + 1)] for i in (0, 2, 4, 6)]
    assert order == [step for each in rounds for step in each]
    assert len(turns["a"].images_per_s) == len(turns["b"].cpu_ms) == 3


def test_ratios_are_of_medians_and_their_spread_of_rounds():
    turns = {
        "plain loop": Turns([1.0, 2.0, 4.0], [8.0, 8.0, 9.0]),
        "+ half": Turns([2.0, 4.0, 8.0], [4.0, 4.0, 4.0]),
        "package": Turns([6.0, 5.0, 12.0], [2.0, 2.0, 1.0]),
    }
    plain, half, package = as_rows(turns)
    assert plain["times_plain"] == plain["times_before"] == plain["cpu_times_plain"] == 1.0
    assert half["times_plain"] == half["times_plain_p20"] == half["times_plain_p80"] == 2.0
    assert package["times_plain"] == 3.0 and package["times_before"] == 1.5 and package["cpu_times_plain"] == 4.0
    assert package["times_plain_p20"] == pytest.approx(2.7) and package["times_plain_p80"] == pytest.approx(4.8)
    assert "3.00 (2.70 to 4.80)" in as_table([plain, half, package]).splitlines()[-1]


def test_the_command_adds_rows(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "FEWEST_ROUNDS", 1)
    file = tmp_path / "training.csv"
    assert main([*options, "--brief", "--csv", str(file)]) == 0
    assert main([*options, "--brief", "--csv", str(file), "--at-least", "1e6"]) == 1
    told = capsys.readouterr()
    rows = list(csv.DictReader(file.open()))
    assert tuple(rows[0]) == COLUMNS
    ways = [row["way"] for row in rows]
    assert ways == ["plain loop", "package"] * 2
    assert all(row["rounds"] == "1" and row["batch"] == "2" and float(row["images_per_s_p50"]) > 0 for row in rows)
    assert all(way in told.out for way in ways) and "1 rounds of 2 steps" in told.out
    assert "times the plain loop, expected at least 1e+06" in told.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--preset", "huge"], "preset: found 'huge', expected one of tiny64"),
        (["--steps", "3"], "--steps: found 3, expected a multiple of 2"),
        (["--augment", "nan"], "--augment: found nan, expected 0 to 1"),
        (["--batch", "0"], "--batch: found 0, expected at least 1"),
        (["--data", "nowhere"], "nowhere: found nothing there"),
        (["--csv", "other.csv"], "other.csv: header: found other columns than expected"),
    ],
)
def test_bad_input_ends_with_status_2(
    more: list[str],
    message: str,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.csv").write_text("a,b\n1,2\n")
    assert main([*options, *more]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert Path("other.csv").read_text() == "a,b\n1,2\n"


def test_both_train_without_pairs():
    settings = bench._config(bench._parser().parse_args(["--preset", "sky64", "--batch", "8"])).image
    assert (settings.pair_weight, settings.pair_images, settings.batch) == (0, 0, 8)


def test_the_plain_loop_has_the_noise_of_the_package(small_config, small_clips):
    for noise, is_drawn in (("const", False), ("fresh", True)):
        config = with_overrides(small_config, ["model.generator.use_noise=true", f"image.noise={noise}"])
        given = PlainLoop(config, small_clips, 0, p=0.0)._noise(2)
        assert isinstance(given, list) == is_drawn and (is_drawn or given == "const")
