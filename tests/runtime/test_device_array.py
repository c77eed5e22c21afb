"""Frames on a GPU, handed over without a copy. What the protocols hold is tested on the CPU, where NumPy reads it."""

import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest

from styleinv.runtime import Bundle, EngineError, Rollout, Sessions, device_array
from styleinv.runtime.device_array import CPU, CUDA, DeviceArray


class Memory:
    """What owns an array's memory, and can be watched as it goes."""

    def __init__(self, array):
        self.array = array


def wrapped(array, device=CPU, number=0):
    """The array as a DeviceArray, and a weak reference to the owner of its memory."""
    memory = Memory(array)
    return DeviceArray(array.ctypes.data, array.shape, str(array.dtype), memory, device, number), weakref.ref(memory)


def levels(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


@pytest.fixture(params=["numpy", "torch"])
def from_dlpack(request):
    return pytest.importorskip(request.param).from_dlpack


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Whatever a test did, what it handed out is let go of when it ends."""
    yield
    gc.collect()
    assert not device_array._handed_out


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(16, 16, 3), (5,), (1, 2, 3, 5), ()])
def test_arrays_are_handed_over_without_a_copy(from_dlpack, shape, dtype):
    array = levels(*shape, dtype=dtype)
    found = from_dlpack(wrapped(array)[0])
    assert tuple(found.shape) == shape and str(found.dtype).removeprefix("torch.") == dtype
    np.testing.assert_array_equal(np.asarray(found), array)
    array += 1  # seen by both: it is one memory
    np.testing.assert_array_equal(np.asarray(found), array)


def test_the_memory_is_kept_as_long_as_somebody_reads_it(from_dlpack):
    array, memory = wrapped(levels(4, 5))
    expected = memory().array.copy()
    first, second = from_dlpack(array), from_dlpack(array)
    del array
    gc.collect()
    row = first[1:]
    del first
    gc.collect()
    assert memory() is not None
    np.testing.assert_array_equal(np.asarray(row), expected[1:])
    del row
    gc.collect()
    assert memory() is not None  # the second still reads
    np.testing.assert_array_equal(np.asarray(second), expected)
    del second
    gc.collect()
    assert memory() is None


def test_capsules_that_nobody_takes_are_let_go_of():
    array, memory = wrapped(levels(3))
    capsules = [array.__dlpack__(stream=1, max_version=(1, 0)) for _ in range(3)]
    del array
    gc.collect()
    assert memory() is not None and len(device_array._handed_out) == 3
    del capsules
    gc.collect()
    assert memory() is None and not device_array._handed_out


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_library_that_refuses_the_array_keeps_nothing():
    """NumPy reads no GPU's memory; it drops the capsule with its error set, when nothing written in Python may fail."""
    array, memory = wrapped(levels(3), CUDA)
    for _ in range(3):
        with pytest.raises((RuntimeError, BufferError, SystemError)):
            np.from_dlpack(array)
    del array
    gc.collect()
    assert memory() is None


def test_copies_and_other_devices_are_refused():
    on_cpu, on_gpu = wrapped(levels(3))[0], wrapped(levels(3), CUDA, 1)[0]
    for array, arguments in [
        (on_cpu, {"copy": True}),
        (on_cpu, {"dl_device": (CUDA, 0)}),
        (on_gpu, {"dl_device": (CPU, 0)}),
        (on_gpu, {"dl_device": (CUDA, 0)}),
    ]:
        with pytest.raises(BufferError, match=r"__dlpack__: found .*, expected no copy, on device"):
            array.__dlpack__(**arguments)
    on_cpu.__dlpack__(copy=False, dl_device=(CPU, 0))
    on_gpu.__dlpack__(dl_device=(CUDA, 1), stream=-1)


def test_the_cuda_array_interface():
    array, _ = wrapped(levels(2, 16, 16, 3), CUDA, 1)
    assert array.__cuda_array_interface__ == {
        "shape": (2, 16, 16, 3),
        "typestr": "|u1",
        "data": (array.pointer, False),
        "strides": None,
        "version": 3,
    }
    assert wrapped(levels(2, dtype=np.float32), CUDA)[0].__cuda_array_interface__["typestr"] == "<f4"
    assert array.__dlpack_device__() == (2, 1)


def test_an_array_on_the_cpu_has_no_cuda_array_interface():
    array, _ = wrapped(levels(3))
    assert not hasattr(array, "__cuda_array_interface__") and hasattr(array, "__dlpack__")
    with pytest.raises(AttributeError, match="found an array that is not on a GPU"):
        array.__cuda_array_interface__  # noqa: B018
    assert array.__dlpack_device__() == (1, 0)


def test_arrays_that_are_alive_at_the_end_of_the_process():
    program = """
import numpy as np
from styleinv.runtime.device_array import CPU, DeviceArray
pixels = np.arange(6, dtype=np.uint8)
array = DeviceArray(pixels.ctypes.data, (6,), "uint8", pixels, CPU)
reader, capsule = np.from_dlpack(array), array.__dlpack__()
circle = [np.from_dlpack(array)]
circle.append(circle)
"""
    run = subprocess.run([sys.executable, "-X", "dev", "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


class OnDevice:
    """A session as one on a GPU: `run_on_device` leaves its outputs where they are, here in the CPU's memory."""

    def __init__(self, session):
        self.session, self.memories = session, []

    def __getattr__(self, name):
        return getattr(self.session, name)

    def run_on_device(self, inputs, outputs):
        found = {name: wrapped(array) for name, array in self.session.run(inputs, outputs).items()}
        self.memories += [memory for _, memory in found.values()]
        return {name: array for name, (array, _) in found.items()}


class DeviceSessions(Sessions):
    def load(self, graph, transfer):
        session = super().load(graph, transfer)
        return OnDevice(session) if graph == "synthesis" else session


def test_a_frame_on_a_device(styled, from_dlpack):
    with DeviceSessions(Bundle.open(styled.path), threads=1) as sessions:
        for rollout in (Rollout(sessions, 3), Rollout(sessions, 3, transfer="ink").loop(2)):
            for t in (0, 7.5, np.int64(100)):
                frame = rollout.frame(t, device="cuda")
                assert frame.shape == (16, 16, 3) and frame.dtype == "uint8"
                np.testing.assert_array_equal(np.asarray(from_dlpack(frame)), rollout[t])
        kept = [from_dlpack(rollout.frame(t, device="cuda")) for t in range(4)]
        for t, frame in enumerate(kept):
            np.testing.assert_array_equal(np.asarray(frame), rollout[t])
        with pytest.raises(ValueError, match="frame index: found -1"):
            rollout.frame(-1, device="cuda")
        memories = [memory for transfer in (None, "ink") for memory in sessions.session("synthesis", transfer).memories]
    del frame, kept
    gc.collect()
    assert len(memories) == 10 and not any(memory() for memory in memories)


def test_a_frame_on_a_device_that_is_not_there(tiny):
    out = np.zeros((16, 16, 3), np.uint8)
    with Rollout.open(tiny.path, threads=1) as rollout:
        with pytest.raises(EngineError, match=r"synthesis.onnx: found \w+ .*CPU.*, expected a session on a GPU"):
            rollout.frame(0, device="cuda")
        for device in ("gpu", "cuda:0", "CPU", None):
            with pytest.raises(ValueError, match=f"device: found {device!r}, expected cpu, or cuda alone"):
                rollout.frame(0, device=device)
        with pytest.raises(ValueError, match="device: found 'cuda' and out, expected cpu, or cuda alone"):
            rollout.frame(0, out=out, device="cuda")
        assert rollout.frame(0, out=out, device="cpu") is out


@pytest.mark.gpu
def test_arrays_on_a_gpu():
    """Both protocols read a CUDA tensor's own memory, in PyTorch and, where it is installed, in CuPy."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    tensor = torch.arange(4 * 5 * 3, dtype=torch.uint8, device="cuda").reshape(4, 5, 3)
    expected = tensor.cpu()
    owner = weakref.ref(tensor)
    array = DeviceArray(tensor.data_ptr(), (4, 5, 3), "uint8", tensor, CUDA, tensor.device.index)
    for found in (torch.from_dlpack(array), torch.as_tensor(array, device="cuda")):
        assert found.data_ptr() == tensor.data_ptr() and found.dtype == torch.uint8
        assert found.device == tensor.device and torch.equal(found.cpu(), expected)
    found = torch.from_dlpack(array)
    del tensor, array
    gc.collect()
    assert owner() is not None and torch.equal(found.cpu(), expected)
    del found
    gc.collect()
    assert owner() is None


@pytest.mark.gpu
def test_arrays_on_a_gpu_in_cupy():
    torch, cupy = pytest.importorskip("torch"), pytest.importorskip("cupy")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    tensor = torch.arange(30, dtype=torch.uint8, device="cuda").reshape(2, 5, 3)
    array = DeviceArray(tensor.data_ptr(), (2, 5, 3), "uint8", tensor, CUDA, tensor.device.index)
    for found in (cupy.from_dlpack(array), cupy.asarray(array)):
        assert found.data.ptr == tensor.data_ptr()
        np.testing.assert_array_equal(found.get(), tensor.cpu().numpy())
