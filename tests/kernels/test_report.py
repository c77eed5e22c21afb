"""`styleinv kernels report`: what it prints, the roofline behind it, what users are told where it fails."""

import sys
from dataclasses import replace

import pytest
import torch

from styleinv.kernels import cli, compiled, report
from styleinv.kernels.networks import NETWORKS
from styleinv.kernels.plan import Call, fused_calls, moved, unfused_calls
from styleinv.kernels.roofline import GPUS, Gpu, milliseconds
from styleinv.runtime.cli import main

PLAIN = Gpu("plain", "plain", 89, bandwidth=1000, tensor=100, float32=10, source="made up")


def test_the_report_lists_every_kernel_and_estimates_every_gpu(capsys):
    assert main(["kernels", "report", "--network", "paper256", "--gpu", "L4"]) == 0
    printed = capsys.readouterr().out
    for kernel in {row.kernel for row in compiled.read()} - {"chunk_statistics_kernel", "adain_lrelu_kernel"}:
        assert kernel in printed
    assert "not in the table" not in printed
    for gpu in GPUS.values():
        assert printed.count(f"\n{gpu.name} ") == 1 and report.peaks(gpu) in printed
    assert "an estimate from data-sheet peaks: nobody measured them" in printed
    fused, unfused = moved(fused_calls(NETWORKS["paper256"])), moved(unfused_calls(NETWORKS["paper256"]))
    assert f"{unfused / 1e6:.1f}" in printed and f"{fused / 1e6:.1f}" in printed


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("dtype", report.DTYPES)
def test_every_choice_is_reported_in_full(network, dtype, capsys):
    for gpu in GPUS:
        assert cli.main(["report", "--network", network, "--dtype", dtype, "--gpu", gpu]) == 0
    printed = capsys.readouterr().out
    assert "not in the table" not in printed and f"{network} in {dtype}" in printed


def test_a_call_takes_as_long_as_the_slower_of_moving_and_computing():
    moves = Call("modulated_conv2d", (1, 1, 1, 1), read=1_500_000, written=500_000, flops=10)
    computes = Call("modulated_conv2d", (1, 1, 1, 1), read=1, written=1, flops=3 * 10**11)
    assert milliseconds([moves], torch.float16, PLAIN) == pytest.approx(0.002)
    assert milliseconds([computes], torch.bfloat16, PLAIN) == pytest.approx(3)
    assert milliseconds([computes], torch.float32, PLAIN) == pytest.approx(30)  # without tensor cores
    assert milliseconds([moves, computes], torch.float16, PLAIN) == pytest.approx(3.002)
    filters = Call("filter", (1, 1, 1, 1), read=1, written=1, flops=3 * 10**11)
    assert milliseconds([filters], torch.float16, PLAIN) == pytest.approx(30)


def test_a_gpus_own_tuning_is_reported_before_the_default():
    network = NETWORKS["paper256"]
    call = next(call for call in fused_calls(network) if call.operator == "filter")
    rows = report.rows_of(call, network, GPUS["L4"], compiled.read())
    assert [row.device for row in rows] == ["default"] and rows[0].target == 89
    own = replace(rows[0], device="NVIDIA_L4", warps=2)
    assert report.rows_of(call, network, GPUS["L4"], [*rows, own]) == [own]
    assert report.rows_of(call, network, GPUS["4090"], [*rows, own]) == rows


def test_a_stale_table_and_a_missing_kernel_are_told(monkeypatch, tmp_path, capsys):
    rows = [replace(row, source="0" * 16) for row in compiled.read() if row.operator != "filter"]
    monkeypatch.setattr(report, "read", lambda: rows)
    assert cli.main(["report"]) == 0
    printed = capsys.readouterr().out
    assert "not in the table" in printed
    assert f"compiled.csv was made of other kernels or tuning tables than these: `{compiled.COMMAND}`" in printed


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["report", "--gpu", "voodoo"], "invalid choice: 'voodoo'"),
        (["report", "--network", "paper512"], "invalid choice: 'paper512'"),
        (["roport"], "invalid choice: 'roport'"),
        ([], "command"),
    ],
)
def test_wrong_arguments_are_told(arguments, told, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert told in capsys.readouterr().err


def test_a_table_that_cannot_be_read_is_told_without_a_traceback(monkeypatch, tmp_path, capsys):
    file = tmp_path / "compiled.csv"
    monkeypatch.setattr(report, "read", lambda: compiled.read(file))
    assert cli.main(["report"]) == 2
    assert f"styleinv kernels: error: [Errno 2] No such file or directory: '{file}'" in capsys.readouterr().err
    file.write_text("a,b\n")
    assert cli.main(["report"]) == 2
    assert f"styleinv kernels: error: {file}: found columns a, b, expected kernel," in capsys.readouterr().err


def test_a_package_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "tune", ("not_installed_anywhere:main", ""))
    assert cli.main(["tune"]) == 2
    assert "needs not_installed_anywhere, which is not installed: `pip install 'styleinv[kernels]'`" in (
        capsys.readouterr().err
    )


def test_the_report_needs_no_triton(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("styleinv.kernels.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert cli.main(["report"]) == 0
    assert "convolution_kernel" in capsys.readouterr().out
