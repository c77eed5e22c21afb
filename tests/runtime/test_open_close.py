"""Opening and closing a rollout, over and over, leaves nothing behind: no thread, no open file, no memory."""

import ctypes
import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="what a process holds is read from Linux's /proc, its free memory given back by glibc's malloc_trim",
)

PROGRAM = """
import ctypes, gc, json, os, resource, sys
from styleinv.runtime import Rollout

def held():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * resource.getpagesize()
    return {"threads": len(os.listdir("/proc/self/task")), "files": len(os.listdir("/proc/self/fd")), "bytes": resident}

def open_and_close(rounds):
    for seed in range(rounds):
        with Rollout.open(sys.argv[1], seed=seed, engine=sys.argv[2], threads=2) as rollout:
            rollout[1000.5]

open_and_close(10)  # pools of threads, caches and the heap find their size
before = held()
open_and_close(int(sys.argv[3]))
after = held()
print(json.dumps({name: after[name] - before[name] for name in after}))
"""

MOST_BYTES = 2**20


@pytest.mark.parametrize("rounds", [30, pytest.param(200, marks=pytest.mark.soak)])
def test_nothing_is_left_behind(tiny, engine, rounds):
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}  # with more, memory depends on which threads met
    command = [sys.executable, "-c", PROGRAM, str(tiny.path), engine, str(rounds)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    grown = json.loads(finished.stdout)
    print(f"{engine}, {rounds} rounds: {grown}")
    assert grown["threads"] <= 0
    assert grown["files"] <= 0
    assert grown["bytes"] < MOST_BYTES
