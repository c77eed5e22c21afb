"""The training loop that all stages share: steps, checkpoints, resuming, logs.

A stage is a list of networks and optimizers and one function `step(n)`. Nothing else changes from step to step: the
data of step n and its random numbers follow from the seed and n alone, so training resumes bit for bit from the
networks, the optimizers and n.

Of several processes (see `workers.py`) the first one writes, and all stop after the same step.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from styleinv.runtime.errors import CheckpointError, TrainingError
from styleinv.training import config as configuration
from styleinv.training import workers
from styleinv.training.checkpoint import save_checkpoint
from styleinv.training.checkpoint_file import replacing
from styleinv.training.config import Config

SCALAR_INTERVAL = 10  # steps between points of a TensorBoard curve


class Stage(Protocol):
    """What one training stage brings to the loop."""

    name: str
    kind: str  # of the checkpoint it makes
    config: Config
    images_per_step: int
    networks: dict[str, nn.Module]  # everything with weights that changes or is averaged
    optimizers: dict[str, torch.optim.Optimizer]

    def step(self, index: int) -> dict[str, float]:
        """Train on step number `index`; returns the losses by name."""

    def numbers(self) -> dict[str, Any]:
        """Plain state besides networks and optimizers, such as the augmentation probability."""

    def restore_numbers(self, numbers: dict[str, Any]) -> None: ...

    def result(self) -> nn.Module:
        """The model that the stage makes, as it is stored."""

    def preview(self) -> Tensor:
        """Pictures for a grid, [N, 3, R, R] in about [-1, 1]."""


Measure = Callable[[nn.Module], dict[str, float]]  # a stage's result -> numbers by name


def train(
    stage: Stage,
    out: Path,
    *,
    images: int,
    seed: int,
    resume: bool,
    hours: float = math.inf,
    measure: Measure | None = None,
    progress: bool = True,
) -> Path:
    """Train until `images` images (or clips) were seen; returns the checkpoint's path, `out`/NAME.safetensors.

    The training state lies beside it as `out`/NAME.state.pt. Both are replaced as whole files every
    `config.snapshot_images` images, at the end, and on Ctrl-C, the state last: what it tells of is there. Training ends
    earlier once it has taken `hours`, those before it was resumed included. `measure` is asked at every snapshot, and
    its numbers become curves beside the losses. Losses that are not finite raise TrainingError and leave the last
    checkpoint as it was.
    """
    model_path, state_path = out / f"{stage.name}.safetensors", out / f"{stage.name}.state.pt"
    first, seconds_before = load_state(stage, state_path, seed) if resume else (0, 0.0)
    steps = -(-images // stage.images_per_step)
    snapshot_steps = max(1, stage.config.snapshot_images // stage.images_per_step)
    began = time.monotonic()
    is_writer = workers.rank() == 0
    done = first

    def seconds() -> float:
        return seconds_before + time.monotonic() - began

    def save() -> None:
        if is_writer:
            save_checkpoint(model_path, stage.result(), stage.config, stage.kind)
            save_state(stage, state_path, done, seed, seconds())
            seen = done * stage.images_per_step
            writer.add_image("samples", picture_grid(stage.preview()), seen)
            for name, value in measure(stage.result()).items() if measure else ():
                writer.add_scalar(name, value, seen)
        workers.wait()

    with (
        curves(out / "logs" / stage.name, first * stage.images_per_step) as writer,
        interruptible() as interrupted,
        tqdm(
            total=steps * stage.images_per_step,
            initial=min(first, steps) * stage.images_per_step,
            desc=stage.name,
            unit=" images",
            disable=not (progress and is_writer),
            dynamic_ncols=True,
        ) as bar,
    ):
        is_late = done > 0 and workers.any_of(seconds() >= hours * 3600)
        while done < steps and not is_late:
            torch.manual_seed(step_seed(seed, done))
            losses = stage.step(done)
            check_finite(losses, stage, done, model_path)
            if done % SCALAR_INTERVAL == 0 or done + 1 == steps:
                bar.set_postfix({name: f"{value:.3g}" for name, value in losses.items()}, refresh=False)
                for name, value in losses.items():
                    writer.add_scalar(name, value, (done + 1) * stage.images_per_step)
            done += 1
            bar.update(stage.images_per_step)
            is_stopped = workers.any_of(interrupted.is_set())
            is_late = workers.any_of(seconds() >= hours * 3600)
            if done % snapshot_steps == 0 or done == steps or is_stopped or is_late:
                save()
            if is_stopped:
                raise KeyboardInterrupt
    return model_path


@contextmanager
def curves(folder: Path, first: int) -> Iterator[SummaryWriter]:
    """TensorBoard's log, from `first` images on; that of other processes than the first goes nowhere."""
    with TemporaryDirectory() as nowhere:
        target = folder if workers.rank() == 0 else Path(nowhere)
        with SummaryWriter(str(target), purge_step=first) as writer:
            yield writer


def step_seed(seed: int, index: int) -> int:
    """The seed of one step's random numbers."""
    return (seed << 32) + index


def check_finite(losses: dict[str, float], stage: Stage, index: int, model_path: Path) -> None:
    bad = [f"{name} = {value}" for name, value in losses.items() if not abs(value) < float("inf")]
    if bad:
        kept = f"the last good checkpoint is {model_path}" if model_path.exists() else "no checkpoint was written yet"
        raise TrainingError(
            f"{stage.name} stage, step {index}: {', '.join(bad)}, expected finite losses; {kept}. "
            "A lower learning rate or a higher r1_gamma may help."
        )


def save_state(stage: Stage, path: Path, done: int, seed: int, seconds: float) -> None:
    """Everything needed to continue after `done` steps, which took so many seconds."""
    state = {
        "stage": stage.name,
        "images": done * stage.images_per_step,
        "seed": seed,
        "seconds": seconds,
        "config": configuration.to_json(stage.config),
        "networks": {name: network.state_dict() for name, network in stage.networks.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in stage.optimizers.items()},
        "numbers": stage.numbers(),
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_state(stage: Stage, path: Path, seed: int) -> tuple[int, float]:
    """Put a stage where `save_state` left it; CheckpointError if it does not fit. Returns the steps done, and the
    seconds they took."""
    state = read_state(path)
    for name, found, expected in (("stage", state["stage"], stage.name), ("seed", state["seed"], seed)):
        if found != expected:
            raise CheckpointError(f"{path}: {name}: found {found!r}, expected {expected!r}")
    if configuration.from_json(state["config"]).model != stage.config.model:
        raise CheckpointError(f"{path}: config: belongs to another model than this run; start it without --resume")
    for name, network in stage.networks.items():
        network.load_state_dict(state["networks"][name])
    for name, optimizer in stage.optimizers.items():
        settings = [{key: group[key] for key in ("lr", "betas")} for group in optimizer.param_groups]
        optimizer.load_state_dict(state["optimizers"][name])
        for group, current in zip(optimizer.param_groups, settings, strict=True):
            group.update(current)  # the configuration may have changed since
    stage.restore_numbers(state["numbers"])
    return int(state["images"]) // stage.images_per_step, float(state["seconds"])


def read_state(path: Path) -> dict[str, Any]:
    """A training state file; it is read as plain tensors and numbers, never as code."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, expected the state of an earlier run to resume")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"stage", "images", "seed", "seconds", "config", "networks", "optimizers", "numbers"} - state.keys()
    except Exception as error:  # torch.load raises whatever the damaged part of the file makes it raise
        raise CheckpointError(f"{path}: not a readable training state: {error}") from error
    if missing:
        raise CheckpointError(f"{path}: {', '.join(sorted(missing))} missing, expected a training state")
    return state


def picture_grid(images: Tensor) -> Tensor:
    """[N, 3, R, R] in about [-1, 1] -> one picture [3, rows R, columns R] in [0, 1], as square as may be."""
    columns = max(1, int(len(images) ** 0.5))
    rows = len(images) // columns
    grid = images[: rows * columns].unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return (grid * 0.5 + 0.5).clamp(0, 1)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C into an event, so that a step is never cut in half; a second one stops at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signals reach the main thread only
        return
    previous = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
