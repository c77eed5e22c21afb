"""Layers that double the size, in both forms, and the kernel of the FIR filter."""

import dataclasses

import pytest
import torch
from hypothesis import example, given
from interpreted import watched
from layer_cases import (
    DTYPES,
    TOLERANCES,
    Case,
    amid_nan,
    assert_close,
    assert_saturated,
    cases,
    examples,
    in_double,
    operands,
    phases,
)

from styleinv.kernels import launch, reference
from styleinv.kernels.tiles import Tile


def polyphase(given, tile=None):
    """One kernel, and the reference on the weights of its phases."""
    weight = phases(given.weight)
    with watched(tile):
        found = launch.upsampling_layer(given.x, weight, given.style, given.epilogue)
    assert found.dtype == given.x.dtype
    wide = in_double(given)
    return found, reference.modulated_layer(wide.x, weight.double(), wide.style, wide.epilogue, upsample=True)


def two_steps(given, tile=None):
    """A transposed convolution and the kernel of the filter, and the reference."""
    weight = amid_nan(given.weight.permute(3, 1, 2, 0))
    with watched(tile):
        found = launch.upsampling_layer(given.x, weight, given.style, given.epilogue)
    assert found.dtype == given.x.dtype
    wide = in_double(given)
    return found, reference.modulated_layer(wide.x, wide.weight, wide.style, wide.epilogue, upsample=True)


def filtered(given, tile=None):
    """The kernel of the filter alone, on [B, 2H+1, 2W+1, O]."""
    batch, height, width, _ = given.x.shape
    outputs = given.weight.shape[0]
    x = torch.randn(batch, 2 * height + 1, 2 * width + 1, outputs, generator=torch.Generator().manual_seed(outputs))
    x = amid_nan(x.to(given.x.dtype))
    with watched(tile):
        found = launch.filtered_layer(x, given.epilogue)
    assert found.dtype == x.dtype
    return found, reference.filtered_layer(x.double(), in_double(given.epilogue))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(case=cases(slowness=2, kernel=3))
@example(case=Case(batch=1, height=17, width=13, inputs=3, outputs=4, tile=Tile(8, 16, 16, 16, 4, 1)))
@example(case=Case(batch=2, height=1, width=1, inputs=72, outputs=17))
@example(case=Case(batch=1, height=1, width=1, inputs=1, outputs=1, present=frozenset()))
@examples(6)
def test_one_kernel_is_the_reference(dtype, case):
    assert_close(*polyphase(operands(case, dtype, upsample=True), case.tile), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(case=cases(slowness=2, kernel=3))
@example(case=Case(batch=1, height=17, width=13, inputs=3, outputs=4, tile=Tile(16, 16, 16, 16, 4, 1)))
@example(case=Case(batch=1, height=1, width=1, inputs=72, outputs=72))
@examples(6)
def test_two_steps_are_the_reference(dtype, case):
    assert_close(*two_steps(operands(case, dtype, upsample=True), case.tile), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(case=cases(slowness=2, kernel=3, inputs=1))
@examples(6)
def test_the_filter_is_the_reference(dtype, case):
    assert_close(*filtered(operands(case, dtype, upsample=True), case.tile), TOLERANCES[dtype])


@pytest.mark.parametrize("form", [polyphase, two_steps])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("style", ["small", "large", "mixed", "zero"])
def test_any_style_is_in_range(style, dtype, form):
    case = Case(batch=1, height=2, width=3, inputs=12, outputs=12, style=style)
    assert_close(*form(operands(case, dtype, upsample=True)), TOLERANCES[dtype])


@pytest.mark.parametrize("form", [polyphase, two_steps, filtered])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_clamp_is_hit(dtype, form):
    present = frozenset({"demodulation", "bias", "noise"})
    found, wanted = form(operands(Case(batch=1, height=2, width=4, clamp=0.25, present=present), dtype, upsample=True))
    assert (found == 0.25).any() and (found == -0.25).any()
    assert found.abs().max() == 0.25
    assert_close(found, wanted, TOLERANCES[dtype])


@pytest.mark.parametrize("form", [polyphase, two_steps])
def test_float16_saturates(form):
    """The epilogue's gain makes numbers that float16 has not; they are its largest one, never infinite."""
    given = operands(
        Case(batch=1, height=2, width=4, present=frozenset({"demodulation"})), torch.float16, upsample=True
    )
    assert_saturated(*form(dataclasses.replace(given, epilogue=dataclasses.replace(given.epilogue, gain=1e6))))
