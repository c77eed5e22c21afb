"""What a kernel takes of a GPU: compiled for it without one, and read from the machine code.

    registers, spilled, shared    what `cuobjdump -res-usage` and Triton tell
    occupancy                     resident warps of the most that a multiprocessor holds

Limits of a multiprocessor: CUDA C++ Programming Guide 13.0, "Compute Capabilities", technical specifications; how they
bound occupancy: cuda_occupancy.h of CUDA 13.0; tensor memory: PTX ISA, "Tensor Memory".
"""

from __future__ import annotations

import collections
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from styleinv.kernels.launches import Launch

KIB = 1024
REGISTERS = 64 * KIB  # of a multiprocessor, 32 bits each, whatever the target
REGISTER_UNIT, PARTS = 256, 4  # registers are given to a warp in such units, out of one of four parts
RESERVED_SHARED, SHARED_UNIT = KIB, 128  # the system's part of each block's shared memory; the unit it is given in
TENSOR_COLUMNS = 512  # of a multiprocessor's tensor memory


@dataclass(frozen=True)
class Limits:
    """Of a multiprocessor: warps and blocks that are resident, bytes of shared memory, and those of one block."""

    warps: int
    blocks: int
    shared: int
    shared_block: int


LIMITS = {  # by compute capability
    80: Limits(64, 32, 164 * KIB, 163 * KIB),
    86: Limits(48, 16, 100 * KIB, 99 * KIB),
    89: Limits(48, 24, 100 * KIB, 99 * KIB),
    90: Limits(64, 32, 228 * KIB, 227 * KIB),
    100: Limits(64, 32, 228 * KIB, 227 * KIB),
    120: Limits(48, 24, 100 * KIB, 99 * KIB),
}
TENSOR_CORES = re.compile(r"\b(?:HMMA|HGMMA|UTCHMMA)[\w.]*")  # Ampere to Ada and RTX Blackwell, Hopper, Blackwell
PLAIN = re.compile(r"\b(?:FFMA2|FFMA|HFMA2|FMUL|FADD)\b")


@dataclass(frozen=True)
class Resources:
    """Of a compiled kernel.

    Args:
        warps: of a block.
        stages: of its pipeline.
        registers: of a thread.
        spilled: bytes of a thread that registers had no place for, and that lie in device memory.
        shared: bytes of a block.
        tensor_columns: of tensor memory, which Blackwell has.
        instruction: what it multiplies with most: a tensor-core instruction where it has any.
    """

    warps: int
    stages: int
    registers: int
    spilled: int
    shared: int
    tensor_columns: int
    instruction: str


def resources(launch: Launch, target: int, options: dict[str, int] | None = None) -> Resources:
    """Compiles a launch for a compute capability (89 is 8.9), as Triton would when it launches it there.

    Args:
        options: of the compiler, beside the launch's own: {"maxnreg": 64}.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    kernel, gpu = launch.kernel, GPUTarget("cuda", target, 32)
    backend = make_backend(gpu)
    # Fusing a product and a sum is Triton's default, which it says will change.
    named = {**launch.constants, **launch.options, "enable_fp_fusion": True, **(options or {})}
    bound, specialization, rest = create_function_from_signature(kernel.signature, kernel.params, backend)(
        *launch.operands, **named
    )
    chosen, signature, constants, attributes = kernel._pack_args(backend, named, bound, specialization, rest)
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=gpu, options=chosen.__dict__)
    registers, spilled, code = _machine_code(compiled.asm["cubin"])
    used = compiled.metadata
    return Resources(
        used.num_warps, used.num_stages, registers, spilled, used.shared, used.tmem_size, instruction(code)
    )


def occupancy(used: Resources, target: int) -> float:
    """The share of a multiprocessor's warps that are resident, 0 where not one block fits."""
    limits = LIMITS[target]
    shared = _up(used.shared + RESERVED_SHARED, SHARED_UNIT)
    if used.shared > limits.shared_block:
        return 0.0
    warps_with_registers = REGISTERS // PARTS // _up(used.registers * 32, REGISTER_UNIT) * PARTS
    blocks = min(
        limits.blocks,
        limits.warps // used.warps,
        warps_with_registers // used.warps,
        limits.shared // shared,
        TENSOR_COLUMNS // used.tensor_columns if used.tensor_columns else limits.blocks,
    )
    return blocks * used.warps / limits.warps


def instruction(code: str) -> str:
    """The tensor-core instruction that stands most often in machine code; without one, the plain one that does."""
    for pattern in (TENSOR_CORES, PLAIN):
        found = collections.Counter(pattern.findall(code))
        if found:
            return min(found, key=lambda name: (-found[name], name))
    return ""


def _machine_code(cubin: bytes) -> tuple[int, int, str]:
    """Registers, bytes of local memory of a thread, and the text of the machine code."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", str(file)]
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", code)
    if usage is None:
        raise ValueError(f"cuobjdump: found no line of resources in {len(code)} characters, expected one")
    registers, stack, local = map(int, usage.groups())
    return registers, stack + local, code


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
