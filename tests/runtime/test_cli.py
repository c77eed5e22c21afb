"""The dispatcher: it loads what a command needs, says what is wrong in one line and exits with the right status."""

import importlib.metadata
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

from styleinv.runtime import cli
from styleinv.runtime.errors import DataError


@pytest.fixture
def command(monkeypatch):
    """Makes `styleinv play` call the given function."""

    def install(function):
        module = types.ModuleType("styleinv_test_commands")
        module.play = function
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, "play", (f"{module.__name__}:play", "runtime-cpu", "for the test"))

    return install


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(arguments, capsys):
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    for name, (_, _, text) in cli.COMMANDS.items():
        assert f"  {name}" in printed and text in printed


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"styleinv {importlib.metadata.version('styleinv')}\n"


def test_commands_are_strings_into_our_rooms():
    expected = {
        "stream",
        "animate",
        "train",
        "init",
        "evaluate",
        "pack",
        "import",
        "inspect",
        "export",
        "kernels",
        "verify",
        "bench",
        "doctor",
        "demo",
        "demo-train",
    }
    assert expected == cli.COMMANDS.keys()
    rooms = [["styleinv", room] for room in ("training", "export", "runtime", "kernels")]
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for target, needed, text in cli.COMMANDS.values():
        module, function = target.split(":")
        assert module.split(".")[:2] in rooms and function.isidentifier() and text
        assert set(needed.split(",")) <= project["optional-dependencies"].keys()


@pytest.mark.parametrize(
    ("name", "hint"),
    [("steam", "did you mean stream?"), ("xyzzy", "expected one of stream, animate, train"), ("--frobnicate", "")],
)
def test_unknown_command(name, hint, capsys):
    assert cli.main([name]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and f"styleinv: error: found no command {name}; {hint}" in captured.err


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_arguments_and_status_are_passed_on(command, returned, status):
    seen = []

    def play(argv):
        seen.extend(argv)
        return returned

    command(play)
    assert cli.main(["play", "--fast", "x"]) == status
    assert seen == ["--fast", "x"]


@pytest.mark.parametrize(
    ("error", "status", "printed"),
    [(DataError("clips: found none"), 2, "styleinv: error: clips: found none\n"), (KeyboardInterrupt(), 130, "")],
)
def test_errors_become_one_line_and_a_status(command, capsys, error, status, printed):
    def play(argv):
        raise error

    command(play)
    assert cli.main(["play"]) == status
    assert capsys.readouterr().err == printed


def test_our_own_bugs_keep_their_traceback(command):
    def play(argv):
        raise ZeroDivisionError

    command(play)
    with pytest.raises(ZeroDivisionError):
        cli.main(["play"])


def test_missing_packages_are_named(monkeypatch, capsys):
    def fail(name):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(cli.importlib, "import_module", fail)
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == (
        "styleinv: error: `styleinv train` needs torch, which is not installed: `pip install 'styleinv[train]'`\n"
    )


def test_closed_pipe_is_quiet():
    program = "import sys, time; time.sleep(0.2); from styleinv.runtime.cli import main; sys.exit(main(['--help']))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0
    process.stderr.close()
