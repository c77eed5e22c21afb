"""A graph made of the fused operators as an ONNX file for TensorRT, with a node of its own for each: a plugin.

The nodes are those of `styleinv.kernels.plugins`, in the domain `styleinv`; TensorRT's parser looks for a plugin of the
node's type in the namespace that it names. All else is ordinary operators: the styles and coefficients, which TensorRT
merges itself, the transposed convolution of an upsampling layer that is two steps, and the picture's bytes, which a
plugin cannot give. TensorRT for RTX has no plugins, and takes the plain graph.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.defs import OpSchema
from onnxscript import values
from torch import Tensor, nn
from torch.nn import functional as F

from styleinv.export.folding import constant
from styleinv.export.fused_synthesis import FusedStyles, FusedSynthesis
from styleinv.export.graphs import Graph
from styleinv.export.onnx_graph import OPSET, forget_origin, name_batch, quiet
from styleinv.kernels import ops, reference
from styleinv.kernels.operands import LEAKY_SLOPE, Epilogue
from styleinv.kernels.plugins import NAMESPACE, NO_CLAMP, OPERATORS, Plugin
from styleinv.kernels.tiles import device_name
from styleinv.runtime.errors import EngineError

VERSION = 1  # of the domain's operators
FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
FOUND_BY = {"plugin_namespace": NAMESPACE, "plugin_version": "1", "aot": 1}  # what the parser looks for a plugin by

torch.library.define(
    f"{NAMESPACE}::filtered_layer",
    "(Tensor x, Tensor? demodulation=None, Tensor? noise=None, Tensor? bias=None, Tensor? next_style=None, "
    f"float noise_strength=1.0, float slope={LEAKY_SLOPE}, float gain=1.0, float? clamp=None) -> Tensor",
)
_DRAWS = str(ops.modulated_conv2d_frame._opoverload._schema).removeprefix(f"{NAMESPACE}::modulated_conv2d_frame")
torch.library.define(f"{NAMESPACE}::modulated_conv2d_image", _DRAWS.replace("(Tensor, Tensor)", "Tensor"))


@torch.library.impl(f"{NAMESPACE}::filtered_layer", "CompositeExplicitAutograd")
def _filtered_layer(x: Tensor, *epilogue: Any) -> Tensor:
    return reference.filtered_layer(x, Epilogue(*epilogue))


@torch.library.impl(f"{NAMESPACE}::modulated_conv2d_image", "CompositeExplicitAutograd")
def _modulated_conv2d_image(*operands: Any, **named: Any) -> Tensor:
    image, _ = ops.modulated_conv2d_frame(*operands, **named)
    return image


class PlainStyles(nn.Module):
    """`FusedStyles` in ordinary operators, layer by layer."""

    def __init__(self, fused: FusedStyles) -> None:
        super().__init__()
        self.affine, self.bias = constant(fused.affine), constant(fused.bias)
        self.sizes = fused.inputs
        products = [inputs * outputs for inputs, outputs in zip(fused.inputs, fused.outputs, strict=True)]
        squares, epsilons = fused.squares.split(products), fused.epsilon.split(fused.outputs)
        self.squares = nn.ParameterList(  # [I, O]
            constant(part.view(-1, inputs).t()) for part, inputs in zip(squares, fused.inputs, strict=True)
        )
        self.epsilons = nn.ParameterList(constant(part) for part in epsilons)  # [O]

    def forward(self, w: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        styles, coefficients = [], []
        raw = F.linear(w, self.affine, self.bias).split(self.sizes, dim=1)
        for style, squares, epsilon in zip(raw, self.squares, self.epsilons, strict=True):
            if len(epsilon):
                largest = style.abs().amax(dim=1, keepdim=True).clamp(min=reference.SMALLEST_STYLE)
                style = style / largest
                coefficients.append(torch.rsqrt(style.square() @ squares + epsilon / largest.square()))
            styles.append(style.contiguous())
        return styles, coefficients


def export_plugin_graph(synthesis: FusedSynthesis, graph: Graph, opset: int = OPSET) -> onnx.ModelProto:
    """Exports a fused synthesis network with the inputs and outputs of `graph`, the plain one, and a dynamic batch.

    Its upsampling layers keep the forms that they have on its device. Raises StyleInVError where the batch did not stay
    dynamic.
    """
    batch = torch.export.Dim("batch", min=1)
    arrays = tuple(array.cpu() for array in graph.inputs.values())
    synthesis = copy.deepcopy(synthesis).cpu()
    synthesis.add_module("styles", PlainStyles(synthesis.styles))
    with quiet(), torch.no_grad():
        program = torch.export.export(synthesis.eval(), arrays, dynamic_shapes=({0: batch},) * len(arrays))
        exported = torch.onnx.export(
            program.run_decompositions(_DECOMPOSED),
            dynamo=True,
            opset_version=opset,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            custom_translation_table=dict(_translations()),
            verbose=False,
        )
    assert exported is not None
    model = exported.model_proto
    name_batch(model, graph.name)
    forget_origin(model)
    return model


def plugins_of(model: onnx.ModelProto) -> list[str]:
    """The names of the plugins that a graph's nodes are, in order."""
    return [node.op_type for node in model.graph.node if node.domain == NAMESPACE]


def register_plugins(file: Path, target: str) -> None:
    """Registers the plugins of a graph's file with TensorRT, in this process, for the GPU at hand, whose compute
    capability is `target`: '8.9'. Raises EngineError where TensorRT cannot be had or is too old."""
    from styleinv.kernels import tensorrt_plugin

    names = plugins_of(onnx.load(file, load_external_data=False))
    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        tensorrt_plugin.register(names, int(target.replace(".", "")), device)
    except ValueError as error:
        raise EngineError(f"{file}: {error}") from error


def _two_steps(x: Tensor, weight: Tensor, style: Tensor | None = None, *epilogue: Any, **named: Any) -> Any:
    """An upsampling layer whose weight is [I, 3, 3, O]: a transposed convolution, then `filtered_layer`."""
    if weight.ndim == 5:
        return NotImplemented  # stays one call
    assert style is None  # the network multiplies it in before
    spread = F.conv_transpose2d(x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), stride=2)
    return torch.ops.styleinv.filtered_layer(spread.permute(0, 2, 3, 1), *epilogue, **named)


def _with_bytes(draw: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The picture and its bytes, by an operator that gives the picture."""

    def decomposed(*operands: Any, **named: Any) -> tuple[Tensor, Tensor]:
        image = draw(*operands, **named)
        return image, reference.to_uint8(image)

    return decomposed


_DECOMPOSED: dict[Any, Callable[..., Any]] = {
    torch.ops.styleinv.modulated_conv2d_up2.default: _two_steps,
    torch.ops.styleinv.modulated_conv2d_frame.default: _with_bytes(torch.ops.styleinv.modulated_conv2d_image),
    torch.ops.styleinv.to_rgb_skip_frame.default: _with_bytes(torch.ops.styleinv.to_rgb_skip),
}


def _translations() -> Iterator[tuple[Any, Callable[..., Any]]]:
    for name in OPERATORS:
        operator = getattr(torch.ops.styleinv, name).default
        yield operator, _translation(name, operator._schema)


def _translation(operator: str, schema: Any) -> Callable[..., Any]:
    """A function from the values of a call to the node that stands for it, with the operator's own signature, which
    tells the exporter what is an input and what an attribute."""
    parameters = [
        inspect.Parameter(
            each.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=each.default_value if each.has_default_value() else inspect.Parameter.empty,
            annotation=float if each.name in OPERATORS[operator].attributes else inspect.Parameter.empty,
        )
        for each in schema.arguments
    ]
    signature = inspect.Signature(parameters)

    def translate(*given: Any, **named: Any) -> Any:
        call = signature.bind(*given, **named)
        call.apply_defaults()
        return _node(operator, call.arguments)

    vars(translate)["__signature__"] = signature
    return translate


def _node(operator: str, call: dict[str, Any]) -> Any:
    plugin = Plugin.with_operands(operator, [name for name, value in call.items() if value is not None])
    numbers = {name: NO_CLAMP if call[name] is None else float(call[name]) for name in plugin.attributes}
    return _operator(plugin)(*(call[name] for name in plugin.inputs), **numbers, **FOUND_BY)


def _operator(plugin: Plugin) -> values.Op:
    """The ONNX operator of a plugin, with inputs of any dtypes."""
    types = {name: f"T_{name}" for name in (*plugin.inputs, *plugin.outputs)}
    given, made = (
        [OpSchema.FormalParameter(name, types[name]) for name in names] for names in (plugin.inputs, plugin.outputs)
    )
    kinds = {str: OpSchema.AttrType.STRING, int: OpSchema.AttrType.INT}
    attributes = [
        *(OpSchema.Attribute(name, OpSchema.AttrType.FLOAT) for name in plugin.attributes),
        *(OpSchema.Attribute(name, kinds[type(value)]) for name, value in FOUND_BY.items()),
    ]
    schema = OpSchema(
        plugin.name,
        NAMESPACE,
        VERSION,
        inputs=given,
        outputs=made,
        type_constraints=[(name, FLOATS, "") for name in types.values()],
        attributes=attributes,
    )
    return values.Op(values.Opset(NAMESPACE, VERSION), plugin.name, schema)
