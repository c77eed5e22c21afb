"""Several processes on one batch: which samples each takes, and sums over all of them.

Every process draws the random numbers of the whole batch and takes its own rows of them, so what a sample sees follows
from its place in the batch, not from the number of processes. `torchrun` starts them; without it there is one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn

from styleinv.runtime.errors import ConfigError


def count() -> int:
    """How many processes share a batch."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is; number 0 writes the files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Meet the other processes that torchrun has started, if it has: over NCCL on GPUs, over gloo on CPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def own_parts(batch: int, accumulation: int, group_size: int = 1) -> list[Tensor]:
    """The rows [batch / (processes accumulation)] of a batch that this process takes, one part after another.

    Parts hold whole groups of the minibatch deviation, in an order in which each part alone has the same groups as the
    whole batch; the first halves of parts of an even size are together the first half of the batch. ConfigError where
    the groups cannot be shared out evenly.
    """
    parts = count() * accumulation
    group = math.gcd(min(group_size, batch), batch)
    groups = batch // group
    size = batch // parts
    if groups % parts:
        raise ConfigError(
            f"batch: found {batch} samples in {groups} groups of {group} (discriminator.group_size), expected a number "
            f"of groups that {count()} processes times compute.accumulation {accumulation} divide"
        )
    if math.gcd(min(group_size, size), size) != group:
        raise ConfigError(
            f"discriminator.group_size: found {group_size}, which makes groups of {group} in a batch of {batch} but "
            f"others in its {parts} parts of {size}; expected {group}"
        )
    rows = torch.arange(batch).unflatten(0, (group, groups // parts, parts))
    mine = range(rank() * accumulation, (rank() + 1) * accumulation)
    return [rows[:, :, part].flatten() for part in mine]


def share_of(parts: list[Tensor]) -> float:
    """The share of one of these parts in the whole batch."""
    return 1 / (len(parts) * count())


def reduce_gradients(network: nn.Module) -> None:
    """Sum the gradients over all processes, in one message."""
    if count() == 1:
        return
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    for gradient, total in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


def any_of(flag: bool) -> bool:
    """Whether the flag is up in any process; all get the same answer."""
    return flag if count() == 1 else bool(total(torch.tensor(float(flag))) > 0)


def wait() -> None:
    """Until every process is here."""
    if count() > 1:
        distributed.barrier()


def total(x: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if count() > 1:
        x = x.clone()
        distributed.all_reduce(x)
    return x
