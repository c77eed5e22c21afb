"""Batch normalisation over the samples of all processes, for a batch that several of them share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from styleinv.training import workers


class SharedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics in training are those of the whole batch. [B, C, H, W] -> same.

    torch's own SyncBatchNorm does the same on GPUs only. Gradients flow through the sums of all processes.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or workers.count() == 1:
            return super().forward(x)
        wide = x.float()
        samples = x.numel() // x.shape[1] * workers.count()
        mean = all_reduce(wide.sum(dim=(0, 2, 3))) / samples
        centred = wide - mean[:, None, None]
        variance = all_reduce(centred.square().sum(dim=(0, 2, 3))) / samples
        self._track(mean.detach(), variance.detach() * (samples / (samples - 1)))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def share_batch_norms(network: nn.Module) -> None:
    """Put a shared one in the place of each batch normalisation, with its weights and statistics."""
    for name, child in network.named_children():
        if type(child) is nn.BatchNorm2d:
            shared = SharedBatchNorm2d(child.num_features, child.eps, child.momentum)
            shared.load_state_dict(child.state_dict())
            shared.train(child.training)
            network.register_module(name, shared)
        else:
            share_batch_norms(child)
