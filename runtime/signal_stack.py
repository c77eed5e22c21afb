"""Keeps the stack that this thread's signal handlers run on, where the system is Linux."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """What is called inside may give this thread another stack for signals; behind it, the thread has its own again.

    OpenVINO's CPU plugin gives the thread that loads it one of the smallest size there is. Where the processor has
    large registers, Python's own handler of Ctrl-C does not fit on it, and the process ends with a segmentation fault.
    """
    if sys.platform != "linux":
        yield
        return
    sigaltstack = ctypes.CDLL(None).sigaltstack
    before = _Stack()
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        sigaltstack(ctypes.byref(before), None)
