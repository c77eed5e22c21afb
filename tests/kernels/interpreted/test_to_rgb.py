"""The running picture and the frame: by the convolution before them, and by a kernel of their own."""

import pytest
import torch
from hypothesis import example, given
from interpreted import watched
from layer_cases import DTYPES, TOLERANCES, Case, assert_close, cases, examples, in_double, operands

from styleinv.kernels import launch, reference
from styleinv.kernels.operands import ToRgb
from styleinv.kernels.tiles import Tile

PICTURE = frozenset({"previous"})


def fused(given, tile=None):
    """What a convolution makes with its picture, y and image, and the reference's; the frame is of this very image."""
    with watched(tile):
        y, image = launch.modulated_layer_to_rgb(given.x, given.weight, given.rgb, given.style, given.epilogue)
    with watched(tile):
        same, frame = launch.modulated_layer_to_frame(given.x, given.weight, given.rgb, given.style, given.epilogue)
    assert (y.dtype, image.dtype, frame.dtype) == (given.x.dtype, torch.float32, torch.uint8)
    assert torch.equal(same, image)
    assert torch.equal(frame, reference.to_uint8(image))
    wide = in_double(given)
    wanted = reference.modulated_layer_to_rgb(wide.x, wide.weight, wide.rgb, wide.style, wide.epilogue)
    return (y, image), wanted


def alone(x, rgb, tile=None):
    """The kernel's image and the reference's; the frame is of this very image."""
    with watched(tile):
        image = launch.to_rgb_skip(x, rgb)
    with watched(tile):
        same, frame = launch.to_rgb_skip_frame(x, rgb)
    assert (image.dtype, frame.dtype) == (torch.float32, torch.uint8)
    assert torch.equal(same, image)
    assert torch.equal(frame, reference.to_uint8(image))
    return image, reference.to_rgb_skip(x.double(), in_double(rgb))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(case=cases(slowness=2))
@example(case=Case(batch=1, height=17, width=13, inputs=3, outputs=5, tile=Tile(8, 8, 16, 16, 4, 1)))
@example(case=Case(batch=1, height=2, width=2, inputs=40, outputs=72))
@example(case=Case(batch=3, height=1, width=1, inputs=1, outputs=1, present=frozenset()))
@examples(6)
def test_a_convolution_with_its_picture_is_the_reference(dtype, case):
    (y, image), (wanted_y, wanted_image) = fused(operands(case, dtype), case.tile)
    assert_close(y, wanted_y, TOLERANCES[dtype])
    assert_close(image, wanted_image, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(case=cases(slowness=2, kernel=1, inputs=1))
@example(case=Case(batch=1, height=17, width=13, outputs=72, tile=Tile(1, 64, 32, 4, 4, 1)))
@example(case=Case(batch=1, height=17, width=13, outputs=5, present=frozenset()))
@example(case=Case(batch=1, height=1, width=1, outputs=1, present=frozenset()))
@examples(9)
def test_a_picture_is_the_reference(dtype, case):
    """Read as [B, H, W, C], with as many channels as the layer before has outputs."""
    given = operands(case, dtype)
    x = operands(Case(case.batch, *given.x.shape[1:3], inputs=case.outputs, seed=case.seed), dtype).x
    # A result is float32, so that numbers which are float16 or bfloat16 lose nothing on their way.
    assert_close(*alone(x, given.rgb, case.tile), TOLERANCES[torch.float32])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_clamp_holds_the_contribution_not_the_sum(dtype):
    given = operands(Case(height=6, width=8, inputs=11, present=PICTURE), dtype)
    x, rgb = given.x, ToRgb(given.rgb.weight, given.rgb.style, given.rgb.bias, None, 0.5)
    image, wanted = alone(x, rgb)
    assert (image == 0.5).any() and (image == -0.5).any() and image.abs().max() == 0.5
    assert_close(image, wanted, TOLERANCES[torch.float32])
    image, wanted = alone(x, ToRgb(rgb.weight, rgb.style, rgb.bias, given.rgb.previous, 0.5))
    assert image.abs().max() > 0.5
    assert_close(image, wanted, TOLERANCES[torch.float32])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("style", ["small", "large", "mixed", "zero"])
def test_the_pictures_style_may_be_extreme(style, dtype):
    rows = operands(Case(inputs=11, style=style, present=PICTURE), torch.float32)
    given = operands(Case(height=6, width=8, inputs=11, present=PICTURE), dtype)
    rgb = ToRgb(given.rgb.weight, rows.style, given.rgb.bias, given.rgb.previous)
    assert_close(*alone(given.x, rgb), TOLERANCES[torch.float32])


def test_frames_have_every_level():
    """From far below black to far above white."""
    x = torch.linspace(-1.5, 1.5, 3 * 16 * 32).view(1, 16, 32, 3)
    with watched():
        _, frame = launch.to_rgb_skip_frame(x, ToRgb(torch.eye(3), torch.ones(1, 3), torch.zeros(3)))
    assert torch.equal(frame, reference.to_uint8(x.permute(0, 3, 1, 2)))
    assert frame.unique().numel() == 256
