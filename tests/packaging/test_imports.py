"""Which room may import which (CONTRIBUTING.md), held by importing every module where the others are blocked."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "kernels": {"kernels"},
    "training": {"training", "kernels", "runtime"},
    "export": {"export", "training", "kernels", "runtime"},
}
FORBIDDEN = {
    "kernels": ["onnx", "onnxruntime", "av", "safetensors"],
    "training": ["onnx", "onnxruntime", "onnxscript", "openvino"],
    "export": ["tensorrt", "tensorrt_rtx", "pycuda", "openvino"],
}


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_what_they_may(room):
    program = f"""
import importlib, importlib.abc, importlib.machinery, pkgutil, sys

class Blocker(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):  # torch asks it for packages that it does not import
        parts = name.split(".")
        ours = parts[0] == "styleinv" and len(parts) > 1 and parts[1] not in {sorted(ALLOWED[room])}
        return importlib.machinery.ModuleSpec(name, self) if ours or parts[0] in {FORBIDDEN[room]} else None

    def create_module(self, spec):
        raise ImportError(f"{{spec.name}} is blocked")

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Blocker())
package = importlib.import_module("styleinv.{room}")
for module in pkgutil.walk_packages(package.__path__, "styleinv.{room}."):
    importlib.import_module(module.name)
    print(module.name)
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip()


def test_training_asks_the_runtime_for_its_errors_alone():
    for path in (ROOT / "training").rglob("*.py"):
        for line in path.read_text().splitlines():
            if "styleinv.runtime" in line and "import" in line:
                assert line.startswith("from styleinv.runtime.errors import"), f"{path.name}: {line}"


def test_help_of_every_command_works_and_stream_stays_light():
    from styleinv.runtime.cli import COMMANDS

    for command in COMMANDS:
        program = (
            "import sys; from styleinv.runtime.cli import main\n"
            "try: main([sys.argv[1], '--help'])\n"
            "except SystemExit as left: assert left.code == 0\n"
            "assert sys.argv[1] != 'stream' or 'torch' not in sys.modules"
        )
        finished = subprocess.run([sys.executable, "-c", program, command], capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
        assert f"styleinv {command}" in finished.stdout


@pytest.mark.parametrize("module", ["training", "export", "runtime", "kernels"])
def test_nothing_depends_on_the_folder_it_runs_in(module, tmp_path):
    program = f"import styleinv.{module} as room; print(room.__name__)"
    finished = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == f"styleinv.{module}"
