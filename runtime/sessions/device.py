"""What a session needs of a GPU: memory, streams, events and graphs, behind one small interface.

`cuda.CudaDevice` is the one there is; everything above it is tested on one that keeps its memory in numpy.
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Memory:
    """Memory of the device, from `address` on; `owner` is what the library that allocated it knows it by."""

    address: int
    size: int  # in bytes
    owner: Any


@dataclass(frozen=True, eq=False)
class Stream:
    """A queue of work, which the device does in order; `handle` is CUDA's number of it."""

    handle: int
    owner: Any


class Device(Protocol):
    """One GPU. All methods are called within `current()`, from any thread, and raise EngineError where CUDA fails.

    Copies, waits and launches only stand in their stream's queue when the methods return.
    """

    @property
    def name(self) -> str:
        """For people: 'NVIDIA GeForce RTX 4090'."""

    @property
    def number(self) -> int:
        """CUDA's number of this GPU."""

    @property
    def compute_capability(self) -> str:
        """Such as '8.9'."""

    def current(self) -> AbstractContextManager[None]:
        """Makes the device's context the calling thread's, and at the end the one before it."""

    def allocate(self, size: int) -> Memory:
        """Device memory of so many bytes."""

    def pinned(self, shape: tuple[int, ...], dtype: str) -> Array:
        """An array in page-locked memory of the host, from and to which the device copies by itself."""

    def free(self, memory: Memory | Array) -> None:
        """Gives back device memory, or an array of `pinned`; nothing in a queue may use it any more."""

    def stream(self) -> Stream:
        """A stream that waits for no other one."""

    def event(self) -> Any:
        """A mark that can be set in streams."""

    def copy_in(self, memory: Memory, array: Array, stream: Stream) -> None:
        """Copies a pinned array to the device."""

    def copy_out(self, array: Array, memory: Memory, stream: Stream) -> None:
        """Copies from the device into a pinned array."""

    def copy_across(self, destination: Memory, source: Memory, stream: Stream) -> None:
        """Copies the whole of `source` within the device."""

    def record(self, event: Any, stream: Stream) -> None:
        """Sets the event: it is over when the work that stands in the queue now is done."""

    def wait(self, stream: Stream, event: Any) -> None:
        """What comes after this in the queue waits for the event, as it is set now."""

    def synchronize(self, event: Any) -> None:
        """The calling thread waits for the event. Other Python threads run meanwhile."""

    def begin_capture(self, stream: Stream) -> None:
        """From now on work for the stream is not done but kept."""

    def end_capture(self, stream: Stream) -> Any:
        """What was kept, as a graph that can be launched; None where something in it cannot be kept."""

    def launch(self, graph: Any, stream: Stream) -> None:
        """Does all the work of a graph, in one call."""

    def free_graph(self, graph: Any) -> None:
        """Lets go of a graph."""


class Kept:
    """Holds device memory for whoever has this object, and frees it with the object, in whichever thread that is."""

    def __init__(self, device: Device, memory: Memory) -> None:
        # At the end of the process the driver frees everything; by then nothing here can be relied on.
        weakref.finalize(self, _free, device, memory).atexit = False


def _free(device: Device, memory: Memory) -> None:
    with device.current():
        device.free(memory)
