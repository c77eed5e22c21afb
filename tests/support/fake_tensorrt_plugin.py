"""TensorRT's plugin module without TensorRT, for tests of what is registered there.

It asks of a plugin what TensorRT 11.4 asks: the same signatures, in the same order, first with shapes that are unknown,
then with symbolic ones, then for the kernel. `Library.build` stands for the ONNX parser, which hands attributes over as
fields in the order of registration, and for the builder behind it. A size is a function of the batch.
"""

from __future__ import annotations

import enum
import inspect
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

TYPES = {1: "FLOAT", 10: "HALF", 16: "BF16"}  # ONNX's numbers of the dtypes that plugins get here


class DataType(enum.Enum):
    FLOAT = enum.auto()
    HALF = enum.auto()
    BF16 = enum.auto()


class SymInt32:
    """A number that may depend on the batch; without a value it is one that nobody may look at yet."""

    def __init__(self, value=None):
        self.value: Callable[[int], int] | None = None
        if isinstance(value, SymInt32):
            self.value = value.value
        elif isinstance(value, int):
            self.value = lambda batch: value
        elif callable(value):
            self.value = value
        elif value is not None:
            raise ValueError(f"a number: found {value!r}")

    def _with(self, other, operation):
        other = SymInt32(other)
        if self.value is None or other.value is None:
            return type(self)()
        mine, its = self.value, other.value
        return type(self)(lambda batch: operation(mine(batch), its(batch)))

    def __add__(self, other):
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other):
        return self._with(other, lambda a, b: a - b)

    def __mul__(self, other):
        return self._with(other, lambda a, b: a * b)

    def at(self, batch):
        assert self.value is not None, "an unknown size was used"
        return self.value(batch)


class ShapeExpr(SymInt32):
    pass


class SymExprs:
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length


class SymIntExprs(SymExprs):
    pass


class TensorDesc:
    def __init__(self, shape_expr, dtype, shape=None):
        self.shape_expr, self.dtype, self._shape = list(shape_expr), dtype, shape

    @property
    def shape(self):
        if self._shape is None:
            raise ValueError("TensorDesc has no shape information available at this stage")
        return iter(self._shape)


class KernelLaunchParams:
    NAMES = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")

    def __init__(self):
        vars(self).update({name: SymInt32(0 if name == "shared_mem" else 1) for name in self.NAMES})

    def __setattr__(self, name, value):
        if name not in self.NAMES:
            raise AttributeError(f"KernelLaunchParams object has no attribute {name!r}")
        vars(self)[name] = SymInt32(value)


def from_shape_expr(shape_expr, dtype):
    if not isinstance(shape_expr, tuple):
        raise ValueError(f"shape_expr: found {type(shape_expr)}, expected a tuple")
    return TensorDesc([each if isinstance(each, ShapeExpr) else ShapeExpr(each) for each in shape_expr], dtype)


@dataclass
class Definition:
    """What is registered of a plugin."""

    describe: Callable
    inputs: list[str]
    fields: list[str]
    outputs: int
    implement: Callable | None = None


@dataclass
class Launch:
    """A node as an engine launches it: grid and shared memory at a batch, and the shapes of its outputs there."""

    name: str
    text: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    outputs: list[tuple[int, ...]]
    dtypes: list[DataType]


@dataclass
class Library:
    """The modules `tensorrt` and `tensorrt.plugin`, and what was registered there."""

    version: str = "11.4.0.106"
    plugins: dict[str, Definition] = field(default_factory=dict)

    def install(self, monkeypatch) -> Library:
        """Makes `import tensorrt` find these modules in a test."""
        trt, plugin = types.ModuleType("tensorrt"), types.ModuleType("tensorrt.plugin")
        trt.__version__, trt.DataType, trt.plugin = self.version, DataType, plugin
        if tuple(map(int, self.version.split(".")[:2])) >= (10, 9):
            trt.QuickPluginCreationRequest = enum.Enum("QuickPluginCreationRequest", ["UNKNOWN", "STRICT_AOT"])
        for part in (TensorDesc, ShapeExpr, SymInt32, SymExprs, SymIntExprs, KernelLaunchParams, from_shape_expr):
            setattr(plugin, part.__name__, part)
        self.op = plugin.op = types.SimpleNamespace()
        plugin.register, plugin.aot_impl = self.register, self.aot_impl
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugin)
        return self

    def register(self, plugin_id):
        namespace, name = plugin_id.split("::")
        assert "." not in plugin_id and namespace not in ("", "trt", "tensorrt", "std")

        def decorate(function):
            if plugin_id in self.plugins:
                raise ValueError(f"already has a definition for {name!r}")
            signature = inspect.signature(function)
            inputs, fields = [], []
            for parameter in signature.parameters.values():
                assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty
                if parameter.annotation is TensorDesc:
                    assert not fields, "inputs stand before attributes"
                    inputs.append(parameter.name)
                else:
                    assert parameter.annotation in (int, float, str, bool, bytes)
                    assert parameter.name not in ("outputs", "stream", "tactic")
                    fields.append(parameter.name)
            assert inputs
            outputs = _descriptions(signature.return_annotation)
            self.plugins[plugin_id] = Definition(function, inputs, fields, outputs)
            known = vars(self.op).setdefault(namespace, types.SimpleNamespace())
            setattr(known, name, self.plugins[plugin_id])
            return function

        return decorate

    def aot_impl(self, plugin_id):
        definition = self.plugins[plugin_id]

        def decorate(function):
            signature = inspect.signature(function)
            assert list(signature.parameters) == [*definition.inputs, *definition.fields, "outputs", "tactic"]
            assert _descriptions(signature.parameters["outputs"].annotation) == definition.outputs
            returned = typing.get_args(signature.return_annotation)
            assert typing.get_origin(signature.return_annotation) is tuple and len(returned) == 4
            assert (
                returned[:2] == (str, str) and returned[2] is KernelLaunchParams and issubclass(returned[3], SymExprs)
            )
            definition.implement = function
            return function

        return decorate

    def build(self, node, values, batch) -> Launch:
        """What an engine launches for a node of an ONNX graph. `values` are the dtype, by ONNX's number, and the shape
        of each value, whose first size is a string where it is the batch."""
        attributes = {each.name: each for each in node.attribute}
        assert attributes["aot"].i == 1
        name = f"{attributes['plugin_namespace'].s.decode()}::{node.op_type}"
        definition = self.plugins[name]
        fields = {each: float(np.float32(attributes[each].f)) for each in definition.fields}
        assert len(node.input) == len(definition.inputs) and len(node.output) == definition.outputs
        dtypes = [DataType[TYPES[values[each][0]]] for each in node.input]
        shapes = [values[each][1] for each in node.input]

        unknown = [TensorDesc([ShapeExpr() for _ in shape], dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
        described = definition.describe(*unknown, **fields)
        assert isinstance(described, tuple) and len(described) == definition.outputs

        inputs = [
            TensorDesc(
                [ShapeExpr((lambda batch: batch) if isinstance(size, str) else size) for size in shape],
                dtype,
                [-1 if isinstance(size, str) else size for size in shape],
            )
            for shape, dtype in zip(shapes, dtypes, strict=True)
        ]
        outputs = list(definition.describe(*inputs, **fields))
        kernel, text, launch, numbers = definition.implement(*inputs, *fields.values(), outputs, 0)
        assert isinstance(launch, KernelLaunchParams) and isinstance(numbers, SymExprs)
        assert isinstance(kernel, str) and isinstance(text, str) and len(numbers) == 0
        sizes = {name: each.at(batch) for name, each in vars(launch).items()}
        return Launch(
            kernel,
            text,
            tuple(sizes[f"grid_{axis}"] for axis in "xyz"),
            tuple(sizes[f"block_{axis}"] for axis in "xyz"),
            sizes["shared_mem"],
            [tuple(size.at(batch) for size in each.shape_expr) for each in outputs],
            [each.dtype for each in outputs],
        )


def _descriptions(annotation) -> int:
    """How many tensors a tuple of them has."""
    parts = typing.get_args(annotation)
    assert typing.get_origin(annotation) is tuple and set(parts) == {TensorDesc}
    return len(parts)
