"""The convolution kernel at one size: 3x3 and 1x1, with a style and without, with any epilogue."""

import dataclasses

import pytest
import torch
from hypothesis import example, given
from interpreted import watched
from layer_cases import DTYPES, TOLERANCES, Case, assert_close, assert_saturated, cases, examples, in_double, operands

from styleinv.kernels import launch, reference
from styleinv.kernels.tiles import Tile

SMALL_TILE = Tile(4, 8, 16, 16, 4, 1)


def results(given, tile=None):
    """The kernel's and the reference's, of the same numbers."""
    with watched(tile):
        found = launch.modulated_layer(given.x, given.weight, given.style, given.epilogue)
    assert found.dtype == given.x.dtype
    wide = in_double(given)
    return found, reference.modulated_layer(wide.x, wide.weight, wide.style, wide.epilogue)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(case=cases())
@example(case=Case(batch=3, height=17, width=13, inputs=6, outputs=5, tile=SMALL_TILE))
@example(case=Case(batch=1, height=8, width=8, inputs=72, outputs=40, tile=SMALL_TILE))
@example(case=Case(batch=1, height=1, width=1, inputs=1, outputs=72))
@example(case=Case(batch=1, height=1, width=1, inputs=1, outputs=1, present=frozenset()))
@examples(10)
def test_layers_are_the_reference(dtype, case):
    assert_close(*results(operands(case, dtype), case.tile), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("style", ["small", "large", "mixed", "zero"])
@pytest.mark.parametrize("inputs", [1, 40])
def test_any_style_is_in_range(inputs, style, dtype):
    case = Case(height=3, width=4, inputs=inputs, outputs=12, style=style)
    assert_close(*results(operands(case, dtype)), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_clamp_is_hit_before_the_next_style(dtype):
    given = operands(Case(clamp=0.5, present=frozenset({"demodulation", "bias", "noise"})), dtype)
    found, wanted = results(given)
    assert (found == 0.5).any() and (found == -0.5).any()
    assert found.abs().max() == 0.5
    assert_close(found, wanted, TOLERANCES[dtype])
    tripled = given.x.new_full((2, 11), 3.0)
    found, wanted = results(
        dataclasses.replace(given, epilogue=dataclasses.replace(given.epilogue, next_style=tripled))
    )
    assert found.abs().max() == 1.5
    assert_close(found, wanted, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_noise_of_no_strength_is_none(dtype):
    given = operands(Case(noise_strength=0.0), dtype)
    silent = dataclasses.replace(given, epilogue=dataclasses.replace(given.epilogue, noise=None))
    zeros = torch.zeros_like(given.epilogue.noise)
    zero = dataclasses.replace(given, epilogue=dataclasses.replace(given.epilogue, noise=zeros, noise_strength=1.0))
    found = [results(each)[0] for each in (given, silent, zero)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_float16_saturates():
    """Neither x * style nor the result is in range; what is not is the largest number there is, never infinite."""
    given = operands(Case(style="large", present=frozenset()), torch.float32)
    given = dataclasses.replace(given, x=(given.x * 1000).half(), weight=given.weight.half())
    assert_saturated(*results(given))


def test_tiles_do_not_change_the_result():
    """In float32, where sums of other orders differ in the last digits only."""
    given = operands(Case(batch=1, height=7, width=6, inputs=17, outputs=17), torch.float32)
    tiles = [Tile(1, 16, 16, 16, 4, 1), Tile(16, 1, 32, 16, 4, 1), Tile(8, 4, 16, 32, 4, 1)]
    found = [results(given, tile)[0] for tile in tiles]
    for other in found[1:]:
        assert_close(other, found[0], 1e-6)
