"""The libraries that compile graphs into engines: TensorRT and TensorRT for RTX, one interface in two modules, and
PyTorch's Inductor."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from styleinv.runtime.errors import EngineError


@dataclass(frozen=True)
class EngineLibrary:
    """Its name for people, its module, what pip installs it with, and whether it builds for GPUs that are not here."""

    title: str
    module: str
    pip: str
    builds_for_others: bool


ENGINE_LIBRARIES = {  # by the name of the session that loads their engines
    "rtx": EngineLibrary("TensorRT for RTX", "tensorrt_rtx", "styleinv[rtx]", True),
    "tensorrt": EngineLibrary("TensorRT", "tensorrt", "styleinv[runtime-gpu]", False),
    "inductor": EngineLibrary("PyTorch", "torch", "styleinv[kernels]", False),
}
OLDEST = 11  # the version of TensorRT from which on networks are strongly typed, as these graphs want it


def import_engine_library(engine: str) -> Any:
    """The module. Raises EngineError where it is not installed, does not load, or is too old."""
    library = ENGINE_LIBRARIES[engine]
    try:
        module = importlib.import_module(library.module)
    except (ImportError, OSError) as error:  # OSError: one of the libraries under it
        raise EngineError(
            f"{library.title} cannot be had ({error}); install it with `pip install '{library.pip}'`"
        ) from error
    if engine == "tensorrt" and int(module.__version__.split(".")[0]) < OLDEST:
        raise EngineError(f"{library.title}: found version {module.__version__}, expected {OLDEST} or newer")
    return module
