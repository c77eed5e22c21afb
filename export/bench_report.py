"""What `styleinv bench` tells: a table for people, JSON for machines."""

from __future__ import annotations

import json
import math
from typing import Any

from styleinv.export.bench import Result, macs_per_frame
from styleinv.export.bench_csv import as_row
from styleinv.export.bench_playing import jitter, percentile
from styleinv.runtime.machine import Machine

PERCENTILES = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
PARTS = {"host": "host (time code, copies)"}
Rows = list[tuple[str, str]]


def as_table(result: Result, machine: Machine) -> str:
    """The closing table: a line for each quantity, and at the end how it was counted."""
    settings, played = result.settings, result.played
    rows = [
        *_what_rows(result, machine),
        *_time_rows(result),
        *_peak_rows(result),
        *_baseline_rows(result),
    ]
    width = max(len(name) for name, _ in rows)
    counts = (
        f"{played.frames} frames timed after {played.warmup} of warm-up, batch {settings.batch}, seed {settings.seed}"
    )
    if played.latent_stride > 1:
        counts += f", the encoder every {played.latent_stride} frames"
    if settings.batch > 1:
        counts += f"; a frame's time is its batch's divided by {settings.batch}"
    return "\n".join([*(f"{name:{width}}  {text}" for name, text in rows), counts])


def _what_rows(result: Result, machine: Machine) -> Rows:
    resolution, threads = result.bundle.generator["resolution"], result.settings.threads
    provenance = result.bundle.manifest["provenance"]
    origin = ", ".join(f"{name} {provenance[name]}" for name in ("preset", "checkpoint") if name in provenance)
    cores = f"{machine.logical_cores} cores, {machine.memory_gib} GiB"
    return [
        ("bundle", f"{result.bundle.path}: {resolution}x{resolution}, {origin}"),
        ("session", f"{result.played.session}, threads: {threads or 'as many as it finds best'}"),
        ("machine", ", ".join(filter(None, [machine.processor, cores, machine.instruction_sets, machine.system]))),
        ("load before", f"{machine.load_average:.2f} (0 is an idle machine)"),
    ]


def _time_rows(result: Result) -> Rows:
    played, start = result.played, result.start
    times = [f"{name} {percentile(played.milliseconds, percent):.2f}" for name, percent in PERCENTILES.items()]
    shares = played.shares()
    hashes = "hashes verified" if result.settings.verify_hashes else "hashes not verified"
    starts = f"median of {len(start.seconds)} processes, warm file cache, {hashes}"
    return [
        ("time per frame", f"{', '.join(times)} ms"),
        ("frames per second", f"{played.frames_per_second:.2f}"),
        ("jitter", f"{jitter(played.milliseconds):.2f} ms, the mean difference of neighbouring frames"),
        *(
            (f"in {PARTS.get(name, name)}", f"{part:.2f} ms, {shares[name]:.1%}")
            for name, part in played.parts().items()
        ),
        ("cold start to first frame", f"{start.median_seconds:.2f} s, {starts}"),
        ("peak memory", f"{start.peak_memory_mib:.0f} MiB, of a process that played {start.memory_frames} frames"),
    ]


def _peak_rows(result: Result) -> Rows:
    macs, best = macs_per_frame(result.bundle.manifest, result.played.latent_stride), result.convolutions
    if isinstance(best, str):
        measured = f"not measured: {best}"
    else:
        measured = f"{best.gmac_per_s:.0f} GMAC/s measured here, {best.by}"
    if macs is None:
        done = "not known: the bundle does not count its multiplications; export it again"
    else:
        done = f"{macs / 1e9:.3g} GMAC per frame, {result.gmac_per_s:.1f} GMAC/s"
    share = "not known" if result.share_of_peak is None else f"{result.share_of_peak:.1%}"
    return [("arithmetic", done), ("fastest convolutions", measured), ("share of that peak", share)]


def _baseline_rows(result: Result) -> Rows:
    baseline = result.baseline
    if baseline is None:
        return []
    ours, eager = percentile(baseline.ours, 50), percentile(baseline.eager, 50)
    rows = [
        ("PyTorch eager", f"p50 {eager:.2f} ms, torch {baseline.torch}, threads: {baseline.threads}"),
        ("bundle, in turns with it", f"p50 {ours:.2f} ms, {baseline.frames} frames of each"),
        ("speedup_vs_eager", f"{baseline.speedup_vs_eager:.2f}"),
    ]
    if baseline.cached is not None:
        cached = f"eager p50 {percentile(baseline.cached, 50):.2f} ms with its once-per-clip part computed once"
        rows.append(("speedup_vs_eager_cached", f"{baseline.speedup_vs_eager_cached:.2f}, {cached}"))
    psnr = "identical" if math.isinf(baseline.psnr_db) else f"{baseline.psnr_db:.1f} dB PSNR"
    return [*rows, ("frames against eager's", psnr)]


def as_json(result: Result, machine: Machine) -> str:
    """The same for machines. What is not known is null; the PSNR is null, too, where frames are identical."""
    played, baseline = result.played, result.baseline
    document: dict[str, Any] = {
        "fps": played.frames_per_second,
        "latency_ms": {name: percentile(played.milliseconds, percent) for name, percent in PERCENTILES.items()},
        "cold_start_s": result.start.median_seconds,
        "peak_rss_mib": result.start.peak_memory_mib,
        "session": played.session,
        "precision": result.settings.precision,
        "latent_stride": played.latent_stride,
        "jitter_ms": jitter(played.milliseconds),
        "graph_ms": played.parts(),
        "share_of_peak": result.share_of_peak,
    }
    if baseline is not None:
        document |= {
            "speedup_vs_eager": baseline.speedup_vs_eager,
            "speedup_vs_eager_cached": baseline.speedup_vs_eager_cached,
            "psnr_db": None if math.isinf(baseline.psnr_db) else baseline.psnr_db,
        }
    document["row"] = as_row(result, machine)
    return json.dumps(document, indent=1, allow_nan=False) + "\n"
