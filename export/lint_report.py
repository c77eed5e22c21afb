"""`styleinv export --dry-run`: what stands in the way of compiling a bundle's graphs, and what they are made of."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import onnx

from styleinv.export.engine_options import DEFAULT_TARGETS
from styleinv.export.lint import Finding, lint
from styleinv.export.operators import supported_operators
from styleinv.export.value_types import declared_type, dtype_name, nodes_in, value_types
from styleinv.runtime.bundle import Bundle
from styleinv.runtime.engine_library import ENGINE_LIBRARIES

NARROWEST = 80  # characters that a table has where the terminal has fewer, or there is none


def report_lint(bundle: Bundle, engines: Sequence[str], precisions: Sequence[str], targets: Sequence[str]) -> int:
    """Prints a table for each engine, for GPUs of the compute capabilities `targets`; returns the exit status, 1 where
    there are errors.

    Raises: BundleError where the bundle has no graphs in a precision.
    """
    models = {
        name: onnx.load(file, load_external_data=False)
        for precision in precisions
        for name, file in _graphs(bundle, precision)
    }
    print(as_summary(models))
    errors = 0
    for engine in engines:
        library = ENGINE_LIBRARIES[engine]
        capabilities = targets or (DEFAULT_TARGETS if library.builds_for_others else ())
        findings = [each for name, model in models.items() for each in lint(model, name, engine, capabilities)]
        errors += sum(finding.severity == "error" for finding in findings)
        known = supported_operators(engine)
        for_which = f" for compute capability {' '.join(capabilities)}" if capabilities else ""
        print(f"\n{library.title}{for_which}, by the operators of {known.library} {known.version}:")
        print(as_table(findings) if findings else "nothing stands in the way")
    return 1 if errors else 0


def as_table(findings: Sequence[Finding], width: int | None = None) -> str:
    """The findings for people, below a line that counts them, at most `width` characters wide (default: the
    terminal's)."""
    errors = sum(finding.severity == "error" for finding in findings)
    rows = [
        (each.severity, each.where, each.rule, each.node, each.found, each.fix)
        for each in sorted(findings, key=lambda finding: finding.severity)
    ]
    header = ("", "graph", "rule", "node", "found", "fix")
    counted = f"errors {errors}, warnings {len(findings) - errors}"
    return "\n".join([counted, *_lines([header, *rows], width, shares=(2, 2, 3))])


def as_summary(models: dict[str, onnx.ModelProto], width: int | None = None) -> str:
    """Of each graph, by name: how many nodes it has, of which operators, its dtypes and its dynamic axes."""
    rows: list[tuple[str, ...]] = [("graph", "nodes", "dtypes", "dynamic axes", "operators")]
    for name, model in models.items():
        nodes = list(nodes_in(model.graph))
        dtypes = {dtype_name(kind.dtype) for kind in value_types(model).values()}
        arrays = [*model.graph.input, *model.graph.output]
        dynamic = {size for value in arrays for size in declared_type(value).shape or () if isinstance(size, str)}
        operators = {node.op_type for node in nodes}
        rows.append((name, str(len(nodes)), *(" ".join(sorted(words)) for words in (dtypes, dynamic, operators))))
    return "\n".join(_lines(rows, width, shares=(1,)))


def _graphs(bundle: Bundle, precision: str) -> Iterator[tuple[str, Path]]:
    for name in bundle.manifest["graphs"]:
        graph = bundle.graph(name, None, precision)
        yield f"{name} {graph.precision}", graph.file
    for transfer in bundle.transfers:
        yield f"synthesis of {transfer} {precision}", bundle.graph("synthesis", transfer, precision).file


def _lines(rows: Sequence[tuple[str, ...]], width: int | None, shares: tuple[int, ...]) -> Iterator[str]:
    """A table's lines: columns aligned, the last of them in as many lines as they need, with shares of the room that
    the others leave."""
    width = width or max(shutil.get_terminal_size((NARROWEST, 1)).columns, NARROWEST)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = width - sum(widths[: -len(shares)]) - 2 * (len(widths) - 1)
    for column, share in zip(range(-len(shares), 0), shares, strict=True):
        widths[column] = max(min(widths[column], room * share // sum(shares)), 1)
    for row in rows:
        cells = [textwrap.wrap(cell, size) for cell, size in zip(row, widths, strict=True)]
        for line in zip_longest(*cells, fillvalue=""):
            yield "  ".join(map(str.ljust, line, widths)).rstrip()
