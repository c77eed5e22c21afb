"""runtime imports numpy, safetensors and the standard library; engines and encoders only when they are used."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "triton", "onnx", "onnxruntime", "onnxscript", "openvino", "tensorrt", "pycuda", "av", "PIL", "tqdm")


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_every_module_imports_where_heavy_packages_are_blocked():
    finished = run(f"""
import importlib, importlib.abc, pkgutil, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in {HEAVY} or (top == "styleinv" and name.split(".")[1:2] not in ([], ["runtime"])):
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocker())
import styleinv.runtime
for module in pkgutil.walk_packages(styleinv.runtime.__path__, "styleinv.runtime."):
    importlib.import_module(module.name)
    print(module.name)
""")
    assert finished.returncode == 0, finished.stderr
    imported = set(finished.stdout.split())
    assert {"styleinv.runtime.sessions.onnxruntime", "styleinv.runtime.sinks", "styleinv.runtime.stream"} <= imported


@pytest.mark.parametrize("command", ["stream", "animate", "doctor"])
def test_help_loads_nothing_heavy(command):
    finished = run(f"""
import sys
from styleinv.runtime.cli import main
try:
    main(["{command}", "--help"])
except SystemExit as left:
    assert left.code == 0
print("loaded:", *sorted(set({HEAVY}) & set(sys.modules)))
""")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1].strip() == "loaded:"
