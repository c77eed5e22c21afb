"""Styles and demodulation coefficients of all layers at once."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from interpreted import watched
from layer_cases import DTYPES, TOLERANCES, amid_nan, assert_close, examples

from styleinv.kernels import launch, reference
from styleinv.kernels.style_layers import block_table, layers_of

TOLERANCE = TOLERANCES[torch.float32]  # of any dtype: results are float32, and nothing is rounded on their way


def assert_styles_are_the_reference(layers, dtype, *, batch=2, size=16, scale=1.0, seed=0, latent=1.0):
    """Layers (I, O), latents [B, size], styles of about `scale`; each layer and picture is held to its own size."""
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = zip(*layers, strict=True)

    def draw(*shape, dtype=dtype, scale=1.0):  # positive: of a style of one number, rounding is compared with the sum
        return amid_nan(((torch.rand(shape, generator=generator) + 0.5) * scale).to(dtype))

    given = (
        draw(batch, size, scale=latent),
        draw(sum(inputs), size, scale=scale / size),
        draw(sum(inputs), dtype=torch.float32, scale=scale * latent),
        draw(sum(i * o for i, o in layers)),
        draw(sum(outputs), dtype=torch.float32, scale=1e-8),
    )
    with watched():
        styles, demodulation = launch.style_demod(*given, block_table(inputs, outputs), max(inputs))
    assert styles.dtype == demodulation.dtype == torch.float32
    wanted = reference.style_demod(*(operand.double() for operand in given), list(layers))
    for found, expected, sizes in ((styles, wanted[0], inputs), (demodulation, wanted[1], outputs)):
        assert found.shape == expected.shape
        for part, reference_part in zip(layers_of(found, batch, sizes), layers_of(expected, batch, sizes), strict=True):
            if part.numel():
                assert_close(part, reference_part, TOLERANCE)
    return styles, demodulation


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(
    first=st.integers(1, 20),
    layers=st.lists(st.tuples(st.integers(1, 40) | st.just(72), st.integers(0, 20)), max_size=4),
    batch=st.integers(1, 3),
    size=st.integers(1, 40),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    seed=st.integers(0, 999),
)
@example(first=3, layers=[(5, 9), (3, 0), (72, 8), (1, 1)], batch=3, size=300, scale=1.0, seed=0)
@examples(15)
def test_layers_are_the_reference(dtype, first, layers, batch, size, scale, seed):
    latent = 1.0
    if dtype is torch.float16:  # holds no weights of 1e-4 / size, nor of 1e4 with latents that are sums' parts
        latent, scale = scale, 1.0
    layers = [(first, 7), *layers]  # one at least is demodulated
    assert_styles_are_the_reference(layers, dtype, batch=batch, size=size, scale=scale, seed=seed, latent=latent)


def test_styles_are_at_most_1_where_demodulated():
    styles, _ = assert_styles_are_the_reference([(5, 9), (3, 0)], torch.float32, scale=1e4)
    demodulated, plain = layers_of(styles, 2, [5, 3])
    assert demodulated.abs().amax(dim=1).tolist() == [1.0, 1.0]
    assert plain.abs().max() > 1000


def test_a_style_of_zeros_divides_by_no_zero():
    styles, demodulation = assert_styles_are_the_reference([(5, 9), (3, 0)], torch.float32, scale=0.0)
    assert (styles == 0).all() and torch.isfinite(demodulation).all()
