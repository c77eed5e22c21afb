"""The encoder's temporal blocks with the fused AdaIN, in the form that Inductor compiles.

Shapes: B batch, C channels, H W height and width.
"""

from __future__ import annotations

from torch import Tensor, nn

from styleinv.export.folding import stored
from styleinv.export.graphs import LatentGraph
from styleinv.export.inference_encoder import InferenceTemporalBlock
from styleinv.kernels import ops


class FusedTemporalBlock(InferenceTemporalBlock):
    """The same block, whose second AdaIN and leaky ReLU are one operator; the first one is `content`'s in part."""

    def __init__(self, block: InferenceTemporalBlock) -> None:
        nn.Module.__init__(self)
        self.conv1, self.conv2, self.gain, self.dtype = block.conv1, block.conv2, block.gain, block.dtype

    def modulate(self, x: Tensor, prepared: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """`first` and `second` [B, 2C] are gamma and beta of the two AdaINs; [B, C, H, W] -> the same."""
        y = self.conv1(self._adapted(prepared, first)).permute(0, 2, 3, 1).contiguous()
        y = stored(ops.adain_lrelu(y, second.contiguous()).permute(0, 3, 1, 2), self.dtype)
        return stored(self.conv2(y) + x.float() * self.gain, self.dtype)


def fuse_adain(graph: nn.Module) -> nn.Module:
    """The graph itself, where it has temporal blocks of AdaIN with those fused."""
    if isinstance(graph, LatentGraph):
        for name, block in graph.encoder.temporal.items():
            if isinstance(block, InferenceTemporalBlock):
                graph.encoder.temporal[name] = FusedTemporalBlock(block)
    return graph
