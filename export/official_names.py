"""The names and shapes of tensors in our checkpoints and in the authors', for every configuration, spelled out.

A table's entry gives our name, the part of their file, the name in that part, and the shape. Read one way it brings a
file in, read the other way it brings a checkpoint back.

Shapes: Z size of z, W size of a latent, S size of a temporal style, C channels, U size of a motion code, F frequencies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from styleinv.training.config import EncoderConfig, GeneratorConfig, ModelConfig

Array = npt.NDArray[np.float32]
Place = tuple[str, str]  # part of the file, such as 'G', and name within

TIME = "mapping.motion_encoder.time_encoder"
FREQUENCIES = "motion.frequencies"  # [F]; theirs is [1, F]
REDUCTION = 16  # of the squeeze-and-excitation


class Entry(NamedTuple):
    """One tensor: our name, theirs within its part, and its shape in our checkpoint."""

    ours: str
    theirs: str
    shape: tuple[int, ...]


Entries = Iterator[Entry]


def tensor_table(kind: str, config: ModelConfig) -> dict[Place, Entry]:
    """Every tensor of a checkpoint of this kind, by its place in the authors' file."""
    if kind in ("image", "transfer"):
        return _at("G", _generator(config.generator))
    if kind == "inversion":
        average = Entry("latent_average", "latent_avg", (config.generator.w_dim,))
        return _at("pSp", [average, *_backbone(config.encoder), *_head(config)])
    pictures = [entry._replace(ours=f"generator.{entry.ours}") for entry in _generator(config.generator)]
    return _at("G", pictures) | _at("SI", _styleinv(config))


def _at(part: str, entries: Iterable[Entry]) -> dict[Place, Entry]:
    return {(part, entry.theirs): entry for entry in entries}


def computed_tensors(kind: str, config: ModelConfig, frequencies: Array | None) -> dict[Place, Array]:
    """Tensors of theirs that follow from the configuration, so that ours have none: filters and scales of phases."""
    taps = np.array([1, 3, 3, 1], np.float32)
    fir = (np.outer(taps, taps) / 64).astype(np.float32)
    tensors: dict[Place, Array] = {}
    if kind != "inversion":
        for resolution, layers in _synthesis_layers(config.generator):
            for layer in ("", *(f"{layer}." for layer in layers)):
                tensors[("G", f"synthesis.b{resolution}.{layer}resample_filter")] = fir
    if kind == "styleinv":
        assert frequencies is not None
        one = np.float32(1)  # torch divides a number by a tensor as number * (1 / tensor): the same bits as theirs
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # of frequencies that are nonsense
            periods = np.float32(2 * math.pi) * (one / frequencies)
            scales = np.float32(config.motion.max_period) * (one / periods)
        tensors[("SI", f"{TIME}.phase_scales")] = scales[None]
        if config.encoder.modulation == "convolution" and not config.skip_encoder:
            for index, _ in enumerate(_temporal_places(config.encoder)):
                for layer in ("", "conv0.", "conv1.", "skip."):
                    tensors[("SI", f"encoder.adains.{index}.{layer}resample_filter")] = fir
    return tensors


def _generator(config: GeneratorConfig) -> Entries:
    w_dim = config.w_dim
    yield Entry("mapping.latent_average", "mapping.w_avg", (w_dim,))
    inputs = config.z_dim
    if config.label_dim:
        embedding = config.label_embedding_dim or w_dim
        yield from _linear("mapping.embed", "mapping.embed", config.label_dim, embedding)
        inputs += embedding
    widths = [inputs, *[config.mapping_dim or w_dim] * (config.mapping_layers - 1), w_dim]
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        yield from _linear(f"mapping.layers.{index}", f"mapping.fc{index}", before, after)
    before = _channels(config, 4)
    yield Entry("synthesis.const", "synthesis.b4.const", (before, 4, 4))
    for index, (resolution, layers) in enumerate(_synthesis_layers(config)):
        ours, theirs = f"synthesis.blocks.{index}", f"synthesis.b{resolution}"
        channels = _channels(config, resolution)
        for position, layer in enumerate(layers):
            place = f"{ours}.convs.{position}"
            yield from _modulated(place, f"{theirs}.{layer}", before, channels, 3, w_dim)
            if config.use_noise:
                yield Entry(f"{place}.noise", f"{theirs}.{layer}.noise_const", (resolution, resolution))
                yield Entry(f"{place}.noise_strength", f"{theirs}.{layer}.noise_strength", ())
            before = channels
        yield from _modulated(f"{ours}.to_rgb", f"{theirs}.torgb", channels, 3, 1, w_dim)


def _synthesis_layers(config: GeneratorConfig) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Each block's resolution and their names of its convolutions; the first block has one only."""
    for level in range(2, config.resolution.bit_length()):
        yield 2**level, ("conv0", "conv1") if level > 2 else ("conv1",)


def _channels(config: GeneratorConfig, resolution: int) -> int:
    return min(config.channel_base // resolution, config.channel_max)


def _styleinv(config: ModelConfig) -> Entries:
    w_dim = config.generator.w_dim
    style_dim = config.motion.style_dim or w_dim
    yield from _motion(config, style_dim)
    if not config.skip_encoder:
        yield from _backbone(config.encoder)
        yield from _temporal(config.encoder, style_dim)
        yield from _head(config)
    if not config.input_residual or config.stores_latent_average:
        yield Entry("latent_average", "latent_avg", (w_dim,))
    if config.recovered_motion_dim:
        yield from _linear("recovery.0", "H.0", style_dim, style_dim)
        yield from _linear("recovery.2", "H.2", style_dim, config.recovered_motion_dim)


def _motion(config: ModelConfig, style_dim: int) -> Entries:
    motion, theirs = config.motion, "mapping.motion_encoder"
    if motion.first_frame_aware:
        yield Entry("motion.first_code_noise", f"{theirs}.frame_0_const", (motion.noise_dim,))
    for index, outputs in enumerate((motion.noise_dim, motion.code_dim)):
        shape = (outputs, motion.noise_dim, motion.kernel_size)
        yield Entry(f"motion.conv.{index}.weight", f"{theirs}.conv.{index}.weight", shape)
        yield Entry(f"motion.conv.{index}.bias", f"{theirs}.conv.{index}.bias", (outputs,))
    frequencies, code_dim = motion.frequencies, motion.code_dim
    yield Entry(FREQUENCIES, f"{TIME}.freqs", (frequencies,))
    yield Entry("motion.period.weight", f"{TIME}.periods_predictor.weight", (frequencies, code_dim))
    yield Entry("motion.phase.weight", f"{TIME}.phase_predictor.weight", (frequencies, code_dim))
    yield Entry("motion.aligner.weight", f"{TIME}.aligners_predictor.weight", (2 * frequencies, code_dim))
    content = config.generator.w_dim if motion.style_sees_content else 0
    widths = [content + 2 * frequencies, *[style_dim] * motion.style_layers]
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        yield from _linear(f"style.layers.{index}", f"mapping.fcf{index}", before, after)


def _backbone(config: EncoderConfig) -> Entries:
    first = config.widths[0]
    yield Entry("encoder.stem.0.weight", "encoder.input_layer.0.weight", (first, 3, 3, 3))
    yield from _statistics("encoder.stem.1", "encoder.input_layer.1", first)
    yield Entry("encoder.stem.2.weight", "encoder.input_layer.2.weight", (first,))
    before = first
    for index, after in enumerate(_bottleneck_widths(config)):
        yield from _bottleneck(f"encoder.bottlenecks.{index}", f"encoder.body.{index}", before, after)
        before = after


def _bottleneck(ours: str, theirs: str, before: int, after: int) -> Entries:
    ours_inside, theirs_inside = f"{ours}.residual", f"{theirs}.res_layer"
    yield from _statistics(f"{ours_inside}.0", f"{theirs_inside}.0", before)
    yield Entry(f"{ours_inside}.1.weight", f"{theirs_inside}.1.weight", (after, before, 3, 3))
    yield Entry(f"{ours_inside}.2.weight", f"{theirs_inside}.2.weight", (after,))
    yield Entry(f"{ours_inside}.3.weight", f"{theirs_inside}.3.weight", (after, after, 3, 3))
    yield from _statistics(f"{ours_inside}.4", f"{theirs_inside}.4", after)
    squeezed = after // REDUCTION
    yield Entry(f"{ours_inside}.5.squeeze.weight", f"{theirs_inside}.5.fc1.weight", (squeezed, after, 1, 1))
    yield Entry(f"{ours_inside}.5.excite.weight", f"{theirs_inside}.5.fc2.weight", (after, squeezed, 1, 1))
    if before != after:
        yield Entry(f"{ours}.shortcut.0.weight", f"{theirs}.shortcut_layer.0.weight", (after, before, 1, 1))
        yield from _statistics(f"{ours}.shortcut.1", f"{theirs}.shortcut_layer.1", after)


def _temporal(config: EncoderConfig, style_dim: int) -> Entries:
    widths = _bottleneck_widths(config)
    for index, bottleneck in enumerate(_temporal_places(config)):
        ours, theirs, channels = f"encoder.temporal.{bottleneck}", f"encoder.adains.{index}", widths[bottleneck]
        if config.modulation == "convolution":
            yield Entry(f"{ours}.skip.weight", f"{theirs}.skip.weight", (channels, channels, 1, 1))
            yield from _modulated(f"{ours}.conv1", f"{theirs}.conv0", channels, channels, 3, style_dim)
            yield from _modulated(f"{ours}.conv2", f"{theirs}.conv1", channels, channels, 3, style_dim)
            continue
        for number in (1, 2):
            yield from _linear(f"{ours}.affine{number}", f"{theirs}.norm{number}.fc", style_dim, 2 * channels)
            yield Entry(f"{ours}.conv{number}.weight", f"{theirs}.conv{number}.weight", (channels, channels, 3, 3))
            yield Entry(f"{ours}.conv{number}.bias", f"{theirs}.conv{number}.bias", (channels,))


def _temporal_places(config: EncoderConfig) -> list[int]:
    """The bottlenecks that a temporal block follows: ours are named after these, theirs are numbered."""
    if config.temporal_blocks == "bottleneck":
        return list(range(sum(config.depths)))
    return [last - 1 for last in itertools.accumulate(config.depths)]


def _bottleneck_widths(config: EncoderConfig) -> list[int]:
    return [width for width, depth in zip(config.widths, config.depths, strict=True) for _ in range(depth)]


def _head(config: ModelConfig) -> Entries:
    channels, w_dim, components = config.encoder.widths[-1], config.generator.w_dim, config.encoder.pca_components
    yield from _linear("encoder.head", "encoder.linear", channels, channels if components else w_dim)
    if components:
        yield Entry("encoder.pca.weight", "pca_w", (channels, components))
        yield Entry("encoder.pca.bias", "pca_b", (components,))
        yield Entry("encoder.pca.directions", "pca_mul", (components, w_dim))


def _linear(ours: str, theirs: str, inputs: int, outputs: int) -> Entries:
    yield Entry(f"{ours}.weight", f"{theirs}.weight", (outputs, inputs))
    yield Entry(f"{ours}.bias", f"{theirs}.bias", (outputs,))


def _modulated(ours: str, theirs: str, before: int, after: int, kernel: int, style_dim: int) -> Entries:
    """A modulated convolution: weight, bias, and the affine layer of its style."""
    yield Entry(f"{ours}.weight", f"{theirs}.weight", (after, before, kernel, kernel))
    yield Entry(f"{ours}.bias", f"{theirs}.bias", (after,))
    yield from _linear(f"{ours}.affine", f"{theirs}.affine", style_dim, before)


def _statistics(ours: str, theirs: str, channels: int) -> Entries:
    """A batch normalisation."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield Entry(f"{ours}.{name}", f"{theirs}.{name}", (channels,))
    yield Entry(f"{ours}.num_batches_tracked", f"{theirs}.num_batches_tracked", ())
