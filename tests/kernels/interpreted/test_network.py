"""A whole synthesis network drawn by the kernels: what `FusedSynthesis` computes on a GPU."""

from unittest import mock

import pytest
import torch

from styleinv.export.fused_synthesis import FusedSynthesis
from styleinv.kernels import launch
from styleinv.training.generator import SynthesisNetwork

TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_network_draws_the_picture_of_the_form_that_learns(dtype):
    torch.manual_seed(0)
    network = SynthesisNetwork(16, 12, channel_base=192, channel_max=40, conv_clamp=256.0).requires_grad_(False)
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "noise_strength")):
            parameter.data += torch.randn_like(parameter) * 0.3
    w = torch.randn(2, 12)
    expected = network.double()(w.double())
    fused = FusedSynthesis(network, "const", dtype)
    with (
        mock.patch.object(torch.Tensor, "is_cuda", True),  # so that the operators launch their kernels
        mock.patch.object(launch, "_convolve", wraps=launch._convolve) as convolve,
    ):
        image, frame = fused(w)
    assert convolve.call_count == 5
    error = ((image.double() - expected).abs().max() / expected.abs().max()).item()
    print(f"{dtype}: {error:.1e}")
    assert error < TOLERANCES[dtype]
    levels = (expected.permute(0, 2, 3, 1) * 127.5 + 128).clamp(0, 255)
    assert (frame.double() - levels).abs().max() < 1 + 255 * TOLERANCES[dtype] * expected.abs().max()
