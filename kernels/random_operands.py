"""Random operands for a call of the plan, by the names that its operator has for them, and the results they must give.

Shapes: B batch, I input channels, O output channels, C channels, H W height and width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from styleinv.kernels import ops
from styleinv.kernels.plan import Call, Network
from styleinv.kernels.reference import polyphase_weight
from styleinv.kernels.style_layers import block_table, layers_of
from styleinv.kernels.tiles import Form, device_name, upsampling_form

Operands = dict[str, Any]
CLAMP = 256.0
# The largest error, relative to the largest number of the result.
TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SHARED = ("weight", "noise", "bias", "rgb_weight", "rgb_bias", "affine", "squares", "epsilon", "table")  # by a batch


def random_operands(call: Call, network: Network, batch: int, device: torch.device, seed: int = 0) -> Operands:
    """Operands of the sizes and dtypes that a network gives them; an upsampling layer's weight is [O, 3, 3, I].

    A gain of the activation is left out: exporters fold it into the coefficients.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def positive(*shape: int) -> Tensor:  # styles and coefficients, near 1
        return (torch.rand(shape, generator=generator) + 0.5).to(device)

    inputs, outputs, height, width = call.layer
    dtype = network.dtype
    clamp = CLAMP if network.clamps else None
    previous = normal(batch, 3, height // 2, width // 2) if height > 4 else None
    if call.operator == "style_demod":
        return _style_operands(network, normal, batch)
    x = normal(batch, height, width, inputs, dtype=dtype)
    if call.operator == "adain_lrelu":
        return {"x": x, "gamma_beta": normal(batch, 2 * inputs)}
    if call.operator in ("to_rgb_skip", "to_rgb_skip_frame"):
        weight = normal(3, inputs) / inputs**0.5
        return {
            "x": x, "weight": weight, "style": positive(batch, inputs), "bias": normal(3), "previous": previous,
            "clamp": clamp,
        }  # fmt: skip
    factor = 2 if call.operator == "modulated_conv2d_up2" else 1
    operands: Operands = {
        "x": x,
        "weight": (normal(outputs, 3, 3, inputs) / (9 * inputs) ** 0.5).to(dtype),
        "style": positive(batch, inputs) if call.styled else None,
        "demodulation": positive(batch, outputs),
        "noise": normal(factor * height, factor * width) if network.noise else None,
        "bias": normal(outputs),
        "clamp": clamp,
    }
    if call.operator != "modulated_conv2d_frame":  # it writes no activations
        operands["next_style"] = positive(batch, outputs) if call.next_styled else None
    if call.operator in ("modulated_conv2d_rgb", "modulated_conv2d_frame"):
        operands |= {
            "rgb_weight": normal(3, outputs) / outputs**0.5, "rgb_style": positive(batch, outputs),
            "rgb_bias": normal(3), "previous": previous, "rgb_clamp": clamp,
        }  # fmt: skip
    return operands


def as_form(operands: Operands, form: Form) -> Operands:
    """Operands of an upsampling layer whose weight says in which form it is computed."""
    weight = operands["weight"]
    prepared = polyphase_weight(weight) if form == "polyphase" else weight.permute(3, 1, 2, 0)
    return operands | {"weight": prepared.contiguous()}


def as_tuned(call: Call, operands: Operands) -> Operands:
    """Operands as the operator takes them, an upsampling layer's in the form that is faster by the tables."""
    if call.operator != "modulated_conv2d_up2":
        return operands
    x = operands["x"]
    return as_form(operands, upsampling_form(x.dtype, call.layer, device_name(x.device)))


def run(operator: str, operands: Operands) -> tuple[Tensor, ...]:
    """The results of a fused operator; of `style_demod` the styles of each layer, then the coefficients of each."""
    results = getattr(ops, operator)(**operands)
    if operator == "style_demod":
        batch = operands["w"].shape[0]
        parts = zip(results, (operands["inputs"], filter(None, operands["outputs"])), strict=True)
        return tuple(array for flat, sizes in parts for array in layers_of(flat, batch, list(sizes)))
    return (results,) if isinstance(results, Tensor) else tuple(results)


def without_tf32(benchmark: bool = False) -> AbstractContextManager[None]:
    """cuDNN multiplies float32 as float32, which by default it does not; `benchmark`: it tries its algorithms first."""
    settings: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=benchmark, deterministic=False, allow_tf32=False
    )
    return settings


def expected(operator: str, operands: Operands) -> tuple[Tensor, ...]:
    """What it must give: the reference, on the CPU in float32, for which a weight has no form."""
    plain = {name: _plain(value) for name, value in operands.items()}
    return run(operator, as_form(plain, "two_steps") if operator == "modulated_conv2d_up2" else plain)


def worst_error(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    """The largest difference, relative to the largest number of its array. A byte may be off by one."""
    worst = 0.0
    for result, reference in zip(found, wanted, strict=True):
        reference = reference.to(result.device)
        difference = (result.double() - reference.double()).abs()
        if reference.dtype == torch.uint8:
            difference = (difference - 1).clamp(min=0)
        error = (difference.max() / reference.double().abs().max().clamp(min=1e-30)).item()
        worst = max(worst, error) if error == error else float("inf")  # NaN is as wrong as can be
    return worst


def moved_by(call: Call, operands: Operands, batch: int) -> int:
    """Bytes that a call reads and writes: what all pictures of a batch share is read once. `operands`: `as_tuned`."""
    shared = sum(operands[name].nbytes for name in SHARED if isinstance(operands.get(name), Tensor))
    return call.moved + (batch - 1) * (call.moved - shared)


def _style_operands(network: Network, normal: Any, batch: int) -> Operands:
    sizes, dtype = network.styled_layers(), network.dtype
    inputs, outputs = [list(numbers) for numbers in zip(*sizes, strict=True)]
    affine = normal(sum(inputs), network.w_dim) / network.w_dim**0.5
    return {
        "w": normal(batch, network.w_dim),
        "affine": affine.to(dtype),
        "bias": torch.ones_like(affine[:, 0]),
        "squares": normal(sum(i * o for i, o in sizes)).square().to(dtype),
        "epsilon": torch.full_like(normal(sum(outputs)), 1e-8),
        "table": block_table(inputs, outputs).to(affine.device),
        "inputs": inputs,
        "outputs": outputs,
    }


def _plain(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.cpu().float() if value.is_floating_point() else value.cpu()
