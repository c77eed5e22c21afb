"""What the machine says of itself: instruction sets, NVIDIA GPUs, and a driver that is missing, broken or hangs."""

import os
import re
import types

import pytest

from styleinv.runtime import machine
from styleinv.runtime.machine import Gpu, cuda_driver_version, describe_machine, nvidia_gpus

H100 = "NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15, 9.0"
SPARK = "NVIDIA GB10, [N/A], 580.95.05, 12.1"  # shares the processor's memory
ANSWERS = 60.0  # seconds: never reached, however busy the machine is


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path):
    """Puts a program of that name, with the given lines of shell, on the path."""

    def install(*lines):
        program = tmp_path / "nvidia-smi"
        program.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return install


def test_one_gpu(nvidia_smi):
    nvidia_smi(f"echo '{H100}'")
    assert nvidia_gpus(ANSWERS) == ([Gpu("NVIDIA H100 80GB HBM3", "81559 MiB", "550.54.15", "9.0")], None)


def test_two_gpus_are_asked_for_what_is_told(nvidia_smi):
    nvidia_smi(
        'test "$1 $2" = "--query-gpu=name,memory.total,driver_version,compute_cap --format=csv,noheader" || exit 1',
        f"echo '{H100}'",
        f"echo '{SPARK}'",
    )
    gpus, complaint = nvidia_gpus(ANSWERS)
    assert [(gpu.name, gpu.memory, gpu.compute_capability) for gpu in gpus] == [
        ("NVIDIA H100 80GB HBM3", "81559 MiB", "9.0"),
        ("NVIDIA GB10", "[N/A]", "12.1"),
    ]
    assert complaint is None


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([r"printf '\377\000?, 1\n'"], r"nvidia-smi did not answer as expected \(name,.*compute_cap\): \\xff"),
        (["echo 'a, b, c, d'"], r"nvidia-smi did not answer as expected .*: a, b, c, d"),
        (["echo 'No devices were found'; exit 6"], "nvidia-smi ended with status 6: No devices were found"),
        (["echo 'Failed to initialize NVML' >&2; exit 18"], "nvidia-smi ended with status 18: Failed to initialize"),
        (["exit 9"], "nvidia-smi ended with status 9$"),
        (["exit 0"], "nvidia-smi lists none"),
    ],
)
def test_answers_that_tell_of_no_gpu(nvidia_smi, lines, complaint):
    nvidia_smi(*lines)
    gpus, found = nvidia_gpus(ANSWERS)
    assert gpus == []
    assert re.match(complaint, found), found


def test_a_gpu_that_is_lost_beside_one_that_is_well(nvidia_smi):
    lost = "Unable to determine the device handle for GPU0000:3B:00.0: Unknown Error"
    nvidia_smi(f"echo '{H100}'", f"echo '{lost}'", "exit 255")
    gpus, complaint = nvidia_gpus(ANSWERS)
    assert [gpu.name for gpu in gpus] == ["NVIDIA H100 80GB HBM3"]
    assert complaint == f"nvidia-smi ended with status 255: {lost}"


def test_a_driver_that_hangs_is_given_up(nvidia_smi):
    nvidia_smi("exec /bin/sleep 200")
    assert nvidia_gpus(0.2) == ([], "nvidia-smi did not answer within 0.2 seconds")


def test_a_program_that_cannot_be_run(nvidia_smi, tmp_path):
    nvidia_smi()
    (tmp_path / "nvidia-smi").write_text("#!/nowhere/sh\n")
    assert nvidia_gpus(ANSWERS) == ([], "nvidia-smi cannot be run: No such file or directory")


def test_nothing_from_nvidia(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "LIBCUDA", "libcuda-of-nobody.so.1")
    assert nvidia_gpus() == ([], "nvidia-smi is not installed")
    assert cuda_driver_version() == (None, "libcuda-of-nobody.so.1 cannot be loaded")


@pytest.mark.parametrize(
    ("number", "status", "answer"),
    [
        (13000, 0, ("13.0", None)),
        (12080, 0, ("12.8", None)),
        (0, 3, (None, "libcuda.so.1 does not say its version: cuDriverGetVersion gave the error 3")),
    ],
)
def test_the_drivers_version_of_cuda(monkeypatch, number, status, answer):
    def get_version(pointer):
        pointer._obj.value = number
        return status

    library = types.SimpleNamespace(cuDriverGetVersion=get_version)
    monkeypatch.setattr(machine.ctypes, "CDLL", {"libcuda.so.1": library}.__getitem__)
    assert cuda_driver_version() == answer


@pytest.mark.parametrize(
    ("cpuinfo", "present", "missing"),
    [
        ("flags\t\t: fpu avx2 avx512f\nmodel name\t: Old", "AVX2, AVX-512", "AVX-512 VNNI, AVX-512 BF16, AMX BF16"),
        ("Features\t: fp asimd\n", "NEON", "BF16"),
        ("isa\t: rv64imafdc\n", "", ""),
        (None, "", ""),
    ],
)
def test_instruction_sets(monkeypatch, tmp_path, cpuinfo, present, missing):
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    found = describe_machine()
    assert (found.instruction_sets, found.missing_instruction_sets) == (present, missing)
    assert found.processor


def test_memory(monkeypatch, tmp_path):
    found = describe_machine()
    assert found.available_memory_gib is None or 0 < found.available_memory_gib <= found.memory_gib
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(machine, "MEMINFO", meminfo)
    assert describe_machine().available_memory_gib is None
    meminfo.write_text("MemTotal:       24683776 kB\nMemAvailable:    3145728 kB\n")
    assert describe_machine().available_memory_gib == 3.0
