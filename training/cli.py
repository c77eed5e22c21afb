"""`styleinv train` and `styleinv init`: the commands that make checkpoints."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from styleinv.runtime.errors import CheckpointError, ConfigError
from styleinv.training import config as configuration
from styleinv.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from styleinv.training.config import Config, with_overrides
from styleinv.training.data import load_clips
from styleinv.training.generator import Generator
from styleinv.training.initialize import initialize
from styleinv.training.loop import Stage, read_state
from styleinv.training.loop import train as train_stage
from styleinv.training.model import InversionModel, StyleInV
from styleinv.training.presets import PRESETS, preset
from styleinv.training.stages.image import ImageStage
from styleinv.training.stages.inversion import InversionStage, perceptual_distance
from styleinv.training.stages.motion import MotionStage

DEFAULT_PRESET = "tiny64"
STAGES = ("image", "inversion", "motion")
START_KINDS = {"image": "image", "inversion": "inversion", "motion": "styleinv"}  # of checkpoints to fine-tune
STARTED_NETWORKS = {"image": "generator", "inversion": "encoder", "motion": "model"}  # what a stage calls its own


def train(argv: list[str]) -> int:
    """Run one training stage."""
    arguments = _train_parser().parse_args(argv)
    start = load_checkpoint(arguments.start, kind=START_KINDS[arguments.stage]) if arguments.start else None
    config = _choose_config(arguments, start)
    stage = _build_stage(arguments, config, start)
    if start is not None:
        for name in (STARTED_NETWORKS[arguments.stage], "average"):
            stage.networks[name].load_state_dict(start.model.state_dict())
    images = arguments.images or getattr(config, arguments.stage).images
    path = train_stage(stage, arguments.out, images=images, seed=arguments.seed, resume=arguments.resume)
    print(f"{path} written", file=sys.stderr)
    return 0


def init(argv: list[str]) -> int:
    """Write an untrained model."""
    parser = argparse.ArgumentParser(
        prog="styleinv init",
        description="Write an untrained but well-conditioned model: for benchmarks and tests of any size.",
    )
    _add_config_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: 0)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    arguments = parser.parse_args(argv)
    config = with_overrides(preset(arguments.preset or DEFAULT_PRESET), arguments.set)
    model = initialize(config, arguments.seed)
    save_checkpoint(arguments.out, model, config)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{arguments.out} written: {config.preset}, {count / 1e6:.2f} M parameters", file=sys.stderr)
    return 0


def _train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="styleinv train",
        description="Train one stage. A model goes through them in this order: image (a generator of single frames), "
        "inversion (an encoder that finds a frame's latent), motion (the encoder modulated over time). Each leaves "
        "STAGE.safetensors in the output folder, where the next one finds it; the last one's is the whole model.",
    )
    parser.add_argument("stage", choices=STAGES, help="the stage to train")
    parser.add_argument("--data", required=True, metavar="PATH", help="a folder of videos or of folders of pictures, "
                        "one such file, or a zip of them")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where checkpoints and logs go")
    _add_config_arguments(parser)
    parser.add_argument("--images", type=int, metavar="N", help="train until N images (motion: clips) were seen")
    parser.add_argument("--resume", action="store_true", help="continue the run in DIR exactly where it stopped")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data order and random draws (default: 0)")
    parser.add_argument("--from", type=Path, dest="start", metavar="FILE", help="fine-tune this checkpoint, trained or "
                        "imported, of what the stage makes: its model and weights are taken, the settings of training "
                        "from --preset where it is given")  # fmt: skip
    parser.add_argument("--generator", type=Path, metavar="FILE", help="image checkpoint to build on "
                        "(default: DIR/image.safetensors)")  # fmt: skip
    parser.add_argument("--inversion", type=Path, metavar="FILE", help="inversion checkpoint that the motion stage "
                        "starts from (default: DIR/inversion.safetensors)")  # fmt: skip
    parser.add_argument("--lpips", type=Path, metavar="FILE", help="weights of LPIPS for the inversion stage; without "
                        "them it compares features of the image stage's discriminator")  # fmt: skip
    return parser


def _add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", metavar="NAME", help=f"starting configuration: {', '.join(PRESETS)} "
                        f"(default: {DEFAULT_PRESET}, or that of the checkpoint built on)")  # fmt: skip
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE",
                        help="change fields of it, such as model.generator.channel_base=2048")  # fmt: skip


def _choose_config(arguments: argparse.Namespace, start: Checkpoint | None) -> Config:
    """A resumed run keeps its own configuration; a new one takes the preset, or that of the stage before, and the model
    of the checkpoint that it fine-tunes."""
    if arguments.images is not None and arguments.images < 1:
        raise ConfigError(f"--images: found {arguments.images}, expected at least 1")
    if not 0 <= arguments.seed < 2**31:
        raise ConfigError(f"--seed: found {arguments.seed}, expected 0 to {2**31 - 1}")
    state = arguments.out / f"{arguments.stage}.state.pt"
    if arguments.resume:
        if arguments.preset or arguments.set or start is not None:
            raise ConfigError("--preset, --set and --from do not go with --resume: the run keeps its configuration")
        return configuration.from_json(read_state(state)["config"])
    if state.exists():
        raise CheckpointError(f"{state}: found an earlier run, expected none: give --resume, or another --out")
    if arguments.preset:
        base = preset(arguments.preset)
    elif start is not None:
        base = start.config
    else:
        base = preset(DEFAULT_PRESET) if arguments.stage == "image" else _generator_checkpoint(arguments).config
    if start is None:
        return with_overrides(base, arguments.set)
    model = start.config.model
    if arguments.stage == "inversion":  # its file may know nothing of the generator
        model = dataclasses.replace(_generator_checkpoint(arguments).config.model, encoder=model.encoder)
    config = with_overrides(dataclasses.replace(base, model=model), arguments.set)
    if config.model != model:
        raise ConfigError("--set model...: does not go with --from: the model is that of the checkpoint")
    return config


def _build_stage(arguments: argparse.Namespace, config: Config, start: Checkpoint | None) -> Stage:
    minimum = config.motion.clip_length if arguments.stage == "motion" else 1
    if config.model.generator.label_dim:
        raise ConfigError("model.generator.label_dim: training of conditional models is not supported, expected 0")
    clips = load_clips(
        arguments.data,
        config.model.generator.resolution,
        frame_rate=config.frame_rate if arguments.stage == "motion" else None,
        minimum_frames=minimum,
    )
    if arguments.stage == "image":
        return ImageStage(config, clips, arguments.seed)
    if start is not None and isinstance(start.model, StyleInV):
        return MotionStage(config, clips, arguments.seed, start.model.generator, inversion=None)

    checkpoint = _generator_checkpoint(arguments)
    if checkpoint.config.model.generator != config.model.generator:
        raise CheckpointError(
            f"{checkpoint.path}: config.model.generator: found {checkpoint.config.model.generator}, "
            f"expected that of this run, {config.model.generator}"
        )
    generator = checkpoint.model
    assert isinstance(generator, Generator)
    if arguments.stage == "inversion":
        state = checkpoint.path.with_suffix(".state.pt")
        distance = perceptual_distance(config, arguments.lpips, state)
        return InversionStage(config, clips, arguments.seed, generator, distance)
    inversion = load_checkpoint(arguments.inversion or arguments.out / "inversion.safetensors", kind="inversion")
    if inversion.config.model.encoder != config.model.encoder:
        raise CheckpointError(
            f"{inversion.path}: config.model.encoder: found {inversion.config.model.encoder}, "
            f"expected that of this run, {config.model.encoder}"
        )
    assert isinstance(inversion.model, InversionModel)
    return MotionStage(config, clips, arguments.seed, generator, inversion.model)


def _generator_checkpoint(arguments: argparse.Namespace) -> Checkpoint:
    return load_checkpoint(arguments.generator or arguments.out / "image.safetensors", kind="image")
