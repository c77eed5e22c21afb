"""The ways in which PyTorch plays a clip, for `styleinv bench --compare`: eager and compiled, on a CPU or on a GPU.

Two forms of the model are played. The one that is trained is what somebody runs who has the model and no bundle; the
encoder's once-per-clip part is kept in all rows but the first. The exported one is what the graphs of a bundle are
made from, constants folded: with `torch.compile` the fastest that PyTorch itself offers.

Every way computes what its precision says: in fp32 TensorFloat-32 is off. In fp16 and bf16 the trained form runs under
autocast, while the exported form has weights of that type, as the graphs in that precision have.

Shapes: B frames of a batch, V size of the time code, R resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from styleinv.export.arithmetic import DTYPES, Arithmetic
from styleinv.export.bench_baseline import Eager, Frames
from styleinv.export.graphs import graphs_of
from styleinv.runtime.bundle import Bundle
from styleinv.training.checkpoint import load_checkpoint

Draw = Callable[[Tensor], Tensor]  # time codes [B, V] -> frames uint8 [B, R, R, 3], both on the device

# Graphs of CUDA, recorded once and replayed: at batch 1 a frame is hundreds of launches, which cost more than they
# compute. On a CPU there is no such thing, and tuning would take minutes more.
COMPILE_MODE = {"cpu": "default", "cuda": "reduce-overhead"}
WAYS = {  # by name: which form, and how it is run
    "PyTorch eager": "as trained, the whole encoder for every frame",
    "PyTorch eager, content kept": "as trained, the encoder's once-per-clip part kept",
    "torch.compile": "as trained, the encoder's once-per-clip part kept",
    "torch.compile, exported form": "the form that bundles are made from, constants folded",
}
EAGER = "PyTorch eager"  # the yardstick, in fp32
EAGER_KEPT, COMPILED, COMPILED_EXPORTED = list(WAYS)[1:]


def torch_precisions(device: str) -> tuple[str, ...]:
    """Those that PyTorch computes in fast enough to be compared: fp16 on a CPU takes minutes for a frame."""
    return ("fp32", "bf16") if device == "cpu" else ("fp32", "fp16", "bf16")


def set_up(device: str, threads: int | None) -> None:
    """Settings of the whole process: exact float32, and on a GPU the fastest of cuDNN's algorithms for each shape."""
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True


class TorchPlayer:
    """The clip with this seed, played in one of `WAYS`. What is compiled is compiled with the first frames."""

    def __init__(
        self, way: str, precision: str, checkpoint: Path, bundle: Bundle, seed: int, device: str = "cpu"
    ) -> None:
        half = precision != "fp32"
        channels_last = half and device == "cuda"
        self._eager = Eager(checkpoint, bundle, seed, device, channels_last)
        if way == COMPILED_EXPORTED:
            draw = exported_form(self._eager, checkpoint, bundle, precision, channels_last)
        else:
            draw = partial(self._eager.draw, keep_content=way != EAGER)
            draw = _autocast(draw, device, DTYPES[precision]) if half else draw
        words = [f"torch {torch.__version__} ({device}, {precision})", WAYS[way]]
        if half:
            words.append("weights in half precision" if way == COMPILED_EXPORTED else "autocast")
        if channels_last:
            words.append("channels_last")
        if way in (COMPILED, COMPILED_EXPORTED):
            words.append(f"mode {COMPILE_MODE[device]}")
            draw = torch.compile(draw, dynamic=False, mode=COMPILE_MODE[device])
        self._draw = draw
        self.name = ", ".join(words)

    def frames(self, ts: Sequence[int]) -> Frames:
        """The frames at these frame indices, in the host's memory: uint8 [B, R, R, 3], a new array."""
        with torch.inference_mode():
            frames: Frames = self._draw(self._eager.time_codes(ts)).cpu().numpy()
        if self._eager.device == "cuda":
            torch.cuda.synchronize()  # nothing may be left to do when the clock is read
        return frames


def exported_form(eager: Eager, checkpoint: Path, bundle: Bundle, precision: str, channels_last: bool) -> Draw:
    """The graphs that export makes of the model, as modules, with the convolutions that PyTorch has kernels for."""
    loaded = load_checkpoint(checkpoint)
    arithmetic = Arithmetic(DTYPES[precision], lambda *layer: "transposed", lambda *layer: "direct")
    graphs = graphs_of(loaded.model, loaded.config, bundle.manifest["noise"], arithmetic=arithmetic)
    layout = torch.channels_last if channels_last else torch.preserve_format
    parts = {
        graph.name: graph.build().to(eager.device).to(memory_format=layout)  # type: ignore[call-overload]
        for graph in graphs
        if graph.name in ("content", "latent", "synthesis")
    }
    with torch.inference_mode():
        content = parts["content"](eager.x0) if "content" in parts else ()

    def draw(v: Tensor) -> Tensor:
        w = eager.w0.expand(len(v), -1)
        if "latent" in parts:
            w, _ = parts["latent"](*(part.expand(len(v), -1, -1, -1) for part in content), w, v)
        _, frames = parts["synthesis"](w)
        return frames

    return draw


def _autocast(draw: Draw, device: str, dtype: torch.dtype) -> Draw:
    def drawn(v: Tensor) -> Tensor:
        with torch.autocast(device, dtype):
            return draw(v)

    return drawn
