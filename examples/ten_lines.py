"""Writes two seconds of a clip: python examples/ten_lines.py sky.bundle pictures/   (or clip.mp4)"""

import sys

from styleinv.runtime import Rollout
from styleinv.runtime.sinks import open_sink

with Rollout.open(sys.argv[1], seed=7) as rollout, open_sink(sys.argv[2], fps=25, size=rollout.size) as sink:
    for frame in rollout.play(fps=25, count=50):  # a numpy array, uint8 [height, width, 3], RGB
        sink.write(frame)
