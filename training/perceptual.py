"""How different two pictures look: the image discriminator's features, or LPIPS where its weights are at hand.

Nothing is ever downloaded. Weights of LPIPS (Zhang et al. 2018, arXiv 1801.03924) are read from a file written by
`torch.save(lpips.LPIPS(net="alex").state_dict(), "lpips.pt")`, or the same tensors as safetensors; net="vgg" too.

Shapes: B batch, C channels, R resolution. Pictures are [B, 3, R, R] in about [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from styleinv.runtime.errors import CheckpointError
from styleinv.training.discriminator import ImageDiscriminator
from styleinv.training.losses import feature_distance

Distance = Callable[[Tensor, Tensor], Tensor]  # two batches of pictures -> scalar

# (slice, index in the torchvision network, stride, padding) of each convolution; a pooling opens every later slice.
ALEX = [(1, 0, 4, 2), (2, 3, 1, 2), (3, 6, 1, 1), (4, 8, 1, 1), (5, 10, 1, 1)]
ALEX_POOLED = {2: 3, 3: 3}  # slice -> window of the pooling before it, stride 2
VGG = [
    (part, index, 1, 1)
    for part, indices in enumerate([(0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)], start=1)
    for index in indices
]
VGG_POOLED = {2: 2, 3: 2, 4: 2, 5: 2}
SHIFT = (-0.030, -0.088, -0.188)  # ImageNet statistics for pictures in [-1, 1], as LPIPS defines them
SCALE = (0.458, 0.448, 0.450)


def discriminator_distance(discriminator: ImageDiscriminator) -> Distance:
    """Distance between the discriminator's unit-length features, summed over its blocks."""
    discriminator.eval().requires_grad_(False)

    def distance(found: Tensor, wanted: Tensor) -> Tensor:
        with torch.no_grad():
            target = discriminator.features(wanted)
        return feature_distance(discriminator.features(found), target)

    return distance


class Lpips(nn.Module):
    """LPIPS on AlexNet or VGG-16 features; which one is seen from the weights."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        is_alex = weights["net.slice1.0.weight"].shape[-1] == 11
        self.layers, self.pooled = (ALEX, ALEX_POOLED) if is_alex else (VGG, VGG_POOLED)
        for part, index, _, _ in self.layers:
            for kind in ("weight", "bias"):
                self.register_buffer(f"conv{index}_{kind}", weights[f"net.slice{part}.{index}.{kind}"])
        for part in range(5):
            self.register_buffer(f"linear{part}", weights[f"lin{part}.model.1.weight"])
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])

    shift: Tensor
    scale: Tensor

    def features(self, image: Tensor) -> list[Tensor]:
        x = (image - self.shift) / self.scale
        maps: list[Tensor] = []
        current = 1
        for part, index, stride, padding in self.layers:
            if part != current:
                maps.append(x)
                current = part
                if part in self.pooled:
                    x = F.max_pool2d(x, self.pooled[part], stride=2)
            weight, bias = self.get_buffer(f"conv{index}_weight"), self.get_buffer(f"conv{index}_bias")
            x = torch.relu(F.conv2d(x, weight, bias, stride, padding))
        return [*maps, x]

    def forward(self, found: Tensor, wanted: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.features(wanted)
        total = found.new_zeros(())
        for part, (a, b) in enumerate(zip(self.features(found), target, strict=True)):
            difference = (F.normalize(a, dim=1, eps=1e-10) - F.normalize(b, dim=1, eps=1e-10)).square()
            total = total + F.conv2d(difference, self.get_buffer(f"linear{part}")).mean()
        return total


def load_lpips(path: str | Path) -> Lpips:
    """LPIPS from a file of weights. CheckpointError names the file and what is missing."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, expected weights of LPIPS")
    try:
        weights: dict[str, Any] = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # whatever the damaged part of the file makes the reader raise
        raise CheckpointError(f"{path}: not a readable file of weights: {error}") from error
    try:
        return Lpips(weights).eval()
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: tensor {error} missing, expected the state dict of lpips.LPIPS") from error
