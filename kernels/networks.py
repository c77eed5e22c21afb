"""The networks whose layers are tuned and timed, by name or by numbers, and their calls one layer at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from styleinv.kernels.plan import FLOAT32, Call, Network, fused_calls
from styleinv.kernels.tiles import DEFAULT

NETWORKS = {"paper256": Network(256), "paper1024": Network(1024, channel_base=32768)}
NUMBERS = "RESOLUTION,CHANNEL_BASE,CHANNEL_MAX"
ENCODER_WIDTHS = (64, 128, 256, 512)  # of the paper's encoder, whose stages halve the picture


def network_of(text: str) -> Network:
    """A network by its name, or by its numbers, such as '512,32768,512'. Raises ValueError."""
    if text in NETWORKS:
        return NETWORKS[text]
    numbers = text.split(",")
    if len(numbers) != 3 or not all(number.isdecimal() and int(number) for number in numbers):
        raise ValueError(f"network: found '{text}', expected one of {', '.join(NETWORKS)}, or {NUMBERS}")
    resolution, channel_base, channel_max = map(int, numbers)
    if resolution < 4 or resolution & (resolution - 1) or channel_base < resolution:
        raise ValueError(
            f"network: found '{text}', expected a resolution that is a power of two, at least 4, and a channel base "
            "that is at least as large"
        )
    return Network(resolution, channel_base, channel_max)


def adain_calls(network: Network) -> list[Call]:
    """What the paper's encoder normalises, for pictures of this resolution: a call for each of its stages.

    About ten operations a number: five for its statistics, five for what is done with them.
    """
    calls = []
    for stage, width in enumerate(ENCODER_WIDTHS, start=1):
        size = network.resolution >> stage
        numbers = size * size * width
        written = numbers * network.dtype.itemsize
        read = written + 2 * width * FLOAT32
        calls.append(Call("adain_lrelu", (width, width, size, size), read=read, written=written, flops=10 * numbers))
    return [call for call in calls if call.layer[2] > 1]  # one pixel has no variance


def layer_calls(network: Network, device: str = DEFAULT) -> list[Call]:
    """The calls of the plan, with the steps of an upsampling layer, where it has several, as one call."""
    calls: list[Call] = []
    steps: list[Call] = []
    for call in fused_calls(network, device):
        if call.operator in ("times style", "transposed"):
            steps.append(call)
        elif call.operator == "filter":
            calls.append(_upsampling([*steps, call]))
            steps = []
        else:
            calls.append(call)
    return calls


def counted(calls: Iterable[Call]) -> dict[Call, int]:
    """Calls that differ, in their first order, and how often each is made."""
    counts: dict[Call, int] = {}
    for call in calls:
        counts[call] = counts.get(call, 0) + 1
    return counts


def _upsampling(steps: list[Call]) -> Call:
    layer = next(step.layer for step in steps if step.operator == "transposed")
    read, written, flops = (sum(getattr(step, name) for step in steps) for name in ("read", "written", "flops"))
    return replace(
        steps[-1], operator="modulated_conv2d_up2", layer=layer, styled=steps[0].operator == "times style",
        read=read, written=written, flops=flops,
    )  # fmt: skip
