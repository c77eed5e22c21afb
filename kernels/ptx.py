"""A launch of a Triton kernel as PTX, text that any driver makes machine code of, and how to launch that.

Sizes and numbers are constants in it. Its parameters are the launch's tensors, in their order: Triton's two pointers
behind them, to scratch memory that these kernels have none of, are taken out, so that nobody must know of them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from styleinv.kernels.launches import Launch

WARP = 32  # threads
PTX_VERSION = 88  # 8.8: drivers for CUDA 12.9 and later take it, and it knows every target up to 12.1
MOST_SHARED = 48 * 1024  # bytes of a block that a kernel may have without being allowed more, which takes a driver call
SCRATCH = 2  # parameters that Triton adds
TYPES = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32", "uint8": "*u8"}


@dataclass(frozen=True)
class PtxKernel:
    """A kernel's text, and how it is launched for one picture: a batch has as many programs in the grid's last
    direction.

    Args:
        grid: programs in each direction.
        threads: of a program.
        shared: bytes of a program's memory, none above `MOST_SHARED`.
    """

    name: str
    text: str
    grid: tuple[int, ...]
    threads: int
    shared: int


def compiled(launch: Launch, target: int) -> PtxKernel:
    """The PTX of a launch at batch 1 for a compute capability (89 is 8.9).

    Its pipeline has the stages that its tuning says, or as many as its shared memory allows. Raises ValueError where it
    allows none.
    """
    options = {**launch.options, "ptx_version": PTX_VERSION, "enable_fp_fusion": True}
    for stages in range(launch.options["num_stages"], 0, -1):
        with triton.knobs.compilation.scope():
            triton.knobs.compilation.disable_line_info = True  # which has paths of this machine
            made = triton.compile(
                _source(launch), target=GPUTarget("cuda", target, WARP), options={**options, "num_stages": stages}
            )
        used = made.metadata
        if used.shared <= MOST_SHARED:
            text = without_scratch(made.asm["ptx"], used.name)
            name = f"{used.name}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"  # an engine has many of these
            text = re.sub(rf"\b{used.name}\b", name, text)
            return PtxKernel(name, text, launch.grid, used.num_warps * WARP, used.shared)
    raise ValueError(
        f"{launch.name}: found {used.shared} bytes of shared memory, expected {MOST_SHARED} at most: {launch.constants}"
    )


def without_scratch(text: str, name: str) -> str:
    """The PTX of a kernel without the last two of its parameters. Raises ValueError where it uses them."""
    head = re.search(rf"\.entry {name}\((.*?)\n\)", text, re.DOTALL)
    parameters = head[1].split(",") if head else []
    for parameter in parameters[-SCRATCH:]:
        if text.count(parameter.split()[-1]) != 1:
            raise ValueError(f"{name}: found a use of {parameter.split()[-1]}, expected no scratch memory")
    if head is None or len(parameters) <= SCRATCH:
        raise ValueError(f"{name}: found {len(parameters)} parameters, expected more than {SCRATCH}")
    return text[: head.start(1)] + ",".join(parameters[:-SCRATCH]) + text[head.end(1) :]


def _source(launch: Launch) -> ASTSource:
    """A launch's kernel with its tensors as parameters and all else as constants. Pictures and weights begin at
    multiples of 16 bytes."""
    values = {**dict(zip(launch.kernel.arg_names, launch.operands, strict=False)), **launch.constants}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    signature = {
        name: TYPES[str(tensors[name].dtype).removeprefix("torch.")] if name in tensors else "constexpr"
        for name in launch.kernel.arg_names
    }
    constants = {name: value for name, value in values.items() if name not in tensors}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(launch.kernel.arg_names)
        if name in tensors and tensors[name].ndim >= 4
    }
    return ASTSource(launch.kernel, signature, constants, aligned)
