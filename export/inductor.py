"""Packages of PyTorch's Inductor: a bundle's graphs, compiled ahead of time from the model, fused operators and all.

Each graph is exported with a dynamic batch; so is `frame`, latent and synthesis in one. What comes out is native code,
for the GPU at hand with the Triton kernels compiled in, or for any CPU with AVX2, which wants PyTorch alone to be
played. A package knows no names: its arrays go in, and come out, in the order of their names.
"""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from styleinv import kernels
from styleinv.export.additions import Additions, bundle_graphs
from styleinv.export.arithmetic import DTYPES, Arithmetic
from styleinv.export.fused_synthesis import FusedSynthesis
from styleinv.export.graphs import EXAMPLE_BATCH, Graph
from styleinv.export.inductor_encoder import fuse_adain
from styleinv.export.onnx_graph import export_onnx, join, opset_of
from styleinv.runtime.errors import EngineError
from styleinv.runtime.manifest_fields import CPU_TARGET
from styleinv.runtime.sessions import obstacle
from styleinv.runtime.sessions.inductor import exact_float32, here
from styleinv.training.checkpoint import Checkpoint
from styleinv.training.generator import Generator
from styleinv.training.model import StyleInV

Batch = tuple[int, int, int]  # the least, the usual and the largest

# Convolutions are oneDNN's, which looks at the CPU it runs on; what Inductor adds is bound by memory and no faster for
# AVX-512. So one package serves all CPUs with AVX2, and takes as many threads as there are where it plays.
CPU_OPTIONS = {"cpp.simdlen": 256, "cpp.march": CPU_TARGET, "cpp.dynamic_threads": True}


def target_here(precision: str) -> str:
    """What packages are compiled for here: the GPU's compute capability, or the kind of CPU. Raises EngineError where
    none can be, or not in this precision."""
    if (reason := obstacle("inductor", precision)) is not None:
        raise EngineError(f"inductor in {precision}: {reason}")
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise EngineError(
            f"--engine inductor: found no program {compiler}, expected a C++ compiler: install g++ (on Debian and "
            "Ubuntu `apt install g++`), or name another one in the environment variable CXX"
        )
    return here("inductor").target


@dataclass(frozen=True)
class Programs:
    """The exported programs of a bundle's graphs: of the checkpoint that it was made from, its additions and its noise,
    'const' or 'none'."""

    checkpoint: Checkpoint
    additions: Additions
    noise: str

    def of(self, name: str, transfer: str | None, precision: str, target: str, batch: Batch) -> ExportedProgram:
        """The program of one graph, for this target."""
        device = "cpu" if target == CPU_TARGET else "cuda"
        graph = self._graphs(precision, _example(batch))[transfer, "latent" if name == "frame" else name]
        outputs = ("frame",) if name == "frame" else graph.outputs
        if name == "synthesis":
            module: nn.Module = self._synthesis(transfer, precision, device)
        else:
            module = fuse_adain(graph.build()).to(device)
        if name == "frame":
            module = FrameGraph(module, self._synthesis(None, precision, device))
        return export_program(module.eval(), graph.inputs, outputs, device, batch)

    def plugin_graph(self, name: str, transfer: str | None, precision: str) -> onnx.ModelProto:
        """`synthesis`, or the bundle's `frame`, with the fused operators as plugins, tuned for the GPU at hand."""
        from styleinv.export.plugin_graph import export_plugin_graph  # which wants Triton

        plain, opset = self._graphs(precision, EXAMPLE_BATCH), opset_of(DTYPES[precision])
        fused = self._synthesis(transfer, precision, "cuda" if torch.cuda.is_available() else "cpu")
        synthesis = export_plugin_graph(fused, plain[transfer, "synthesis"], opset)
        if name == "synthesis":
            return synthesis
        return join(export_onnx(plain[None, "latent"], opset), synthesis, "w", ["frame"])

    def _synthesis(self, transfer: str | None, precision: str, device: str) -> FusedSynthesis:
        """Of the fused operators, on this device, whose tuning decides its form."""
        model = self.checkpoint.model if transfer is None else self.additions.transfers[transfer].model
        generator = model.generator if isinstance(model, StyleInV) else model
        assert isinstance(generator, Generator)
        synthesis = copy.deepcopy(generator.synthesis).to(device)
        return FusedSynthesis(synthesis, self.noise, DTYPES[precision])

    def _graphs(self, precision: str, batch: int) -> dict[tuple[str | None, str], Graph]:
        """All graphs, by transfer and name, with inputs of this batch. Their convolutions are PyTorch's own."""
        arithmetic = Arithmetic(DTYPES[precision], lambda *layer: "transposed", lambda *layer: "direct")
        model, config = self.checkpoint.model, self.checkpoint.config
        graphs = bundle_graphs(model, self.additions, config, self.noise, batch, arithmetic=arithmetic)
        return {(transfer, graph.name): graph for transfer, graph in graphs}


class FrameGraph(nn.Module):
    """The inputs of `latent` -> frame [B, R, R, 3] uint8."""

    def __init__(self, latent: nn.Module, synthesis: nn.Module) -> None:
        super().__init__()
        self.latent, self.synthesis = latent, synthesis

    def forward(self, *inputs: Tensor) -> Tensor:
        w, _ = self.latent(*inputs)
        _, frame = self.synthesis(w)
        return frame


class SortedArrays(nn.Module):
    """A graph whose arrays go in, and come out, in the order of their names; its internal values do not come out."""

    def __init__(self, module: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.module, self.inputs, self.outputs = module, list(inputs), list(outputs)

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(sorted(self.inputs), arrays, strict=True))
        found = self.module(*(given[name] for name in self.inputs))
        named = dict(zip(self.outputs, found if isinstance(found, tuple) else (found,), strict=False))
        return tuple(named[name] for name in sorted(named))


def export_program(
    module: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str], device: str, batch: Batch
) -> ExportedProgram:
    """A module on `device` as a program, for batches from the least to the largest; its parameters are constants."""
    least, _, largest = batch
    arrays = tuple(inputs[name].to(device) for name in sorted(inputs))
    dynamic = None if least == largest else ({0: Dim("batch", min=least, max=largest)},) * len(arrays)
    with torch.no_grad():
        return torch.export.export(
            SortedArrays(module, list(inputs), outputs), arrays, dynamic_shapes=None if dynamic is None else (dynamic,)
        )


def program_hash(program: ExportedProgram) -> str:
    """SHA-256, in hexadecimal, of a program: its operators, its weights, and the sources of the operators of our own,
    which are in it by name alone."""
    digest = hashlib.sha256()
    for part in (program.graph, program.graph_signature, sorted(map(str, program.range_constraints.values()))):
        digest.update(str(part).encode())
    for name, tensor in sorted({**program.state_dict, **program.tensor_constants}.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.stride()}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    digest.update(kernels_hash().encode())
    return digest.hexdigest()


def kernels_hash() -> str:
    """SHA-256, in hexadecimal, of the kernels' sources, of all around them, and of their tuning."""
    digest, folder = hashlib.sha256(), Path(kernels.__path__[0])
    for file in sorted(file for pattern in ("*.py", "*.json") for file in folder.rglob(pattern)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def compile_program(file: Path, out: Path) -> None:
    """Compiles a program that was saved into a package. Raises whatever PyTorch raises."""
    warnings.simplefilter("ignore")  # they name paths of this machine
    program = torch.export.load(file)
    on_cpu = all(tensor.device.type == "cpu" for tensor in program.state_dict.values())
    with torch.no_grad(), exact_float32(torch):
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(out), inductor_configs=CPU_OPTIONS if on_cpu else {}
        )


def _example(batch: Batch) -> int:
    """The batch that a program is traced with: the usual one, but 1 only where there is no other, as PyTorch takes a
    size of 1 for one that never changes."""
    _, usual, largest = batch
    return min(max(usual, 2), largest)
