"""The plan of a picture's kernels, against numbers counted by hand and against the operands that are launched."""

from dataclasses import replace

import pytest
import torch

from styleinv.kernels import plan
from styleinv.kernels.networks import NETWORKS
from styleinv.kernels.plan import Call, Network, fused_calls, moved, unfused_calls

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SMALL = Network(8, channel_base=64, channel_max=16, w_dim=12)  # blocks of 4x4 pixels, 16 channels, and of 8x8, 8

# The affines of w give 16 + 16 + 16 + 8 + 8 = 64 styles; there are 16 16 + 16 8 + 8 8 = 448 squares and 16 + 8 + 8
# coefficients, in blocks of 8: 2 + 1 + 1 + 1 + 1 rows of 48 bytes. Styles are written raw, read, written normalised.
STYLES = Call(
    "style_demod", (12, 64, 1, 1),
    read=2 * (64 * 12 + 448) + 4 * (12 + 64 + 32 + 64) + 6 * 48, written=4 * (64 + 64 + 32), flops=2 * (64 * 12 + 448),
)  # fmt: skip
FUSED = [
    STYLES,
    # x, weight; style, coefficients, bias, noise, next style; the picture's weight, style, bias -> y, picture
    Call(
        "modulated_conv2d_rgb", (16, 16, 4, 4), styled=True, next_styled=True,
        read=2 * (256 + 2304) + 4 * (16 + 16 + 16 + 16 + 16) + 4 * (48 + 16 + 3), written=2 * 256 + 4 * 48,
        flops=2 * (16 * 2304 + 3 * 256),
    ),
    # x, four phases' weights; coefficients, bias, noise, next style -> y
    Call(
        "modulated_conv2d_up2", (16, 8, 4, 4), next_styled=True,
        read=2 * (256 + 4 * 1152) + 4 * (8 + 8 + 64 + 8), written=2 * 512, flops=2 * 64 * 1152,
    ),
    # x, weight; coefficients, bias, noise; the picture's weight, style, bias, the one before -> picture, frame
    Call(
        "modulated_conv2d_frame", (8, 8, 8, 8),
        read=2 * (512 + 576) + 4 * (8 + 8 + 64) + 4 * (24 + 8 + 3 + 48), written=4 * 192 + 192,
        flops=2 * (64 * 576 + 3 * 512),
    ),
]  # fmt: skip
IN_STEPS = [
    STYLES,
    Call("modulated_conv2d", (16, 16, 4, 4), styled=True,
         read=2 * (256 + 2304) + 4 * (16 + 16 + 16 + 16), written=2 * 256, flops=2 * 16 * 2304),
    Call("to_rgb_skip", (16, 3, 4, 4), styled=True,
         read=2 * 256 + 4 * (48 + 16 + 3), written=4 * 48, flops=2 * 3 * 256),
    Call("times style", (16, 16, 4, 4), read=2 * 256 + 4 * 16, written=2 * 256, flops=256),
    Call("transposed", (16, 8, 4, 4), read=2 * (256 + 1152), written=2 * 81 * 8, flops=2 * 16 * 1152),
    Call("filter", (8, 8, 4, 4), next_styled=True,
         read=2 * 81 * 8 + 4 * (8 + 8 + 64 + 8), written=2 * 512, flops=2 * 16 * 512),
    Call("modulated_conv2d", (8, 8, 8, 8),
         read=2 * (512 + 576) + 4 * (8 + 8 + 64), written=2 * 512, flops=2 * 64 * 576),
    Call("to_rgb_skip_frame", (8, 3, 8, 8), styled=True,
         read=2 * 512 + 4 * (24 + 8 + 3 + 48), written=4 * 192 + 192, flops=2 * 3 * 512),
]  # fmt: skip


@pytest.mark.parametrize(("fuses", "form", "expected"), [(True, "polyphase", FUSED), (False, "two_steps", IN_STEPS)])
def test_fused_calls_of_a_small_network_are_those_counted_by_hand(monkeypatch, fuses, form, expected):
    monkeypatch.setattr(plan, "fuses_rgb", lambda *_: fuses)
    monkeypatch.setattr(plan, "upsampling_form", lambda *_: form)
    assert fused_calls(SMALL) == expected


def test_unfused_calls_of_a_small_network_are_those_counted_by_hand():
    big, small = 2 * 16 * 16, 2 * 64 * 8  # bytes of the activations of the two blocks
    first = [
        ("times style", big + 4 * 16, big),
        ("product", big + 2 * 2304, big),
        ("times demodulation", big + 4 * 16, big),
        ("plus noise", big + 4 * 16, big),
        ("plus bias", big + 4 * 16, big),
        ("leaky ReLU", big, big),
        ("clamp", big, big),
    ]
    second = [
        ("times demodulation", small + 4 * 8, small),
        ("plus noise", small + 4 * 64, small),
        ("plus bias", small + 4 * 8, small),
        ("leaky ReLU", small, small),
        ("clamp", small, small),
    ]
    expected = [
        ("style_demod", STYLES.read, STYLES.written),
        *first,
        ("times style", big + 4 * 16, big),
        ("product", big + 2 * 48, 2 * 48),
        ("plus bias", 2 * 48 + 4 * 3, 2 * 48),
        ("clamp", 2 * 48, 2 * 48),
        ("times style", big + 4 * 16, big),
        ("transposed", big + 2 * 1152, 2 * 81 * 8),
        ("filter", 2 * 81 * 8, small),
        *second,
        ("times style", small + 4 * 8, small),
        ("product", small + 2 * 576, small),
        *second,
        ("times style", small + 4 * 8, small),
        ("product", small + 2 * 24, 2 * 192),
        ("plus bias", 2 * 192 + 4 * 3, 2 * 192),
        ("clamp", 2 * 192, 2 * 192),
        ("filter", 4 * 48, 4 * 192),
        ("plus picture", 4 * 192 + 4 * 192, 4 * 192),
        ("scale", 4 * 192, 4 * 192),
        ("shift", 4 * 192, 4 * 192),
        ("clamp", 4 * 192, 4 * 192),
        ("cast", 4 * 192, 192),
    ]
    found = [(call.operator, call.read, call.written) for call in unfused_calls(SMALL)]
    assert found == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_bytes_of_every_call_are_those_of_the_operands_it_is_launched_with(name, dtype):
    from styleinv.kernels.launches import launches_of

    network = replace(NETWORKS[name], dtype=dtype)
    for call in fused_calls(network):
        launches = launches_of(call, network)
        assert bool(launches) == (call.operator not in ("transposed", "times style"))
        if launches:
            assert call.moved == sum(launch.moved for launch in launches), call


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_kernels_move_less_than_045_of_what_the_unfused_form_moves(dtype):
    network = Network(256, dtype=dtype)
    share = moved(fused_calls(network)) / moved(unfused_calls(network))
    print(f"{moved(fused_calls(network)):,} of {moved(unfused_calls(network)):,} bytes, {share:.3f}")
    assert share <= 0.45


def test_without_noise_and_clamps_nothing_is_read_for_them():
    plain = replace(SMALL, noise=False, clamps=False)
    assert {call.operator for call in unfused_calls(SMALL)} - {call.operator for call in unfused_calls(plain)} == {
        "plus noise"
    }
    noise = 4 * (16 + 64 + 64)
    assert moved(fused_calls(SMALL)) - moved(fused_calls(plain)) == noise


def test_a_picture_multiplies_as_often_fused_as_unfused_where_upsampling_is_two_steps(monkeypatch):
    monkeypatch.setattr(plan, "upsampling_form", lambda *_: "two_steps")
    network = Network(256)

    def products(calls):
        names = ("modulated_conv2d", "modulated_conv2d_rgb", "modulated_conv2d_frame", "transposed", "product")
        contributions = ("to_rgb_skip", "to_rgb_skip_frame")
        return sum(call.flops for call in calls if call.operator in (*names, *contributions))

    assert products(fused_calls(network)) == products(unfused_calls(network))
