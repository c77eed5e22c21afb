"""Ctrl-C, wherever it falls, leaves a player that can be closed."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, random, signal, threading, types
import numpy as np
from styleinv.runtime import Player

class Clip:
    bundle = types.SimpleNamespace(frame_rate=25.0)
    def __getitem__(self, t):
        return np.zeros((2, 2, 3), np.uint8)

def poll(player):
    while True:
        player.poll()

delays = random.Random(0)
for _ in range(100):
    player = Player(Clip(), fps=10_000, policy="latest")
    threading.Timer(delays.uniform(0.001, 0.004), os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        poll(player)
    except KeyboardInterrupt:
        player.close()
print("closed them all")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a process its SIGINT")
def test_a_hundred_times():
    finished = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=60)
    assert finished.stdout == "closed them all\n", finished.stderr
