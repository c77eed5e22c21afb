"""Adaptive instance normalisation: any size, any chunks, statistics that cancellation would spoil."""

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from interpreted import watched
from layer_cases import DTYPES, TOLERANCES, amid_nan, assert_close, assert_saturated, examples

from styleinv.kernels import launch, reference
from styleinv.kernels.tiles import Tile

SMALL_TILE = Tile(1, 16, 1, 16, 4, 1)


def results(x, gamma_beta, tile=None, **options):
    with watched(tile):
        found = launch.adain_lrelu(x, gamma_beta, **options)
    assert found.dtype == x.dtype
    return found, reference.adain_lrelu(x.double(), gamma_beta.double(), **options)


def pictures(shape, dtype, seed=0, mean=0.0, deviation=1.0):
    """x [B, H, W, C], and gamma and beta, [B, 2C]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * deviation + mean
    return amid_nan(x.to(dtype)), amid_nan(torch.randn(shape[0], 2 * shape[3], generator=generator))


def is_quick(shape, columns, outputs):
    """Whether the interpreter has few programs to run."""
    batch, height, width, channels = shape
    return batch * -(-height * width // columns) * -(-channels // outputs) <= 20


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 17), st.integers(1, 13), st.integers(1, 12) | st.integers(1, 72)),
    columns=st.sampled_from([1, 4, 16, 64, 256]),
    outputs=st.sampled_from([1, 4, 32]),
    slope=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 999),
)
@example(shape=(3, 17, 13, 5), columns=64, outputs=4, slope=0.2, seed=0)
@example(shape=(1, 4, 4, 72), columns=8, outputs=16, slope=0.2, seed=0)
@examples(12)
def test_layers_are_the_reference(dtype, shape, columns, outputs, slope, seed):
    assume(is_quick(shape, columns, outputs))
    x, gamma_beta = pictures(shape, dtype, seed)
    tile = Tile(1, columns, 1, outputs, 4, 1)
    assert_close(*results(x, gamma_beta, tile, slope=slope), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("mean", "deviation"), [(100.0, 0.1), (-100.0, 0.1), (1000.0, 1.0), (0.0, 1e-4), (0.0, 1e4)])
def test_a_mean_far_from_zero_takes_no_digits(mean, deviation, dtype):
    x, gamma_beta = pictures((2, 9, 7, 6), dtype, mean=mean, deviation=deviation)
    assert_close(*results(x, gamma_beta, SMALL_TILE), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (9, 7)])
@pytest.mark.parametrize("level", [0.0, 100.0])
def test_a_constant_picture_is_beta(level, size, dtype):
    """As one of a single pixel: its variance is 0, and epsilon alone keeps the quotient finite."""
    x, gamma_beta = pictures((2, *size, 6), dtype, mean=level, deviation=0.0)
    found, wanted = results(x, gamma_beta, SMALL_TILE)
    beta = torch.nn.functional.leaky_relu(gamma_beta[:, 6:], 0.2)[:, None, None].expand_as(found)
    assert torch.equal(found, found[:, :1, :1].expand_as(found))
    assert_close(found, beta, TOLERANCES[dtype])
    assert_close(wanted, beta, TOLERANCES[torch.float32])


@pytest.mark.parametrize("epsilon", [1e-8, 1e-5, 1.0])
def test_epsilon_is_added_to_the_variance(epsilon):
    x, gamma_beta = pictures((1, 5, 4, 3), torch.float32, deviation=0.01)
    assert_close(*results(x, gamma_beta, epsilon=epsilon), TOLERANCES[torch.float32])


def test_float16_saturates():
    x, gamma_beta = pictures((1, 5, 4, 3), torch.float16)
    assert_saturated(*results(x, gamma_beta * 1e6))
