"""Frames in shared memory: one process writes them into a ring of slots, others read them in place.

    header   published | open | slots | height | width
    slot 0   number | t | frame [H, W, 3]
    slot 1   ...

Frame number n goes into slot n % slots. While a slot is being written its number is -1, and `published` is raised when
that is done. A reader looks at the number before and after it uses the frame: where it is the same, nobody wrote in
between. So neither side ever waits for the other, and what was computed from a torn frame is never used. That
holds where the processor keeps the order of stores, as x86 does; ARM may need a lock.
"""

import contextlib
import sys
import time
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory

import numpy as np

HEADER = np.dtype([(name, np.int64) for name in ("published", "open", "slots", "height", "width")])


def slot_layout(height, width):
    return np.dtype([("number", np.int64), ("t", np.float64), ("frame", np.uint8, (height, width, 3))], align=True)


class RingWriter:
    """Makes the ring; its `name` is what readers ask for. Only one may write. `close` removes it."""

    def __init__(self, height, width, slots=8, name=None):
        layout = slot_layout(height, width)
        self._memory = SharedMemory(name, create=True, size=HEADER.itemsize + slots * layout.itemsize)
        self.name = self._memory.name
        self._header = np.frombuffer(self._memory.buf, HEADER, count=1)
        self._slots = np.frombuffer(self._memory.buf, layout, count=slots, offset=HEADER.itemsize)
        self._slots["number"] = -1
        self._header[0] = (0, 1, slots, height, width)

    def write(self, frame, t):
        """Publishes a frame, uint8 [H, W, 3], over the oldest one."""
        number = int(self._header["published"][0])
        slot = self._slots[number % len(self._slots)]
        slot["number"] = -1
        slot["frame"][...] = frame
        slot["t"] = t
        slot["number"] = number
        self._header["published"] = number + 1

    def close(self):
        """Tells the readers, and removes the memory's name; its bytes live until the last reader lets go of them."""
        self._header["open"] = 0
        del self._header, self._slots  # memory that arrays look into cannot be closed
        self._memory.close()
        self._memory.unlink()


class RingReader:
    """Reads the ring of this name. Raises FileNotFoundError where there is none."""

    def __init__(self, name):
        self._memory = attach(name)
        self._header = np.frombuffer(self._memory.buf, HEADER, count=1)
        _, _, slots, height, width = self._header[0].tolist()
        self._slots = np.frombuffer(self._memory.buf, slot_layout(height, width), count=slots, offset=HEADER.itemsize)
        self._slots.flags.writeable = False
        self._next = 0  # the number of the first frame that was not read yet

    def read(self, use, timeout=5.0):
        """Waits for a frame newer than the last one, and returns use(frame, t) for the newest there is.

        `use` gets the frame itself, not a copy: it must not keep it. It is called again, with a newer frame, where it
        took so long that the writer came round. None where the writer has closed the ring.
        Raises: TimeoutError where no frame came within `timeout` seconds; the writer may have been killed.
        """
        deadline = time.monotonic() + timeout
        while self._header["open"][0]:
            number = int(self._header["published"][0]) - 1
            if number >= self._next:
                slot = self._slots[number % len(self._slots)]
                if slot["number"] == number:
                    result = use(slot["frame"], float(slot["t"]))
                    if slot["number"] == number:
                        self._next = number + 1
                        return result
            if time.monotonic() > deadline:
                raise TimeoutError(f"found no new frame within {timeout} seconds")
            time.sleep(0.001)
        return None

    def close(self):
        """Lets go of the memory, which stays for the others."""
        del self._header, self._slots
        with contextlib.suppress(BufferError):  # somebody kept a frame: then the memory goes when that does
            self._memory.close()


def attach(name):
    """Shared memory that another process made and will remove.

    Python before 3.13 notes it as this process's own, and would remove it, with a warning, when this process ends, so
    it is kept from noting it.
    """
    if sys.version_info >= (3, 13):
        return SharedMemory(name, track=False)
    register = resource_tracker.register
    resource_tracker.register = lambda *_: None
    try:
        return SharedMemory(name)
    finally:
        resource_tracker.register = register
