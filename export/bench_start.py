"""What `styleinv bench` measures in a process of its own: the first frame after a cold start, and the peak memory.

    python -m styleinv.export.bench_start '{"bundle": "sky.bundle", ...}'

The process does what an application does that plays a bundle, and imports no more than that: no torch above all. It
prints a line when it has the first frame, and at the end the memory it took, in MiB.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from styleinv.runtime.bundle import Bundle
from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.rollout import Rollout

FIRST_FRAME = "first frame"


@dataclass(frozen=True)
class Settings:
    """What is played and how. Frames are counted one by one, whatever the batch; both counts become whole batches."""

    bundle: str
    engine: str = "auto"
    precision: str = "fp32"
    threads: int | None = None
    batch: int = 1
    seed: int = 0
    warmup: int = 10  # frames before those that are timed
    frames: int = 200  # that are timed
    verify_hashes: bool = True
    latent_stride: int | str = 1  # a number of frames, or 'auto'
    label: int | None = None  # class that is played, of a conditional model

    def whole_batches(self, frames: int) -> int:
        """The smallest number of frames, at least `frames`, that fills whole batches."""
        return -(-frames // self.batch) * self.batch


def frame_indices(bundle: Bundle) -> Iterator[int]:
    """The frame indices that are played: 0, 1, 2, ... without end; of an image model, which has no others, all 0."""
    return itertools.count() if bundle.kind == "styleinv" else itertools.repeat(0)


def played_label(bundle: Bundle) -> int | None:
    """The class that is played: the first one, of a conditional model."""
    return 0 if bundle.generator["label_dim"] else None


def main(argv: list[str]) -> int:
    """Plays `Settings.frames` frames after the first one; the settings are JSON. 2 where bundle or engine is bad."""
    settings = Settings(**json.loads(argv[0]))
    try:
        _play(settings)
    except StyleInVError as error:
        print(error, file=sys.stderr)
        return 2
    assert "torch" not in sys.modules, "playing a bundle needs no torch"
    return 0


def _play(settings: Settings) -> None:
    with Rollout.open(
        settings.bundle,
        settings.seed,
        label=settings.label,
        engine=settings.engine,
        precision=settings.precision,
        threads=settings.threads,
        latent_stride=settings.latent_stride,
        verify_hashes=settings.verify_hashes,
    ) as rollout:
        _ = rollout[0]
        print(FIRST_FRAME, flush=True)
        for _ in itertools.islice(rollout.frames(frame_indices(rollout.bundle), settings.batch), settings.frames):
            pass
        print(_peak_memory(), flush=True)


def _peak_memory() -> float:
    """The most memory that this process ever had resident, its mapped files included, in MiB.

    Linux keeps two such marks: `getrusage` counts in what the process was before it became this program, a copy of the
    one that started it, VmHWM does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "VmHWM":
                return int(value.split()[0]) / 1024  # '123456 kB'
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
