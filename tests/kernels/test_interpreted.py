"""Runs the tests of `interpreted/`, in a process where Triton interprets its kernels; see the conftest.py there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("interpreted")
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("file", sorted(FOLDER.glob("test_*.py")), ids=lambda file: file.stem)
def test_kernels_in_the_interpreter(file):
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "--color=no", "-p", "no:cacheprovider", str(file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    finished = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert re.search(rf"{file.name}::\S+ PASSED", finished.stdout), f"no test ran of {file}\n{finished.stdout}"
    assert not re.search(r"\d+ (skipped|deselected|xfailed)", finished.stdout), finished.stdout
