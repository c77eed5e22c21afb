"""Which ONNX operators an engine's parser knows: as the library says or, where it cannot be had, as it said once.

`python -m styleinv.export.operators` asks TensorRT for RTX and writes operators.json. TensorRT shares its parser.
"""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from styleinv.runtime.engine_library import import_engine_library
from styleinv.runtime.errors import EngineError

TABLE = Path(__file__).with_name("operators.json")
TABLE_ENGINE = "rtx"  # the one that needs no GPU to be asked


@dataclass(frozen=True)
class Operators:
    """The operators of ONNX's own domain that a library compiles, and the version of ONNX that named them."""

    library: str
    version: str
    onnx: str
    operators: tuple[str, ...]


@functools.cache
def supported_operators(engine: str) -> Operators:
    """The operators of the engine rtx or tensorrt."""
    try:
        return _ask(engine)
    except EngineError:
        table = json.loads(TABLE.read_text(encoding="utf-8"))
        return Operators(**{**table, "operators": tuple(table["operators"])})


def _ask(engine: str) -> Operators:
    """Raises EngineError where the library, or a GPU that it needs, is not there."""
    trt = import_engine_library(engine)
    logger = trt.Logger(trt.Logger.ERROR)
    try:
        builder = trt.Builder(logger)  # kept: what it makes does not keep it
    except TypeError as error:  # it has no builder without a GPU
        raise EngineError(f"{trt.__name__} {trt.__version__}: found {error}, expected a GPU") from error
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    names = sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""})
    known = tuple(name for name in names if parser.supports_operator(name))
    return Operators(trt.__name__, trt.__version__, onnx.__version__, known)


def main() -> int:
    """Write the table."""
    table = _ask(TABLE_ENGINE)
    TABLE.write_text(json.dumps(asdict(table), indent=1) + "\n", encoding="utf-8")
    print(f"{TABLE}: {len(table.operators)} operators", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
