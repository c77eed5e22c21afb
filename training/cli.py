"""`styleinv train` and `styleinv init`: the commands that make checkpoints."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch

from styleinv.runtime.errors import CheckpointError, ConfigError
from styleinv.training import config as configuration
from styleinv.training import workers
from styleinv.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from styleinv.training.config import Config, with_overrides
from styleinv.training.data import ClipSet, load_clips
from styleinv.training.discriminator import ImageDiscriminator
from styleinv.training.generator import Generator
from styleinv.training.initialize import initialize
from styleinv.training.loop import Measure, Stage, read_state
from styleinv.training.loop import train as train_stage
from styleinv.training.model import InversionModel, StyleInV
from styleinv.training.presets import PRESETS, preset
from styleinv.training.stages.image import ImageStage
from styleinv.training.stages.inversion import InversionStage, perceptual_distance, trained_discriminator
from styleinv.training.stages.motion import MotionStage
from styleinv.training.stages.transfer import TransferStage

DEFAULT_PRESET = "tiny64"
PIPELINE = ("image", "inversion", "motion")  # what `train all` goes through
STAGES = (*PIPELINE, "transfer")
HOURS_SHARES = {"image": 0.55, "inversion": 0.25, "motion": 1.0}  # of the hours that the stages before have left
START_KINDS = {"image": "image", "inversion": "inversion", "motion": "styleinv"}  # of checkpoints to fine-tune
STARTED_NETWORKS = {"image": "generator", "inversion": "encoder", "motion": "model"}  # what a stage calls its own


def train(argv: list[str]) -> int:
    """Run one training stage, or all that make a whole model."""
    arguments = _train_parser().parse_args(argv)
    _check(arguments)
    device = _choose_device(arguments.device)
    with device, workers.joined(device):
        if arguments.stage == "all":
            _train_all(arguments)
        else:
            _train_one(arguments, arguments.stage, resume=arguments.resume, hours=arguments.hours)
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
        description="Train one stage, or all. A model goes through them in this order: image (a generator of single "
        "frames), inversion (an encoder that finds a frame's latent), motion (the encoder modulated over time). Each "
        "leaves STAGE.safetensors in the output folder, where the next finds it; the last one's is the whole model. "
        "'all' runs the three and, killed at any point and started again by the same command, goes on from the last "
        "snapshot. transfer fine-tunes the generator for another style. Several GPUs or processes: torchrun "
        "--nproc-per-node N --no-python styleinv train STAGE ...",
    )
    parser.add_argument("stage", choices=("all", *STAGES), help="the stage to train")
    parser.add_argument("--data", required=True, metavar="PATH", help="a folder of videos or of folders of pictures, "
                        "one such file, or a zip of them")  # fmt: skip
    parser.add_argument("--weights", type=Path, metavar="FILE", help="how often clips are seen: lines of name,weight "
                        "(default: weights.csv in the data folder, if there is one)")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where checkpoints and logs go")
    _add_config_arguments(parser)
    parser.add_argument("--images", type=int, metavar="N", help="train until N images (motion: clips) were seen")
    parser.add_argument("--hours", type=float, default=math.inf, metavar="H", help="end a stage after H hours, those "
                        "before it was resumed included; with 'all', end all of them")  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="continue the run in DIR where it stopped: bit for bit, "
                        "unless --set changes how it is trained")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of weights, data order and random draws (default: 0)")
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--features", type=Path, metavar="FILE", help="a feature network as ONNX: with every snapshot "
                        "the Frechet distance to real frames becomes a curve; see `styleinv evaluate`")  # fmt: skip
    parser.add_argument("--features-frames", type=int, default=500, metavar="N", help="generated frames it is taken "
                        "over (default: 500; few make it larger)")  # fmt: skip
    parser.add_argument("--from", type=Path, dest="start", metavar="FILE", help="fine-tune this checkpoint, trained or "
                        "imported, of what the stage makes: its model and weights are taken, the settings of training "
                        "from --preset where it is given")  # fmt: skip
    parser.add_argument("--generator", type=Path, metavar="FILE", help="image checkpoint to build on "
                        "(default: DIR/image.safetensors)")  # fmt: skip
    parser.add_argument("--inversion", type=Path, metavar="FILE", help="inversion checkpoint that the motion stage "
                        "starts from (default: DIR/inversion.safetensors)")  # fmt: skip
    parser.add_argument("--lpips", type=Path, metavar="FILE", help="weights of LPIPS for the inversion and transfer "
                        "stages; without them they compare features of the image stage's discriminator")  # fmt: skip
    return parser


def _add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", metavar="NAME", help=f"starting configuration: {', '.join(PRESETS)} "
                        f"(default: {DEFAULT_PRESET}, or that of the checkpoint built on)")  # fmt: skip
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE",
                        help="change fields of it, such as model.generator.channel_base=2048")  # fmt: skip


def _check(arguments: argparse.Namespace) -> None:
    if arguments.images is not None and arguments.images < 1:
        raise ConfigError(f"--images: found {arguments.images}, expected at least 1")
    if not arguments.hours > 0:
        raise ConfigError(f"--hours: found {arguments.hours}, expected more than 0")
    if arguments.features_frames < 2:
        raise ConfigError(f"--features-frames: found {arguments.features_frames}, expected at least 2")
    if not 0 <= arguments.seed < 2**31:
        raise ConfigError(f"--seed: found {arguments.seed}, expected 0 to {2**31 - 1}")
    if arguments.stage == "all":
        given = [name for name in ("resume", "start", "images", "generator", "inversion") if getattr(arguments, name)]
        if given:
            names = ", ".join("--from" if name == "start" else f"--{name}" for name in given)
            raise ConfigError(f"{names}: found with 'all', expected with a single stage")
    if arguments.stage == "transfer" and arguments.start is not None:
        raise ConfigError("--from: found with 'transfer', expected --generator, the image checkpoint it starts from")


def _choose_device(name: str | None) -> torch.device:
    """The device that is asked for, of this process where torchrun has started several."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"--device: found {name!r}, expected cpu or cuda")
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("--device cuda: found no GPU that this torch can use, expected one")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _train_all(arguments: argparse.Namespace) -> None:
    """Every stage of a whole model; those that an earlier run has ended are left as they are."""
    for name in PIPELINE:
        state = arguments.out / f"{name}.state.pt"
        left = arguments.hours - sum(_hours_taken(arguments.out, done) for done in PIPELINE[: PIPELINE.index(name)])
        _train_one(arguments, name, resume=state.exists(), hours=left * HOURS_SHARES[name])


def _hours_taken(out: Path, name: str) -> float:
    return float(read_state(out / f"{name}.state.pt")["seconds"]) / 3600


def _train_one(arguments: argparse.Namespace, name: str, *, resume: bool, hours: float) -> None:
    start = load_checkpoint(arguments.start, kind=START_KINDS[name]) if arguments.start else None
    config = _choose_config(arguments, name, start, resume)
    clips = _load_clips(arguments, name, config)
    stage = _build_stage(arguments, name, config, clips, start)
    if start is not None:
        for network in (STARTED_NETWORKS[name], "average"):
            stage.networks[network].load_state_dict(start.model.state_dict())
    images = arguments.images or getattr(config, name).images
    path = train_stage(
        stage,
        arguments.out,
        images=images,
        seed=arguments.seed,
        resume=resume,
        hours=hours,
        measure=_measure(arguments, clips),
    )
    if workers.rank() == 0:
        print(f"{path} written", file=sys.stderr)


def _measure(arguments: argparse.Namespace, clips: ClipSet) -> Measure | None:
    if arguments.features is None or workers.rank() != 0:
        return None
    from styleinv.training.evaluation.during_training import measure_with  # what it needs may not be installed

    return measure_with(arguments.features, clips, arguments.features_frames)


def _choose_config(arguments: argparse.Namespace, name: str, start: Checkpoint | None, resume: bool) -> Config:
    """A resumed run keeps its own configuration, but for --set; a new one takes the preset, or that of the stage
    before, and the model of the checkpoint that it fine-tunes."""
    state = arguments.out / f"{name}.state.pt"
    if resume:
        if arguments.stage != "all" and (arguments.preset or start is not None):
            raise ConfigError("--preset and --from do not go with --resume: the run keeps its configuration")
        kept = configuration.from_json(read_state(state)["config"])
        config = with_overrides(kept, arguments.set)
        if config.model != kept.model:
            raise ConfigError("--set model...: does not go with --resume: the run keeps its model")
        if arguments.preset and kept.preset != arguments.preset:
            raise ConfigError(
                f"{state}: config.preset: found {kept.preset!r}, expected {arguments.preset!r} (--preset)"
            )
        return config
    if state.exists():
        raise CheckpointError(f"{state}: found an earlier run, expected none: give --resume, or another --out")
    if arguments.preset:
        base = preset(arguments.preset)
    elif start is not None:
        base = start.config
    else:
        base = preset(DEFAULT_PRESET) if name == "image" else _generator_checkpoint(arguments).config
    if start is None:
        return with_overrides(base, arguments.set)
    model = start.config.model
    if name == "inversion":  # its file may know nothing of the generator
        model = dataclasses.replace(_generator_checkpoint(arguments).config.model, encoder=model.encoder)
    config = with_overrides(dataclasses.replace(base, model=model), arguments.set)
    if config.model != model:
        raise ConfigError("--set model...: does not go with --from: the model is that of the checkpoint")
    return config


def _load_clips(arguments: argparse.Namespace, name: str, config: Config) -> ClipSet:
    if config.model.generator.label_dim:
        raise ConfigError("model.generator.label_dim: training of conditional models is not supported, expected 0")
    return load_clips(
        arguments.data,
        config.model.generator.resolution,
        frame_rate=config.frame_rate if name == "motion" else None,
        minimum_frames=config.motion.clip_length if name == "motion" else 1,
        weights=arguments.weights,
        progress=workers.rank() == 0,
    )


def _build_stage(
    arguments: argparse.Namespace, name: str, config: Config, clips: ClipSet, start: Checkpoint | None
) -> Stage:
    seed = arguments.seed
    if name == "image":
        return ImageStage(config, clips, seed)
    if start is not None and isinstance(start.model, StyleInV):
        return MotionStage(config, clips, seed, _placed(start.model.generator), inversion=None)

    checkpoint = _generator_checkpoint(arguments)
    if checkpoint.config.model.generator != config.model.generator:
        raise CheckpointError(
            f"{checkpoint.path}: config.model.generator: found {checkpoint.config.model.generator}, "
            f"expected that of this run, {config.model.generator}"
        )
    assert isinstance(checkpoint.model, Generator)
    generator = _placed(checkpoint.model)
    image_state = checkpoint.path.with_suffix(".state.pt")
    if name in ("inversion", "transfer"):
        distance = perceptual_distance(config, arguments.lpips, image_state)
        if name == "inversion":
            return InversionStage(config, clips, seed, generator, distance)
        discriminator: ImageDiscriminator | None = None
        if image_state.is_file():
            discriminator = trained_discriminator(config, image_state)
        return TransferStage(config, clips, seed, generator, distance, discriminator=discriminator)
    inversion = load_checkpoint(arguments.inversion or arguments.out / "inversion.safetensors", kind="inversion")
    if inversion.config.model.encoder != config.model.encoder:
        raise CheckpointError(
            f"{inversion.path}: config.model.encoder: found {inversion.config.model.encoder}, "
            f"expected that of this run, {config.model.encoder}"
        )
    assert isinstance(inversion.model, InversionModel)
    return MotionStage(config, clips, seed, generator, _placed(inversion.model))


def _placed(model: torch.nn.Module) -> Any:
    """On the device that is trained on; checkpoints are read on the CPU."""
    return model.to(torch.get_default_device())


def _generator_checkpoint(arguments: argparse.Namespace) -> Checkpoint:
    return load_checkpoint(arguments.generator or arguments.out / "image.safetensors", kind="image")
