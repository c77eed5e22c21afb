"""What engines to build: with which library, in which precision, for which hardware and batches."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from styleinv.export.arithmetic import DTYPES
from styleinv.export.engine_build import supported_capabilities
from styleinv.export.inductor import target_here
from styleinv.runtime.engine_library import ENGINE_LIBRARIES, import_engine_library
from styleinv.runtime.errors import EngineError
from styleinv.runtime.machine import nvidia_gpus

DEFAULT_TARGETS = ("8.6", "8.9", "12.0")  # GeForce RTX 30, 40 and 50: more of them in an engine cost next to nothing
DEFAULT_BATCH = (1, 1, 4)


@dataclass(frozen=True)
class EngineOptions:
    """What to build from a bundle's graphs in a precision.

    Args:
        engine: rtx, tensorrt or inductor.
        targets: compute capabilities; none is `DEFAULT_TARGETS` for rtx, the GPU at hand for tensorrt, and for inductor
            the GPU or else the CPU at hand.
        batch: the least batch, the one to be fastest at, and the largest.
        refittable: weights can be exchanged, so that one engine draws in all styles of the same shape.
        plugins: synthesis is our fused kernels, as plugins of TensorRT.
    """

    engine: str
    precision: str
    targets: tuple[str, ...] = ()
    batch: tuple[int, int, int] = DEFAULT_BATCH
    refittable: bool = False
    plugins: bool = False

    def resolved(self) -> EngineOptions:
        """The same with its targets named. Raises EngineError where it cannot be built on this machine."""
        if self.plugins and (self.engine != "tensorrt" or self.precision not in DTYPES):
            raise EngineError(
                f"--plugins: found --engine {self.engine} in {self.precision}, expected tensorrt in one of "
                f"{', '.join(DTYPES)}: TensorRT for RTX has no plugins, and Inductor has the kernels without"
            )
        if self.plugins and self.refittable:
            raise EngineError("--refit: found --plugins, expected one of the two: a plugin's weights are its inputs")
        if self.engine == "inductor":
            return self._resolved_for_inductor()
        library = ENGINE_LIBRARIES[self.engine]
        title, version = library.title, import_engine_library(self.engine).__version__
        gpus, complaint = nvidia_gpus()
        if self.refittable and not gpus:
            raise EngineError(
                f"--refit: found no GPU ({complaint}), expected one: {title} compiles engines that can be refitted "
                "with the GPU's driver; without --refit each transfer gets an engine of its own"
            )
        if not library.builds_for_others:
            if not gpus:
                raise EngineError(
                    f"--engine {self.engine}: found no GPU ({complaint}), expected the one that is to play: {title} "
                    "builds for the GPU at hand; --engine rtx builds without one"
                )
            here = gpus[0].compute_capability
            if self.targets not in ((), (here,)):
                raise EngineError(
                    f"--compute-capability: found {' '.join(self.targets)}, expected {here}, as {title} builds for the "
                    "GPU at hand"
                )
            return dataclasses.replace(self, targets=(here,))
        capabilities = supported_capabilities(self.engine)
        targets = tuple(dict.fromkeys(self.targets or DEFAULT_TARGETS))
        unknown = [target for target in targets if target not in capabilities]
        if unknown:
            raise EngineError(
                f"--compute-capability: found {' '.join(unknown)}, expected some of {' '.join(capabilities)}, which "
                f"{title} {version} builds for"
            )
        return dataclasses.replace(self, targets=targets)

    def _resolved_for_inductor(self) -> EngineOptions:
        target = target_here(self.precision)
        if self.refittable:
            raise EngineError("--refit: found --engine inductor, expected one of TensorRT's: its weights are its code")
        if self.targets not in ((), (target,)):
            raise EngineError(
                f"--compute-capability: found {' '.join(self.targets)}, expected {target}, as Inductor compiles for "
                "the machine at hand"
            )
        return dataclasses.replace(self, targets=(target,))
