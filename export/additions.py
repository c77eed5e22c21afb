"""What a bundle may hold beside its model: an inversion encoder, and transfers, generators tuned for another style.

Both speak of the model's own latents, so both are checked to be of their size. An encoder takes pictures of any
resolution and is exported at the model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from styleinv.export.arithmetic import EXACT, Arithmetic
from styleinv.export.graphs import EXAMPLE_BATCH, Graph, graphs_of
from styleinv.runtime.errors import BundleError, CheckpointError
from styleinv.runtime.manifest_fields import TRANSFER_NAME
from styleinv.training.checkpoint import Checkpoint
from styleinv.training.config import Config


@dataclass(frozen=True)
class Additions:
    """Checkpoints that go into a bundle with a model: of kind inversion, and by name of kind transfer or image."""

    inversion: Checkpoint | None = None
    transfers: Mapping[str, Checkpoint] = field(default_factory=dict)

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises CheckpointError where a file does not go with the model's checkpoint, or that one alone cannot be
        exported; BundleError where a transfer's name is none."""
        if checkpoint.kind == "transfer":
            raise CheckpointError(
                f"{checkpoint.path}: kind: found 'transfer', expected 'styleinv', 'image' or 'inversion': "
                "a transfer is exported beside its model, by `styleinv export MODEL --transfer NAME=FILE`"
            )
        if checkpoint.kind == "inversion" and (self.inversion is not None or self.transfers):
            raise CheckpointError(
                f"{checkpoint.path}: kind: found 'inversion', expected 'styleinv' or 'image' with --inversion or "
                "--transfer, which add to such a model"
            )
        if self.inversion is not None:
            _check_kind(self.inversion, "inversion")
            _check_same(self.inversion, checkpoint, "w_dim")
        for name, transfer in self.transfers.items():
            if not TRANSFER_NAME.holds(name):
                raise BundleError(f"transfers: found {name!r}, expected {TRANSFER_NAME.expected}")
            _check_kind(transfer, "transfer", "image")
            _check_same(transfer, checkpoint, "resolution")
            _check_same(transfer, checkpoint, "w_dim")

    def files(self) -> dict[str, Checkpoint]:
        """All of them, by what they are."""
        inversion = {} if self.inversion is None else {"inversion": self.inversion}
        return inversion | {f"transfer {name}": transfer for name, transfer in self.transfers.items()}


def bundle_graphs(
    model: nn.Module,
    additions: Additions,
    config: Config,
    noise: str,
    batch: int = EXAMPLE_BATCH,
    seed: int = 0,
    arithmetic: Arithmetic = EXACT,
) -> Iterator[tuple[str | None, Graph]]:
    """Every graph of a bundle, the model's and the added ones, each after the name of the transfer it belongs to (None:
    the bundle itself). `config` is the model's; the other arguments are as in `graphs_of`."""
    for graph in graphs_of(model, config, noise, batch, seed, arithmetic):
        yield None, graph
    if additions.inversion is not None:
        for graph in graphs_of(additions.inversion.model, config, noise, batch, seed, arithmetic):
            yield None, graph
    for name, transfer in additions.transfers.items():
        for graph in graphs_of(transfer.model, transfer.config, noise, batch, seed, arithmetic):
            if graph.name == "synthesis":
                yield name, graph


def _check_kind(checkpoint: Checkpoint, *expected: str) -> None:
    if checkpoint.kind not in expected:
        wanted = " or ".join(map(repr, expected))
        raise CheckpointError(f"{checkpoint.path}: kind: found {checkpoint.kind!r}, expected {wanted}")


def _check_same(added: Checkpoint, checkpoint: Checkpoint, size: str) -> None:
    found, expected = (getattr(item.config.model.generator, size) for item in (added, checkpoint))
    if found != expected:
        raise CheckpointError(
            f"{added.path}: config.model.generator.{size}: found {found}, expected {expected}, as in {checkpoint.path}"
        )
