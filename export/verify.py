"""Proof that a bundle computes what its model computes: every graph and whole frames, in every session there is.

A way of computing is an engine in a precision. Each is compared with the reference graph by graph, on the same inputs
at several batch sizes, and end to end, frame by frame. Where it rounds, the latents of a long clip are looked at, too:
the model is not autoregressive, so their errors must not grow.

Shapes: B batch, T frames, W size of a latent, R resolution.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from styleinv.export.additions import Additions
from styleinv.export.comparison import Comparison, compare
from styleinv.export.references import (
    SEED,
    PyTorchReference,
    Reference,
    SessionReference,
    sample_inputs,
    sample_label,
)
from styleinv.export.tolerances import TOLERANCES
from styleinv.runtime.bundle import Bundle, GraphSpec
from styleinv.runtime.errors import BundleError
from styleinv.runtime.manifest_fields import PRECISIONS
from styleinv.runtime.rollout import Rollout
from styleinv.runtime.sessions import ENGINES, Session, SessionOptions, Sessions, obstacle, open_graph
from styleinv.runtime.sessions.engine_choice import engine_for
from styleinv.training.checkpoint import Checkpoint

BATCHES = (1, 3, 8)
FRAMES = 64
LATENTS = 1000  # consecutive frames over which latents are looked at
DRIFT_SPAN = 100  # frames at either end that are compared with each other
REFERENCE_ENGINE = "onnxruntime"  # on every machine, and the simplest; the others are measured against it

Frame = npt.NDArray[np.uint8]  # [R, R, 3]


@dataclass(frozen=True)
class Way:
    """A way of computing: an engine in a precision, on the bundle's graphs of some precision."""

    engine: str
    precision: str
    graphs: str
    as_files: bool = False  # the graphs' own rounding, on an engine that computes in fp32 between

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}" + (" (graph files)" if self.as_files else "")


@dataclass(frozen=True)
class Drift:
    """Errors of the latents of frames 0, 1, 2, ... against fp32, |w - w_ref| / |w_ref|: the largest of all, and the
    means of the first and the last `DRIFT_SPAN`."""

    way: str
    precision: str
    frames: int
    largest: float
    first: float
    last: float

    @property
    def failures(self) -> list[str]:
        """The bound, in words, where it does not hold."""
        allowed = TOLERANCES[self.precision].drift
        return [] if self.largest <= allowed else [f"an error of {self.largest:.3g}, expected at most {allowed:g}"]


@dataclass
class Verification:
    """What was measured. `absent` says why a pair of engine and precision cannot be; `worst` holds for each way the
    frame index, the reference and ours of the frame that is furthest off."""

    reference: str
    comparisons: list[Comparison] = field(default_factory=list)
    drifts: list[Drift] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    worst: dict[str, tuple[float, Frame, Frame]] = field(default_factory=dict)

    @property
    def failures(self) -> list[str]:
        """Everything out of tolerance, in words."""
        found = [(f"{item.way}: {item.what}", item.failures) for item in self.comparisons]
        found += [(f"{item.way}: latents of {item.frames} frames", item.failures) for item in self.drifts]
        return [f"{where}: found {failure}" for where, failures in found for failure in failures]

    def check(self, bundle: str) -> None:
        """Raises BundleError naming the first that is out of tolerance, and how many others are."""
        failures = self.failures
        if failures:
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            raise BundleError(f"{bundle}: {failures[0]} against {self.reference}{more}")


def ways_of(
    bundle: Bundle, engine: str | None = None, precision: str | None = None
) -> tuple[list[Way], dict[str, str]]:
    """The ways in which this machine can compute a bundle, and of the others why it cannot; `engine` and `precision`
    limit both to one of theirs."""
    ways, absent = [], {}
    compiled = {(each.engine, each.precision) for each in bundle.engines}
    pairs = itertools.product([engine] if engine else ENGINES, [precision] if precision else PRECISIONS)
    for name, kind in pairs:
        if kind not in ENGINES[name].graphs and not engine:
            continue  # nobody misses it
        reason = obstacle(name, kind)
        if reason is None and ENGINES[name].graphs[kind] not in bundle.precisions:
            reason = f"the bundle has no graphs in {ENGINES[name].graphs[kind]}"
        if reason is None and ENGINES[name].compiled and (name, kind) not in compiled:
            reason = f"the bundle has no engines in {kind}"
        if reason is None:
            ways.append(Way(name, kind, ENGINES[name].graphs[kind]))
        else:
            absent[f"{name} {kind}"] = reason
    # No CPU session computes bfloat16 graphs as they are; OpenVINO reads them and keeps their rounding.
    asked = engine in (None, "openvino") and precision in (None, "bf16")
    if asked and "bf16" in bundle.precisions and obstacle("openvino", "fp32") is None:
        ways.append(Way("openvino", "bf16", "bf16", as_files=True))
    return ways, absent


def verify(
    bundle: Bundle,
    against: Checkpoint | None = None,
    additions: Additions | None = None,
    *,
    ways: Iterable[Way],
    batches: Iterable[int] = BATCHES,
    frames: int = FRAMES,
    latents: int = LATENTS,
    progress: bool = False,
) -> Verification:
    """Measures a bundle in these ways `against` its model in PyTorch, or else its own fp32 graphs in ONNX Runtime.
    Those also stand in for what was added to the model and is not among the `additions`. Engines are run at those of
    the batches that they take.

    Raises: EngineError where onnxruntime is missing. What is out of tolerance is in the result; see its `check`.
    """
    ways = list(ways)
    with Sessions(bundle, engine=REFERENCE_ENGINE) as trusted:
        reference: Reference = SessionReference(trusted)
        if against is not None:
            reference = PyTorchReference(against, bundle.manifest["noise"], additions, reference)
        result = Verification(reference.name)
        rounding = [way for way in ways if way.precision != "fp32"] if bundle.kind == "styleinv" else []
        # Before the ways, each in turn: what all of them are compared with, once.
        samples = {batch: sample_inputs(trusted, batch) for batch in batches}
        expected = {
            (batch, key): reference.outputs(key[1], key[0], inputs)
            for batch, sample in samples.items()
            for key, inputs in sample.items()
        }
        ts = frame_indices(bundle, frames) if bundle.kind != "inversion" else []
        expected_frames: list[Frame] = []
        if ts:  # an inversion model plays none
            expected_frames += tqdm(reference.frames(ts), "reference", len(ts), unit=" frames", disable=not progress)
        exact = _latents(trusted, latents, "latents fp32", progress) if rounding and latents else None
    for way in ways:
        with _sessions(bundle, way) as sessions:
            for (batch, (transfer, name)), wanted in expected.items():
                if not _takes(bundle, way, bundle.graph(name, transfer, way.graphs), batch):
                    continue
                found = sessions.session(name, transfer).run(samples[batch][transfer, name], wanted)
                where = name if transfer is None else f"transfers.{transfer}.{name}"
                for output, array in wanted.items():
                    what, picture = f"{where}.{output}, batch {batch}", output in ("image", "frame")
                    result.comparisons.append(
                        compare(str(way), what, way.precision, found[output], array, picture=picture)
                    )
            result.comparisons += _compare_probes(sessions, way)
            if ts:
                frames_of_way = Rollout(sessions, SEED, label=sample_label(bundle)).frames(ts)
                played = tqdm(frames_of_way, f"{way}", len(ts), unit=" frames", disable=not progress)
                result.comparisons += _compare_frames(result, way, ts, played, expected_frames)
            if exact is not None and way in rounding:
                found_latents = _latents(sessions, latents, f"latents {way}", progress)
                result.drifts.append(_drift(way, found_latents, exact))
    return result


def frame_indices(bundle: Bundle, count: int = FRAMES) -> list[float]:
    """Times that end-to-end verification looks at: whole, fractional, around an anchor, far away; then consecutive."""
    if bundle.kind != "styleinv":
        return [0.0]
    distance = float(bundle.motion["anchor_distance"])
    near = [0.0, 1.0, 2.0, 2.5, 3.0, distance / 2]
    border = [distance - 1, distance - 0.25, distance, distance + 0.25, distance + 1]
    special = [*near, *border, 2 * distance, 3.5 * distance, 10 * distance, 1000.5, 100_000.0]
    others = (t for t in itertools.count(4.0) if t not in special)
    return list(itertools.islice(itertools.chain(dict.fromkeys(special), others), count))


class GraphFileSessions(Sessions):
    """The bundle's bfloat16 graphs on OpenVINO, computing in fp32 between the roundings that stand in them."""

    def load(self, graph: str, transfer: str | None) -> Session:
        return open_graph("openvino", self.bundle.graph(graph, transfer, "bf16"), SessionOptions("fp32"))


def _sessions(bundle: Bundle, way: Way) -> Sessions:
    if way.as_files:
        return GraphFileSessions(bundle, engine=way.engine)
    return Sessions(bundle, engine=way.engine, precision=way.precision)


def _takes(bundle: Bundle, way: Way, graph: GraphSpec, batch: int) -> bool:
    """Whether a graph can be run at this batch: engines were compiled for some of them."""
    if not ENGINES[way.engine].compiled:
        return True
    least, _, largest = engine_for(bundle, way.engine, graph).engine.batch
    return least <= batch <= largest


def _compare_probes(sessions: Sessions, way: Way) -> Iterator[Comparison]:
    """What the manifest says that every session must reproduce; nothing where it says nothing."""
    probes = sessions.bundle.manifest["probes"]
    if probes:
        rollout = Rollout(sessions, probes["seed"], label=sample_label(sessions.bundle))
        w = rollout.latents(probes["t"])[:, : len(probes["w"][0])]
        yield compare(str(way), "probes.w", way.precision, w, np.array(probes["w"], np.float32))
        levels = np.array([frame.mean() for frame in rollout.frames(probes["t"])])
        yield compare(str(way), "probes.mean_level", way.precision, levels, np.array(probes["mean_level"]))


def _compare_frames(
    result: Verification, way: Way, ts: list[float], found: Iterable[Frame], expected: list[Frame]
) -> Iterator[Comparison]:
    furthest = -1.0
    for t, ours, wanted in zip(ts, found, expected, strict=True):
        comparison = compare(str(way), f"frame at t = {t:g}", way.precision, ours[None], wanted[None], picture=True)
        if comparison.mean_error > furthest:
            furthest = comparison.mean_error
            result.worst[str(way)] = t, wanted, ours
        yield comparison


def _latents(sessions: Sessions, count: int, what: str, progress: bool) -> npt.NDArray[np.float32]:
    """The latents [T, W] of frames 0, 1, 2, ..., one run each, as in playing."""
    rollout = Rollout(sessions, SEED, label=sample_label(sessions.bundle))
    return rollout.latents(tqdm(range(count), what, unit=" frames", disable=not progress))


def _drift(way: Way, found: npt.NDArray[np.float32], exact: npt.NDArray[np.float32]) -> Drift:
    errors = np.linalg.norm(found.astype(np.float64) - exact, axis=1) / np.linalg.norm(exact, axis=1)
    span = min(DRIFT_SPAN, len(errors))
    means = float(errors[:span].mean()), float(errors[-span:].mean())
    return Drift(str(way), way.precision, len(errors), float(errors.max()), *means)
