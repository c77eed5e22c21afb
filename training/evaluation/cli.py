"""`styleinv evaluate`: how good a model is, in numbers and pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from styleinv.runtime.errors import ConfigError, DataError
from styleinv.training.checkpoint import load_checkpoint
from styleinv.training.checkpoint_file import replacing
from styleinv.training.data import load_clips
from styleinv.training.evaluation.curves import as_csv, read_curves
from styleinv.training.evaluation.evaluate import evaluate
from styleinv.training.evaluation.features import CONVERSION, SCALINGS, FeatureNetwork
from styleinv.training.evaluation.page import write_page
from styleinv.training.evaluation.pictures import draw_all
from styleinv.training.evaluation.targets import check_comparable, judge
from styleinv.training.model import InversionModel

MISSED = 1  # exit status where a target is missed


def main(argv: list[str]) -> int:
    """Evaluate a checkpoint; 0 done, 1 where --targets were asked for and one is missed."""
    arguments = _parser().parse_args(argv)
    if arguments.frames < 8 or arguments.clips < 2:
        raise ConfigError(f"--frames, --clips: found {arguments.frames}, {arguments.clips}, expected at least 8 and 2")
    network = FeatureNetwork.open(arguments.features, arguments.name, arguments.scaling)
    if arguments.targets:
        check_comparable(network.distance, arguments.frames)
    clip_network = (
        FeatureNetwork.open(arguments.clip_features, arguments.clip_name, arguments.clip_scaling)
        if arguments.clip_features
        else None
    )
    curves = read_curves(arguments.log) if arguments.log else {}
    checkpoint = load_checkpoint(arguments.model)
    config = checkpoint.config
    moves = checkpoint.kind == "styleinv"
    clips = load_clips(
        arguments.data, config.model.generator.resolution, frame_rate=config.frame_rate if moves else None
    )
    evaluation = evaluate(
        checkpoint,
        clips,
        network,
        frames=arguments.frames,
        clip_network=clip_network,
        clip_count=arguments.clips,
        data=Path(arguments.data).name,
    )
    targets = judge(evaluation) if arguments.targets else []
    if targets:
        evaluation["targets"] = targets
    assert not isinstance(checkpoint.model, InversionModel), "evaluate refuses it"
    pictures = draw_all(checkpoint.model, clips, config.frame_rate)
    out: Path = arguments.out
    for name, content in pictures.items():
        _write(out / name, content)
    write_page(out / "results.html", evaluation, curves, pictures)
    if curves:
        _write(out / "curves.csv", as_csv(curves))
    _write(out / "evaluation.json", (json.dumps(evaluation, indent=2, allow_nan=False) + "\n").encode())
    print("\n".join(table(evaluation)))
    print(f"{out / 'results.html'} and {out / 'evaluation.json'} written")
    return MISSED if any(not target["met"] for target in targets) else 0


def table(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """The lines that a person reads: one for each number."""
    heading = ("model", "kind", "parameters", "data", "features", "frames")
    yield ", ".join(str(evaluation[name]) for name in heading if evaluation[name] != "")
    for group, value in evaluation.items():
        if group in (*heading, "versions", "targets"):
            continue
        rows = {f"{group}.{name}": each for name, each in value.items()} if isinstance(value, dict) else {group: value}
        for name, found in rows.items():
            shown = f"{1000 * found:.4g} / 1000" if name.endswith("kernel_distance") else found
            yield f"  {name:34}{f'{shown:.4g}' if isinstance(shown, float) else '-' if shown is None else shown}"
    for target in evaluation.get("targets", ()):
        found = "-" if target["found"] is None else f"{target['found']:.4g}"
        yield f"  {'met   ' if target['met'] else 'MISSED'}  {target['name']} {target['bound']:g}: {found}"


def _parser() -> argparse.ArgumentParser:
    scalings = ", ".join(SCALINGS)
    parser = argparse.ArgumentParser(
        prog="styleinv evaluate",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure a checkpoint against real clips: Frechet and kernel distances, precision and recall,\n"
        "drift over time, motion, diversity and the identity of the first frame. Writes evaluation.json, results.html\n"
        "(everything in one file), samples.png and, of a model of clips, contact.png and clip_*.webp; with --log also\n"
        "curves.csv.\n\n"
        "Distances are those over the features that an ONNX network makes of frames resized to its input by bicubic\n"
        "interpolation. They are called FID and FVD over inception and i3d alone, else FD-NAME.",
        epilog=CONVERSION,
    )
    parser.add_argument("model", metavar="MODEL", help="an image, transfer or styleinv checkpoint (.safetensors)")
    parser.add_argument("--data", required=True, metavar="PATH", help="the real clips, as `styleinv train` takes them")
    parser.add_argument("--features", type=Path, required=True, metavar="FILE", help="feature network of pictures "
                        "(.onnx), [N, 3, S, S] -> [N, F]")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    parser.add_argument("--frames", type=int, default=2000, metavar="N", help="seeds that are drawn, at each time "
                        "(default: 2000)")  # fmt: skip
    parser.add_argument("--name", help="what the feature network is (default: its file's name)")
    parser.add_argument("--scaling", choices=SCALINGS, metavar="NAME", help="of its pixels: " + scalings + " (default: "
                        "bytes for inception and i3d, else imagenet)")  # fmt: skip
    parser.add_argument("--clip-features", type=Path, metavar="FILE", help="feature network of clips too (.onnx), "
                        "[N, 3, T, S, S] -> [N, F], for 16 and 128 frames and every 8th of 128")  # fmt: skip
    parser.add_argument("--clip-name", metavar="NAME", help="as --name, of that network")
    parser.add_argument("--clip-scaling", choices=SCALINGS, metavar="NAME", help="as --scaling, of that network")
    parser.add_argument("--clips", type=int, default=256, metavar="N", help="clips drawn for it (default: 256)")
    parser.add_argument("--log", type=Path, metavar="DIR", help="output folder of `styleinv train`, for its curves")
    parser.add_argument("--targets", action="store_true", help="hold the model to the bounds of the shipped sample "
                        "(over mobilenetv2, 2000 frames or more); exit with 1 where one is missed")  # fmt: skip
    return parser


def _write(path: Path, content: bytes) -> None:
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error}") from error
