"""What all sinks share: what they do, how they tell that a target cannot be written, and exact frame rates."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from styleinv.runtime.errors import StyleInVError
from styleinv.runtime.frames import Frame

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
SMALLEST_RATE = Fraction(1, 1000)


class Sink(Protocol):
    """Takes frames one after the other, all of one size."""

    def write(self, frame: Frame) -> None:
        """Takes the next frame, uint8 [H, W, 3].

        Raises: StyleInVError where it cannot be written; BrokenPipeError where nobody takes frames any more, because a
        pipe's reader left or the window was closed.
        """


@contextmanager
def reported(target: object, *kinds: type[Exception], note: str = "") -> Iterator[None]:
    """Turns what the system or an encoder raises about a target into a StyleInVError that names it."""
    caught: tuple[type[Exception], ...] = (OSError, *kinds)
    try:
        yield
    except BrokenPipeError:  # the reader has seen enough: no error
        raise
    except caught as error:
        reason = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) in FULL_DISK:
            reason = "no space left on its disk"
        raise StyleInVError(f"{target}: cannot be written: {reason}{note}") from error


def check_place(path: Path) -> None:
    """Raises StyleInVError where no file can be written at `path`. Leaves everything as it is."""
    if not path.parent.is_dir():
        raise StyleInVError(f"{path}: found no folder {path.parent}, expected one")
    with reported(path):
        if not path.exists():
            tempfile.TemporaryFile(dir=path.parent).close()
        elif not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def exact_rate(fps: float) -> Fraction:
    """Frames per second as a ratio, such as 30000/1001 for 29.97003."""
    return max(Fraction(fps).limit_denominator(1001), SMALLEST_RATE)
