"""`styleinv demo`: exports the sample model and streams four of its clips, in a minute or two.

Shapes: N clips, T frames of each, H W height and width of one, RxC of the picture that shows them side by side.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from styleinv.export.bench_start import played_label
from styleinv.export.writer import count_parameters, export_bundle
from styleinv.runtime.bundle import Bundle, file_sha256
from styleinv.runtime.errors import BundleError, CheckpointError, DataError
from styleinv.runtime.motion import FrameIndex
from styleinv.runtime.rollout import Rollout
from styleinv.runtime.sinks import encode_png, open_sink
from styleinv.training.checkpoint import Checkpoint, load_checkpoint
from styleinv.training.checkpoint_file import replacing

SAMPLE_MODEL = Path(__file__).parents[1] / "samples" / "sky64.safetensors"  # of a checkout; no wheel carries it
SEEDS = (0, 1, 2, 3)
FRAMES = 250
GRID_COLUMNS = 2
CONTACT_TIMES = (0, 10, 25, 50, 100, 250, 500, 1000)
CONTACT_SCALE = 2

Frames = npt.NDArray[np.uint8]
Table = list[tuple[str, str]]


@dataclass(frozen=True)
class Played:
    """What came of playing some clips."""

    frames: Frames  # [T, R H, C W, 3], all clips side by side
    milliseconds: npt.NDArray[np.float64]  # [T N], that each frame of one clip took
    cold_start: float  # seconds from opening the bundle to the first frame
    session: str  # what computed them


def main(argv: list[str]) -> int:
    """Export, play; a second run keeps the bundle of the first one."""
    parser = argparse.ArgumentParser(
        prog="styleinv demo",
        description="Export the sample model into a bundle, verified against PyTorch, and stream four of its clips: "
        "less than 2 minutes on two CPU cores. `styleinv demo-train` trains a model of its own first.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where all files go (default: "
                        "demo)")  # fmt: skip
    parser.add_argument("--model", type=Path, metavar="FILE", help="a checkpoint of a whole model, instead of "
                        "samples/sky64.safetensors of the repository")  # fmt: skip
    arguments = parser.parse_args(argv)
    out: Path = arguments.out

    started = time.monotonic()
    checkpoint = load_checkpoint(arguments.model or sample_model(), kind="styleinv")
    make_folder(out)
    bundle = out / f"{checkpoint.path.stem}.bundle"
    kept = is_export_of(bundle, checkpoint)
    if not kept:
        export_bundle(checkpoint, bundle)
    exporting = time.monotonic() - started
    video, contact = out / "rollout.mp4", out / "contact.png"
    played = play(bundle, video, SEEDS)
    write_sheet(contact, clip_rows(bundle, SEEDS, CONTACT_TIMES))
    resolution, parameters = checkpoint.config.model.generator.resolution, count_parameters(checkpoint.model)
    rows = [
        ("model", f"{checkpoint.config.preset}, {resolution}x{resolution} pixels, {parameters / 1e6:.2f} M parameters"),
        ("export", "kept: made of this very file before" if kept else f"{exporting:.0f} s, verified against PyTorch"),
        *speed_rows(played),
        ("checkpoint", str(checkpoint.path)),
        ("bundle", str(bundle)),
        ("video", f"{video} (seeds {', '.join(map(str, SEEDS))}, {FRAMES} frames each)"),
        ("contact sheet", f"{contact} (a clip in each row, at frames {', '.join(map(str, CONTACT_TIMES))})"),
        ("all in all", f"{time.monotonic() - started:.0f} s"),
    ]
    print(as_table(rows))
    return 0


def sample_model() -> Path:
    """The sample model of the checkout that this file lies in. CheckpointError where there is none."""
    if not SAMPLE_MODEL.is_file():
        raise CheckpointError(
            f"{SAMPLE_MODEL}: found no file, expected the sample model, which a checkout of the repository holds: run "
            "`make demo` there, or give a checkpoint of a whole model with --model FILE"
        )
    return SAMPLE_MODEL


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are not there. DataError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: found {error.strerror}, expected a folder to write to") from error


def is_export_of(bundle: Path, checkpoint: Checkpoint) -> bool:
    """Whether there is an undamaged bundle there that this release exported from this very file."""
    try:
        provenance = Bundle.open(bundle).manifest["provenance"]
    except BundleError:  # none, or a damaged one: export replaces bundles, and refuses to replace anything else
        return False
    found = provenance.get("checkpoint_sha256"), provenance.get("versions", {}).get("styleinv")
    return found == (file_sha256(checkpoint.path), importlib.metadata.version("styleinv"))


def play(bundle: Path, video: Path, seeds: Sequence[int]) -> Played:
    """Stream clips into one video file, two in a row, frame by frame and clip by clip, timing each."""
    began = time.perf_counter()
    with opened(bundle, seeds) as rollouts:
        _ = rollouts[0][0]
        cold_start = time.perf_counter() - began
        for rollout in rollouts:  # what is computed once per clip, so that the first frame counts like the others
            _ = rollout[0]
        rate, (height, width) = rollouts[0].bundle.frame_rate, rollouts[0].size
        playing = [rollout.play(count=FRAMES) for rollout in rollouts]
        rows, columns = -(-len(seeds) // GRID_COLUMNS), min(len(seeds), GRID_COLUMNS)
        frames, seconds = [], []
        with open_sink(str(video), rate, (rows * height, columns * width)) as sink:
            for _ in tqdm(range(FRAMES), desc="play", unit=" frames"):
                tiles = []
                for clip in playing:
                    before = time.perf_counter()
                    tiles.append(next(clip))
                    seconds.append(time.perf_counter() - before)
                frames.append(side_by_side([tiles[row * columns :][:columns] for row in range(rows)]))
                sink.write(frames[-1])
        return Played(np.stack(frames), np.array(seconds) * 1000, cold_start, rollouts[0].engine)


def clip_rows(bundle: Path, seeds: Sequence[int], times: Iterable[FrameIndex]) -> list[Frames]:
    """For each seed the frames [T, H, W, 3] of its clip at these times."""
    times = list(times)
    with opened(bundle, seeds) as rollouts:
        return [np.stack(list(rollout.frames(times))) for rollout in rollouts]


@contextmanager
def opened(bundle: Path, seeds: Sequence[int]) -> Iterator[list[Rollout]]:
    """A rollout for each seed; they share the sessions of the first one."""
    label = played_label(Bundle.open(bundle, verify_hashes=False))
    with Rollout.open(bundle, seed=seeds[0], label=label) as first:
        yield [first, *(Rollout(first.sessions, seed, label=label) for seed in seeds[1:])]


def write_sheet(path: Path, rows: Sequence[Frames]) -> None:
    """Write clips [T, H, W, 3] as one PNG, a clip in each row, enlarged."""
    sheet = side_by_side(rows).repeat(CONTACT_SCALE, axis=0).repeat(CONTACT_SCALE, axis=1)
    with replacing(path) as temporary:
        temporary.write_bytes(encode_png(sheet))


def side_by_side(rows: Sequence[Sequence[Frames] | Frames]) -> Frames:
    """Rows of pictures [H, W, 3] -> one picture [rows H, columns W, 3]."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])


def speed_rows(played: Played) -> Table:
    """How fast it plays, for the closing table."""
    p50, p95, p99 = np.percentile(played.milliseconds, [50, 95, 99])
    return [
        ("engine", played.session),
        ("cold start", f"{played.cold_start:.2f} s from opening the bundle to the first frame"),
        ("milliseconds per frame", f"p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f}"),
        ("frames per second", f"{1000 / played.milliseconds.mean():.1f}"),
    ]


def as_table(rows: Table) -> str:
    """Lines of two columns, names and what they tell."""
    width = max(len(name) for name, _ in rows)
    return "\n" + "\n".join(f"  {name:{width}}  {value}" for name, value in rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
