"""An array on a GPU, handed to whichever library the caller uses, without a copy and without importing any.

It speaks the two protocols by which such libraries exchange arrays: `__cuda_array_interface__` (version 3: Numba, CuPy,
PyCUDA, PyTorch) and `__dlpack__` (the array API standard: CuPy, JAX, NumPy, PyTorch). What fills the array is done by
the time it is handed out, so no stream has to be waited for.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

CPU, CUDA = 1, 2  # DLPack's numbers of devices


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """A C-contiguous array.

    Args:
        pointer: address of its first element.
        dtype: numpy's name of its elements' type.
        owner: what keeps the memory; held as long as this object, or an array that was made of it, lives.
        device: `CUDA`; `CPU` is for tests.
        number: which GPU.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    owner: object
    device: int = CUDA
    number: int = 0

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.device != CUDA:
            raise AttributeError("__cuda_array_interface__: found an array that is not on a GPU")
        return {
            "shape": self.shape,
            "typestr": np.dtype(self.dtype).str,
            "data": (self.pointer, False),  # not read-only
            "strides": None,  # C-contiguous
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, self.number

    def __dlpack__(
        self, *, stream: Any = None, dl_device: tuple[int, int] | None = None, copy: bool | None = None, **_: Any
    ) -> Any:
        """A capsule for `from_dlpack` of any library; the array is finished, whichever `stream` asks for it.

        Raises: BufferError where a copy, or an array on another device, is asked for.
        """
        here = self.__dlpack_device__()
        if copy or dl_device not in (None, here):
            raise BufferError(f"__dlpack__: found copy {copy}, device {dl_device}, expected no copy, on device {here}")
        return _capsule(self)


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),  # null: C-contiguous
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    pass


_Deleter: Any = ctypes.CFUNCTYPE(None, ctypes.POINTER(_ManagedTensor))
_Destructor: Any = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_ManagedTensor._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))

_TYPE_CODES = {"i": 0, "u": 1, "f": 2}  # DLPack's, by numpy's kind of dtype
_UNUSED = b"dltensor"  # a consumer renames the capsule when it takes over

# What a capsule points to, by its address: a foreign library holds addresses only, so it is kept alive here.
_handed_out: dict[int, tuple[_ManagedTensor, object]] = {}


def _capsule(array: DeviceArray) -> Any:
    dtype = np.dtype(array.dtype)
    shape = (ctypes.c_int64 * len(array.shape))(*array.shape)
    managed = _ManagedTensor()
    managed.tensor = _Tensor(
        data=array.pointer,
        device_type=array.device,
        device_id=array.number,
        ndim=len(array.shape),
        dtype=_DataType(_TYPE_CODES[dtype.kind], dtype.itemsize * 8, 1),
        shape=ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64)),
    )
    managed.deleter = _deleter
    address = ctypes.addressof(managed)
    _handed_out[address] = managed, (shape, array.owner)
    return _new_capsule(address, _UNUSED, _destructor)


def _let_go(managed: Any) -> None:
    """Called by the library that took the array over, when it no longer needs it."""
    _handed_out.pop(ctypes.addressof(managed.contents), None)


def _let_go_unused(capsule: int) -> None:
    """Called when the capsule itself goes; where no library took it over, the array goes with it.

    One that refuses the array, as NumPy does a GPU's, may drop the capsule with its error set, on which the first call
    from here fails; the second does not. Python can but print that error.
    """
    try:
        _forget_unused(capsule)
    except ctypes.ArgumentError:
        _forget_unused(capsule)
        raise


def _forget_unused(capsule: int) -> None:
    if _is_valid(capsule, _UNUSED):
        _handed_out.pop(_pointer_in(capsule, _UNUSED), None)


_deleter, _destructor = _Deleter(_let_go), _Destructor(_let_go_unused)
_new_capsule: Any = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, _Destructor)
_is_valid: Any = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p)
_pointer_in: Any = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_in.restype, _pointer_in.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)
