"""The training loop that all stages share: steps, checkpoints, resuming, logs.

A stage is a list of networks and optimizers and one function `step(n)`. Nothing else changes from step to step: the
data of step n and its random numbers follow from the seed and n alone, so training resumes bit for bit from the
networks, the optimizers and n.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from styleinv.runtime.errors import CheckpointError, TrainingError
from styleinv.training import config as configuration
from styleinv.training.checkpoint import save_checkpoint
from styleinv.training.checkpoint_file import replacing
from styleinv.training.config import Config

SCALAR_INTERVAL = 10  # steps between points of a TensorBoard curve


class Stage(Protocol):
    """What one training stage brings to the loop."""

    name: str
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


def train(stage: Stage, out: Path, *, images: int, seed: int, resume: bool, progress: bool = True) -> Path:
    """Train until `images` images (or clips) were seen; returns the checkpoint's path, `out`/NAME.safetensors.

    The training state lies beside it as `out`/NAME.state.pt; both are replaced as whole files every
    `config.snapshot_images` images, at the end, and on Ctrl-C. Losses that are not finite raise TrainingError
    and leave the last checkpoint as it was.
    """
    model_path, state_path = out / f"{stage.name}.safetensors", out / f"{stage.name}.state.pt"
    first = load_state(stage, state_path, seed) if resume else 0
    steps = -(-images // stage.images_per_step)
    snapshot_steps = max(1, stage.config.snapshot_images // stage.images_per_step)

    def save(done: int) -> None:
        save_state(stage, state_path, done, seed)
        save_checkpoint(model_path, stage.result(), stage.config)
        writer.add_image("samples", picture_grid(stage.preview()), done * stage.images_per_step)

    with (
        SummaryWriter(str(out / "logs" / stage.name), purge_step=first * stage.images_per_step) as writer,
        interruptible() as interrupted,
        tqdm(
            total=steps * stage.images_per_step,
            initial=min(first, steps) * stage.images_per_step,
            desc=stage.name,
            unit=" images",
            disable=not progress,
            dynamic_ncols=True,
        ) as bar,
    ):
        for index in range(first, steps):
            torch.manual_seed(step_seed(seed, index))
            losses = stage.step(index)
            check_finite(losses, stage, index, model_path)
            done = index + 1
            bar.update(stage.images_per_step)
            if index % SCALAR_INTERVAL == 0 or done == steps:
                bar.set_postfix({name: f"{value:.3g}" for name, value in losses.items()}, refresh=False)
                for name, value in losses.items():
                    writer.add_scalar(name, value, done * stage.images_per_step)
            if done % snapshot_steps == 0 or done == steps or interrupted.is_set():
                save(done)
            if interrupted.is_set():
                raise KeyboardInterrupt
    return model_path


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


def save_state(stage: Stage, path: Path, done: int, seed: int) -> None:
    """Everything needed to continue after `done` steps."""
    state = {
        "stage": stage.name,
        "done": done,
        "seed": seed,
        "config": configuration.to_json(stage.config),
        "networks": {name: network.state_dict() for name, network in stage.networks.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in stage.optimizers.items()},
        "numbers": stage.numbers(),
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_state(stage: Stage, path: Path, seed: int) -> int:
    """Put a stage where `save_state` left it; returns the number of steps done. CheckpointError if it does not fit."""
    state = read_state(path)
    for name, found, expected in (("stage", state["stage"], stage.name), ("seed", state["seed"], seed)):
        if found != expected:
            raise CheckpointError(f"{path}: {name}: found {found!r}, expected {expected!r}")
    if configuration.from_json(state["config"]).model != stage.config.model:
        raise CheckpointError(f"{path}: config: belongs to another model than this run; start it without --resume")
    for name, network in stage.networks.items():
        network.load_state_dict(state["networks"][name])
    for name, optimizer in stage.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    stage.restore_numbers(state["numbers"])
    return int(state["done"])


def read_state(path: Path) -> dict[str, Any]:
    """A training state file; it is read as plain tensors and numbers, never as code."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, expected the state of an earlier run to resume")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"stage", "done", "seed", "config", "networks", "optimizers", "numbers"} - state.keys()
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
