"""The machine that this process runs on: its processor, its memory, its NVIDIA GPUs and their driver."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

INSTRUCTION_SETS = {  # those that matter to the arithmetic of networks: by the field of /proc/cpuinfo and its flags
    "flags": {  # of x86
        "avx2": "AVX2",
        "avx512f": "AVX-512",
        "avx512_vnni": "AVX-512 VNNI",
        "avx512_bf16": "AVX-512 BF16",
        "amx_bf16": "AMX BF16",
    },
    "Features": {"asimd": "NEON", "bf16": "BF16"},  # of ARM
}
CPUINFO, MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")

GPU_FIELDS = "name,memory.total,driver_version,compute_cap"
GPU_LINE = re.compile(r"(?P<name>\S.*), (?P<memory>[^,]+), (?P<driver>[^,]+), (?P<compute_capability>\d+\.\d+)")
NVIDIA_SMI_SECONDS = 20.0  # the first answer after a start of the machine can take ten
LIBCUDA = "libcuda.so.1"  # comes with the driver


@dataclass(frozen=True)
class Machine:
    """What a measurement is worth little without, and how busy it was in the minute before."""

    processor: str
    logical_cores: int  # that this process may use
    instruction_sets: str
    missing_instruction_sets: str  # of those that a processor of this kind can have
    memory_gib: float
    available_memory_gib: float | None  # None where the system does not say
    system: str
    load_average: float  # programs that wanted to run at a time; 0 is an idle machine


@dataclass(frozen=True)
class Gpu:
    """One GPU, as nvidia-smi describes it."""

    name: str
    memory: str  # '81559 MiB'
    driver: str
    compute_capability: str


def describe_machine() -> Machine:
    """This machine, as far as it says what it is."""
    present, missing = _instruction_sets()
    available = _field(MEMINFO, "MemAvailable")  # '22841004 kB'
    return Machine(
        processor=_field(CPUINFO, "model name") or platform.processor() or platform.machine(),
        logical_cores=usable_cores(),
        instruction_sets=", ".join(present),
        missing_instruction_sets=", ".join(missing),
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        available_memory_gib=None if available is None else round(int(available.split()[0]) / 2**20, 1),
        system=platform.platform(),
        load_average=round(os.getloadavg()[0], 2),
    )


def usable_cores() -> int:
    """How many logical cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def nvidia_gpus(seconds: float = NVIDIA_SMI_SECONDS) -> tuple[list[Gpu], str | None]:
    """The GPUs that nvidia-smi knows, and in words what is wrong with it or with what it says; None where nothing is.

    It is given up after `seconds`.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], "nvidia-smi is not installed"
    command = [program, f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader"]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="ascii",
            errors="backslashreplace",
        )
    except OSError as error:
        return [], f"nvidia-smi cannot be run: {error.strerror}"
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # inside a driver that hangs, it does not even die
            process.wait(timeout=1)
        return [], f"nvidia-smi did not answer within {seconds:g} seconds"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    matches = [GPU_LINE.fullmatch(line) for line in lines]
    gpus = [Gpu(**match.groupdict()) for match in matches if match]
    others = [line for line, match in zip(lines, matches, strict=True) if not match]
    said = f": {others[0][:200]}" if others else ""
    if process.returncode != 0:
        return gpus, f"nvidia-smi ended with status {process.returncode}{said}"
    if others:
        return gpus, f"nvidia-smi did not answer as expected ({GPU_FIELDS}){said}"
    return gpus, None if gpus else "nvidia-smi lists none"


def cuda_driver_version() -> tuple[str | None, str | None]:
    """The newest version of CUDA that the driver serves, such as '13.0'; where there is none, the reason in words."""
    try:
        get_version = ctypes.CDLL(LIBCUDA).cuDriverGetVersion
    except (OSError, AttributeError):
        return None, f"{LIBCUDA} cannot be loaded"
    version = ctypes.c_int()
    status = get_version(ctypes.byref(version))
    if status != 0:
        return None, f"{LIBCUDA} does not say its version: cuDriverGetVersion gave the error {status}"
    return f"{version.value // 1000}.{version.value % 1000 // 10}", None


def _instruction_sets() -> tuple[list[str], list[str]]:
    """Names of the instruction sets that matter, those that the processor has and those that it has not."""
    for field, names in INSTRUCTION_SETS.items():
        flags = (_field(CPUINFO, field) or "").split()
        if flags:
            return (
                [name for flag, name in names.items() if flag in flags],
                [name for flag, name in names.items() if flag not in flags],
            )
    return [], []


def _field(file: Path, field: str) -> str | None:
    """The first value of this field in a file of lines 'field: value'; None where there is none."""
    if file.exists():
        for line in file.read_text(encoding="utf-8", errors="backslashreplace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return None
