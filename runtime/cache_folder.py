"""The folder in which this user's compiled files are kept between runs: native code, so nobody else may write there."""

from __future__ import annotations

import os
from pathlib import Path

from styleinv.runtime.errors import EngineError

CACHE_VARIABLE = "STYLEINV_CACHE"


def cache_folder(name: str) -> Path:
    """The folder of this name in the cache, made where it is not there: in $STYLEINV_CACHE, or else in styleinv of
    $XDG_CACHE_HOME or ~/.cache. Its mode is 0700.

    Raises: EngineError where it cannot be made, or others may write to it.
    """
    named = os.environ.get(CACHE_VARIABLE)
    general = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "styleinv"
    folder = (Path(named) if named else general) / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise EngineError(
            f"{folder}: found {error.strerror}, expected a folder to keep engines in; {CACHE_VARIABLE} names another"
        ) from error
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise EngineError(
            f"{folder}: found a folder of user {status.st_uid} with mode {status.st_mode & 0o777:o}, expected one that "
            f"user {os.getuid()} alone can write to: what lies there is loaded as native code"
        )
    return folder
