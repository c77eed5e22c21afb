"""The picture of `styleinv bench`: how long each frame took, one after the other and as a histogram."""

from __future__ import annotations

import io

import numpy as np

from styleinv.export.bench import Result
from styleinv.export.bench_playing import Milliseconds, percentile
from styleinv.runtime.machine import Machine

INCHES, DOTS_PER_INCH = (12.0, 4.8), 100  # 1200 x 480 pixels
BINS = 60
WIDE = 8.0  # the slowest frame over the fastest: from here on times are drawn on logarithmic axes
OURS, EAGER, CACHED = "#0072b2", "#d55e00", "#e69f00"  # told apart by colour-blind eyes, too


def plot(result: Result, machine: Machine) -> bytes:
    """A PNG file of 1200 x 480 pixels: left the latency over the frames, right their histogram."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a screen
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    played = result.played
    series = _series(result)
    slowest = max(float(milliseconds.max()) for milliseconds, _ in series.values())
    fastest = min(float(milliseconds.min()) for milliseconds, _ in series.values())
    wide = slowest > WIDE * fastest > 0.0
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    over_time, histogram = figure.subplots(1, 2, width_ratios=[2, 1])

    batch = result.settings.batch
    for name, (milliseconds, colour) in series.items():
        over_time.plot(batch * np.arange(len(milliseconds)), milliseconds, ".", color=colour, markersize=4, label=name)
    for percent, style in ((50, "-"), (99, "--")):
        value = percentile(played.milliseconds, percent)
        over_time.axhline(value, color=OURS, linestyle=style, linewidth=1, label=f"bundle p{percent} {value:.2f} ms")
    over_time.set(xlabel="timed frame", ylabel="milliseconds per frame", title="latency over time")
    if not wide:
        over_time.set_ylim(0.0)
    over_time.legend(loc="best", fontsize="small")

    edges = (np.geomspace if wide else np.linspace)(fastest, slowest + 1e-6, BINS + 1)
    for name, (milliseconds, colour) in series.items():
        histogram.hist(milliseconds, edges, color=colour, alpha=0.7, label=name)
    counted = "frames" if batch == 1 else f"batches of {batch}"
    histogram.set(xlabel="milliseconds per frame", ylabel=counted, title="histogram")
    if wide:
        over_time.set_yscale("log")
        histogram.set_xscale("log")
        for axis in (over_time.yaxis, histogram.xaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
    if len(series) > 1:
        histogram.legend(loc="best", fontsize="small")

    figure.suptitle(
        f"{result.bundle.path.name}: {played.session}, {machine.processor} with {machine.logical_cores} cores"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _series(result: Result) -> dict[str, tuple[Milliseconds, str]]:
    """What is drawn, by its name in the legend, and its colour."""
    series = {"bundle": (result.played.milliseconds, OURS)}
    if result.baseline is not None:
        series["PyTorch eager"] = result.baseline.eager, EAGER
        if result.baseline.cached is not None:
            series["PyTorch eager, once-per-clip part kept"] = result.baseline.cached, CACHED
    return series
