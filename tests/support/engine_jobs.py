"""What the tests of engines build: jobs, options, and the graphs that there are."""

from pathlib import Path

from styleinv.export.engine_build import Job
from styleinv.export.engine_options import EngineOptions

GRAPHS = ["content", "frame", "latent", "mapping", "synthesis"]


def rtx(precision: str = "fp32", targets: tuple[str, ...] = ("8.9",), **options) -> EngineOptions:
    return EngineOptions("rtx", precision, targets, **options).resolved()


def job_of(graph: Path, folder: Path, **changes) -> Job:
    fields = {"engine": "rtx", "graph": str(graph), "targets": ("8.9",), "batch": (1, 1, 4), "refittable": False}
    return Job(**{**fields, "out": str(folder / "engine"), "log": str(folder / "log"), **changes})
