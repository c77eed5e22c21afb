"""`python -m styleinv.kernels.bench` on a CPU, where the operators are their reference, with a timer that invents
times: what is timed, that it is right, and the rows."""

import csv
import functools
from dataclasses import replace

import pytest
import torch

from styleinv.kernels import bench
from styleinv.kernels.bench import COLUMNS, Setup, bench_into
from styleinv.kernels.bench_csv import append_rows
from styleinv.kernels.bench_ways import WAYS, way_of
from styleinv.kernels.networks import adain_calls, counted, layer_calls
from styleinv.kernels.plan import Call, Network, fused_calls, moved
from styleinv.kernels.random_operands import TOLERANCES, expected, random_operands, worst_error
from styleinv.kernels.tiles import upsampling_form
from styleinv.kernels.timing import describe

SMALL = Network(16, channel_base=256, channel_max=32, w_dim=12)
CPU = torch.device("cpu")
PLAIN_WAYS = ("fused", "eager", "cudnn")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def invented(functions):
    """Milliseconds of five runs, twice as many for each function as for the one before; each is run."""
    for function in functions:
        function()
    return [[2.0**index * run for run in (5, 1, 4, 2, 3)] for index in range(len(functions))]


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def setup(**changes):
    return Setup(**({"name": "small", "network": SMALL, "batch": 1, "device": CPU, "ways": PLAIN_WAYS} | changes))


def test_each_call_is_a_row_in_each_way(tmp_path, capsys):
    path = tmp_path / "new" / "kernels.csv"
    assert bench_into(path, setup(), invented) == 0
    rows = rows_of(path)
    calls = counted(layer_calls(SMALL))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(PLAIN_WAYS) * (len(calls) + len(adain_calls(SMALL)) + 1)
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
    for row, (call, count) in zip(rows[:: len(PLAIN_WAYS)], calls.items(), strict=False):
        assert (row["operator"], row["way"], int(row["calls"])) == (call.operator, "fused", count)
        assert tuple(int(row[name]) for name in ("inputs", "outputs", "height", "width")) == call.layer
        assert (int(row["bytes"]), int(row["flops"])) == (call.moved, call.flops)
        assert (float(row["ms_p20"]), float(row["ms_p50"]), float(row["ms_p80"])) == (1.8, 3.0, 4.2)
        assert float(row["gb_per_s"]) == pytest.approx(call.moved / 3e6, rel=1e-4)
        assert float(row["tflop_per_s"]) == pytest.approx(call.flops / 3e9, rel=1e-4)
    assert [float(row["speedup_of_fused"]) for row in rows[:3]] == [1.0, 2.0, 4.0]
    assert all(row["torch"] == torch.__version__ and row["device"] == "cpu" for row in rows)


def test_the_last_rows_are_all_calls_together(tmp_path):
    ran = []

    def timer(functions):
        ran.append([function() for function in functions])
        return invented(functions)

    bench_into(tmp_path / "kernels.csv", setup(ways=("fused", "eager")), timer)
    whole = rows_of(tmp_path / "kernels.csv")[-2:]
    plan = fused_calls(SMALL)
    for row, results in zip(whole, ran[-1], strict=True):
        assert (row["operator"], row["calls"], row["error"]) == ("network", "1", "")
        assert (int(row["bytes"]), int(row["flops"])) == (moved(plan), sum(call.flops for call in plan))
        assert len(results) == len(layer_calls(SMALL))  # adain_lrelu is of the encoder
        image, frame = results[-1]
        assert image.shape == (1, 3, 16, 16) and frame.shape == (1, 16, 16, 3)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("batch", [1, 2])
def test_all_ways_compute_the_same(dtype, batch):
    """Also upsampling layers as two steps and pictures that are not fused, which SMALL has none of."""
    network = replace(SMALL, dtype=dtype)
    assert upsampling_form(dtype, (24, 160, 4, 4)) == "two_steps"
    wide = [
        Call("modulated_conv2d_up2", (24, 160, 4, 4), styled=True, next_styled=True),
        Call("modulated_conv2d", (24, 20, 8, 8), styled=True),
        Call("to_rgb_skip", (24, 3, 8, 8), styled=True),
        Call("to_rgb_skip_frame", (24, 3, 8, 8), styled=True),
    ]
    for call in [*counted(layer_calls(network)), *adain_calls(network), *wide]:
        operands = random_operands(call, network, batch, CPU)
        reference = expected(call.operator, operands)
        for name in PLAIN_WAYS:
            results = way_of(name, call, operands)()
            assert [result.shape for result in results] == [result.shape for result in reference], (call, name)
            assert worst_error(results, reference) <= TOLERANCES[dtype], (call, name)


@pytest.mark.parametrize("changes", [{"noise": False}, {"clamps": False}])
def test_networks_without_noise_or_clamps(changes):
    network = replace(SMALL, dtype=torch.float32, **changes)
    for call in counted(layer_calls(network)):
        operands = random_operands(call, network, 1, CPU)
        results = way_of("eager", call, operands)()
        assert worst_error(results, expected(call.operator, operands)) <= 2e-5, call


def test_more_shapes_than_torch_compiles_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    network = Network(128, channel_base=128, channel_max=4, w_dim=4)
    assert bench_into(tmp_path / "kernels.csv", setup(network=network, ways=("fused", "compile")), invented) == 0
    compiled = [row for row in rows_of(tmp_path / "kernels.csv") if row["way"] == "compile"]
    assert sum(row["operator"].startswith("modulated_conv2d") for row in compiled) == 11
    assert all(float(row["error"] or 0) <= TOLERANCES[torch.float16] for row in compiled)
    torch._dynamo.reset()


@pytest.mark.parametrize("bad", [1.01, float("nan")])
def test_a_way_that_is_wrong_is_not_timed(tmp_path, monkeypatch, capsys, bad):
    def one_wrong(name, call, operands):
        way = way_of(name, call, operands)
        if (name, call.operator, call.layer[2]) != ("eager", "modulated_conv2d_rgb", 8):
            return way
        return lambda: tuple(result * bad for result in way())

    monkeypatch.setattr(bench, "way_of", one_wrong)
    assert bench_into(tmp_path / "kernels.csv", setup(), invented) == 1
    rows = rows_of(tmp_path / "kernels.csv")
    (wrong,) = [row for row in rows if not row["ms_p50"]]
    assert (wrong["operator"], wrong["height"], wrong["way"]) == ("modulated_conv2d_rgb", "8", "eager")
    assert (wrong["ms_p20"], wrong["ms_p80"], wrong["runs"], wrong["speedup_of_fused"]) == ("", "", "0", "")
    assert [row["way"] for row in rows if row["operator"] == "network"] == ["fused", "cudnn"]
    assert "modulated_conv2d_rgb 32 -> 32 at 8 x 8: eager: found an error of " in capsys.readouterr().err


def test_errors_of_bytes_and_numbers():
    levels = torch.tensor([255, 10, 0], dtype=torch.uint8)
    assert worst_error((torch.tensor([254, 11, 1], dtype=torch.uint8),), (levels,)) == 0.0
    assert worst_error((torch.tensor([255, 10, 3], dtype=torch.uint8),), (levels,)) == pytest.approx(2 / 255)
    assert worst_error((torch.tensor([1.0, -3.5]),), (torch.tensor([1.0, -4.0]),)) == pytest.approx(0.125)
    assert worst_error((torch.tensor([1.0]), torch.tensor([float("inf")])), (torch.ones(1),) * 2) == float("inf")


def test_rows_are_added_below(tmp_path):
    path = tmp_path / "kernels.csv"
    append_rows(path, [{"a": 1.23456789, "b": None}])
    append_rows(path, [{"a": "x,y", "b": 2}])
    assert path.read_text() == 'a,b\n1.2346,\n"x,y",2\n'
    with pytest.raises(ValueError, match=r"kernels\.csv: header: found other columns .* \(not in both: b, c\)"):
        append_rows(path, [{"a": 1, "c": 2}])
    assert path.read_text() == 'a,b\n1.2346,\n"x,y",2\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "paper"], "network: found 'paper', expected one of paper256, paper1024, or RESOLUTION,"),
        (["--batch", "0"], "batch: found 0, expected at least 1"),
        (["--csv", "other.csv"], "other.csv: header: found other columns than expected"),
        ([], "found no CUDA device, expected one: torch "),
    ],
)
def test_errors_of_the_command(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "other.csv").write_text("date,bundle\n")
    assert bench.main(arguments) == 2
    error = capsys.readouterr().err
    assert f"python -m styleinv.kernels.bench: error: {message}" in error and error.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["other.csv"]


def test_a_cpu_has_no_driver():
    facts = describe(CPU)
    assert (facts["device"], facts["driver"], facts["compute_capability"]) == ("cpu", "", "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU")
def test_on_a_gpu(tmp_path):
    path = tmp_path / "kernels.csv"
    assert bench.main(["--network", "16,256,32", "--seconds", "0.05", "--csv", str(path)]) == 0
    rows = rows_of(path)
    assert {row["way"] for row in rows if row["operator"] == "network"} == set(WAYS)
    assert all(0 < float(row["ms_p20"]) <= float(row["ms_p50"]) <= float(row["ms_p80"]) for row in rows)
    assert all(row["driver"] and row["device"] == torch.cuda.get_device_name() for row in rows)
