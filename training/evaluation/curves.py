"""The curves of a training run, from the TensorBoard logs that `styleinv train` leaves in its output folder."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from styleinv.runtime.errors import DataError

Curves = dict[str, dict[str, list[tuple[float, float]]]]  # stage -> name -> (images seen, value)


def read_curves(run: Path) -> Curves:
    """All scalars of the logs below a folder; a stage is named by the folder that holds its logs.

    Raises: DataError where there are none, or they cannot be read.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    folders = sorted({path.parent for path in run.rglob("events.out.tfevents.*")})
    if not folders:
        raise DataError(f"{run}: found no TensorBoard logs, expected the output folder of `styleinv train`")
    curves: Curves = {}
    for folder in folders:
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1})
        try:
            events.Reload()
        except Exception as error:  # whatever the damaged part of the file makes the reader raise
            raise DataError(f"{folder}: not readable TensorBoard logs: {error}") from error
        named = {
            name: [(float(point.step), float(point.value)) for point in events.Scalars(name)]
            for name in sorted(events.Tags()["scalars"])
        }
        if named:
            stage = folder.name if folder != run else run.resolve().name
            curves.setdefault(stage, {}).update(named)
    return curves


def as_csv(curves: Curves) -> bytes:
    """The same as lines of stage, name, images, value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["stage", "name", "images", "value"])
    writer.writerows(
        [stage, name, f"{images:.0f}", f"{value:.6g}"]
        for stage, named in curves.items()
        for name, points in named.items()
        for images, value in points
    )
    return text.getvalue().encode()
