"""PyAV, which reads pictures and writes videos, imported when it is needed, with a clear word where it is missing."""

from __future__ import annotations

from typing import Any

from styleinv.runtime.errors import StyleInVError


def import_av(purpose: str, otherwise: str = "") -> Any:
    """The module. Raises StyleInVError where it is missing, saying how to get it (and, `otherwise`, what else to do);
    `purpose` is what needs it, in the plural."""
    try:
        import av
    except ImportError as error:
        raise StyleInVError(
            f"{purpose} need PyAV ({error}); install it with `pip install 'styleinv[runtime-cpu]'`{otherwise}"
        ) from error
    return av
