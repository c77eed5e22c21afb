"""Layers for the kernels' tests: what hypothesis draws of them, operands made of that, what results are held to.

Shapes: B batch, H W height and width, I O input and output channels, K kernel size.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from torch import Tensor

from styleinv.kernels.operands import Epilogue, ToRgb
from styleinv.kernels.reference import polyphase_weight
from styleinv.kernels.tiles import Tile

TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # relative, see `assert_close`
DTYPES = tuple(TOLERANCES)
STYLES = {"unit": 1.0, "small": 1e-4, "large": 1e4, "zero": 0.0}  # what a style is multiplied by; and "mixed", "none"
OPTIONAL = ("demodulation", "noise", "bias", "next_style", "previous")
MOST_STEPS = 80  # of a layer in the interpreter
MARGIN = 4096  # elements of poison before and behind an operand


def examples(number: int) -> settings:
    """So many examples, the same each time, however long they take; shrinking a failing one would take minutes."""
    shown = (Phase.explicit, Phase.generate)
    return settings(max_examples=number, derandomize=True, deadline=None, database=None, phases=shown)


@dataclass(frozen=True)
class Case:
    """A layer in plain numbers, as hypothesis shows it.

    Args:
        style: a key of STYLES, "mixed" for 1e-4 to 1e4 in one style, or "none".
        present: which of the OPTIONAL operands there are.
        narrow: whether styles, coefficients, noise and biases have the dtype of the pictures, not float32.
        tile: launch parameters, those of the tables where None.
    """

    batch: int = 2
    height: int = 5
    width: int = 7
    inputs: int = 9
    outputs: int = 11
    kernel: int = 3
    style: str = "unit"
    present: frozenset[str] = frozenset(OPTIONAL)
    noise_strength: float = 0.3
    slope: float = 0.2
    gain: float = 1.4
    clamp: float | None = None
    narrow: bool = False
    tile: Tile | None = None
    seed: int = 0


@dataclass(frozen=True)
class Operands:
    """What a layer takes; the picture and the weight are [B, H, W, I] and [O, K, K, I]."""

    x: Tensor
    weight: Tensor
    style: Tensor | None
    epilogue: Epilogue
    rgb: ToRgb


def cases(slowness: int = 1, **fixed: Any) -> st.SearchStrategy[Case]:
    """Layers of 1 x 1 to 17 x 13 pixels and 1 to 72 channels, few of them large: the interpreter is slow.

    The slower a kernel is, compared with a convolution of as many pixels, the smaller they are: `slowness` 1 or 2.
    """
    sizes = st.integers(1, 6) | st.integers(1, 13)
    channels = st.integers(1, 8) | st.integers(1, 40) | st.just(72)
    rows = st.sampled_from([1, 2, 4, 8])
    tiles = st.builds(
        lambda rows, across, inputs, outputs: Tile(rows, max(across, 16 // rows), inputs, outputs, 4, 1),
        rows, st.sampled_from([2, 4, 8, 16]), st.sampled_from([16, 32]), st.sampled_from([16, 32]),
    )  # fmt: skip
    drawn = {
        "batch": st.integers(1, 3), "height": sizes | st.integers(1, 17), "width": sizes, "inputs": channels,
        "outputs": channels, "kernel": st.sampled_from([1, 3]), "style": st.sampled_from([*STYLES, "mixed", "none"]),
        "present": st.frozensets(st.sampled_from(OPTIONAL)), "noise_strength": st.sampled_from([0.0, 0.3, 2.0]),
        "slope": st.sampled_from([0.0, 0.2, 1.0]), "gain": st.sampled_from([1.0, 1.4]),
        "clamp": st.sampled_from([None, 0.7, 256.0]), "narrow": st.booleans(), "tile": st.none() | tiles,
        "seed": st.integers(0, 999),
    }  # fmt: skip
    drawn |= {name: st.just(value) for name, value in fixed.items()}
    return st.builds(Case, **drawn).map(lambda case: _made_quick(case, MOST_STEPS // slowness))


def _made_quick(case: Case, most: int) -> Case:
    """Half as large in its largest direction until it is small enough; a layer of 1 x 1 pixels has no more than 39."""
    while _steps(case) > most:
        largest = max(("height", "width", "inputs", "outputs"), key=lambda name: int(getattr(case, name)))
        case = dataclasses.replace(case, **{largest: getattr(case, largest) // 2})
    return case


def _steps(case: Case) -> int:
    """How many steps an interpreted convolution makes, of a millisecond or so."""
    tile = case.tile or Tile(8, 8, 64, 32, 4, 1)
    pixels = -(-case.height // tile.rows) * -(-case.width // tile.columns)
    channels = -(-case.inputs // tile.inputs) * -(-case.outputs // tile.outputs)
    return case.batch * pixels * channels * (4 + case.kernel**2)


def operands(case: Case, dtype: torch.dtype, upsample: bool = False) -> Operands:
    """The tensors of a layer, each amid NaN, which a kernel that reads beside one would carry into its result.

    Errors are measured by results, so results must be about as large as what they are sums of: where a picture has few
    elements, all operands are positive; and a style far from 1 has its demodulation where the result is clamped, and
    in float16, where it would not be in range without.
    """
    generator = torch.Generator().manual_seed(case.seed)
    height, width = case.height, case.width
    if "previous" in case.present:
        height, width = height + height % 2, width + width % 2
    signed = height * width * case.outputs >= 64
    beside = dtype if case.narrow else torch.float32
    extreme = case.style in ("small", "large", "mixed")
    demodulated = "demodulation" in case.present or (extreme and (dtype is torch.float16 or case.clamp is not None))

    def draw(*shape: int, dtype: torch.dtype = beside, scale: float | Tensor = 1.0) -> Tensor:
        magnitude = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
        sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1 if signed else 1
        return amid_nan((magnitude * sign * scale).to(dtype))

    def mean(terms: int) -> float:
        """What keeps a sum of so many products as large as one of them."""
        return terms**-0.5 if signed else 1 / terms

    x = draw(case.batch, height, width, case.inputs, dtype=dtype)
    weight = draw(
        case.outputs, case.kernel, case.kernel, case.inputs, dtype=dtype, scale=mean(case.inputs * case.kernel**2)
    )
    style = None
    if case.style != "none":
        exponents = torch.rand(case.inputs, generator=generator, dtype=torch.float64) * 8 - 4
        style = draw(case.batch, case.inputs, scale=STYLES.get(case.style, 10**exponents))
    demodulation = None
    if demodulated:
        power = (torch.ones(case.batch, case.inputs) if style is None else style).double().square()
        power = power @ weight.double().square().sum(dim=(1, 2)).t()
        demodulation = amid_nan(torch.rsqrt(power + 1e-8).to(beside))
    factor = 2 if upsample else 1
    present = {
        "noise": draw(height * factor, width * factor),
        "bias": draw(case.outputs),
        "next_style": draw(case.batch, case.outputs),
    }
    epilogue = Epilogue(
        demodulation, **{name: operand for name, operand in present.items() if name in case.present},
        noise_strength=case.noise_strength, slope=case.slope, gain=case.gain, clamp=case.clamp,
    )  # fmt: skip
    previous = draw(case.batch, 3, height // 2, width // 2, dtype=torch.float32)
    rgb = ToRgb(
        draw(3, case.outputs, scale=mean(case.outputs)), draw(case.batch, case.outputs), draw(3),
        previous if "previous" in case.present else None, case.clamp,
    )  # fmt: skip
    return Operands(x, weight, style, epilogue, rgb)


def amid_nan(operand: Tensor) -> Tensor:
    """The same numbers, contiguous, with NaN before and behind them."""
    around = operand.new_full((operand.numel() + 2 * MARGIN,), float("nan"))
    inside = around[MARGIN:-MARGIN].view(operand.shape)
    return inside.copy_(operand)


def phases(weight: Tensor) -> Tensor:
    """`polyphase_weight`, amid NaN."""
    return amid_nan(polyphase_weight(weight))


def in_double(value: Any) -> Any:
    """A tensor in float64, or a dataclass with those it has."""
    if isinstance(value, Tensor):
        return value.double()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{field.name: in_double(getattr(value, field.name)) for field in dataclasses.fields(value)}
        )
    return value


def assert_close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Each picture's errors are at most `tolerance` of its largest element; the worst one is shown. NaN is an error."""
    assert found.shape == wanted.shape and wanted.isfinite().all()
    wanted = wanted.double()
    errors = (found.double() - wanted).abs().nan_to_num(nan=torch.inf, posinf=torch.inf).flatten(1)
    sizes = wanted.abs().flatten(1).amax(dim=1, keepdim=True)
    excess = errors - tolerance * sizes
    if (excess > 0).any():
        place = tuple(int(index) for index in torch.unravel_index(excess.argmax(), found.shape))
        picture = place[0]
        relative = errors[picture].max().item() / max(sizes[picture].item(), 1e-300)
        raise AssertionError(
            f"worst element {place}: found {found[place].item():.9g}, expected {wanted[place].item():.9g}, "
            f"off by {relative:.2e} of the picture's largest element, at most {tolerance:.0e}"
        )


def assert_saturated(found: Tensor, wanted: Tensor) -> None:
    """What is far beyond float16 is its largest number, and nothing is infinite or NaN."""
    beyond = wanted.abs() > 2 * 65504
    assert beyond.any() and found.isfinite().all()
    assert torch.equal(found[beyond].double(), wanted[beyond].double().sign() * 65504)
