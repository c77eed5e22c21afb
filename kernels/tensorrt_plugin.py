"""The plugins of `plugins.py` for TensorRT: quick plugins with ahead-of-time implementations.

TensorRT asks for a plugin's kernel once for each node, when it builds an engine, and puts the PTX into it; what plays
the engine needs neither Python nor Triton. It launches a kernel with its inputs, then numbers of 32 bits, of which
there are none here, then its outputs (`tensorrt.plugin.aot_impl`), all of them linear in memory.

A node's attributes are a creator's fields, which TensorRT hands over in the order in which they were registered.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch

from styleinv.kernels.plugins import NAMESPACE, Plugin
from styleinv.kernels.ptx import compiled
from styleinv.kernels.tiles import DEFAULT

FIRST_VERSION = "10.9"  # of TensorRT that has ahead-of-time implementations
DTYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16}
AXES = ("grid_x", "grid_y", "grid_z")

_registered: dict[str, tuple[int, str]] = {}


def register(names: Iterable[str], target: int, device: str = DEFAULT) -> None:
    """Registers plugins, in this process, for a GPU's compute capability (89 is 8.9) and by its tuning tables.

    Raises ValueError where there is no plugin of a name, where TensorRT is not there or too old, or where a plugin was
    registered for another GPU.
    """
    plugins = [Plugin.named(name) for name in dict.fromkeys(names)]
    trt = plugin_library()
    for plugin in plugins:
        known = _registered.setdefault(plugin.name, (target, device))
        if known != (target, device):
            raise ValueError(f"plugin {plugin.name}: found it registered for {known}, expected {(target, device)}")
        identity = f"{NAMESPACE}::{plugin.name}"
        if not hasattr(getattr(trt.plugin.op, NAMESPACE, None), plugin.name):
            trt.plugin.register(identity)(_description(trt, plugin))
            trt.plugin.aot_impl(identity)(_implementation(trt, plugin, target, device))


def plugin_library() -> Any:
    """The module tensorrt, with its module plugin. Raises ValueError where it is not there or too old."""
    try:
        import tensorrt
        import tensorrt.plugin
    except ImportError as error:
        raise ValueError(f"tensorrt.plugin: found {error}, expected TensorRT {FIRST_VERSION} or later") from error
    if not hasattr(tensorrt, "QuickPluginCreationRequest"):
        raise ValueError(f"tensorrt: found version {tensorrt.__version__}, expected {FIRST_VERSION} or later")
    return tensorrt


def _description(trt: Any, plugin: Plugin) -> Callable[..., Any]:
    """Shapes, which may be symbolic, and dtypes of the outputs from those of the inputs."""

    def describe(*inputs: Any, **attributes: float) -> Any:
        named = dict(zip(plugin.inputs, inputs, strict=True))
        shapes = plugin.output_shapes({name: list(each.shape_expr) for name, each in named.items()})
        dtypes = {"out": named["x"].dtype, "image": trt.DataType.FLOAT}
        return tuple(
            trt.plugin.from_shape_expr(shape, dtypes[name]) for name, shape in zip(plugin.outputs, shapes, strict=True)
        )

    return _with_signature(describe, _parameters(trt, plugin), _outputs(trt, plugin))


def _implementation(trt: Any, plugin: Plugin, target: int, device: str) -> Callable[..., Any]:
    """The kernel's name and PTX, how it is launched, and its numbers."""

    def implement(*given: Any) -> Any:
        inputs = given[: len(plugin.inputs)]
        attributes = dict(zip(plugin.attributes, given[len(inputs) : -2], strict=True))  # behind: outputs and tactic
        operands = {name: _meta(each) for name, each in zip(plugin.inputs, inputs, strict=True)}
        kernel = compiled(plugin.launch(operands, attributes, device), target)
        launched = trt.plugin.KernelLaunchParams()
        batch = inputs[0].shape_expr[0]
        for axis, programs in zip(AXES, (*kernel.grid[:-1], batch), strict=False):
            setattr(launched, axis, programs)
        launched.block_x, launched.shared_mem = kernel.threads, kernel.shared
        return kernel.name, kernel.text, launched, trt.plugin.SymIntExprs(0)

    given = {**_parameters(trt, plugin), "outputs": _outputs(trt, plugin), "tactic": int}
    return _with_signature(implement, given, tuple[str, str, trt.plugin.KernelLaunchParams, trt.plugin.SymIntExprs])


def _meta(description: Any) -> torch.Tensor:
    """A tensor without data, of batch 1 where the batch is dynamic."""
    shape = [1 if size == -1 else size for size in description.shape]
    return torch.empty(shape, dtype=DTYPES[description.dtype.name], device="meta")


def _parameters(trt: Any, plugin: Plugin) -> dict[str, Any]:
    return {**dict.fromkeys(plugin.inputs, trt.plugin.TensorDesc), **dict.fromkeys(plugin.attributes, float)}


def _outputs(trt: Any, plugin: Plugin) -> Any:
    return tuple.__class_getitem__((trt.plugin.TensorDesc,) * len(plugin.outputs))


def _with_signature(function: Callable[..., Any], annotations: dict[str, Any], returned: Any) -> Callable[..., Any]:
    """TensorRT reads a plugin's inputs and attributes from the signature of a function."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=each) for name, each in annotations.items()]
    vars(function)["__signature__"] = inspect.Signature(parameters, return_annotation=returned)
    return function
