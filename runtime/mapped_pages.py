"""Lets go of memory-mapped pages that will not be read again, where the system is Linux."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

MAPS = Path("/proc/self/maps")
MADV_DONTNEED = 4


def release_mapped_pages(folder: Path) -> None:
    """Tells the system that this process does not need its mapped pages of the files in `folder`.

    They stay mapped: whoever reads them after all gets them from the file again. Only mappings that cannot be written
    are touched, which hold nothing but the file. Elsewhere than on Linux, nothing happens.
    """
    if sys.platform != "linux" or not MAPS.exists():
        return
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    inside = f"{folder.resolve()}/"
    for line in MAPS.read_text(errors="replace").splitlines():
        span, permissions, _, _, _, *path = line.split(maxsplit=5)  # the path may hold spaces
        if path and path[0].startswith(inside) and "w" not in permissions:
            begin, end = (int(address, 16) for address in span.split("-"))
            madvise(begin, end - begin, MADV_DONTNEED)
