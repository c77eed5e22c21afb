"""What watches the kernels' results sees a kernel that leaves one unwritten, and one that writes beside it."""

from unittest import mock

import pytest
import torch
import triton
from interpreted import watched
from layer_cases import Case, assert_close, operands, phases

from styleinv.kernels import launch, reference
from styleinv.kernels.style_layers import block_table
from styleinv.kernels.tiles import Tile

GIVEN = operands(Case(height=6, width=6), torch.float32)
UP = operands(Case(height=6, width=6), torch.float32, upsample=True)
LAYER = (GIVEN.style, GIVEN.epilogue)
LAUNCHES = {
    "modulated_conv2d": lambda: launch.modulated_layer(GIVEN.x, GIVEN.weight, *LAYER),
    "modulated_conv2d_up2": lambda: launch.upsampling_layer(UP.x, phases(UP.weight), UP.style, UP.epilogue),
    "filter": lambda: launch.filtered_layer(torch.ones(1, 5, 5, 3), reference.Epilogue()),
    "modulated_conv2d_rgb": lambda: launch.modulated_layer_to_rgb(GIVEN.x, GIVEN.weight, GIVEN.rgb, *LAYER),
    "modulated_conv2d_frame": lambda: launch.modulated_layer_to_frame(GIVEN.x, GIVEN.weight, GIVEN.rgb, *LAYER),
    "to_rgb_skip": lambda: launch.to_rgb_skip(torch.ones(2, 6, 6, 11), GIVEN.rgb),
    "to_rgb_skip_frame": lambda: launch.to_rgb_skip_frame(torch.ones(2, 6, 6, 11), GIVEN.rgb),
    "adain_lrelu": lambda: launch.adain_lrelu(GIVEN.x, torch.ones(2, 18)),
    "style_demod": lambda: launch.style_demod(
        torch.ones(1, 4), torch.ones(3, 4), torch.ones(3), torch.ones(6), torch.ones(2), block_table([3], [2]), 3
    ),
}


@pytest.mark.parametrize("operator", LAUNCHES)
def test_results_are_poison_until_they_are_written(operator):
    with mock.patch.object(launch, "_kernel", mock.MagicMock()), watched():
        results = LAUNCHES[operator]()
    for result in [results] if isinstance(results, torch.Tensor) else results:
        assert (result == 255 if result.dtype == torch.uint8 else result.isnan()).all()


def test_tiles_that_are_not_launched_are_seen():
    wanted = reference.modulated_layer(GIVEN.x, GIVEN.weight, *LAYER)
    with mock.patch.object(triton, "cdiv", lambda size, part: max(size // part, 1)), watched(Tile(4, 4, 16, 16, 4, 1)):
        found = LAUNCHES["modulated_conv2d"]()  # of 6 x 6 pixels 4 x 4
    assert torch.equal(found[:, :4, :4].isnan().any(), torch.tensor(False))
    with pytest.raises(AssertionError, match="found nan"):
        assert_close(found, wanted, 1e-5)


def test_numbers_beside_a_result_are_seen():
    with pytest.raises(AssertionError, match="written beside it"), watched():
        GIVEN.x.new_empty(4).as_strided((5,), (1,)).fill_(0)


def test_numbers_beside_an_operand_are_seen():
    assert GIVEN.x.as_strided((GIVEN.x.numel() + 1,), (1,))[-1].isnan()


def test_errors_of_one_picture_are_measured_by_it():
    wanted = torch.tensor([[1e4, 1.0], [1.0, 0.5]])
    assert_close(wanted + torch.tensor([[1.0, 0.0], [0.0, 0.0]]), wanted, 2e-4)
    with pytest.raises(AssertionError, match=r"worst element \(1, 1\): found 0.75, expected 0.5, off by 2.50e-01 of"):
        assert_close(wanted + torch.tensor([[0.0, 0.0], [0.0, 0.25]]), wanted, 2e-4)
